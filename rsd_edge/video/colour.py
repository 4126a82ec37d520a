"""Frames of a decoder to BGR and BGR to frames of an encoder, with one matrix and one range both ways."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rsd_edge.opencv import cv2
from rsd_edge.pyav import av

if TYPE_CHECKING:
    from rsd_edge.frames import Frame

UNSPECIFIED = 2
PQ, HLG = 16, 18
LIMITED, FULL = 1, 2
_BT709, _BT601 = 1, 6
_NAMES = {1: "BT.709", 4: "FCC", 5: "BT.601", 6: "BT.601", 7: "SMPTE 240M", 9: "BT.2020", 10: "BT.2020"}
_SWSCALE = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
"""The numbers that swscale has for the matrices of FFmpeg; constant-luminance BT.2020 is read as the other one."""
_LUMA = {
    1: (0.2126, 0.0722),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
    10: (0.2627, 0.0593),
}
"""Shares of red and blue in luma."""
_HD_LINES = 720

# swscale moves chroma between sample grids only: its own matrices are off by up to three levels. What no label says of
# the place of chroma it takes for the middle between two luma samples, where few films have it: see `FromBgr._labelled`
# and `source.set_up_decoder`.
# Its flags are numbers here because not every PyAV has names for all: bicubic and bilinear, then accurate rounding and
# all chroma samples taken into account.
_ENLARGE = 4 | 0x40000 | 0x2000 | 0x4000
_REDUCE = 2 | 0x40000  # to half the size as good as bicubic, and more than twice as fast

_DEEP = ("yuv420p10le", "p010le", "yuv422p10le", "yuv444p10le")
FORMATS = ("yuv420p", "nv12", "yuv422p", "yuv444p", *_DEEP)
"""Pixel formats of results. At four times the size 4:2:0 has more chroma than the source had, hence the order."""


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
        notes.append("RGB video becomes YUV")
    elif matrix not in _SWSCALE:
        untagged = matrix == UNSPECIFIED
        matrix = _BT709 if frame.height >= _HD_LINES else _BT601
        why = "no colour matrix is tagged" if untagged else f"colour matrix {int(frame.colorspace)} is rare"
        if not pixel.name.startswith("gray"):
            notes.append(f"{why}; {_NAMES[matrix]} assumed for {frame.height} lines")
    if pixel.name.startswith(("yuva", "gbrap", "rgba", "bgra", "argb", "abgr", "ya8", "ya16")):
        notes.append("transparency dropped")
    bits = max(component.bits for component in pixel.components)
    return Colour(matrix, full, int(frame.color_primaries), int(frame.color_trc), bits), tuple(notes)


def for_players_that_guess(colour: Colour) -> Colour:
    """The colours to write into a file that cannot tell which they are: BT.601 in limited range."""
    matrix = colour.matrix if _NAMES[colour.matrix] == _NAMES[_BT601] else _BT601
    return replace(colour, matrix=matrix, full_range=False)


def is_hdr(colour: Colour) -> bool:
    """True for PQ and HLG, whose numbers mean light and not the usual gamma."""
    return colour.transfer in (PQ, HLG)


def reads_as(frame: av.VideoFrame, colour: Colour) -> bool:
    """Whether whoever decodes this frame takes it for one of that colour. Untagged ones are taken for BT.601."""
    matrix = _BT601 if frame.colorspace == UNSPECIFIED else int(frame.colorspace)
    full = frame.color_range == FULL or frame.format.name.startswith("yuvj")
    same = not frame.format.is_rgb and _NAMES.get(matrix) == _NAMES[colour.matrix] and full == colour.full_range
    return same and (not is_hdr(colour) or int(frame.color_trc) == colour.transfer)


class ToBgr:
    """Decoded frames to BGR arrays; serves one thread."""

    def __init__(self, colour: Colour, width: int, height: int, deep: bool) -> None:
        """width, height: of the first frame; later ones of another size are resampled to it. deep: 16 bits."""
        self._colour, self._size, self._deep = colour, (width, height), deep
        self._matrix = _to_bgr_matrix(colour, deep)
        self._reformatter = av.video.reformatter.VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> Frame:
        """uint8 or uint16 (h, w, 3) with all of the dtype's range in use."""
        if frame.format.is_rgb or frame.format.has_palette:
            return self._sampled(frame, "bgr48le" if self._deep else "bgr24", FULL).to_ndarray()  # type: ignore[return-value]
        # swscale takes all gray for full range, and makes it limited where that is asked for.
        stays = frame.format.name.startswith("gray") and frame.color_range == LIMITED
        sampled = self._sampled(frame, _full_chroma(self._deep), FULL if stays else self._colour.range)
        image: Frame = cv2.transform(_packed(sampled), self._matrix)  # type: ignore[assignment]
        return image

    def _sampled(self, frame: av.VideoFrame, pixel_format: str, value_range: int) -> av.VideoFrame:
        return self._reformatter.reformat(
            frame,
            width=self._size[0],
            height=self._size[1],
            format=pixel_format,
            src_colorspace=_SWSCALE[self._colour.matrix],
            dst_colorspace=_SWSCALE[self._colour.matrix],
            src_color_range=value_range,
            dst_color_range=value_range,
            interpolation=_ENLARGE,
            threads=1,
        )


