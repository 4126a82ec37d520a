"""What of a source besides its pictures goes into a result: audio, subtitles, attachments, chapters, tags."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
from av import AudioCodecContext, AudioLayout, AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import AttachmentStream, Discard, Stream

from rsd_edge.video.formats import Container
from rsd_edge.video.source import Clip, is_picture, opened
from rsd_edge.video.track_times import TrackTimes

if TYPE_CHECKING:
    from av.container.core import Chapter  # exists for type checkers only

_COPIED = ("audio", "subtitle", "attachment")
_TECHNICAL = frozenset(
    (
        "encoder",
        "major_brand",
        "minor_version",
        "compatible_brands",
        "duration",
        "rotate",
        "bps",
        "number_of_frames",
        "number_of_bytes",
        "vendor_id",
        "_statistics_writing_app",
        "_statistics_writing_date_utc",
        "_statistics_tags",
    )
)
"""Tags that tell of the source's file and not of the film."""

_PICTURES = {"mjpeg": (".jpg", "image/jpeg"), "png": (".png", "image/png")}
"""Suffix and type of covers, by codec."""

_OPEN_ENDED = ("pgssub", "dvbsub")
"""Subtitles that are shown until others take their place."""

_COVERS = ("mp4", "matroska")
"""MOV drops them without a word, and AVI shows them as a second film."""

_CHAPTERS = ("mp4", "mov", "matroska", "webm")


@dataclass(frozen=True)
class Tracks:
    """Which streams of the source are copied, by their index."""

    copied: tuple[int, ...]
    notes: tuple[str, ...]


def plan_tracks(clip: Clip, container: Container) -> Tracks:
    """Try each stream in the container. Raises VideoReadError if the source cannot be opened any more."""
    copied, notes = [], []
    with opened(clip.path) as source:
        firsts = _first_packets(source, clip)
        for stream in source.streams:
            if stream.index == clip.index or stream.discard == Discard.all:
                continue  # FFmpeg discards what it has read already, such as chapters that MP4 keeps in a track
            if stream.type == "video" and not is_picture(stream):
                notes.append(f"video track {stream.index} left out: only the first one is enlarged")
            elif stream.type not in _COPIED and not is_picture(stream):
                notes.append(f"{stream.type} track {stream.index} left out")
            elif _fits(stream, firsts.get(stream.index), container):
                copied.append(stream.index)
                if stream.type == "audio" and clip.begin is None and drops_priming(source, container):
                    notes += _priming_note(stream, container)
                if stream.type == "subtitle" and clip.begin is not None:
                    notes += _open_end_note(stream)
            else:
                cure = "" if container.name == "matroska" else "; .mkv takes more"
                notes.append(f"{describe(stream)} left out: {container.suffix} does not take it{cure}")
        if source.chapters() and container.name not in _CHAPTERS:
            notes.append(f"chapters left out: {container.suffix} has none")
    return Tracks(tuple(copied), tuple(notes))


def add_track(output: OutputContainer, stream: Stream, *, strip: bool = False) -> Stream:
    """A stream of the output for the packets of a source's; strip: without its tags, the language apart.

    Raises what PyAV raises if the container refuses it.
    """
    if is_picture(stream) and output.format.name == "matroska":
        # There covers are attachments; as a track this one would be taken for a second film.
        suffix, kind = _PICTURES[stream.codec_context.name]
        return output.add_attachment(f"cover{suffix}", kind, _picture(stream))
    if isinstance(stream, AttachmentStream):
        name = stream.metadata.get("filename", f"attachment-{stream.index}")
        return output.add_attachment(name, stream.mimetype or "application/octet-stream", stream.data)
    added = output.add_stream_from_template(stream, opaque=True)
    if isinstance(added, AudioStream):
        _name_channels(added.codec_context)
    added.metadata.update(film_tags(stream.metadata, strip=strip))
    added.disposition = stream.disposition
    return added


def _name_channels(context: AudioCodecContext) -> None:
    """Take the usual ones of that number where the source does not name them: MP4 refuses sound without."""
    count = context.layout.nb_channels
    if context.layout.name == f"{count} channels":
        with suppress(ValueError):  # no usual ones
            context.layout = AudioLayout(f"{count}c")


def _picture(stream: Stream) -> bytes:
    """A cover as the file that it was, read apart so that no packet of the film is lost on the way."""
    with opened(Path(stream.container.name)) as source:
        return next((bytes(packet) for packet in source.demux(source.streams[stream.index]) if packet.size), b"")


def film_tags(tags: dict[str, str], *, strip: bool = False) -> dict[str, str]:
    """Those that are as true of the result; strip: the language alone."""
    if strip:
        return {key: value for key, value in tags.items() if key == "language"}
    return {key: value for key, value in tags.items() if key.lower().partition("-")[0] not in _TECHNICAL}


