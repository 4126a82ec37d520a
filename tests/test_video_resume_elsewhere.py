"""Interrupted runs that go on on another machine, or with another source under the same name."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from test_video_resume import Counting
from video_clips import Recipe, cubic, make, read

from rsd_edge import SuperResolver, VideoSettings, VideoUpscaler, selection
from rsd_edge.errors import OutputError, VideoInterrupted
from rsd_edge.selection import Candidate


def stopped(source: Path, target: Path, settings: VideoSettings) -> None:
    """After the first segment of four frames."""
    with pytest.raises(ValueError, match="stop"):
        VideoUpscaler(Counting(6, ValueError("stop")), settings)(source, target)


@pytest.mark.parametrize("codec", ["h264", "mpeg4"])
def test_other_cores_make_the_same_film(tmp_path: Path, codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make(tmp_path / "a.mp4", Recipe(size=(176, 144), options={"crf": "4", "preset": "ultrafast"}))
    settings = VideoSettings(segment_frames=4, codec=codec)
    hashes = {}
    for cores in (1, 4):
        monkeypatch.setattr("rsd_edge.video.encoder_choice.usable_cores", lambda cores=cores: cores)
        VideoUpscaler(cubic, settings)(source, tmp_path / "whole.mkv")
        hashes[cores] = read(tmp_path / "whole.mkv").hashes
    assert hashes[1] != hashes[4]  # or there would be nothing to keep
    stopped(source, tmp_path / "b.mkv", settings)
    monkeypatch.setattr("rsd_edge.video.encoder_choice.usable_cores", lambda: 1)
    result = VideoUpscaler(cubic, settings)(source, tmp_path / "b.mkv")
    assert result.new_frames == 4
    assert read(result.target).hashes == hashes[4]


def test_a_copy_goes_on_and_a_changed_source_does_not(tmp_path: Path) -> None:
    source = make(tmp_path / "a.mkv", Recipe("rawvideo", {}, size=(640, 480)))
    settings = VideoSettings(segment_frames=4, scale=1)
    kept, dates = source.read_bytes(), source.stat()
    assert len(kept) > 3_000_000  # the middle is far from both ends
    target = tmp_path / "b.mkv"
    stopped(source, target, settings)
    changed = bytearray(kept)
    changed[len(kept) // 2] ^= 1
    source.write_bytes(changed)
    os.utime(source, ns=(dates.st_atime_ns, dates.st_mtime_ns))
    with pytest.raises(OutputError, match="another input"):
        VideoUpscaler(cubic, settings)(source, target)
    source.write_bytes(kept)
    os.utime(source, (1, 1))
    assert VideoUpscaler(cubic, settings)(source, target).new_frames == 4


def test_the_engine_of_a_run_can_be_had_again_where_another_is_the_fastest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = make(tmp_path / "a.mkv", Recipe()), tmp_path / "b.mkv"
    settings, frames = VideoSettings(segment_frames=4, temporal="fixed"), iter(range(5))

    def fastest(label: str) -> SuperResolver:
        def timed(candidates: Sequence[Candidate], threads: int) -> dict[str, float]:
            return {candidate.label: 1.0 + (candidate.label != label) for candidate in candidates}

        monkeypatch.setattr(selection._Memory, "recall", lambda memory: None)
        monkeypatch.setattr(selection, "_time", timed)
        return SuperResolver.load("edge-n", threads=1)

    with fastest("fp32 on onnxruntime") as engine:
        upscale = VideoUpscaler(engine, settings)
        with pytest.raises(StopIteration):
            upscale(source, target, progress=lambda *_: next(frames) and None)
    with fastest("int8 on onnxruntime") as engine, pytest.raises(OutputError) as refused:
        VideoUpscaler(engine, settings)(source, target)
    options = re.findall(r"repeat its command with --precision (\w+) --backend (\w+) to go on", str(refused.value))
    precision, backend = options[0]
    with SuperResolver.load("edge-n", precision=precision, backend=backend, threads=1) as engine:
        assert VideoUpscaler(engine, settings)(source, target).new_frames == 4


@pytest.mark.parametrize("letter", ["n", "ü", "\N{FILM FRAMES}", os.fsdecode(b"\xe9")])
def test_a_run_whose_result_has_the_longest_name_goes_on(tmp_path: Path, letter: str) -> None:
    source, settings = make(tmp_path / "a.mkv", Recipe()), VideoSettings(segment_frames=4)
    name = letter * (250 // len(os.fsencode(letter)))
    targets = [tmp_path / f"{name}{end}.mkv" for end in "ab"]
    for target in targets:
        with pytest.raises(VideoInterrupted):
            VideoUpscaler(Counting(6, KeyboardInterrupt()), settings)(source, target)
    assert len([path for path in tmp_path.iterdir() if path.name.endswith(".rsd-edge")]) == 2
    assert len([path for path in tmp_path.iterdir() if path.name.endswith(".partial.mkv")]) == 2
    for target in targets:
        assert VideoUpscaler(cubic, settings)(source, target).new_frames == 4
    assert {*tmp_path.iterdir()} == {source, *targets}
