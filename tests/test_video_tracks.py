"""Sound, subtitles and covers that a container or a broken clock makes difficult."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.packet import Packet
from av.stream import Disposition
from video_clips import Recipe, make, read, upscale

from rsd_edge.video import joining, tracks
from rsd_edge.video.formats import CONTAINERS
from rsd_edge.video.settings import VideoSettings
from rsd_edge.video.source import survey
from rsd_edge.video.track_times import TrackTimes
from rsd_edge.video.tracks import copy_chapters

CAMERA = Recipe("mjpeg", {}, pixel_format="yuvj420p", time_base=Fraction(1, 25), times=range(8))
SOUND = 0.024
"""Seconds that a packet of MP2 at 48 kHz lasts."""


def rewritten(source: Path, target: Path, change: Any) -> Path:
    """The same packets, each changed first."""
    with av.open(str(source)) as opened, av.open(str(target), "w") as output:
        streams = [output.add_stream_from_template(stream, opaque=True) for stream in opened.streams]
        for packet in opened.demux():
            if packet.size:
                change(packet)
                packet.stream = streams[packet.stream.index]
                output.mux(packet)
    return target


def later(seconds: int) -> Any:
    def change(packet: Packet[Any]) -> None:
        packet.pts += round(seconds / packet.time_base)
        packet.dts += round(seconds / packet.time_base)

    return change


@pytest.mark.parametrize("target", ["mkv", "mp4"])
@pytest.mark.parametrize("hours", [0, 2])
@pytest.mark.parametrize("codec", ["mp2", "aac", "ac3"])
def test_sound_follows_a_clock_that_begins_anew_or_jumps(tmp_path: Path, codec: str, hours: int, target: str) -> None:
    first = make(tmp_path / "first.ts", Recipe(times=range(0, 25 * 512, 512), audio=(codec,)))
    second = rewritten(first, tmp_path / "second.ts", later(3600 * hours))
    source = tmp_path / "joined.ts"
    source.write_bytes(first.read_bytes() + second.read_bytes())
    result, after = upscale(source, f"b.{target}", scale=1)
    times = [time for time, _ in after.packets[1]]
    assert [time - after.times[0] for time in after.times] == [Fraction(index, 25) for index in range(50)]
    # The packets of a second last up to one longer than it.
    assert 2 - 0.04 < times[-1] + SOUND < 2 + 0.1
    assert max(np.diff(times)) < 0.04
    assert any(note.startswith(f"audio track 1 ({codec}, eng): ") for note in result.notes)


def test_a_part_of_a_joined_film_has_the_sound_of_its_pictures(tmp_path: Path) -> None:
    first = make(tmp_path / "first.ts", Recipe(times=range(0, 25 * 512, 512), audio=("mp2",)))
    source = tmp_path / "joined.ts"
    source.write_bytes(2 * first.read_bytes())
    sounds = [data for _, data in read(first).packets[1]]
    _, after = upscale(source, "b.mkv", scale=1, start=0.8, duration=0.4)
    assert [data for _, data in after.packets[1]][-2:] == sounds[6:8]
    assert after.packets[1][-1][0] < 0.4


def test_subtitles_whose_clock_goes_back_are_left_out_aloud(tmp_path: Path) -> None:
    source = make(tmp_path / "a.mkv", Recipe(subtitle="srt"))
    clip = survey(source, VideoSettings())
    times = TrackTimes(clip, CONTAINERS[".mp4"], None, drop_priming=False)
    tick, placed = Fraction(1, 1000), []
    with av.open(str(source)) as opened:
        text = next(packet for packet in opened.demux(subtitles=0) if packet.size)
        for time in (100, 100, 60, 200, 8_000_000):  # two at once are in order, and hours may pass
            text.pts = text.dts = time
            placed.append(times(text, tick))
    assert placed == [Fraction(1, 10), Fraction(1, 10), None, Fraction(2, 10), 8000]
    assert (dict(times.moved), dict(times.left_out)) == ({}, {1: 1})


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_moved_sound_does_not_drift(tmp_path: Path, suffix: str) -> None:
    """Packets of 23.22 ms, in a container whose clock counts whole milliseconds or finer."""
    source = make(tmp_path / "a.mkv", Recipe(audio=("aac",)))
    times = TrackTimes(survey(source, VideoSettings()), CONTAINERS[suffix], None, drop_priming=False)
    tick = Fraction(1, 1000)
    with av.open(str(source)) as opened:
        sound = next(packet for packet in opened.demux(audio=0) if packet.size)
        for index in (*range(1000), *range(1000)):  # the second recording begins anew
            sound.time_base, sound.duration = Fraction(1, 44100), 1024
            sound.pts = sound.dts = 1024 * index
            placed = times(sound, tick)
    assert times.moved == {1: 1000}
    assert placed == pytest.approx(1999 * 1024 / 44100, abs=0.001)  # a tick


def test_times_that_round_to_one_tick_are_parted_where_they_must_be(tmp_path: Path) -> None:
    source = make(tmp_path / "a.mkv", Recipe(audio=("mp2",)))
    clip = survey(source, VideoSettings())
    for suffix, expected in ((".avi", [0, 1, 2, 3]), (".mkv", [0, 1, 1, 3])):
        times = TrackTimes(clip, CONTAINERS[suffix], None, drop_priming=False)
        with av.open(str(source)) as opened:
            sound = next(packet for packet in opened.demux(audio=0) if packet.size)
            placed = []
            for time in (0, 13, 35, 72):
                sound.pts = sound.dts = time
                sound.time_base, sound.duration = Fraction(1, 1000), 24
                seconds = times(sound, Fraction(24, 1000))
                assert seconds is not None
                placed.append(round(seconds / Fraction(24, 1000)))
        assert placed == expected


def test_a_track_that_is_refused_on_the_way_is_left_out_aloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Backwards(TrackTimes):
        def __call__(self, packet: Packet[Any], tick: Fraction) -> Fraction:
            packet.pts = packet.dts = -packet.pts
            return Fraction(0)

    monkeypatch.setattr(joining, "TrackTimes", Backwards)
    source = make(tmp_path / "a.mkv", Recipe(audio=("aac",)))
    result, after = upscale(source, "b.mp4")
    assert (len(after.times), after.packets) == (8, {})
    assert result.notes == ("audio track 1 (aac, eng) left out: .mp4 refuses a part of it (Invalid argument)",)


@pytest.mark.parametrize("target", ["mp4", "mov", "mkv", "avi"])
def test_sound_of_avi_whose_channels_have_no_names(tmp_path: Path, target: str) -> None:
    result, after = upscale(make(tmp_path / "a.avi", replace(CAMERA, audio=("pcm_s16le",))), f"b.{target}")
    assert after.streams[1] == ("audio", "pcm_s16le")
    assert not any("left out" in note for note in result.notes)


def test_what_is_refused_at_the_end_of_a_file_is_found_out_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracks, "_name_channels", lambda context: None)  # as for more channels than have names
    source = make(tmp_path / "a.avi", replace(CAMERA, audio=("pcm_s16le",)))
    result, after = upscale(source, "b.mp4")
    assert "audio track 1 (pcm_s16le) left out: .mp4 does not take it; .mkv takes more" in result.notes
    assert (len(after.times), after.packets) == (8, {})


def test_sound_that_avi_would_stretch_is_left_out_aloud(tmp_path: Path) -> None:
    # The encoder states no rate, and its own packets are told by their number.
    recipe = Recipe(
        "mjpeg", {}, pixel_format="yuvj420p", time_base=Fraction(1, 25), times=range(8), audio=("adpcm_ms",)
    )
    source = make(tmp_path / "a.avi", recipe)
    for target in ("avi", "mkv"):
        result, after = upscale(source, f"b.{target}")
        cure = "" if target == "mkv" else "; .mkv takes more"
        assert f"audio track 1 (adpcm_ms) left out: .{target} does not take it{cure}" in result.notes
        assert after.packets == {}


@pytest.mark.parametrize("codec", ["gif", "tiff", "png"])
@pytest.mark.parametrize("target", ["mov", "mp4", "mkv"])
def test_covers_of_any_kind(tmp_path: Path, codec: str, target: str) -> None:
    plain, source = make(tmp_path / "plain.mkv", Recipe()), tmp_path / "a.mkv"
    with av.open(str(plain)) as opened, av.open(str(source), "w") as output:
        video = output.add_stream_from_template(opened.streams.video[0], opaque=True)
        output.add_attachment(f"cover.{codec}", f"image/{codec}", still(codec))
        for packet in opened.demux(video=0):
            if packet.size:
                packet.stream = video
                output.mux(packet)
    result, _ = upscale(source, f"b.{target}")
    with av.open(str(tmp_path / f"b.{target}")) as opened:
        kept = [stream for stream in opened.streams.video if stream.disposition & Disposition.attached_pic]
    fits = codec == "png" and target != "mov"
    assert len(kept) == fits
    assert any(f"cover picture 1 ({codec}) left out: .{target} " in note for note in result.notes) is not fits


def still(codec: str) -> bytes:
    form = {"gif": "rgb8", "tiff": "rgb24", "png": "rgb24"}[codec]
    context: Any = av.CodecContext.create(codec, "w")
    context.width, context.height, context.pix_fmt, context.time_base = 32, 32, form, Fraction(1, 25)
    picture = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 99, np.uint8), format="bgr24").reformat(format=form)
    return b"".join(bytes(packet) for packet in [*context.encode(picture), *context.encode(None)])


def test_chapters_are_cut_at_both_ends() -> None:
    class Booklet:
        """What is needed of a source and of an output."""

        def chapters(self) -> list[dict[str, Any]]:
            base = Fraction(1, 1000)
            times = [(0, 300), (300, 500), (500, 1000), (1000, 1500)]
            return [
                {"id": i, "start": a, "end": b, "time_base": base, "metadata": {}} for i, (a, b) in enumerate(times)
            ]

        def set_chapters(self, chapters: list[dict[str, Any]]) -> None:
            self.kept = [(chapter["id"], chapter["start"], chapter["end"]) for chapter in chapters]

    booklet: Any = Booklet()
    copy_chapters(booklet, booklet, Fraction(4, 10), Fraction(6, 10))
    assert booklet.kept == [(1, 0, 100), (2, 100, 600)]
    copy_chapters(booklet, booklet, Fraction(4, 10), None)
    assert booklet.kept == [(1, 0, 100), (2, 100, 600), (3, 600, 1100)]


def test_what_a_film_is_among_others_is_kept(tmp_path: Path) -> None:
    plain, source = make(tmp_path / "plain.mkv", Recipe()), tmp_path / "a.mkv"
    with av.open(str(plain)) as opened, av.open(str(source), "w") as output:
        video = output.add_stream_from_template(opened.streams.video[0], opaque=True)
        video.disposition = Disposition.default | Disposition.original
        for packet in opened.demux(video=0):
            if packet.size:
                packet.stream = video
                output.mux(packet)
    upscale(source, "b.mkv")
    with av.open(str(tmp_path / "b.mkv")) as opened:
        assert opened.streams.video[0].disposition == Disposition.default | Disposition.original
