"""Result files: what each format can hold, decided before any work, and writing it whole or band by band."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from rsd_edge.errors import OutputError
from rsd_edge.stream.atomic import atomic_file
from rsd_edge.stream.encoders import Layout, Pixels, check_bmp, check_tiff, write_bmp, write_png, write_tiff
from rsd_edge.stream.lossy import check_lossy, encode_jpeg, encode_webp, jpeg_metadata
from rsd_edge.stream.metadata import Metadata, has_whole_directories

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff")

_SPELLINGS = {".jpeg": ".jpg", ".jpe": ".jpg", ".jfif": ".jpg", ".tiff": ".tif"}
_NAMES = {".png": "PNG", ".jpg": "JPEG", ".webp": "WebP", ".bmp": "BMP", ".tif": "TIFF"}
_DEEP = (".png", ".tif")
_WITH_ALPHA = (".png", ".tif", ".webp")
_WITH_METADATA = (".png", ".tif", ".webp", ".jpg")
_WITH_GRAY = (".png", ".tif", ".bmp", ".jpg")
_STREAMED: dict[str, Callable[[BinaryIO, Layout, Iterable[Pixels], Metadata], None]] = {
    ".png": write_png,
    ".bmp": write_bmp,
    ".tif": write_tiff,
}
_CHECKS: dict[str, Callable[[Layout], None]] = {".bmp": check_bmp, ".tif": check_tiff}


@dataclass(frozen=True)
class ResultPlan:
    """What a result file will hold of an image, and what not."""

    path: Path
    format: str
    made: Layout
    """Of the image."""
    layout: Layout
    """Of the file."""
    metadata: Metadata
    notes: tuple[str, ...] = ()

    def write(self, bands: Iterable[Pixels]) -> None:
        """Encode rows of the image, uint8 or uint16 (rows, w) or (rows, w, channels) of the layout `made`, top first.

        PNG, BMP and TIFF are lossless and written as the bands come; JPEG (4:4:4) and WebP have quality 95 and are
        encoded in memory. The file appears at once when it is complete. Raises OutputError for a full disk or an
        unwritable folder, and what `bands` raises; then `path` is as it was before.
        """
        suffix = usual_suffix(self.path)
        fitted = (fit_band(band, self.made, self.layout) for band in bands)
        with atomic_file(self.path) as file:
            if suffix in _STREAMED:
                _STREAMED[suffix](file, self.layout, fitted, self.metadata)
                return
            image = _joined(fitted, self.layout)
            encode = encode_webp if suffix == ".webp" else encode_jpeg
            for piece in encode(image, self.metadata):
                file.write(piece)


def plan_result(path: Path, made: Layout, metadata: Metadata | None = None) -> ResultPlan:
    """Fit an image and its metadata to the format that the suffix of `path` names.

    Bits, transparency and metadata that the format cannot hold are given up, and the notes say so. Raises OutputError
    for another suffix, and for an image that the format or the memory cannot hold.
    """
    suffix = usual_suffix(path)
    name, layout, notes = _NAMES[suffix], made, []
    if made.bits > 8 and suffix not in _DEEP:
        layout = replace(layout, bits=8)
        notes.append(f"{made.bits} bits per channel reduced to 8, because {name} holds no more")
    if made.channels in (2, 4) and suffix not in _WITH_ALPHA:
        layout = replace(layout, channels=layout.channels - 1)
        notes.append(f"transparency laid over white, because {name} holds none")
    # Few programs read TIFF files of gray and alpha, and OpenCV does not.
    if layout.channels < 3 and (suffix not in _WITH_GRAY or (suffix == ".tif" and layout.channels == 2)):
        layout = replace(layout, channels=layout.channels + 2)
    try:
        if suffix in (".jpg", ".webp"):
            check_lossy(suffix, layout)
        elif suffix in _CHECKS:
            _CHECKS[suffix](layout)
    except OutputError as error:
        raise OutputError(f"cannot write {path}: {error}") from None
    kept, dropped = (metadata or Metadata()).checked(gray=layout.channels < 3)
    notes += dropped
    if kept.kinds and suffix not in _WITH_METADATA:
        notes.append(f"{', '.join(kept.kinds)} dropped, because {name} holds none")
        kept = Metadata()
    if suffix == ".jpg":
        kept, dropped = jpeg_metadata(kept)
        notes += dropped
    if suffix == ".tif" and kept.exif and not has_whole_directories(kept.exif):
        kept = replace(kept, exif=b"")
        notes.append("EXIF dropped because its directories are damaged, and TIFF holds them in another place")
    return ResultPlan(path, name, made, layout, kept, tuple(notes))


def check_suffix(path: Path) -> str:
    """The suffix of `path` in lower case. Raises OutputError if images cannot be written in that format."""
    suffix = path.suffix.lower()
    if suffix not in IMAGE_SUFFIXES:
        known = ", ".join(IMAGE_SUFFIXES)
        raise OutputError(f"cannot write {path}: '{path.suffix}' is not an output format; use one of {known}")
    return suffix


def usual_suffix(path: Path) -> str:
    """As `check_suffix`, in the spelling that each format is known by here: .jpg and .tif."""
    suffix = check_suffix(path)
    return _SPELLINGS.get(suffix, suffix)


def to_bytes(pixels: Pixels) -> Pixels:
    """uint16 rounded to the nearest of the 256 levels of uint8, which is returned as it is."""
    return np.rint(pixels * np.float32(1 / 257)).astype(np.uint8) if pixels.dtype == np.uint16 else pixels


def fit_band(band: npt.NDArray[Any], made: Layout, layout: Layout) -> npt.NDArray[Any]:
    """Rows of one layout as rows of another with fewer bits, without alpha, or with three channels for gray."""
    if made.channels in (2, 4) and layout.channels in (1, 3):
        white = np.float32(np.iinfo(band.dtype).max)
        share = band[..., -1:] / white
        band = np.rint(band[..., :-1] * share + white * (1 - share)).astype(band.dtype)
        band = band[..., 0] if band.shape[-1] == 1 else band
    if layout.bits < made.bits:
        band = to_bytes(band)
    if made.channels < 3 <= layout.channels:
        planes = band.reshape(*band.shape[:2], -1)
        alpha = [planes[..., 1:]] if layout.channels == 4 else []
        band = np.dstack([planes[..., :1]] * 3 + alpha)
    return band


def _joined(bands: Iterable[Pixels], layout: Layout) -> npt.NDArray[np.uint8]:
    channels = () if layout.channels == 1 else (layout.channels,)
    image = np.empty((layout.height, layout.width, *channels), np.uint8)
    done = 0
    for band in bands:
        image[done : done + len(band)] = band
        done += len(band)
    return image
