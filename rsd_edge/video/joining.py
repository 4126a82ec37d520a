"""Segments and copied tracks into one file, packet by packet, without encoding anything again."""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import Stream
from av.video.stream import VideoStream

from rsd_edge.errors import OutputError
from rsd_edge.stream.atomic import output_error
from rsd_edge.video.encoder import Encoder
from rsd_edge.video.journal import Segment
from rsd_edge.video.source import Clip, opened
from rsd_edge.video.track_times import TrackTimes
from rsd_edge.video.tracks import (
    Tracks,
    add_track,
    copied_packets,
    copy_chapters,
    describe,
    drops_priming,
    film_tags,
    time_notes,
)


@dataclass(frozen=True)
class Film:
    """Everything that a result is made of."""

    clip: Clip
    encoder: Encoder
    tracks: Tracks
    folder: Path
    """Of the segments' files."""
    segments: Sequence[Segment]
    end: Fraction | None
    """Seconds in the result behind which nothing is copied; None where it ends as the source does."""
    strip: bool = False
    """Without tags."""

    @property
    def duration(self) -> Fraction:
        """Seconds from the first frame to the end of the last."""
        first = min(time for _, time, _ in self.segments[0].packets)
        return (self.segments[-1].end - first) * self.encoder.time_base


class _RefusedTrackError(Exception):
    """The container takes a track and not what is in it."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(reason)
        self.index = index


def join(film: Film, target: Path) -> tuple[str, ...]:
    """Write the film and put it at `target` in one step; notes about what became of its tracks.

    A track that the container refuses on the way is left out. Raises OutputError; then `target` is as it was.
    """
    partial = film.folder / "joined.part"
    try:
        notes = _write_what_fits(film, partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, target)
        return notes
    except OutputError:
        raise
    except av.FFmpegError as error:
        if isinstance(error, OSError):
            raise output_error(target, error) from error
        cure = "try another --codec" if film.encoder.container.name == "matroska" else "try .mkv"
        raise OutputError(f"cannot write {target}: the container refuses it ({error.strerror}); {cure}") from error
    except OSError as error:
        raise output_error(target, error) from error
    finally:
        partial.unlink(missing_ok=True)


def _write_what_fits(film: Film, path: Path) -> tuple[str, ...]:
    notes: list[str] = []
    while True:
        try:
            return (*notes, *_write(film, path))
        except _RefusedTrackError as refused:
            with opened(film.clip.path) as source:
                what = describe(source.streams[refused.index])
            notes.append(f"{what} left out: {film.encoder.container.suffix} refuses a part of it ({refused})")
            copied = tuple(index for index in film.tracks.copied if index != refused.index)
            film = replace(film, tracks=replace(film.tracks, copied=copied))


def _write(film: Film, path: Path) -> tuple[str, ...]:
    container = film.encoder.container
    # An index at the front lets players begin before they have all of it.
    options = {"movflags": "+faststart"} if container.name in ("mp4", "mov") else {}
    with (
        opened(film.clip.path) as source,
        av.open(str(path.absolute()), "w", format=container.name, container_options=options) as output,
    ):
        video = _add_video(film, source, output)
        copied = {index: add_track(output, source.streams[index], strip=film.strip) for index in film.tracks.copied}
        output.metadata.update(film_tags(source.metadata, strip=film.strip))
        copy_chapters(source, output, film.clip.shift, film.end)
        output.start_encoding()
        times = TrackTimes(film.clip, container, film.end, drop_priming=drops_priming(source, container))
        others = copied_packets(source, copied, times)
        for _, packet in heapq.merge(_video_packets(film, video), others, key=lambda entry: entry[0]):
            _mux(output, packet, copied)
        return time_notes(source, times)


def _mux(output: OutputContainer, packet: Packet[Stream], copied: dict[int, Stream]) -> None:
    try:
        output.mux(packet)
    except av.FFmpegError as error:
        index = next((index for index, added in copied.items() if added is packet.stream), None)
        if index is None or isinstance(error, OSError):  # a full disk is no fault of the track
            raise
        raise _RefusedTrackError(index, str(error.strerror)) from error


def _add_video(film: Film, source: InputContainer, output: OutputContainer) -> VideoStream:
    video = film.encoder.add_to(output)
    original = source.streams[film.clip.index]
    video.metadata.update(film_tags(original.metadata, strip=film.strip))
    video.disposition = original.disposition
    return video


def _video_packets(film: Film, stream: VideoStream) -> Iterator[tuple[Fraction, Packet[Stream]]]:
    """(seconds, packet) in the order of decoding, with decoding times that hold for the whole film.

    The encoder's own would start anew with each segment. A packet is decoded at the time at which the frame `delay`
    places before it is shown, where `delay` is how far the order of decoding runs ahead of that of showing.
    """
    times = [time for segment in film.segments for _, time, _ in segment.packets]
    shown = sorted(times)
    place = {time: rank for rank, time in enumerate(shown)}
    delay = max(index - place[time] for index, time in enumerate(times))
    last = film.segments[-1].end
    lead = shown[delay] - shown[0]
    index = 0
    for segment in film.segments:
        with (film.folder / segment.file).open("rb") as file:
            for size, time, key in segment.packets:
                packet = Packet(file.read(size))
                packet.pts = time
                packet.dts = shown[index - delay] if index >= delay else shown[index] - lead
                rank = place[time]
                packet.duration = (shown[rank + 1] if rank + 1 < len(shown) else last) - time
                packet.time_base, packet.stream, packet.is_keyframe = film.encoder.time_base, stream, key
                index += 1
                yield packet.dts * film.encoder.time_base, packet
