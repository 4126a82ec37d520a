"""How an encoder is set up, each time it starts, and what its frames have to be."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.container import OutputContainer
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream
from numpy.typing import NDArray

from rsd_edge.errors import OutputError
from rsd_edge.opencv import cv2
from rsd_edge.video.colour import Colour
from rsd_edge.video.formats import Container

_GLOBAL_HEADER = 1 << 22
_QSCALE = 1 << 1
_QP_TO_LAMBDA = 118


@dataclass(frozen=True)
class Encoder:
    """A set-up that can be started again and again, each time with a keyframe."""

    name: str
    codec: str
    container: Container
    width: int
    """Even."""
    height: int
    pixel_format: str
    time_base: Fraction
    rate: Fraction
    colour: Colour
    sample_aspect: Fraction | None
    options: tuple[tuple[str, str], ...]
    quality: float
    bits_per_pixel: float
    threads: int
    """Not only a matter of speed: with others, most encoders make other packets."""

    def set_up(self, context: VideoCodecContext) -> None:
        """Give a fresh context these settings."""
        context.width, context.height, context.pix_fmt = self.width, self.height, self.pixel_format
        context.time_base, context.framerate = self.time_base, self.rate
        context.colorspace, context.color_range = self.colour.matrix, self.colour.range
        context.color_primaries, context.color_trc = self.colour.primaries, self.colour.transfer
        context.thread_count = self.threads
        if self.sample_aspect is not None:
            context.sample_aspect_ratio = self.sample_aspect
        if self.name == "mpeg4":
            context.flags |= _QSCALE
            context.global_quality = round(self.quality * _QP_TO_LAMBDA)
        if self.codec == "hevc" and self.container.name in ("mp4", "mov"):
            context.codec_tag = "hvc1"  # the only spelling that Apple's players take
        if self.container.name != "avi":
            context.flags |= _GLOBAL_HEADER
        context.options = dict(self.options)

    def add_to(self, output: OutputContainer) -> VideoStream:
        """A stream with the encoder's own headers, for packets of contexts that `start` opens: the same set-up makes
        the same ones."""
        stream = output.add_stream(self.name, rate=self.rate, time_base=self.time_base)
        assert isinstance(stream, VideoStream)
        self.set_up(stream.codec_context)
        return stream

    def start(self) -> VideoCodecContext:
        """An open context, whose first packet will be a keyframe. Raises OutputError if it does not open."""
        context = av.CodecContext.create(self.name, "w")
        assert isinstance(context, VideoCodecContext)
        self.set_up(context)
        try:
            context.open()
        except (av.FFmpegError, ValueError) as error:
            raise OutputError(f"{self.name} does not start at {self.width}x{self.height} ({error})") from None
        return context


def fitted(image: NDArray[Any], width: int, height: int) -> NDArray[Any]:
    """Of the size of a film, which is even: with an edge doubled, or resized where the source has changed."""
    h, w = image.shape[:2]
    if (w + w % 2, h + h % 2) != (width, height):
        return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA))
    if (w, h) == (width, height):
        return image
    return np.asarray(cv2.copyMakeBorder(image, 0, height - h, 0, width - w, cv2.BORDER_REPLICATE))
