"""The lattice metric: does an upscaler print a 4x4 pattern, as decoders with pixel shuffles tend to?

LPIPS-squeeze hardly sees such a pattern (its first convolution has stride 2), so it is measured apart. The detail is
the output minus the bicubic x4 of the very LR image it was made from, both in 8 bits, as luma; a Gaussian blur of
sigma 2 is subtracted from it; what is left is split into the 16 phases of the 4x4 lattice, which should be alike.
Photographs themselves are not at zero (0.47 and 0.25 for the Kodak set against its lightly degraded LR images), since
the bicubic base fits some phases better than others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rsd_edge.errors import InputError
from rsd_edge.evaluate.metrics import Image, Size, size_of, to_y
from rsd_edge.opencv import cv2

SCALE = 4
_BLUR_SIGMA = 2.0


@dataclass(frozen=True)
class Lattice:
    """What the 16 phases of the detail differ by."""

    spread: float
    """(largest - smallest) / mean of the 16 variances; 0 where there is no detail."""
    mean: float
    """Standard deviation of the 16 means, in grey levels of studio-range luma."""


def check_lattice(size: Size, source: Size) -> None:
    """Raise InputError unless an image is exactly four times its LR source, and that at least 2 pixels on each side."""
    width, height = source
    if size != (SCALE * width, SCALE * height):
        raise InputError(
            f"the lattice is defined at x4: this LR image needs {4 * width}x{4 * height}, not {size[0]}x{size[1]}; "
            "give the image that was enlarged, or leave the lattice out"
        )
    if min(source) < 2:
        raise InputError(f"the lattice needs LR sides of at least 2 pixels, not {width}x{height}; use larger images")


def measure_lattice(image: Image, lq: Image) -> Lattice:
    """Lattice of an upscaled image: uint8 (4h, 4w, 3) BGR and its LR source uint8 (h, w, 3) BGR.

    Raises InputError unless the image is exactly four times its source and at least 8 pixels on each side.
    """
    check_lattice(size_of(image), size_of(lq))
    width, height = size_of(lq)
    base = np.asarray(cv2.resize(lq, (SCALE * width, SCALE * height), interpolation=cv2.INTER_CUBIC), np.uint8)
    detail = to_y(image) - to_y(base)
    detail -= cv2.GaussianBlur(detail, (0, 0), _BLUR_SIGMA)
    phases = detail.reshape(height, SCALE, width, SCALE).transpose(1, 3, 0, 2).reshape(SCALE * SCALE, -1)
    variances, means = phases.var(axis=1), phases.mean(axis=1)
    total = float(variances.mean())
    spread = 0.0 if total == 0 else float(np.ptp(variances)) / total
    return Lattice(spread=spread, mean=float(means.std()))
