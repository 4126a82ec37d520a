"""What files say of print sizes and gamma, outside of EXIF and profiles: only read, so that a note can tell of them."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

from rsd_edge.stream.tiff import Directory, TiffError

_INCH_IN_METRES = 0.0254
_USUAL_GAMMA, _GAMMA_SLACK = 1 / 2.2, 0.01
_TIFF_RESOLUTION, _TIFF_UNIT = 282, 296
_APP0 = 0xE0


def png_dpi(chunks: Mapping[bytes, bytes]) -> int:
    """Of a PNG file's pHYs chunk, 0 if it has none in metres."""
    content = chunks.get(b"pHYs", b"")
    if len(content) != 9 or content[8] != 1:
        return 0
    return round(int(struct.unpack_from(">I", content)[0]) * _INCH_IN_METRES)


def png_gamma(chunks: Mapping[bytes, bytes]) -> float:
    """Of a PNG file's gAMA chunk; 0 if there is none, if it is that of sRGB, or if something better says more."""
    content = chunks.get(b"gAMA", b"")
    if len(content) != 4 or b"iCCP" in chunks or b"sRGB" in chunks:
        return 0
    gamma = float(struct.unpack(">I", content)[0]) / 100_000
    return 0 if abs(gamma - _USUAL_GAMMA) < _GAMMA_SLACK else gamma


def jpeg_dpi(segments: Iterable[tuple[int, bytes]]) -> int:
    """Of the JFIF segment among (marker, content), 0 if it names no unit."""
    jfif = next((content for marker, content in segments if marker == _APP0 and content[:5] == b"JFIF\0"), b"")
    if len(jfif) < 12:
        return 0
    per_inch = {1: 1.0, 2: 2.54}.get(jfif[7], 0.0)
    return round(per_inch * float(struct.unpack_from(">H", jfif, 8)[0]))


def tiff_dpi(main: Directory) -> int:
    """Of a TIFF file's main directory, 0 if it does not say."""
    try:
        content = main.raw(_TIFF_RESOLUTION)
    except TiffError:
        return 0
    per_inch = {2: 1.0, 3: 2.54}.get(main.number(_TIFF_UNIT, 2), 0.0)
    if len(content) != 8:
        return 0
    top, bottom = struct.unpack(f"{main.order}II", content)
    return round(per_inch * top / bottom) if bottom else 0
