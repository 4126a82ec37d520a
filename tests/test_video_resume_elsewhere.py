"""Interrupted runs that go on on another machine, or with another source under the same name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from test_video_resume import Counting
from video_clips import Recipe, cubic, make, read

from rsd_edge import VideoSettings, VideoUpscaler
from rsd_edge.errors import OutputError


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
        monkeypatch.setattr("rsd_edge.video.encoder.usable_cores", lambda cores=cores: cores)
        VideoUpscaler(cubic, settings)(source, tmp_path / "whole.mkv")
        hashes[cores] = read(tmp_path / "whole.mkv").hashes
    assert hashes[1] != hashes[4]  # or there would be nothing to keep
    stopped(source, tmp_path / "b.mkv", settings)
    monkeypatch.setattr("rsd_edge.video.encoder.usable_cores", lambda: 1)
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
