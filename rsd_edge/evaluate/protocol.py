"""How images are made comparable before they are measured; two numbers compare only if this was the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rsd_edge.errors import InputError
from rsd_edge.evaluate.catalogue import CATALOGUE
from rsd_edge.evaluate.metrics import Image, Size, size_of
from rsd_edge.frames import SCALE
from rsd_edge.opencv import cv2

RESIZES = {"none": None, "bicubic": cv2.INTER_CUBIC, "area": cv2.INTER_AREA}
ROUNDINGS = ("none", "luma", "pyiqa")
LARGEST_CUT = SCALE - 1
"""An LR image of whole pixels cannot stand for more of a reference."""


@dataclass(frozen=True)
class Protocol:
    """The choices that papers differ in."""

    border: int = 0
    """Pixels cut off at each side of result and reference."""
    resize: str = "none"
    """What becomes of a result of another size than its reference: none refuses it, the others resize it."""
    rounding: str = "none"
    """luma: PSNR-Y and SSIM-Y see whole grey levels, as in MATLAB. pyiqa: as in pyiqa 0.1.13 to 0.1.16, where SSIM-Y
    alone does, and counts negative structure as 0."""

    def __post_init__(self) -> None:
        if self.border < 0:
            raise InputError(f"border is {self.border}; it must be at least 0")
        for name, value, known in (("resize", self.resize, tuple(RESIZES)), ("rounding", self.rounding, ROUNDINGS)):
            if value not in known:
                raise InputError(f"{name} is '{value}'; it must be one of {', '.join(known)}")

    @property
    def psnr_rounded(self) -> bool:
        """Whether PSNR-Y sees whole levels."""
        return self.rounding == "luma"

    @property
    def ssim_rounded(self) -> bool:
        """Whether SSIM-Y does."""
        return self.rounding != "none"

    @property
    def ssim_clipped(self) -> bool:
        """Whether SSIM-Y counts negative structure as 0."""
        return self.rounding == "pyiqa"

    def fits(self, result: Size, reference: Size) -> bool:
        """Whether a result and a reference of these (width, height) can be compared."""
        surplus = [large - small for large, small in zip(reference, result, strict=True)]
        return self.resize != "none" or (min(surplus) >= 0 and max(surplus) <= LARGEST_CUT)

    def align(self, image: Image, reference: Image) -> tuple[Image, Image]:
        """Two uint8 BGR images of sizes that fit, as two of one size: the result resized, or the reference cut."""
        height, width = reference.shape[:2]
        method = RESIZES[self.resize]
        if method is None:
            return image, reference[: image.shape[0], : image.shape[1]]
        if image.shape != reference.shape:
            image = np.asarray(cv2.resize(image, (width, height), interpolation=method), np.uint8)
        return image, reference

    def measured(self, result: Size, reference: Size | None) -> Size:
        """(width, height) of what is compared of images that fit. Raises InputError if the border leaves nothing."""
        width, height = result if reference is None or self.resize == "none" else reference
        if min(width, height) <= 2 * self.border:
            raise InputError(f"a border of {self.border} leaves nothing of {width}x{height}; choose a smaller one")
        return width - 2 * self.border, height - 2 * self.border

    def cut(self, image: Image) -> Image:
        """The image without its border. Raises InputError if nothing is left."""
        width, height = self.measured(size_of(image), None)
        return image[self.border : self.border + height, self.border : self.border + width]

    def words(self, metrics: Sequence[str]) -> dict[str, str]:
        """What each metric is, and the rules for all of them, for reports."""
        choices = {
            "psnr_luma": _rounding_words(self.psnr_rounded),
            "ssim_luma": _rounding_words(self.ssim_rounded),
            "structure": ", negative structure counted as 0" if self.ssim_clipped else "",
            "border": f"{self.border} pixels cut off at each side" if self.border else "no border cut",
        }
        return {
            "matching": "by file stem; " + self._size_words(),
            **{name: CATALOGUE[name].words.format_map(choices) for name in metrics},
            "means": "over the images that have the value",
            "colour": "as each metric says: Y is BT.601 luma in studio range, all others see RGB",
            "border": choices["border"],
            "resize": self.resize,
            "rounding": self.rounding,
            "bits": "results and references are read as 8 bits a channel",
        }

    def _size_words(self) -> str:
        if self.resize == "none":
            return f"a reference is cut at the right and bottom if it is up to {LARGEST_CUT} pixels larger"
        return f"results of another size are resized to that of their reference ({self.resize}, 8 bits)"


def _rounding_words(rounded: bool) -> str:
    return "rounded to whole levels" if rounded else "not rounded"


PLAIN = Protocol()
"""Nothing cut, resized or rounded."""
