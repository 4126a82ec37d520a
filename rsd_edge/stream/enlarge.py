"""One decoded image to one result file: colours through the network, transparency beside it, gray back to gray."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rsd_edge.frames import SCALE
from rsd_edge.opencv import cv2
from rsd_edge.resample import AreaReduction, Bands, Size
from rsd_edge.stream.encoders import Layout, Pixels
from rsd_edge.stream.images import LoadedImage
from rsd_edge.stream.metadata import Metadata
from rsd_edge.stream.results import ResultPlan, plan_result

_CUBIC_REACH = 2
"""Rows beyond a strip that its bicubic enlargement reads on each side."""


class Resolver(Protocol):
    """What is needed of `SuperResolver`."""

    def bands(
        self,
        image_bgr: NDArray[Any],
        *,
        seed: int = 0,
        strength: float = 1.0,
        size: Size | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Bands:
        """uint8 or uint16 (h, w, 3) BGR -> bands of rows, of a result of `size` (width, height), from top to bottom."""


def plan_enlarged(loaded: LoadedImage, size: Size, path: Path, *, strip: bool = False) -> ResultPlan:
    """The file that the image, enlarged to `size` (width, height), becomes at `path`; strip: without metadata.

    Raises OutputError as `plan_result` does.
    """
    channels = (1 if loaded.gray else 3) + (loaded.alpha is not None)
    metadata = Metadata() if strip else loaded.header.metadata.for_result(*size)
    return plan_result(path, Layout(*size, channels, loaded.bits), metadata)


def enlarge(
    loaded: LoadedImage,
    plan: ResultPlan,
    resolver: Resolver,
    *,
    seed: int = 0,
    strength: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Make the file that was planned for this image. Beside the image and what the format needs, memory holds bands.

    Raises OutputError as `ResultPlan.write` does, BackendError if the engine fails.
    """
    size = (plan.made.width, plan.made.height)
    pixels = loaded.pixels if loaded.alpha is None else spread_colours(loaded.pixels, loaded.alpha)
    bands = resolver.bands(pixels, seed=seed, strength=strength, size=size, progress=progress)
    with contextlib.closing(bands):
        plan.write(_like_the_source(bands, loaded, size))


def _like_the_source(bands: Iterator[Pixels], loaded: LoadedImage, size: Size) -> Iterator[Pixels]:
    """The bands with the channels of the source: gray made gray again, alpha beside the colours."""
    row = 0
    for band in bands:
        result: NDArray[Any] = cv2.cvtColor(band, cv2.COLOR_BGR2GRAY) if loaded.gray else band
        if loaded.alpha is not None:
            result = np.dstack([result, enlarge_rows(loaded.alpha, size, row, row + len(band))])
        row += len(band)
        yield result


def spread_colours(pixels: Pixels, alpha: Pixels) -> Pixels:
    """Give each invisible pixel the colour of the nearest visible one.

    pixels: (h, w, 3), alpha: (h, w). What a program left under full transparency, mostly black, would otherwise be
    mixed into the edges when they are enlarged, as a dark halo.
    """
    clear = alpha == 0
    if clear.all() or not clear.any():
        return pixels
    labels = cv2.distanceTransformWithLabels(
        clear.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )[1]
    visible = ~clear
    colours = np.empty((labels.max() + 1, pixels.shape[2]), pixels.dtype)
    colours[labels[visible]] = pixels[visible]
    spread = pixels.copy()
    spread[clear] = colours[labels[clear]]
    return spread


def enlarge_rows(plane: Pixels, size: Size, start: int, stop: int) -> Pixels:
    """Rows start to stop - 1 of a plane (h, w) that is enlarged four times bicubically and reduced to `size`.

    Values that bicubic interpolation would drive beyond the range are clipped. Whatever the rows, the bytes are those
    of the whole.
    """
    height, width = plane.shape
    reduction = AreaReduction((SCALE * height, SCALE * width), size[::-1])
    first, last = reduction.source_rows(start, stop)
    top, bottom = first // SCALE, -(-last // SCALE)
    above, below = max(0, top - _CUBIC_REACH), min(height, bottom + _CUBIC_REACH)
    enlarged_size = (SCALE * width, SCALE * (below - above))
    enlarged: NDArray[Any] = cv2.resize(plane[above:below], enlarged_size, interpolation=cv2.INTER_CUBIC)
    return reduction.reduce(enlarged, SCALE * above, start, stop)
