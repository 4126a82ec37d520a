"""Colours, bits and tags from file to file, and what is said where they cannot be kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from video_clips import PATCHES, Recipe, cubic, make, patch_colours, read, upscale

from rsd_edge import VideoSettings, VideoUpscaler
from rsd_edge.errors import InputError, OutputError
from rsd_edge.frames import PixelT
from rsd_edge.video import encoder_choice
from rsd_edge.video.decoding import Damage, timed_frames
from rsd_edge.video.source import survey


@pytest.mark.parametrize("target", ["mp4", "mkv", "webm"])
@pytest.mark.parametrize(("matrix", "full"), [(1, False), (1, True), (6, False), (6, True), (9, False)])
@pytest.mark.parametrize("bits", [8, 10])
def test_colours_survive(tmp_path: Path, matrix: int, full: bool, bits: int, target: str) -> None:
    form = "yuv420p" if bits == 8 else "yuv420p10le"
    recipe = Recipe(size=(112, 32), patch=True, matrix=matrix, full=full, pixel_format=form, times=(0,))
    source = make(tmp_path / "a.mkv", recipe)
    result, after = upscale(source, f"b.{target}", crf=4)
    assert after.tags[:3] == (matrix, 2 if full else 1, matrix)
    assert (after.pixel_format.endswith("10le")) is (bits == 10)
    # Two roundings to 8 bits and two lossy encoders: the bound that users were promised.
    assert np.abs(patch_colours(after, matrix, full) - PATCHES).max() <= 2
    assert np.abs(patch_colours(after, matrix, full) - patch_colours(read(source), matrix, full)).max() <= 2
    assert not result.notes


@pytest.mark.parametrize(("height", "matrix", "name"), [(48, 6, "BT.601"), (720, 1, "BT.709")])
def test_untagged_colours_are_guessed_and_tagged(tmp_path: Path, height: int, matrix: int, name: str) -> None:
    recipe = Recipe(size=(112, height), patch=True, matrix=matrix, tagged=False, times=(0,))
    result, after = upscale(make(tmp_path / "a.mp4", recipe), "b.mp4", scale=1, crf=4)
    assert after.tags[:2] == (matrix, 1)
    assert result.notes == (f"no colour matrix is tagged; {name} assumed for {height} lines",)
    assert np.abs(patch_colours(after, matrix, False) - PATCHES).max() <= 2  # as above


@pytest.mark.parametrize(("matrix", "full"), [(1, False), (1, True), (6, False), (6, True), (9, False)])
@pytest.mark.parametrize(("target", "codec"), [("avi", "mpeg4"), ("avi", "h264"), ("mov", "mpeg4"), ("mkv", "mpeg4")])
def test_colours_survive_where_tags_do_not(tmp_path: Path, matrix: int, full: bool, target: str, codec: str) -> None:
    recipe = Recipe(size=(112, 32), patch=True, matrix=matrix, full=full, times=(0,))
    source = make(tmp_path / "a.mkv", recipe)
    result, after = upscale(source, f"b.{target}", codec=codec, crf=1)
    tagged = (target, codec) in (("mkv", "mpeg4"), ("avi", "h264"))
    assert after.tags[:2] == ((matrix, 2 if full else 1) if tagged else (2, 0))
    # What players assume of an untagged file: BT.601 in limited range.
    found = patch_colours(after, matrix if tagged else 6, full and tagged)
    # Against what the source holds, whose own rounding is not ours: half a level of BGR, and in another matrix half
    # a level of luma and of chroma, of which one is 1.2 and 2.0 levels of blue.
    assert np.abs(found - patch_colours(read(source), matrix, full)).max() <= 2.1
    converted = not tagged and (matrix, full) != (6, False)
    what, made = ("range", "limited range") if matrix == 6 else ("colours", "BT.601 in limited range")
    words = f".{target} cannot tag the {what} of {codec}: converted to {made}, which players assume"
    assert list(result.notes) == [words] * converted


def test_no_two_notes_on_colours_contradict_each_other(tmp_path: Path) -> None:
    source = make(tmp_path / "a.mp4", Recipe(tagged=False))
    result, _ = upscale(source, "b.avi")
    assert result.notes == ("no colour matrix is tagged; BT.601 assumed for 48 lines",)
    source = make(tmp_path / "c.mkv", Recipe("ffv1", {}, pixel_format="bgr0"))
    result, _ = upscale(source, "d.avi")
    assert [note.partition(":")[0] for note in result.notes] == [
        "RGB video becomes YUV",
        ".avi cannot tag the colours of mpeg4",
    ]


def test_hdr_is_not_passed_where_it_cannot_be_tagged(tmp_path: Path) -> None:
    source = make(tmp_path / "a.mkv", Recipe(pixel_format="yuv420p10le", matrix=9, transfer=16))
    with pytest.raises(OutputError, match=r"mpeg4 in \.avi cannot say that a film is HDR; try another suffix"):
        upscale(source, "b.avi", hdr="pass")


def test_ten_bits_reach_the_resolver_and_are_given_up_aloud(tmp_path: Path) -> None:
    source = make(tmp_path / "a.mp4", Recipe(pixel_format="yuv420p10le"))
    seen = []

    def watch(image: NDArray[PixelT], **options: Any) -> NDArray[PixelT]:
        seen.append(image.dtype)
        return cubic(image, **options)

    VideoUpscaler(watch)(source, tmp_path / "b.mkv")
    result = VideoUpscaler(watch)(source, tmp_path / "b.avi")
    assert seen == 8 * [np.uint16] + 8 * [np.uint8]
    assert "10 bits reduced to 8, because mpeg4 has no more" in result.notes


def test_ten_bits_are_sought_in_another_codec_and_not_in_another_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try_, tried = encoder_choice._try, []

    def eight_bits_of_h264(name: str, *rest: Any) -> Any:
        tried.append(name)
        found, why = try_(name, *rest)
        return found and replace(found, pixel_format="yuv420p" if name == "libx264" else found.pixel_format), why

    monkeypatch.setattr(encoder_choice, "_try", eight_bits_of_h264)
    result, _ = upscale(make(tmp_path / "a.mkv", Recipe(pixel_format="yuv420p10le")), "b.mkv")
    assert (result.encoder, tried) == ("libx265", ["libx264", "libx265"])


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("bits", [8, 10])
@pytest.mark.parametrize(
    ("codec", "target", "form"),
    [("prores_ks", "mov", "yuv422p10le"), ("utvideo", "avi", "yuv420p"), ("ffv1", "mkv", "yuv420p10le")],
)
def test_an_encoder_gets_the_bits_and_the_chroma_that_it_takes(
    tmp_path: Path, codec: str, target: str, form: str, bits: int, full: bool
) -> None:
    recipe = Recipe(
        size=(112, 32), patch=True, full=full, pixel_format="yuv420p" if bits == 8 else "yuv420p10le", times=(0,)
    )
    source = make(tmp_path / "a.mkv", recipe)
    result, after = upscale(source, f"b.{target}", codec=codec)
    assert after.pixel_format == ("yuv420p" if (codec, bits) == ("ffv1", 8) else form)
    assert (f"10 bits reduced to 8, because {codec} has no more" in result.notes) is (codec == "utvideo" and bits == 10)
    assert any("converted to " in note for note in result.notes) is (full and codec != "ffv1")
    before, made = (
        next(timed_frames(survey(path, VideoSettings()), 0, None, True, Damage())).pixels / 257
        for path in (source, tmp_path / f"b.{target}")
    )
    middles = (slice(8, None, 16),) * 2
    # Half a level of luma and of chroma in 8 bits, of which one is 1.2 and 2.0 levels of blue; then what ProRes loses.
    assert np.abs(made[::4, ::4][middles] - before[middles]).max() <= 2.1


@pytest.mark.parametrize("full", [False, True])
def test_colours_are_those_that_the_decoder_says_and_not_what_the_file_was_told(tmp_path: Path, full: bool) -> None:
    """VP8 is decoded as BT.601 in limited range, whatever Matroska says."""
    recipe = Recipe(size=(112, 32), patch=True, matrix=1, full=full, times=(0,))
    source = make(tmp_path / "a.mkv", recipe)
    result, after = upscale(source, "b.mkv", codec="libvpx", crf=4)
    assert np.abs(patch_colours(after, 6, False) - patch_colours(read(source), 1, full)).max() <= 2.1  # as above
    assert [note.partition(":")[0] for note in result.notes] == [".mkv cannot tag the colours of vp8"]


def test_uncompressed_films_have_the_bits_that_their_file_can_name(tmp_path: Path) -> None:
    source = make(tmp_path / "a.mkv", Recipe(pixel_format="yuv420p10le"))
    for target in ("b.avi", "b.mkv"):
        result, after = upscale(source, target, codec="rawvideo")
        assert after.pixel_format == "yuv420p"
        assert "10 bits reduced to 8, because rawvideo has no more" in result.notes


def test_an_encoder_that_takes_no_yuv_is_refused(tmp_path: Path) -> None:
    source = make(tmp_path / "a.mp4", Recipe())
    with pytest.raises(OutputError, match=r"png takes no yuv420p, nv12, .* yuv444p10le; choose another --codec"):
        upscale(source, "b.mov", codec="png")


def test_transparency_is_dropped_aloud(tmp_path: Path) -> None:
    path = tmp_path / "a.webm"
    with av.open(str(path), "w") as output:
        video = output.add_stream("libvpx-vp9", rate=25, options={"deadline": "realtime", "cpu-used": "8"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuva420p"
        image = np.full((48, 64, 4), 128, np.uint8)
        output.mux(video.encode(av.VideoFrame.from_ndarray(image, format="bgra").reformat(format="yuva420p")))
        output.mux(video.encode(None))
    result, _ = upscale(path, "b.mkv")
    assert result.notes.count("transparency dropped") == 1
    plain, _ = upscale(make(tmp_path / "c.webm", Recipe("libvpx-vp9", {"deadline": "realtime"})), "d.mkv")
    assert "transparency dropped" not in plain.notes


@pytest.mark.parametrize(("form", "bits"), [("gray", 8), ("gray10le", 10)])
@pytest.mark.parametrize(("limited", "expected"), [(True, (0, 255)), (False, (16, 235))])
def test_gray_films_are_read_in_their_range(
    tmp_path: Path, form: str, bits: int, limited: bool, expected: tuple[int, int]
) -> None:
    levels = np.repeat(np.array([16, 235]) << (bits - 8), 32).astype(np.uint8 if bits == 8 else np.uint16)
    gray = av.VideoFrame.from_ndarray(np.tile(levels, (64, 1)), format=form)
    with av.open(str(tmp_path / "a.mkv"), "w") as output:
        video: Any = output.add_stream("libx265", rate=25, options={"x265-params": "log-level=none:lossless=1"})
        video.width, video.height, video.pix_fmt = 64, 64, form
        video.codec_context.color_range = 1 if limited else 2
        output.mux(video.encode(gray))
        output.mux(video.encode(None))
    frame = next(timed_frames(survey(tmp_path / "a.mkv", VideoSettings()), 0, None, bits > 8, Damage()))
    found = frame.pixels[32, (8, 56)] / (257 if bits > 8 else 1)
    assert np.abs(found - np.array(expected)[:, None]).max() < (0.8 if bits > 8 else 0.1)  # 235 of 255 is 943 of 1023


@pytest.mark.parametrize("transfer", [16, 18])
def test_hdr_is_refused_or_passed(tmp_path: Path, transfer: int) -> None:
    source = make(tmp_path / "a.mkv", Recipe(pixel_format="yuv420p10le", matrix=9, transfer=transfer))
    with pytest.raises(InputError, match=r"is HDR .* tone-map it to SDR first, or take --hdr pass"):
        upscale(source, "b.mkv")
    result, after = upscale(source, "b.mkv", hdr="pass")
    assert after.tags == (9, 1, 9, transfer)
    assert any("HDR values enlarged as if they were SDR" in note for note in result.notes)


@pytest.mark.parametrize(
    ("codec", "suffix", "options"),
    [
        ("libx264", "mkv", {"crf": "1"}),
        ("libvpx-vp9", "webm", {"crf": "1", "b": "0", "deadline": "realtime"}),
        ("ffv1", "mkv", {}),  # whose decoder does not tell where chroma lies
        ("rawvideo", "y4m", {}),
    ],
)
@pytest.mark.parametrize("target", ["mp4", "webm"])
def test_chroma_stays_in_its_place(
    tmp_path: Path, codec: str, suffix: str, options: dict[str, str], target: str
) -> None:
    between = 0.5 if suffix == "y4m" else 0.0  # its header says so
    wave = np.rint(128 + 50 * np.sin(2 * np.pi * (2 * np.arange(64) + between) / 32)).astype(np.uint8)
    pictures = np.concatenate([np.full(128 * 64, 128, np.uint8), np.tile(wave, 64)])
    source = tmp_path / f"a.{suffix}"
    if suffix == "y4m":
        source.write_bytes(b"YUV4MPEG2 W128 H64 F25:1 Ip A1:1 C420jpeg\n" + b"FRAME\n" + pictures.tobytes())
    else:
        _encode(source, codec, options, pictures.reshape(96, 128))
    _, after = upscale(source, f"b.{target}", crf=1, strength=0)
    blue = after.first[256:384].reshape(2, 128, 256)[0, 64, 64:192] - 128.0
    # Of result pixels, whose first lies 1.5 of them before the first of the source; players take chroma for left.
    at = 2 * np.arange(64, 192) - 1.5
    turns = np.sum(blue * np.exp(-2j * np.pi * at / 128))
    assert abs(np.angle(1j * turns)) * 128 / (2 * np.pi) < 0.1


def _encode(path: Path, codec: str, options: dict[str, str], planes: NDArray[np.uint8]) -> None:
    with av.open(str(path), "w") as output:
        video: Any = output.add_stream(codec, rate=25, options=options)
        video.width, video.height, video.pix_fmt = 128, 64, "yuv420p"
        output.mux(video.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
        output.mux(video.encode(None))
