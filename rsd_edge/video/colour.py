"""Frames of a decoder to BGR and BGR to frames of an encoder, with one matrix and one range both ways."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

if TYPE_CHECKING:
    from rsd_edge.frames import Frame

UNSPECIFIED = 2
PQ, HLG = 16, 18
LIMITED, FULL = 1, 2
_BT709, _BT601 = 1, 6
_NAMES = {1: "BT.709", 4: "FCC", 5: "BT.601", 6: "BT.601", 7: "SMPTE 240M", 9: "BT.2020", 10: "BT.2020"}
_SWSCALE = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
"""The numbers that swscale has for the matrices of FFmpeg; constant-luminance BT.2020 is read as the other one."""
_HD_LINES = 720

# Without these swscale takes short cuts: the nearest chroma sample, and rounding that is off by up to three levels.
_FLAGS = (
    Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
)


@dataclass(frozen=True)
class Colour:
    """How the numbers of a YUV frame are to be read, in FFmpeg's numbering (ISO/IEC 23091-2)."""

    matrix: int
    full_range: bool
    primaries: int
    transfer: int
    bits: int

    @property
    def range(self) -> int:
        """In FFmpeg's numbering."""
        return FULL if self.full_range else LIMITED


def colour_of(frame: av.VideoFrame) -> tuple[Colour, tuple[str, ...]]:
    """What the frame's tags say, with the usual guess for the matrix that they leave out, and notes about guesses."""
    notes = []
    pixel = frame.format
    full = frame.color_range == FULL or pixel.name.startswith("yuvj")
    matrix = int(frame.colorspace)
    if pixel.is_rgb:
        matrix, full = _BT709, False
        notes.append("RGB video becomes 4:2:0 in BT.709")
    elif matrix not in _SWSCALE:
        untagged = matrix == UNSPECIFIED
        matrix = _BT709 if frame.height >= _HD_LINES else _BT601
        why = "no colour matrix is tagged" if untagged else f"colour matrix {int(frame.colorspace)} is rare"
        if not pixel.name.startswith("gray"):
            notes.append(f"{why}; {_NAMES[matrix]} assumed for {frame.height} lines, and tagged in the result")
    if pixel.name.startswith(("yuva", "gbrap", "rgba", "bgra", "argb", "abgr", "ya8", "ya16")):
        notes.append("transparency dropped")
    bits = max(component.bits for component in pixel.components)
    return Colour(matrix, full, int(frame.color_primaries), int(frame.color_trc), bits), tuple(notes)


def is_hdr(colour: Colour) -> bool:
    """True for PQ and HLG, whose numbers mean light and not the usual gamma."""
    return colour.transfer in (PQ, HLG)


class ToBgr:
    """Decoded frames to BGR arrays; serves one thread."""

    def __init__(self, colour: Colour, width: int, height: int, deep: bool) -> None:
        """width, height: of the first frame; later ones of another size are resampled to it. deep: 16 bits."""
        self._colour, self._size = colour, (width, height)
        self._format = "bgr48le" if deep else "bgr24"
        self._reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> Frame:
        """uint8 or uint16 (h, w, 3) with all of the dtype's range in use."""
        source_range = FULL if frame.format.is_rgb else self._colour.range
        matrix = _SWSCALE[self._colour.matrix]
        converted = self._reformatter.reformat(
            frame,
            width=self._size[0],
            height=self._size[1],
            format=self._format,
            src_colorspace=matrix,
            dst_colorspace=matrix,
            src_color_range=source_range,
            dst_color_range=FULL,
            interpolation=_FLAGS,
            threads=1,
        )
        image: Frame = converted.to_ndarray()  # type: ignore[assignment]
        return image


class FromBgr:
    """BGR arrays to frames for an encoder; serves one thread."""

    def __init__(self, colour: Colour, pixel_format: str) -> None:
        self._colour, self._format = colour, pixel_format
        self._reformatter = VideoReformatter()

    def __call__(self, image: NDArray[Any]) -> av.VideoFrame:
        """A frame with tags; the array may be overwritten afterwards. image: uint8 or uint16 (h, w, 3), even sides."""
        deep = image.dtype == np.uint16
        frame = av.VideoFrame.from_ndarray(image, format="bgr48le" if deep else "bgr24")
        matrix = _SWSCALE[self._colour.matrix]
        converted = self._reformatter.reformat(
            frame,
            format=self._format,
            src_colorspace=matrix,
            dst_colorspace=matrix,
            src_color_range=FULL,
            dst_color_range=self._colour.range,
            interpolation=_FLAGS,
            threads=1,
        )
        converted.colorspace, converted.color_range = self._colour.matrix, self._colour.range
        converted.color_primaries, converted.color_trc = self._colour.primaries, self._colour.transfer
        return converted
