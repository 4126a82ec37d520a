"""The frames of a clip in order, with times that always grow."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import chain, islice, takewhile
from typing import TYPE_CHECKING, TypeAlias

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from rsd_edge.errors import VideoReadError
from rsd_edge.frames import Frame
from rsd_edge.video.colour import ToBgr
from rsd_edge.video.packet_times import LONGEST_GAP
from rsd_edge.video.source import Clip, opened, set_up_decoder

if TYPE_CHECKING:
    from av.packet import Packet

_Decoded: TypeAlias = tuple[av.VideoFrame, int]
"""A frame and its time in ticks."""

_SLIP = 3
"""Steps by which times may go back, at a seam of a stream, before the clock is taken to have begun anew."""


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
            found.append(f"{self.times} frames had no usable time; each was put behind the one before it")
        if self.resized:
            found.append(f"{self.resized} frames of another size were brought to {clip.width}x{clip.height}")
        return tuple(found)

    def forget(self) -> None:
        """Count anew."""
        self.packets = self.times = self.resized = 0


def timed_frames(
    clip: Clip, skip: int, limit: int | None, deep: bool, damage: Damage
) -> Generator[TimedFrame, None, None]:
    """Decode, leave out the first `skip` frames of the part that is wanted, and convert the others up to `limit`.

    skip, limit: counted from the first frame that is wanted. deep: 16 bits. Damage is counted on the way.
    Raises VideoReadError if the file cannot be opened any more.
    """
    to_bgr = ToBgr(clip.colour, clip.width, clip.height, deep)
    with closing(_wanted(clip, damage)) as frames:
        for count, (frame, time) in enumerate(islice(frames, limit)):
            if count < skip:
                continue
            damage.resized += (frame.width, frame.height) != (clip.width, clip.height)
            pixels = clip.orientation.apply(to_bgr(frame))
            yield TimedFrame(time, frame.duration or clip.step, pixels)


def _wanted(clip: Clip, damage: Damage) -> Generator[_Decoded, None, None]:
    """The frames of the part that is wanted, the same ones as if everything before it were decoded too.

    Packets before the keyframe are read and not decoded. To seek there instead would be faster, but containers without
    an index land elsewhere, and have to guess the times of what follows.
    """
    for entry in clip.entries:
        damage.forget()
        with opened(clip.path) as container:
            stream = container.streams[clip.index]
            if not isinstance(stream, VideoStream):
                raise VideoReadError(f"{clip.path} has changed since it was opened; run it again")
            set_up_decoder(stream, clip.max_pixels)
            frames = _in_order(_decoded(container, stream, entry, damage), clip, damage)
            first = _lead_in(frames, clip.begin, damage, certain=entry == 0)
            if first is not None:
                yield from takewhile(lambda item: clip.end is None or item[1] < clip.end, chain([first], frames))
                return


def _lead_in(frames: Iterator[_Decoded], begin: int | None, damage: Damage, *, certain: bool) -> _Decoded | None:
    """The first wanted frame; None if there is none or, unless `certain`, if some frames before it cannot be decoded.

    Damage is counted from the last frame on that is not wanted.
    """
    for index, (frame, time) in enumerate(frames):
        if not certain:
            astray = index == 0 and not (frame.key_frame and (begin is None or time <= begin))
            if astray or frame.is_corrupt or damage != Damage():
                return None
        if begin is None or time >= begin:
            return frame, time
        damage.forget()
    return None


def _in_order(frames: Iterator[av.VideoFrame], clip: Clip, damage: Damage) -> Iterator[_Decoded]:
    """Every frame with a time later than that of the one before."""
    last: int | None = None
    longest = int(LONGEST_GAP / clip.time_base)
    for frame in frames:
        time = frame.dts if frame.pts is None else frame.pts
        if time is None or (last is not None and not last < time <= last + longest):
            damage.times += 1
            time = _mended(time, last, clip.step)
        last = time
        yield frame, time


def _mended(time: int | None, last: int | None, step: int) -> int:
    """A time in place of one that is missing, no later than the one before, or absurdly late."""
    if last is None:
        return 0
    # The next frame after one that comes twice is on time again.
    slipped = time is not None and last - _SLIP * step < time <= last
    return last + (1 if slipped else step)


def _decoded(container: InputContainer, stream: VideoStream, entry: int, damage: Damage) -> Iterator[av.VideoFrame]:
    """Frames from packet number `entry` on."""
    packets = container.demux(stream)
    place = 0
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError:  # noted when the file was surveyed
            yield from _flushed(stream)
            return
        if packet is None:
            return
        if place >= entry or not packet.size:
            yield from _frames_of(packet, damage)
        place += packet.size > 0


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
