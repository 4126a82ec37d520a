"""Results made here: a model, an engine or bicubic over the LR images of a test set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rsd_edge.evaluate.folder import Progress, Results
from rsd_edge.evaluate.image_sets import Images
from rsd_edge.evaluate.metrics import Image
from rsd_edge.frames import bicubic_x4
from rsd_edge.resolver import SuperResolver
from rsd_edge.stream.images import read_image, write_image

BICUBIC = "bicubic"
Enlarge = Callable[[Image], Image]


def bicubic(image: Image) -> Image:
    """x4 by OpenCV's INTER_CUBIC, which every result of this project starts from: uint8 (h, w, 3) BGR."""
    height, width = image.shape[:2]
    out = np.empty((4 * height, 4 * width, 3), np.uint8)
    bicubic_x4(image, out)
    return out


def result_path(folder: Path, stem: str) -> Path:
    """Where `upscale_with` puts the result of an image."""
    return folder / f"{stem}.png"


def upscale_with(
    resolver: SuperResolver | None,
    sources: Images,
    folder: Path,
    *,
    name: str,
    seed: int = 0,
    progress: Progress | None = None,
) -> Results:
    """PNG files of all sources at four times their size in `folder`, which must exist; None makes bicubic ones.

    Raises ImageReadError, BackendError, OutputError; whole files stay, the one under way leaves nothing.
    """
    made: dict[str, Path] = {}
    for stem, path in sources.paths.items():
        image = read_image(path)
        result = bicubic(image) if resolver is None else resolver(image, seed=seed)
        made[stem] = result_path(folder, stem)
        write_image(made[stem], result)
        if progress is not None:
            progress(len(made), len(sources.paths))
    return Results(name, Images(str(folder), made), _method(resolver, seed))


def _method(resolver: SuperResolver | None, seed: int) -> dict[str, Any]:
    if resolver is None:
        return {"model": BICUBIC, "tile": None, "kernel": "OpenCV INTER_CUBIC"}
    return {**resolver.record(), "seed": seed, "strength": 1.0}
