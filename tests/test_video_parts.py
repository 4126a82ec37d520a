"""A part of a film is the frames that a whole run has at those times, in any container."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
from video_clips import Recipe, cubic, make, read, upscale

from rsd_edge import VideoSettings, VideoUpscaler
from rsd_edge.errors import InputError
from rsd_edge.video import decoding
from rsd_edge.video.decoding import Damage, timed_frames
from rsd_edge.video.source import Clip, survey

LENGTH = 50
# Keyframes where the length of a group says, so that most parts begin between two of them.
GROUPS = {"g": "20", "keyint_min": "20", "sc_threshold": "0"}
X264 = {**GROUPS, "crf": "10", "preset": "veryfast"}
COARSE = {"time_base": Fraction(1, 25), "times": range(LENGTH)}
SOURCES = {
    "ts": Recipe(options=X264, b_frames=2),
    "mp4": Recipe(options=X264, b_frames=2),
    "mkv": Recipe(options=X264, b_frames=2),
    "avi": Recipe("mpeg4", {**GROUPS, "sc_threshold": "1000000000"}, b_frames=2, **COARSE),
    "mpg": Recipe("mpeg2video", {**GROUPS, "sc_threshold": "1000000000"}, b_frames=2, **COARSE),
    "webm": Recipe("libvpx-vp9", {"g": "20", "b": "0", "deadline": "realtime", "cpu-used": "8"}),
}


def film(tmp_path: Path, container: str) -> Path:
    recipe = SOURCES[container]
    times = recipe.times if recipe.time_base == Fraction(1, 25) else range(0, LENGTH * 512, 512)
    return make(tmp_path / f"a.{container}", replace(recipe, times=times))


def frames(clip: Clip) -> list[tuple[Fraction, int]]:
    """(seconds, hash of the pixels) of what the engine gets."""
    damage = Damage()
    found = [
        (frame.time * clip.time_base, hash(frame.pixels.tobytes()))
        for frame in timed_frames(clip, 0, None, deep=False, damage=damage)
    ]
    assert damage == Damage() or clip.path.suffix == ".mpg"  # whose seams of groups are a frame off
    return found


@pytest.mark.parametrize("container", SOURCES)
def test_a_part_is_what_a_whole_run_has_at_those_times(tmp_path: Path, container: str) -> None:
    path = film(tmp_path, container)
    whole = survey(path, VideoSettings())
    every = frames(whole)
    assert len(every) == LENGTH
    for start in (0.2, 0.8, 1.0, 1.4):
        part = survey(path, VideoSettings(start=start, duration=0.2))
        first, last = (Fraction(str(round(start + more, 1))) for more in (0, 0.2))
        # Running clocks begin where the first stream does, which is where this film does.
        origin = whole.shift
        expected = [item for item in every if first <= item[0] - origin < last]
        assert frames(part) == expected
        assert 4 <= len(expected) <= 6


@pytest.mark.parametrize("container", ["ts", "avi"])
def test_parts_through_the_whole_path(tmp_path: Path, container: str) -> None:
    result, after = upscale(film(tmp_path, container), "b.mkv", start=0.8, duration=0.4)
    assert after.times == [Fraction(i, 25) for i in range(10)]
    assert not any("could be read" in note for note in result.notes)


def test_decoding_begins_at_a_keyframe_that_leads_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = survey(film(tmp_path, "ts"), VideoSettings(start=1.4))
    assert clip.entries == (20, 0)  # packets are in the order of decoding, and 40 is shown later
    expected = frames(clip)
    decoded: list[int] = []
    real = decoding._frames_of

    def counting(packet: Any, damage: Damage) -> Any:
        decoded.append(packet.size)
        return real(packet, damage)

    monkeypatch.setattr("rsd_edge.video.decoding._frames_of", counting)
    assert frames(clip) == expected
    assert sum(size > 0 for size in decoded) == LENGTH - 20
    # A packet in the middle of a group, as if its container took it for a keyframe.
    assert frames(replace(clip, entries=(27, 0))) == expected
    assert frames(replace(clip, entries=(27, 20, 0))) == expected


def test_a_subtitle_on_screen_at_the_beginning_is_cut(tmp_path: Path) -> None:
    source = make(tmp_path / "a.mkv", Recipe(times=range(0, 25 * 512, 512), subtitle="srt"))  # from 0.04 s to 0.2 s
    for start, expected in ((0, (Fraction(4, 100), Fraction(16, 100))), (0.12, (0, Fraction(8, 100)))):
        upscale(source, "b.mkv", start=start)
        with av.open(str(tmp_path / "b.mkv")) as result:
            (text,) = [packet for packet in result.demux(subtitles=0) if packet.size]
            base = text.time_base
            assert (text.pts * base, text.duration * base) == expected
            assert bytes(text) == b"Hello"
    upscale(source, "b.mkv", start=0.2)
    assert not read(tmp_path / "b.mkv").packets


@pytest.mark.parametrize(
    ("part", "begin", "length"),
    [
        ({"duration": 0.12}, 4, 8),
        ({"max_frames": 3}, 4, 8),
        ({"start": 0.08, "duration": 0.04}, 0, 4),
    ],
)
def test_a_subtitle_on_screen_at_the_end_is_cut(tmp_path: Path, part: dict[str, Any], begin: int, length: int) -> None:
    source = make(tmp_path / "a.mkv", Recipe(times=range(0, 25 * 512, 512), subtitle="srt"))  # from 0.04 s to 0.2 s
    upscale(source, "b.mkv", **part)
    with av.open(str(tmp_path / "b.mkv")) as result:
        (text,) = [packet for packet in result.demux(subtitles=0) if packet.size]
        assert (text.pts * text.time_base, text.duration * text.time_base) == (
            Fraction(begin, 100),
            Fraction(length, 100),
        )
        assert result.duration == 10_000 * (begin + length)  # in microseconds


def test_subtitles_without_an_end_are_left_out_aloud(tmp_path: Path) -> None:
    source = make(tmp_path / "a.mkv", Recipe(subtitle="srt"))
    content = source.read_bytes()
    assert content.count(b"S_TEXT/UTF8") == 1
    source.write_bytes(content.replace(b"S_TEXT/UTF8", b"S_HDMV/PGS\0"))  # strings end at the first zero
    result, _ = upscale(source, "b.mkv", start=0.12)
    note = "subtitle track 1 (pgssub): a picture that is shown at the beginning is left out until the next one"
    assert note in result.notes
    whole, _ = upscale(source, "b.mkv")
    assert note not in whole.notes


def test_a_part_before_the_first_picture(tmp_path: Path) -> None:
    source = make(tmp_path / "a.mkv", Recipe(times=range(6400, 6400 + 8 * 512, 512), audio=("aac",)))
    with pytest.raises(InputError, match=r"has no frame in 0\.2 s from 0 s; take more"):
        upscale(source, "b.mkv", duration=0.2)


def test_a_part_between_two_frames(tmp_path: Path) -> None:
    source = make(tmp_path / "a.mkv", Recipe(times=(0, 512, 12800)))
    with pytest.raises(InputError, match=r"has no frame in 0\.2 s from 0\.5 s; take more"):
        upscale(source, "b.mkv", start=0.5, duration=0.2)


def test_two_frames_at_one_time_do_not_shift_the_rest(tmp_path: Path) -> None:
    # Milliseconds: the third frame and the fourth share one, and then the steps grow from 10 to 100.
    milliseconds = [0, 10, 20, 20.2, *range(30, 130, 10), *range(1000, 2000, 100)]
    source = make(tmp_path / "a.mkv", Recipe(times=[round(12.8 * time) for time in milliseconds]))
    result, after = upscale(source, "b.mkv")
    deviations = [abs(a - b) for a, b in zip(read(source).times, after.times, strict=True)]
    assert sorted(deviations)[-2:] == [0, Fraction(1, 1000)]
    assert any("1 frames had no usable time" in note for note in result.notes)


def test_times_between_two_ticks_stay_evenly_far_apart(tmp_path: Path) -> None:
    ticks = [*range(0, 8 * 3645, 3645), 180_000]  # 40.5 ms each, and a pause, so that the rate is not fixed
    source = make(tmp_path / "a.mp4", Recipe(time_base=Fraction(1, 90_000), times=ticks))
    _, after = upscale(source, "b.mkv", codec="mpeg4")  # which has milliseconds
    assert [round(1000 * time) for time in after.times] == [0, 41, 81, 122, 162, 203, 243, 284, 2000]


def test_a_clock_that_begins_anew_goes_on(tmp_path: Path) -> None:
    parts = [make(tmp_path / f"{name}.ts", Recipe(times=range(0, 10 * 512, 512))) for name in "ab"]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    result = VideoUpscaler(cubic)(joined, tmp_path / "b.mkv")
    after = read(result.target)
    assert after.times == [Fraction(i, 25) for i in range(20)]
    _, part = upscale(joined, "c.mkv", start=0.2, duration=0.1)
    assert part.times == [Fraction(i, 25) for i in range(3)]


def test_what_begins_before_the_first_moment_is_left_out_and_what_begins_before_the_last_is_not(tmp_path: Path) -> None:
    """Both lie between two ticks of a millisecond."""
    source = make(tmp_path / "a.mkv", Recipe())
    late = survey(source, VideoSettings(start=0.0405))
    assert next(time - late.shift for time, _ in frames(late)) == Fraction(80, 1000) - Fraction(405, 10000)
    assert len(frames(survey(source, VideoSettings(duration=0.0405)))) == 2
