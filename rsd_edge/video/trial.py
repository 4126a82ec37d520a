"""A few frames through an encoder and a container and back, before a film is trusted to them."""

from __future__ import annotations

import io

import av
import numpy as np
from av.packet import Packet
from av.stream import Stream

from rsd_edge.errors import OutputError
from rsd_edge.video.colour import FromBgr, is_deep
from rsd_edge.video.encoder import Encoder

_FRAMES = 3


def try_out(encoder: Encoder) -> tuple[av.VideoFrame, frozenset[str]]:
    """The first frame as it is read back, and the options that the encoder does not know, with which it starts anyway.

    Raises OutputError with nothing but the reason if the frames do not come back.
    """
    file = io.BytesIO()
    try:
        packets, ignored = _encoded(encoder)
    except ValueError as error:
        raise OutputError(f"does not fit ({error})") from None
    except (av.FFmpegError, OutputError) as error:
        raise OutputError(f"does not work here ({error})") from None
    if len(packets) != _FRAMES:
        raise OutputError("lost frames of a trial")
    where = f"in {encoder.container.suffix}"
    try:
        with av.open(file, "w", format=encoder.container.name) as output:
            stream = encoder.add_to(output)
            output.start_encoding()
            for packet in packets:
                packet.stream = stream
                output.mux(packet)
    except (av.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{where} cannot be written ({reason})") from None
    file.seek(0)
    try:
        with av.open(file, "r") as written:
            frame = next(written.decode(video=0))
    except (av.FFmpegError, StopIteration, IndexError):
        raise OutputError(f"{where} cannot be read back") from None
    return frame, ignored


def _encoded(encoder: Encoder) -> tuple[list[Packet[Stream]], frozenset[str]]:
    """Raises FFmpegError, ValueError, OutputError."""
    deep = is_deep(encoder.pixel_format)
    flat = np.full((encoder.height, encoder.width, 3), 128, np.uint16 if deep else np.uint8)
    context = encoder.start()
    ignored = frozenset(context.options)
    frame = FromBgr(encoder.colour, encoder.pixel_format)(flat)
    step = max(1, round(1 / (encoder.rate * encoder.time_base)))
    packets: list[Packet[Stream]] = []
    for i in range(_FRAMES):
        frame.pts, frame.time_base = i * step, encoder.time_base
        packets += context.encode(frame)
    return [*packets, *context.encode(None)], ignored
