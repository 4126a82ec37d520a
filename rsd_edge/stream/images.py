"""Image files to frames and back: JPEG, PNG, WebP, BMP and TIFF, on any path the system can open."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rsd_edge.errors import ImageReadError, OutputError
from rsd_edge.opencv import cv2
from rsd_edge.stream.atomic import atomic_file
from rsd_edge.stream.encoders import write_bmp, write_png, write_tiff
from rsd_edge.stream.headers import SNIFF_BYTES, HeaderError, ImageHeader, parse_header, sniff_format

Image = npt.NDArray[np.uint8]

MAX_PIXELS = 50_000_000
"""Largest input by default: at x4 its result takes 2.4 GB."""

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

_FORMATS = "PNG, JPEG, WebP, BMP or TIFF"
_LOSSY_QUALITY = 95
_OPENCV_SILENT = 0
_STREAMED = {".png": write_png, ".bmp": write_bmp, ".tif": write_tiff, ".tiff": write_tiff}
_LONGEST_SIDE = {".jpg": 65500, ".jpeg": 65500, ".webp": 16383}


@dataclass(frozen=True)
class LoadedImage:
    """A decoded file."""

    pixels: Image
    """uint8 (h, w, 3) BGR, upright."""
    header: ImageHeader

    @property
    def losses(self) -> tuple[str, ...]:
        """What the file holds and the pixels do not, in words."""
        found = (
            (self.header.alpha, "transparency dropped"),
            (self.header.bits > 8, f"{self.header.bits} bits per channel reduced to 8"),
            (self.header.more_pages, "only the first picture of several used"),
        )
        return tuple(text for present, text in found if present)


def read_image(path: Path | str, max_pixels: int = MAX_PIXELS) -> Image:
    """Decode an image file to uint8 (h, w, 3) BGR, turned upright by its EXIF orientation.

    Gray and palette images become BGR, 16-bit ones are reduced to 8 bits, transparency is dropped and the colour
    profile is not applied. Raises ImageReadError if the file is missing, empty, truncated, damaged, no image, or claims
    more than `max_pixels` pixels; the claim is checked before anything is decoded.
    """
    return load_image(path, max_pixels).pixels


def load_image(path: Path | str, max_pixels: int = MAX_PIXELS) -> LoadedImage:
    """Like `read_image`, with the header of the file."""
    path = Path(path)
    data = _read_bytes(path)
    try:
        header = parse_header(data)
    except HeaderError as error:
        raise ImageReadError(f"{path} {error}; {_cure(str(error))}") from None
    if header.width * header.height > max_pixels:
        megapixels = header.width * header.height / 1e6
        raise ImageReadError(
            f"{path} claims {header.width}x{header.height} = {megapixels:.1f} megapixels, more than the limit of "
            f"{max_pixels / 1e6:.1f}; if you trust the file, raise it with --max-pixels {header.width * header.height}"
        )
    with _quiet_opencv():
        try:
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        except cv2.error:
            pixels = None
    if pixels is None or pixels.dtype != np.uint8:
        raise ImageReadError(f"{path} cannot be decoded (its {header.format} data is damaged or rare); save it anew")
    return LoadedImage(np.asarray(pixels, np.uint8), header)


def write_image(path: Path | str, image: Image) -> None:
    """Encode uint8 (h, w, 3) BGR in the format of the suffix and put it at `path` in one step.

    PNG, BMP and TIFF are lossless and written in bounded memory. JPEG (4:4:4) and WebP have quality 95 and are encoded
    in memory, which takes up to 4 bytes for each pixel with JPEG and 6 with WebP. The folder must exist.
    Raises OutputError for another suffix, an image too large for the format, a full disk or an unwritable folder; then
    `path` is as it was before.
    """
    path = Path(path)
    suffix = check_suffix(path)
    longest = _LONGEST_SIDE.get(suffix)
    if longest is not None and max(image.shape[:2]) > longest:
        height, width = image.shape[:2]
        raise OutputError(f"cannot write {path}: {width}x{height} is beyond the {longest} pixels of {suffix}; use .png")
    with atomic_file(path) as file:
        if suffix in _STREAMED:
            _STREAMED[suffix](file, image)
        else:
            file.write(_encode_lossy(suffix, image))


def check_suffix(path: Path) -> str:
    """The suffix of `path` in lower case. Raises OutputError if images cannot be written in that format."""
    suffix = path.suffix.lower()
    if suffix not in IMAGE_SUFFIXES:
        known = ", ".join(IMAGE_SUFFIXES)
        raise OutputError(f"cannot write {path}: '{path.suffix}' is not an output format; use one of {known}")
    return suffix


def _encode_lossy(suffix: str, image: Image) -> memoryview:
    if suffix == ".webp":
        options = [cv2.IMWRITE_WEBP_QUALITY, _LOSSY_QUALITY]
    else:
        options = [cv2.IMWRITE_JPEG_QUALITY, _LOSSY_QUALITY]
        options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    encoded, data = cv2.imencode(suffix, image, options)
    if not encoded:
        raise OutputError(f"OpenCV cannot encode {image.shape[1]}x{image.shape[0]} pixels as {suffix}; use .png")
    return data.data


def _read_bytes(path: Path) -> bytes:
    """The whole file, if its first bytes look like an image that can be read."""
    try:
        if path.is_dir():
            raise ImageReadError(f"{path} is a folder, not an image; name a file in it")
        if path.exists() and not path.is_file():
            raise ImageReadError(f"{path} is a pipe or a device, not an image; save it as a file first")
        with path.open("rb") as file:
            start = file.read(SNIFF_BYTES)
            if not start:
                raise ImageReadError(f"{path} is empty; copy or download it again")
            if not sniff_format(start):
                raise ImageReadError(f"{path} is not an image; {_cure('')}")
            return start + file.read()
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise ImageReadError(f"{path} does not exist; check the spelling") from None
        denied = error.errno in (errno.EACCES, errno.EPERM)
        cure = "allow this user to read it" if denied else "check the path and the disk"
        raise ImageReadError(f"{path} cannot be read ({error.strerror or error}); {cure}") from None


def _cure(reason: str) -> str:
    incomplete = "truncated" in reason or "damaged" in reason
    if "video" in reason:
        return "name it after its format, such as .mp4 or .mkv, to have it enlarged as one"
    return "copy or download it again" if incomplete else f"convert it to {_FORMATS}"


@contextlib.contextmanager
def _quiet_opencv() -> Iterator[None]:
    """Keep decoder messages off the terminal: the caller gets one exception that says it all."""
    # OpenCV 5 moved these; in OpenCV 4 they are in the root.
    logging = getattr(cv2.utils, "logging", cv2)
    level = logging.getLogLevel()
    logging.setLogLevel(_OPENCV_SILENT)
    try:
        yield
    finally:
        logging.setLogLevel(level)
