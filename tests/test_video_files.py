"""Real files of many kinds through the whole path."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition
from video_clips import TICKS, Content, Recipe, cubic, make, read, upscale

from rsd_edge import VideoSettings, VideoUpscaler
from rsd_edge.errors import InputError, OutputError, VideoReadError
from rsd_edge.video.settings import Forecast

X264 = {"crf": "4", "preset": "ultrafast"}
CODECS = {
    "h264": Recipe(),
    "hevc": Recipe("libx265", {"crf": "4", "preset": "ultrafast", "x265-params": "log-level=none"}),
    "av1": Recipe("libsvtav1", {"crf": "10", "preset": "12"}),
    "vp9": Recipe("libvpx-vp9", {"crf": "4", "b": "0", "deadline": "realtime", "cpu-used": "8"}),
    "mpeg4": Recipe("mpeg4", {"qmin": "1", "qmax": "2"}, time_base=Fraction(1, 25), times=range(8)),
}
VARIABLE = (0, 512, 1100, 2048, 2100, 4096, 9000, 9512)


def check(before: Content, after: Content, tick: Fraction) -> None:
    """As many frames, at the same times to one tick of the coarser file, and as long to one frame."""
    assert len(after.times) == len(before.times)
    assert all(abs(a - b) <= tick for a, b in zip(after.times, before.times, strict=True))
    assert abs(after.end - before.end) <= Fraction(1, 25)
    assert after.size == (4 * before.size[0], 4 * before.size[1])


@pytest.fixture(autouse=True)
def quiet_av1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVT_LOG", "1")


@pytest.mark.parametrize(
    ("codec", "source", "target", "expected"),
    [
        ("h264", "mp4", "mp4", "h264"),
        ("h264", "mkv", "mkv", "h264"),
        ("h264", "mov", "mp4", "h264"),
        ("hevc", "mp4", "mkv", "h264"),
        ("hevc", "mkv", "mov", "h264"),
        ("av1", "webm", "webm", "vp9"),
        ("av1", "mkv", "mp4", "h264"),
        ("vp9", "webm", "webm", "vp9"),
        ("vp9", "webm", "mp4", "h264"),
        ("mpeg4", "avi", "avi", "mpeg4"),
        ("mpeg4", "avi", "mp4", "h264"),
        ("mpeg4", "mp4", "avi", "mpeg4"),
        ("h264", "mp4", "webm", "vp9"),
        ("h264", "ts", "mkv", "h264"),
    ],
)
def test_containers_and_codecs(tmp_path: Path, codec: str, source: str, target: str, expected: str) -> None:
    before = make(tmp_path / f"a.{source}", CODECS[codec])
    result, after = upscale(before, f"b.{target}")
    old = read(before)
    if source == "ts":  # its clock begins anywhere
        old.end -= old.times[0]
        old.times = [time - old.times[0] for time in old.times]
    check(old, after, max(old.time_base, after.time_base, Fraction(1, 1000)))
    assert after.codec == expected
    assert (result.frames, result.new_frames) == (8, 8)
    assert result.duration == pytest.approx(8 / 25, abs=0.002)  # two roundings to milliseconds
    assert result.bytes == (tmp_path / f"b.{target}").stat().st_size


@pytest.mark.parametrize(("codec", "target"), [("hevc", "mp4"), ("av1", "webm"), ("mpeg4", "mkv"), ("libx264", "mov")])
def test_another_codec(tmp_path: Path, codec: str, target: str) -> None:
    source = make(tmp_path / "a.mp4", Recipe())
    _, after = upscale(source, f"b.{target}", codec=codec, crf=20)
    check(read(source), after, Fraction(1, 1000))
    assert after.codec == {"libx264": "h264"}.get(codec, codec)


@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_variable_rate_b_frames_and_a_late_start(tmp_path: Path, container: str) -> None:
    times = [time + 6400 for time in VARIABLE]
    options = {"crf": "10", "bf": "3", "preset": "fast"}
    source = make(tmp_path / f"a.{container}", Recipe(times=times, options=options, b_frames=3))
    result, after = upscale(source, f"b.{container}")
    assert not any("damaged" in note for note in result.notes)
    before = read(source)
    check(before, after, Fraction(0))
    tick = Fraction(1, 1000) if container == "mkv" else Fraction(0)
    assert all(abs(time - ticks * TICKS) <= tick for time, ticks in zip(after.times, times, strict=True))


def test_avi_has_no_late_start(tmp_path: Path) -> None:
    recipe = Recipe(times=range(6400, 6400 + 8 * 512, 512))
    result, after = upscale(make(tmp_path / "a.mp4", recipe), "b.avi")
    assert "AVI begins at zero: the first frame is shown for the 0.50 s before it too" in result.notes
    assert after.times == [0, *(Fraction(index + 12, 25) + Fraction(1, 25) for index in range(1, 8))]


def test_avi_refuses_a_variable_rate(tmp_path: Path) -> None:
    source = make(tmp_path / "a.mp4", Recipe(times=VARIABLE))
    with pytest.raises(OutputError, match=r"AVI has one fixed frame rate .* write \.mkv or \.mp4"):
        upscale(source, "b.avi")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4"]


def test_dropped_frames_are_no_damage_and_stay_dropped(tmp_path: Path) -> None:
    times = (0, 1, 2, 4, 5, 8, 9)
    source = make(tmp_path / "a.avi", Recipe("mpeg4", {}, time_base=Fraction(1, 25), times=times))
    for target in ("avi", "mkv"):
        result, after = upscale(source, f"b.{target}")
        check(read(source), after, Fraction(1, 1000))
        assert not any("damaged" in note for note in result.notes)
    assert after.times == [Fraction(round(1000 * time / 25), 1000) for time in times]


@pytest.mark.parametrize(("degrees", "quarters"), [(90, 1), (180, 2), (-90, 3)])
def test_rotation_is_applied_once(tmp_path: Path, degrees: int, quarters: int) -> None:
    plain = read(upscale_path(make(tmp_path / "a.mp4", Recipe()), crf=4))
    source = make(tmp_path / "r.mp4", Recipe(rotation=degrees))
    assert (read(source).rotation - degrees) % 360 == 0  # what the file asks for: so far counter-clockwise
    turned = read(upscale_path(source, crf=4))
    assert turned.rotation == 0
    assert turned.size == (plain.size if quarters == 2 else plain.size[::-1])
    luma = [content.first[: content.size[1]].astype(int) for content in (plain, turned)]
    # Both were encoded with loss; a wrong turn differs by a hundred.
    assert np.abs(np.rot90(luma[0], quarters) - luma[1]).mean() < 1


def upscale_path(source: Path, **options: Any) -> Path:
    target = source.with_name(f"{source.stem}_x4.mp4")
    VideoUpscaler(cubic, VideoSettings(**options))(source, target)
    return target


@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_everything_else_is_copied(tmp_path: Path, container: str) -> None:
    recipe = Recipe(
        audio=("aac", "aac"),
        chapters=((0, 200, "One"), (200, 320, "Two")),
        tags={"title": "A film"},
        subtitle="srt" if container == "mkv" else "",
        font=b"not really a font" if container == "mkv" else b"",
    )
    source = make(tmp_path / f"a.{container}", recipe)
    result, after = upscale(source, f"b.{container}")
    before = read(source)
    check(before, after, Fraction(0))
    assert after.streams == before.streams
    assert {k: [data for _, data in v] for k, v in after.packets.items()} == {
        k: [data for _, data in v] for k, v in before.packets.items()
    }
    for index, packets in before.packets.items():
        moved = [abs(new - old) for (new, _), (old, _) in zip(after.packets[index], packets, strict=True)]
        assert max(moved) <= 0.001  # Matroska's millisecond
    assert after.metadata["title"] == "A film"
    assert [chapter["metadata"]["title"] for chapter in after.chapters] == ["One", "Two"]
    assert result.notes == ()
    with av.open(str(tmp_path / f"b.{container}")) as opened:
        assert [stream.language for stream in opened.streams.audio] == ["eng", "deu"]
        assert [stream.data for stream in opened.streams.attachments] == ([recipe.font] if recipe.font else [])


def test_what_a_container_does_not_take_is_told(tmp_path: Path) -> None:
    recipe = Recipe(audio=("aac",), subtitle="srt", font=b"font", chapters=((0, 300, "One"),))
    source = make(tmp_path / "a.mkv", recipe)
    result, after = upscale(source, "b.mp4")
    assert after.streams[:2] == [("video", "h264"), ("audio", "aac")]
    assert any(note.startswith("subtitle track 2 (srt) left out: .mp4 does not take it") for note in result.notes)
    assert any(note.startswith("attachment track 3") for note in result.notes)
    result, after = upscale(source, "b.webm")
    assert any(note.startswith("audio track 1 (aac, eng) left out") for note in result.notes)
    assert after.packets == {}
    result, _ = upscale(source, "b.avi")
    assert "chapters left out: .avi has none" in result.notes


def test_sound_of_webm_and_sound_across_containers(tmp_path: Path) -> None:
    source = make(tmp_path / "a.webm", Recipe("libvpx-vp9", CODECS["vp9"].options, audio=("libopus",)))
    before = read(source)
    for target in ("webm", "mp4", "mkv"):
        _, after = upscale(source, f"b.{target}")
        check(before, after, Fraction(1, 1000))
        assert [data for _, data in after.packets[1]] == [data for _, data in before.packets[1]]
    source = make(tmp_path / "c.mp4", Recipe(audio=("aac",)))
    _, after = upscale(source, "d.mkv")
    check(read(source), after, Fraction(1, 1000))  # the priming samples of AAC do not push the pictures back
    assert [data for _, data in after.packets[1]] == [data for time, data in read(source).packets[1] if time >= 0]


@pytest.mark.parametrize(("size", "scale", "expected"), [((62, 46), 4, (248, 184)), ((62, 46), 1.5, (94, 70))])
def test_sizes_are_made_even(tmp_path: Path, size: tuple[int, int], scale: float, expected: tuple[int, int]) -> None:
    source = make(tmp_path / "a.mp4", Recipe(size=size))
    result, after = upscale(source, "b.mp4", scale=scale)
    assert (after.size, result.output_size, result.input_size) == (expected, expected, size)
    assert any("by doubling the edge" in note for note in result.notes) is (scale == 1.5)


def test_odd_sizes(tmp_path: Path) -> None:
    options = {"crf": "4", "preset": "ultrafast"}
    source = make(tmp_path / "a.mkv", Recipe(size=(61, 47), pixel_format="yuv444p", options=options))
    result, after = upscale(source, "b.mp4")
    assert (after.size, after.pixel_format) == ((244, 188), "yuv420p")
    check(read(source), after, Fraction(1, 1000))
    assert result.notes == ()


@pytest.mark.parametrize("rotation", [0, 90])
@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_pixels_that_are_not_square(tmp_path: Path, container: str, rotation: int) -> None:
    upscale(make(tmp_path / "a.mp4", Recipe(aspect=Fraction(16, 15), rotation=rotation)), f"b.{container}")
    with av.open(str(tmp_path / f"b.{container}")) as opened:
        assert opened.streams.video[0].sample_aspect_ratio == Fraction(*((16, 15) if not rotation else (15, 16)))


def test_interlaced_films_are_named(tmp_path: Path) -> None:
    recipe = Recipe(options={"x264-params": "interlaced=1", "crf": "4"}, size=(64, 64))
    result, _ = upscale(make(tmp_path / "a.mp4", recipe), "b.mp4")
    assert any("interlaced video: combs are enlarged" in note for note in result.notes)


@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_cover_pictures(tmp_path: Path, container: str) -> None:
    plain = make(tmp_path / "plain.mp4", Recipe())
    source = tmp_path / "a.mp4"
    with av.open(str(plain)) as opened, av.open(str(source), "w") as output:
        video = output.add_stream_from_template(opened.streams.video[0], opaque=True)
        cover = output.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        for packet in opened.demux(video=0):
            if packet.size:
                packet.stream = video
                output.mux(packet)
        picture = av.VideoFrame.from_ndarray(np.full((48, 32), 99, np.uint8), format="yuv420p")
        output.mux(cover.encode(picture.reformat(format="yuvj420p")))
        output.mux(cover.encode(None))
    _, after = upscale(source, f"b.{container}")
    check(read(plain), after, Fraction(1, 1000))
    with av.open(str(tmp_path / f"b.{container}")) as opened:
        kept = [stream for stream in opened.streams.video if stream.disposition & Disposition.attached_pic]
        assert [stream.codec_context.name for stream in kept] == ["mjpeg"]
    result, _ = upscale(source, "c.webm")
    assert any("cover picture 1 (mjpeg" in note for note in result.notes)


def test_measured_rates_fit_into_avi(tmp_path: Path) -> None:
    times = [round(index * 12800 / 25) + index % 2 for index in range(8)]  # 25 frames a second, give or take a tick
    _, after = upscale(make(tmp_path / "a.mp4", Recipe(times=times)), "b.avi")
    assert len(after.times) == 8


def test_names_that_look_like_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "a.mp4", Recipe()).rename(tmp_path / "http:a ü %d.mp4")
    VideoUpscaler(cubic)("http:a ü %d.mp4", "file:b.mp4")
    assert len(read(tmp_path / "file:b.mp4").times) == 8


@pytest.mark.parametrize("container", ["mp4", "mkv", "webm", "avi"])
def test_one_frame(tmp_path: Path, container: str) -> None:
    result, after = upscale(make(tmp_path / "a.mp4", Recipe(times=(0,))), f"b.{container}")
    assert (result.frames, after.times) == (1, [0])


def test_parts(tmp_path: Path) -> None:
    recipe = Recipe(times=range(0, 25 * 512, 512), audio=("aac",), chapters=((0, 500, "One"), (500, 1000, "Two")))
    source = make(tmp_path / "a.mp4", recipe)
    before = read(source)
    _, after = upscale(source, "b.mp4", start=0.4, duration=0.2)
    assert after.times == [Fraction(i, 25) for i in range(5)]
    sound = after.packets[1]
    assert 0 <= sound[0][0] < 0.022  # a packet of AAC lasts 21.3 ms
    assert 0.17 < sound[-1][0] < 0.2
    assert sound[0][1] in [data for time, data in before.packets[1] if 0.4 <= time < 0.422]
    assert [(c["start"] * c["time_base"], c["end"] * c["time_base"]) for c in after.chapters] == [
        (0, Fraction(1, 10)),
        (Fraction(1, 10), Fraction(2, 10)),
    ]
    _, after = upscale(source, "b.mp4", max_frames=4)
    assert after.times == before.times[:4]
    assert after.packets[1][-1][0] < 0.16
    for generous in ({"max_frames": 99}, {"duration": 50}):  # sound goes on to its own end
        _, after = upscale(source, "b.mp4", **generous)
        assert len(after.packets[1]) == len(before.packets[1])
    with pytest.raises(InputError, match=r"has no frame after 7 s: it is 0\.96 s long; lower --start"):
        upscale(source, "b.mp4", start=7)


def test_progress_and_result(tmp_path: Path) -> None:
    source = make(tmp_path / "a.mp4", Recipe())
    calls: list[tuple[int, int | None, float]] = []
    told: list[Forecast] = []
    result = VideoUpscaler(cubic)(
        source, tmp_path / "b.mp4", progress=lambda *call: calls.append(call), forecast=told.append
    )
    assert told == [Forecast(8, (256, 192), "libx264", round(8 * 256 * 192 * 0.19 / 8))]
    assert [call[:2] for call in calls] == [(i, 8) for i in range(1, 9)]
    assert 0 < calls[0][2] <= calls[-1][2] <= result.seconds
    assert result.encoder_options == {"crf": "21", "preset": "superfast"}
    assert (result.encoder, result.input_size, result.output_size) == ("libx264", (64, 48), (256, 192))
    assert result.frames_per_second == pytest.approx(8 / result.seconds)


@pytest.mark.parametrize(
    ("options", "target", "factor"),
    [
        ({"crf": 26}, "b.mp4", 1 / 2),
        ({"crf": 16, "preset": "ultrafast"}, "b.mp4", 2),
        ({"preset": "medium"}, "b.mp4", 1 / 2),
        ({"crf": 6}, "b.avi", 0.3 / 0.19 / 2),
    ],
)
def test_the_forecast_goes_with_quality_and_preset(tmp_path: Path, options: Any, target: str, factor: float) -> None:
    told: list[Forecast] = []
    source = make(tmp_path / "a.mp4", Recipe())
    VideoUpscaler(cubic, VideoSettings(**options))(source, tmp_path / target, forecast=told.append)
    assert told[0].bytes == pytest.approx(8 * 256 * 192 * 0.19 / 8 * factor, abs=1)


@pytest.mark.parametrize(
    ("options", "target", "error"),
    [
        ({"codec": "h265"}, "b.mp4", "h265 is not in this FFmpeg"),
        ({"codec": "mpeg4"}, "b.webm", "choose another --codec$"),
        ({"codec": "h264_nvenc"}, "b.mp4", "h264_nvenc does not work here"),
        ({"codec": "aac"}, "b.mp4", "aac is no video encoder"),
        ({"codec": "vp9"}, "b.mov", r"libvpx-vp9 in \.mov cannot be written \(.*\); choose another --codec"),
        ({"codec": "rawvideo"}, "b.mov", r"rawvideo in \.mov cannot be read back; choose another --codec"),
        ({"codec": "mpeg4", "preset": "fast"}, "b.avi", "mpeg4 takes no --preset; leave it out"),
        ({"codec": "ffv1", "preset": "fast"}, "b.mkv", "ffv1 takes no --preset; leave it out"),
        ({"codec": "mpeg2video", "crf": 2}, "b.avi", "mpeg2video takes no --crf; leave it out"),
        ({"codec": "libvpx", "preset": "fast"}, "b.webm", r"libvpx has no preset 'fast'; choose a --preset of 0, 1, "),
        ({"preset": "fast"}, "b.webm", r"libvpx-vp9 has no preset 'fast'; choose a --preset of 0, .* 7, 8$"),
        ({"codec": "av1", "preset": "medium"}, "b.mkv", r"libsvtav1 has no preset 'medium'; .* 12, 13$"),
        ({"preset": "hasty"}, "b.mp4", "libx264 has no preset 'hasty'; choose a --preset of ultrafast"),
        ({}, "b.wmv", r"'\.wmv' is no video format here; use one of \.mp4"),
        ({}, "a.mp4", "is the input; choose another -o"),
    ],
)
def test_what_cannot_be_encoded_is_refused(tmp_path: Path, options: Any, target: str, error: str) -> None:
    if options.get("codec") == "h264_nvenc" and Path("/dev/nvidia0").exists():
        pytest.skip("this machine has the encoder")
    source = make(tmp_path / "a.mp4", Recipe())
    with pytest.raises(OutputError, match=error):
        upscale(source, target, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4"]


def test_a_smaller_scale_is_offered_where_it_helps(tmp_path: Path) -> None:
    source = make(tmp_path / "a.mp4", Recipe(size=(128, 96)))
    with pytest.raises(OutputError, match=r"does not start at 512x384 .*; choose another --codec or a smaller --scale"):
        upscale(source, "b.avi", codec="h263")
    assert upscale(source, "b.avi", codec="h263", scale=1)[1].codec == "h263"


def test_only_options_that_count_are_told(tmp_path: Path) -> None:
    source = make(tmp_path / "a.mp4", Recipe())
    result, _ = upscale(source, "b.mkv", codec="ffv1")
    assert result.encoder_options == {}
    good, bad = (upscale(source, "b.webm", codec="libvpx", crf=crf)[0] for crf in (4, 50))
    assert good.encoder_options["crf"] == "4"
    assert good.bytes > 1.5 * bad.bytes


def test_too_large_a_frame_and_too_little_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make(tmp_path / "a.mp4", Recipe())
    with pytest.raises(VideoReadError, match=r"64x48 = 3072 pixels, more than the limit of 3000; .* --max-pixels 3072"):
        upscale(source, "b.mp4", max_pixels=3000)
    usage = __import__("shutil").disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(OutputError, match=r"expected and 0\.8 MB on the way, 0\.0 MB free in .* free some space"):
        upscale(source, "b.mp4")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4"]
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=250 * 64 * 48))
    assert any("this may not fit" in note for note in upscale(source, "b.mp4")[0].notes)  # its size is a guess


@pytest.mark.parametrize("target", ["mp4", "avi"])
def test_opencv_reads_and_writes_too(tmp_path: Path, target: str) -> None:
    source = make(tmp_path / "a.mp4", Recipe(audio=("aac",)))
    calls: list[Any] = []
    settings = VideoSettings(io="opencv", max_frames=5, start=0.08)
    result = VideoUpscaler(cubic, settings)(source, tmp_path / f"b.{target}", progress=lambda *call: calls.append(call))
    after = read(tmp_path / f"b.{target}")
    assert (len(after.times), after.size, result.frames, len(calls)) == (5, (256, 192), 5, 5)
    assert "no audio" in result.notes[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", f"b.{target}"]
