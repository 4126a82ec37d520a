"""The encoding end: frames go in, segments of packets come out, each with an encoder of its own.

Because nothing passes from one segment to the next, an interrupted run encodes the same segments as a whole one.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import IO, Any

import av
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from numpy.typing import NDArray

from rsd_edge.errors import OutputError
from rsd_edge.stream.atomic import output_error
from rsd_edge.video.colour import FromBgr
from rsd_edge.video.encoder import Encoder, fitted
from rsd_edge.video.journal import Segment, WorkFolder


@dataclass(frozen=True)
class EnlargedFrame:
    """A result with its time and duration in seconds."""

    time: Fraction
    duration: Fraction
    pixels: NDArray[Any]
    release: Callable[[], None]
    """Called as soon as the pixels are not needed any more."""


class SegmentWriter:
    """Encodes frames into segments of a fixed number of frames and enters each in the journal; serves one thread."""

    def __init__(self, work: WorkFolder, encoder: Encoder, length: int) -> None:
        self._work, self._encoder, self._length = work, encoder, length
        self._convert = FromBgr(encoder.colour, encoder.pixel_format)
        self._context: VideoCodecContext | None = None
        self._file: IO[bytes] | None = None
        self._packets: list[tuple[int, int, bool]] = []
        self._count = 0
        self._last: int | None = None
        if work.segments:
            self._last = max(time for _, time, _ in work.segments[-1].packets)
        self._end = 0

    def add(self, frame: EnlargedFrame) -> None:
        """Encode one frame. Raises OutputError for a full disk or an encoder that fails."""
        # Halves always up: rounded to even, times that lie between two ticks would be unevenly far apart.
        time = math.floor(frame.time / self._encoder.time_base + Fraction(1, 2))
        if self._last is not None:
            time = max(time, self._last + 1)  # two times may round to one tick
        self._last = time
        self._end = time + max(1, round(frame.duration / self._encoder.time_base))
        converted = self._convert(fitted(frame.pixels, self._encoder.width, self._encoder.height))
        frame.release()
        converted.pts, converted.time_base = time, self._encoder.time_base
        if self._context is None:
            self._begin()
        self._write(converted)
        self._count += 1
        if self._count == self._length:
            self._work.commit(self._close())

    def finish(self) -> None:
        """Close the last segment and note that it is the last. Raises OutputError."""
        if self._count:
            self._work.commit(self._close())
        self._work.commit_all()

    def break_off(self) -> Segment | None:
        """Close what there is of a segment without entering it in the journal. Raises OutputError."""
        return self._close() if self._count else None

    def abandon(self) -> None:
        """Close the file of a segment that will not be finished."""
        if self._file is not None:
            # What could not be written is still in its buffer, and fails again.
            with contextlib.suppress(OSError):
                self._file.close()

    def _begin(self) -> None:
        self._context = self._encoder.start()
        try:
            self._file = open(self._work.next_file(), "wb")  # noqa: SIM115 (closed with the segment)
        except OSError as error:
            raise output_error(self._work.target, error) from error

    def _write(self, frame: av.VideoFrame | None) -> None:
        assert self._context is not None
        assert self._file is not None
        try:
            packets = self._context.encode(frame)
        except av.FFmpegError as error:
            raise OutputError(f"{self._encoder.name} failed ({error}); try another --codec") from None
        self._store(self._file, packets)

    def _store(self, file: IO[bytes], packets: Iterable[Packet[Any]]) -> None:
        try:
            for packet in packets:
                file.write(bytes(packet))
                self._packets.append((packet.size, packet.pts or 0, packet.is_keyframe))
        except OSError as error:
            raise output_error(self._work.target, error) from error

    def _close(self) -> Segment:
        self._write(None)
        assert self._file is not None
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        except OSError as error:
            raise output_error(self._work.target, error) from error
        packets = tuple(self._packets)
        size = sum(packet[0] for packet in packets)
        segment = Segment(self._work.next_file().name, self._count, size, packets, self._end)
        self._context, self._file, self._packets, self._count = None, None, [], 0
        return segment
