"""Image files to frames and back: JPEG, PNG, WebP, BMP and TIFF, on any path the system can open."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from rsd_edge.errors import ImageReadError
from rsd_edge.opencv import cv2, quiet
from rsd_edge.stream.encoders import Layout, Pixels
from rsd_edge.stream.headers import SNIFF_BYTES, HeaderError, ImageHeader, parse_header, sniff_format
from rsd_edge.stream.missing import missing
from rsd_edge.stream.png_chunks import bare_png
from rsd_edge.stream.results import plan_result, to_bytes

Image = npt.NDArray[np.uint8]

MAX_PIXELS = 50_000_000
"""Largest input by default: with three bytes a pixel it takes 150 MB, and its result at x4 a file of up to 2.4 GB."""

_FORMATS = "PNG, JPEG, WebP, BMP or TIFF"
_WITHOUT_SIGNATURE = {".tga": "TGA"}
"""Formats that only the file's name tells."""
_STDERR = 2
_HEARING = threading.Lock()
"""Only one thread at a time may take stderr."""
_REMARK = re.compile(
    rb"Corrupt JPEG data|Premature end of JPEG|Inconsistent progression|Invalid SOS|Unknown Adobe"
    rb"|Warning: unknown JFIF|Application transferred|libpng (warning|error)|\w*TIFF\w*: "
)
"""What libjpeg, libpng and libtiff say of files."""
_USUAL_DPI = (0, 1, 72, 96)
"""What programs write where nobody said anything."""
_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class LoadedImage:
    """A decoded file, upright."""

    pixels: Pixels
    """uint8 or, if the file has 16 bits per channel, uint16 (h, w, 3) BGR, not multiplied by alpha."""
    alpha: Pixels | None
    """(h, w) of the same dtype, or None if the file has no transparency."""
    gray: bool
    """The three channels of the pixels are equal."""
    header: ImageHeader
    damage: str = ""
    """What the decoder found wrong on the way."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.pixels.shape[1], self.pixels.shape[0]

    @property
    def bits(self) -> int:
        """Per channel: 8 or 16."""
        return 8 * self.pixels.dtype.itemsize

    @property
    def mode(self) -> str:
        """gray, palette or RGB, as the file has it."""
        return "gray" if self.gray else "palette" if self.header.palette else "RGB"

    def losses(self, *, strip: bool = False) -> tuple[str, ...]:
        """What the file holds and this does not, in words; strip: without what is not wanted anyway."""
        header = self.header
        # Cameras and scanners write it into EXIF too, which goes along.
        dpi = header.dpi not in _USUAL_DPI and not header.metadata.exif and not strip
        found = (
            (header.alpha and self.alpha is None, f"transparency of this kind of {header.format} dropped"),
            (header.more_pages, "only the first picture of several used"),
            (self.damage, f"its data is damaged ({self.damage}); what could be decoded is enlarged"),
            (dpi, f"its {header.dpi} DPI left out"),
            (header.gamma, f"its gamma of {header.gamma:g} left out: colours are taken for sRGB"),
        )
        return tuple(text for present, text in found if present)


def read_image(path: Path | str, max_pixels: int = MAX_PIXELS) -> Image:
    """Decode an image file to uint8 (h, w, 3) BGR, turned upright by its EXIF orientation.

    Gray and palette images become BGR, 16-bit ones are reduced to 8 bits, transparency is dropped and the colour
    profile is not applied. Raises what `load_image` raises.
    """
    return np.asarray(to_bytes(load_image(path, max_pixels).pixels), np.uint8)


def load_image(path: Path | str, max_pixels: int = MAX_PIXELS) -> LoadedImage:
    """Decode an image file with all that it holds.

    Raises ImageReadError if the file is missing, empty, truncated, damaged, no image, animated, of a colour model or
    number format that is not supported, or claims more than `max_pixels` pixels; the claim is checked before anything
    is decoded.
    """
    path = Path(path)
    return decode_image(_read_bytes(path), str(path), max_pixels)


def decode_image(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> LoadedImage:
    """Decode the bytes of an image file; `name` is what errors call it. Raises what `load_image` raises for a file."""
    try:
        header = parse_header(data)
    except HeaderError as error:
        raise ImageReadError(f"{name} {error}; {error.cure or _cure(str(error))}") from None
    pixels = header.width * header.height
    if pixels > max_pixels:
        raise ImageReadError(
            f"{name} claims {header.width}x{header.height} = {pixels} pixels, more than the limit of {max_pixels}; "
            f"if you trust the file, raise it with --max-pixels {pixels}"
        )
    with _overheard() as remarks:
        decoded = _decode(data, header)
    if decoded is None:
        raise ImageReadError(f"{name} cannot be decoded (its {header.format} data is damaged or rare); save it anew")
    return replace(_loaded(decoded, header), damage=remarks[0] if remarks else "")


def write_image(path: Path | str, image: Pixels) -> None:
    """Encode uint8 or uint16 (h, w) gray, (h, w, 3) BGR or (h, w, 4) BGRA in the format of the suffix.

    See `ResultPlan.write`; raises OutputError as `plan_result` and it do.
    """
    plan_result(Path(path), Layout.of(image)).write([image])


def _decode(data: bytes, header: ImageHeader) -> npt.NDArray[Any] | None:
    """As stored, apart from TIFF, which OpenCV turns upright; None if that is not what the header announces."""
    data = bare_png(data) if header.format == "PNG" else data
    with quiet():
        try:
            decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        except cv2.error:
            return None
    if decoded is None or decoded.dtype not in (np.uint8, np.uint16):
        return None
    height, width = decoded.shape[:2]
    announced = sorted((header.width, header.height)) == sorted((width, height))
    return decoded if announced and (decoded.ndim == 2 or decoded.shape[2] in (3, 4)) else None


def _loaded(decoded: npt.NDArray[Any], header: ImageHeader) -> LoadedImage:
    if header.format != "TIFF":
        decoded = _upright(decoded, header.metadata.orientation)
    if header.negative:
        decoded = np.iinfo(decoded.dtype).max - decoded
    gray = header.gray or decoded.ndim == 2
    alpha = None
    if header.clear_gray is not None and decoded.ndim == 2:
        most = np.iinfo(decoded.dtype).max
        alpha = np.where(decoded == header.clear_gray, 0, most).astype(decoded.dtype)
    if decoded.ndim == 2:
        decoded = cv2.cvtColor(decoded, cv2.COLOR_GRAY2BGR)
    elif decoded.shape[2] == 4:
        # An unused fourth byte is no transparency.
        alpha = np.ascontiguousarray(decoded[:, :, 3]) if header.alpha else None
        decoded = np.ascontiguousarray(decoded[:, :, :3])
        if alpha is not None and header.premultiplied:
            _divide(decoded, alpha)
    return LoadedImage(decoded, alpha, gray, header)


def _upright(image: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """Stored pixels as they are to be seen, for an EXIF orientation of 1 to 8."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return np.ascontiguousarray(image[rows, columns])