def copy_chapters(source: InputContainer, output: OutputContainer, shift: Fraction, end: Fraction | None) -> None:
    """Chapters with times as in the result; those before its beginning or behind its end are left out."""
    kept: list[Chapter] = []
    for chapter in source.chapters():
        base = chapter["time_base"] or Fraction(1, 1000)
        first, last = chapter["start"] - round(shift / base), chapter["end"] - round(shift / base)
        if last <= 0 or (end is not None and first * base >= end):
            continue
        last = last if end is None else min(last, round(end / base))
        first = max(0, first)
        kept.append(
            {
                "id": chapter["id"],
                "start": first,
                "end": max(last, first),
                "time_base": base,
                "metadata": chapter["metadata"],
            }
        )
    if kept:
        output.set_chapters(kept)


def copied_packets(
    source: InputContainer, streams: dict[int, Stream], times: TrackTimes
) -> Iterator[tuple[Fraction, Packet[Stream]]]:
    """(seconds, packet for the output) of all copied streams, in the order of the file.

    streams: of the output, which has begun, by their index in the source.
    """
    wanted = [source.streams[index] for index, added in streams.items() if added.type != "attachment"]
    if not wanted:
        return
    packets = source.demux(wanted)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError:
            return  # the same damage has ended the pictures, and been told
        if packet is None:
            return
        added = streams[packet.stream.index]
        assert added.time_base is not None
        seconds = times(packet, added.time_base)
        if seconds is not None:
            packet.stream = added
            yield seconds, packet


def time_notes(source: InputContainer, times: TrackTimes) -> tuple[str, ...]:
    """What was wrong with the times of copied streams, in words."""
    moved = [
        f"{describe(source.streams[index])}: {count} packets had no usable time; each was put behind the one before it"
        for index, count in times.moved.items()
    ]
    left_out = [
        f"{describe(source.streams[index])}: {count} packets left out, whose times go back or jump"
        for index, count in times.left_out.items()
    ]
    return (*moved, *left_out)


def drops_priming(source: InputContainer, container: Container) -> bool:
    """Matroska states how long the priming is, and can do so again; from MP4 only the negative times are known."""
    return not container.negative_times and "matroska" not in source.format.name


def _priming_note(stream: Stream, container: Container) -> list[str]:
    if stream.start_time is None or stream.time_base is None or stream.start_time >= 0:
        return []
    early = float(-stream.start_time * stream.time_base)
    what = f"the encoder's {1000 * early:.0f} ms before the beginning left out"
    return [f"{describe(stream)}: {what}, which {container.suffix} cannot place; nothing is heard of them"]


def _open_end_note(stream: Stream) -> list[str]:
    if getattr(stream.codec_context, "name", "") not in _OPEN_ENDED:
        return []
    return [f"{describe(stream)}: a picture that is shown at the beginning is left out until the next one"]


def _first_packets(source: InputContainer, clip: Clip) -> dict[int, Packet[Stream]]:
    """One of each sound and cover, by index: subtitles may come late, and to look for them reads the whole file."""
    wanted = [s for s in source.streams if s.index != clip.index and (s.type == "audio" or is_picture(s))]
    found: dict[int, Packet[Stream]] = {}
    if wanted:
        with suppress(av.FFmpegError):
            for packet in source.demux(wanted):
                if packet.size:
                    found.setdefault(packet.stream.index, packet)
                if len(found) == len(wanted):
                    break
    return found


def _fits(stream: Stream, first: Packet[Stream] | None, container: Container) -> bool:
    """Whether the container takes the stream, found out by writing a file with its first packet.

    Some containers refuse a stream at the end only, once they know that there is something in it.
    """
    if stream.type == "attachment" and container.name != "matroska":
        return False
    if is_picture(stream) and container.name not in _COVERS:
        return False
    try:
        with av.open(io.BytesIO(), "w", format=container.name) as output:
            added = add_track(output, stream)
            if added.type == "attachment":
                return True  # which cannot be the only stream of a file
            output.start_encoding()
            if first is not None:
                tick = added.time_base or Fraction(0)
                if container.fixed_rate and tick > 2 * (first.duration or 0) * first.time_base:
                    return False  # its clock is the rate that the source states, which is wrong then
                first.stream, first.pts, first.dts = added, 0, 0
                output.mux(first)
    except (av.FFmpegError, ValueError, KeyError):
        return False
    return True


def describe(stream: Stream) -> str:
    codec = getattr(stream.codec_context, "name", "unknown codec")
    language = stream.metadata.get("language")
    what = "cover picture" if is_picture(stream) else f"{stream.type} track"
    return f"{what} {stream.index} ({codec}{f', {language}' if language else ''})"
