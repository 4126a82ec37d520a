"""The frames of a clip in order, with times that always grow."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from rsd_edge.errors import VideoReadError
from rsd_edge.frames import Frame
from rsd_edge.video.colour import ToBgr
from rsd_edge.video.source import Clip, limit_pixels, opened

if TYPE_CHECKING:
    from av.packet import Packet

_LONGEST_GAP = 3600
"""Seconds: a longer pause between two frames is a damaged time, which no container could hold."""


@dataclass(frozen=True)
class TimedFrame:
    """An upright BGR frame with its time and duration, in ticks of the clip."""

    time: int
    duration: int
    pixels: Frame


@dataclass
class Damage:
    """What went wrong on the way, counted."""

    packets: int = 0
    times: int = 0
    resized: int = 0

    def notes(self, clip: Clip) -> tuple[str, ...]:
        """In words."""
        found = []
        if self.packets:
            found.append(f"{self.packets} damaged packets: their frames are missing or show errors")
        if self.times:
            found.append(f"{self.times} frames had no usable time; the usual step was taken")
        if self.resized:
            found.append(f"{self.resized} frames of another size were brought to {clip.width}x{clip.height}")
        return tuple(found)


def timed_frames(
    clip: Clip, skip: int, limit: int | None, deep: bool, damage: Damage
) -> Generator[TimedFrame, None, None]:
    """Decode, leave out the first `skip` frames of the part that is wanted, and convert the others up to `limit`.

    skip, limit: counted from the first frame that is wanted. deep: 16 bits. Damage is counted on the way.
    Raises VideoReadError if the file cannot be opened any more.
    """
    to_bgr = ToBgr(clip.colour, clip.width, clip.height, deep)
    with opened(clip.path) as container:
        stream = container.streams[clip.index]
        if not isinstance(stream, VideoStream):
            raise VideoReadError(f"{clip.path} has changed since it was opened; run it again")
        limit_pixels(stream, clip.max_pixels)
        count = 0
        for frame, time in _in_order(container, stream, clip, damage):
            if limit is not None and count >= limit:
                return
            count += 1
            if count <= skip:
                continue
            damage.resized += (frame.width, frame.height) != (clip.width, clip.height)
            pixels = clip.orientation.apply(to_bgr(frame))
            yield TimedFrame(time, frame.duration or clip.step, pixels)


def _in_order(
    container: InputContainer, stream: VideoStream, clip: Clip, damage: Damage
) -> Iterator[tuple[av.VideoFrame, int]]:
    """Every wanted frame with a time later than that of the one before."""
    if clip.begin is not None:
        try:
            container.seek(clip.begin, stream=stream)
        except av.FFmpegError:
            container.seek(0)
    last: int | None = None
    longest = int(_LONGEST_GAP / clip.time_base)
    for frame in _decoded(container, stream, damage):
        time = frame.dts if frame.pts is None else frame.pts
        if time is None or (last is not None and not last < time <= last + longest):
            damage.times += 1
            time = 0 if last is None else last + clip.step
        last = time
        if clip.begin is not None and time < clip.begin:
            continue
        if clip.end is not None and time >= clip.end:
            return
        yield frame, time


def _decoded(container: InputContainer, stream: VideoStream, damage: Damage) -> Iterator[av.VideoFrame]:
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError:  # noted when the file was surveyed
            yield from _flushed(stream)
            return
        if packet is None:
            return
        yield from _frames_of(packet, damage)


def _frames_of(packet: Packet[VideoStream], damage: Damage) -> Iterator[av.VideoFrame]:
    try:
        frames = packet.decode()
    except av.FFmpegError:
        damage.packets += 1
        return
    damage.packets += packet.is_corrupt
    yield from frames


def _flushed(stream: VideoStream) -> Iterator[av.VideoFrame]:
    """What the decoder still holds, where the demuxer's last packet, which would empty it, does not come."""
    with suppress(av.FFmpegError):
        yield from stream.codec_context.decode(None)