def _divide(pixels: Pixels, alpha: Pixels) -> None:
    """Take alpha out of colours that are multiplied by it, in place; where it is 0 they stay what they are."""
    most = np.iinfo(alpha.dtype).max
    for top in range(0, len(pixels), _ROWS_AT_ONCE):
        rows, shares = pixels[top : top + _ROWS_AT_ONCE], alpha[top : top + _ROWS_AT_ONCE, :, None]
        divided = np.rint(rows * (most / np.maximum(shares, 1).astype(np.float32)))
        np.copyto(rows, np.minimum(divided, most), casting="unsafe")


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
                name = _WITHOUT_SIGNATURE.get(path.suffix.lower())
                raise ImageReadError(f"{path} is {f'a {name} file' if name else 'not an image'}; {_cure('')}")
            return start + file.read()
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise ImageReadError(missing(path)) from None
        denied = error.errno in (errno.EACCES, errno.EPERM)
        cure = "allow this user to read it" if denied else "check the path and the disk"
        raise ImageReadError(f"{path} cannot be read ({error.strerror or error}); {cure}") from None


def _cure(reason: str) -> str:
    incomplete = "truncated" in reason or "damaged" in reason
    if "video" in reason:
        return "name it after its format, such as .mp4 or .mkv, to have it enlarged as one"
    return "copy or download it again" if incomplete else f"convert it to {_FORMATS}"


def _scratch() -> IO[bytes]:
    """A file without a name; in memory where that can be, as nothing may be writable but the place of the results."""
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("rsd-edge"), "w+b")
    return tempfile.TemporaryFile()


@contextlib.contextmanager
def _overheard() -> Iterator[list[str]]:
    """What the libraries below OpenCV write to stderr by themselves while this is open; known when it is closed.

    Nothing else keeps libjpeg from doing so, and what it says is worth a warning with the name of the file. What other
    threads write meanwhile gets to stderr when it is closed.
    """
    remarks: list[str] = []
    with _HEARING, _scratch() as heard:
        try:
            terminal = os.dup(_STDERR)
        except OSError:  # closed: there is nothing to keep clean
            yield remarks
            return
        os.dup2(heard.fileno(), _STDERR)
        try:
            yield remarks
        finally:
            os.dup2(terminal, _STDERR)
            os.close(terminal)
            heard.seek(0)
            lines = heard.read().splitlines(keepends=True)
            remarks += [line.decode(errors="replace").strip() for line in lines if _REMARK.match(line)]
            with contextlib.suppress(OSError):  # nobody listens
                os.write(_STDERR, b"".join(line for line in lines if not _REMARK.match(line)))