class FromBgr:
    """BGR arrays to frames for an encoder; serves one thread."""

    def __init__(self, colour: Colour, pixel_format: str) -> None:
        self._colour, self._format = colour, pixel_format
        self._deep = is_deep(pixel_format)
        # Whatever the source had, 10 bits are encoded where this is deep.
        self._matrix = _invert(_to_bgr_matrix(replace(colour, bits=10 if self._deep else 8), self._deep))
        self._reformatter = av.video.reformatter.VideoReformatter()
        self._graph: av.filter.Graph | None = None

    def __call__(self, image: NDArray[Any]) -> av.VideoFrame:
        """A frame with tags; the array may be overwritten afterwards.

        image: uint8 or uint16 (h, w, 3), even sides, of the same size each time.
        """
        packed: Frame = cv2.transform(image, self._matrix)  # type: ignore[assignment]
        frame = av.VideoFrame.from_ndarray(packed, format=_full_chroma(self._deep), **_last(self._deep))
        matrix = _SWSCALE[self._colour.matrix]
        converted = self._reformatter.reformat(
            self._labelled(frame),
            format=self._format,
            src_colorspace=matrix,
            dst_colorspace=matrix,
            src_color_range=self._colour.range,
            dst_color_range=self._colour.range,
            interpolation=_REDUCE,
            threads=1,
        )
        converted.colorspace, converted.color_range = self._colour.matrix, self._colour.range
        converted.color_primaries, converted.color_trc = self._colour.primaries, self._colour.transfer
        return converted

    def _labelled(self, frame: av.VideoFrame) -> av.VideoFrame:
        """Asks for chroma at the left luma sample, where players take it to be; a filter alone can label a frame."""
        if self._graph is None:
            self._graph = av.filter.Graph()
            self._graph.threads = 1
            begin = self._graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1)
            )
            label, end = self._graph.add("setparams", "chroma_location=left"), self._graph.add("buffersink")
            begin.link_to(label)
            label.link_to(end)
            self._graph.configure()
        self._graph.push(frame)
        labelled = self._graph.pull()
        assert isinstance(labelled, av.VideoFrame)
        return labelled


def is_deep(pixel_format: str) -> bool:
    """True for those of `FORMATS` that have 10 bits."""
    return pixel_format in _DEEP


def _full_chroma(deep: bool) -> str:
    return "yuv444p16le" if deep else "yuv444p"


def _last(deep: bool) -> dict[str, bool]:
    # PyAV packs the planes of 16-bit frames by itself.
    return {} if deep else {"channel_last": True}


def _packed(frame: av.VideoFrame) -> NDArray[Any]:
    """(h, w, 3) of Y, Cb, Cr; 10 bits lie in the upper bits of 16."""
    deep = frame.format.name == "yuv444p16le"
    return np.ascontiguousarray(frame.to_ndarray(**_last(deep)))


def _to_bgr_matrix(colour: Colour, deep: bool) -> NDArray[np.float64]:
    """(3, 4): Y, Cb, Cr of a frame, and 1, to B, G, R that use all of their dtype's range (ISO/IEC 23091-2, 8.3)."""
    red, blue = _LUMA[colour.matrix]
    green = 1 - red - blue
    # Units of the stored numbers for one unit of luma and of chroma, and where these begin.
    step = 256.0 if deep else 1.0
    top = (2**colour.bits - 1) * 2.0 ** (16 - colour.bits) if deep else 255.0
    luma, chroma, black = (top, top, 0.0) if colour.full_range else (219 * step, 224 * step, 16 * step)
    to_rgb = np.array(
        [
            [1, 2 - 2 * blue, 0],
            [1, -blue * (2 - 2 * blue) / green, -red * (2 - 2 * red) / green],
            [1, 0, 2 - 2 * red],
        ]
    )
    matrix = (65535 if deep else 255) * to_rgb / (luma, chroma, chroma)
    offset = -matrix @ (black, 128 * step, 128 * step)
    return np.column_stack([matrix, offset])


def _invert(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    inverse = np.linalg.inv(matrix[:, :3])
    return np.column_stack([inverse, -inverse @ matrix[:, 3]])
