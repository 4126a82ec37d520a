"""Interrupted runs: killed, out of room, stopped by hand."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest
from numpy.typing import NDArray
from video_clips import Recipe, cubic, make, read

from rsd_edge import VideoInterrupted, VideoSettings, VideoUpscaler
from rsd_edge.errors import OutputError
from rsd_edge.frames import PixelT
from rsd_edge.specs import TileSpec
from rsd_edge.stream.atomic import is_disk_full
from rsd_edge.video import segments as segments_module

FRAMES = 20
SETTINGS = VideoSettings(segment_frames=4)

SLOW_RUN = """
import sys, time
sys.path.insert(0, sys.argv[1])
from rsd_edge import VideoSettings, VideoUpscaler
from video_clips import cubic

def slow(image, **options):
    time.sleep(0.05)
    return cubic(image, **options)

settings = VideoSettings(segment_frames=4)
VideoUpscaler(slow, settings)(sys.argv[2], sys.argv[3], progress=lambda done, *_: print(done, flush=True))
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    options = {"crf": "10", "preset": "fast"}
    return make(tmp_path / "a.mp4", Recipe(times=range(0, FRAMES * 512, 512), options=options, audio=("aac",)))


@pytest.fixture
def whole(source: Path) -> list[int]:
    """Hashes of the frames that a run without interruption makes."""
    VideoUpscaler(cubic, SETTINGS)(source, source.with_name("whole.mp4"))
    return read(source.with_name("whole.mp4")).hashes


class Counting:
    """Bicubic that counts its frames and may do something at one of them."""

    def __init__(self, at: int = 0, error: BaseException | None = None) -> None:
        self.calls, self._at, self._error = 0, at, error

    def __call__(self, image: NDArray[PixelT], **options: Any) -> NDArray[PixelT]:
        self.calls += 1
        if self.calls == self._at and self._error is not None:
            raise self._error
        return cubic(image, **options)


def work_folder(target: Path) -> Path:
    return target.with_name(f".{target.name}.rsd-edge")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"a.mp4", "whole.mp4"}


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_goes_on(source: Path, whole: list[int], kill: signal.Signals) -> None:
    target = source.with_name("b.mp4")
    tests = str(Path(__file__).parent)
    with subprocess.Popen([sys.executable, "-c", SLOW_RUN, tests, source, target], stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        for line in run.stdout:
            if int(line) == 11:
                run.send_signal(kill)
                break
    assert not target.exists()
    lines = (work_folder(target) / "journal.jsonl").read_text().splitlines()
    assert 1 <= len(lines) - 1 <= 2
    again = Counting()
    result = VideoUpscaler(again, SETTINGS)(source, target)
    assert again.calls == FRAMES - 4 * (len(lines) - 1) == result.new_frames
    assert result.frames == FRAMES
    assert read(target).hashes == whole
    assert names(source.parent) == {"b.mp4"}


def test_what_is_finished_is_on_the_disk_before_it_is_told(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr("os.fsync", lambda file: synced.append(Path(f"/proc/self/fd/{file}").resolve().name))
    VideoUpscaler(cubic, VideoSettings(segment_frames=FRAMES, temporal="fixed"))(source, source.with_name("b.mp4"))
    journal = "journal.jsonl"
    assert synced == [journal, "000000.packets", journal, journal, "joined.part"]


def test_a_torn_journal_and_a_torn_segment_do_no_harm(source: Path, whole: list[int]) -> None:
    target = source.with_name("b.mp4")
    with pytest.raises(ValueError, match="stop"):
        VideoUpscaler(Counting(14, ValueError("stop")), SETTINGS)(source, target)
    folder = work_folder(target)
    with (folder / "journal.jsonl").open("ab") as journal:
        journal.write(b'{"segment": {"file": "0000')
    (folder / "000003.packets").write_bytes(b"half of a segment")
    assert not target.exists()
    again = Counting()
    VideoUpscaler(again, SETTINGS)(source, target)
    assert again.calls == FRAMES - 12
    assert read(target).hashes == whole


class FullDisk(io.FileIO):
    """A file that takes nothing."""

    def write(self, data: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(("taken", "further"), [(2, "goes on after frame 8"), (0, "begins anew")])
def test_a_full_disk_while_encoding(
    source: Path, whole: list[int], monkeypatch: pytest.MonkeyPatch, taken: int, further: str
) -> None:
    target = source.with_name("b.mp4")
    opened = []

    def limited(path: Path, mode: str) -> IO[bytes]:
        opened.append(path)
        # What is in the buffer fails again when it is closed.
        return io.BufferedWriter(FullDisk(path, mode)) if len(opened) > taken else open(path, mode)

    with monkeypatch.context() as patch:
        patch.setattr(segments_module, "open", limited, raising=False)
        with pytest.raises(OutputError, match=r"b\.mp4: the disk is full; free some space") as told:
            VideoUpscaler(cubic, SETTINGS)(source, target)
    assert is_disk_full(told.value)
    assert str(told.value).endswith(f"; the same command {further}, since whole pieces of 4 are kept")
    assert not target.exists()
    again = Counting()
    VideoUpscaler(again, SETTINGS)(source, target)
    assert again.calls == FRAMES - 4 * taken
    assert read(target).hashes == whole
    assert names(source.parent) == {"b.mp4"}


def test_a_full_disk_while_joining(source: Path, whole: list[int]) -> None:
    target = source.with_name("b.mp4")
    code = (
        "import resource, sys\nsys.path.insert(0, sys.argv[1])\n"
        "from rsd_edge import VideoSettings, VideoUpscaler, OutputError\n"
        "from rsd_edge.video import upscaler\n"
        "from video_clips import cubic\njoin = upscaler.join\n"
        "def limited(film, path):\n    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n    join(film, path)\n"
        "upscaler.join = limited\n"
        "try:\n    VideoUpscaler(cubic, VideoSettings(segment_frames=4))(sys.argv[2], sys.argv[3])\n"
        "except OutputError as error:\n    print(error)\n"
    )
    tests = str(Path(__file__).parent)
    run = subprocess.run(
        [sys.executable, "-c", code, tests, source, target], capture_output=True, text=True, check=True
    )
    assert run.stdout.startswith(f"cannot write {target}: the file system or a limit (ulimit -f) allows no larger")
    assert names(source.parent) == {work_folder(target).name}
    assert "joined.part" not in names(work_folder(target))
    again = Counting()
    result = VideoUpscaler(again, SETTINGS)(source, target)
    assert (again.calls, result.new_frames, result.frames) == (0, 0, FRAMES)
    assert read(target).hashes == whole


def test_ctrl_c_leaves_something_to_play_and_goes_on(source: Path, whole: list[int]) -> None:
    target, partial = source.with_name("b.mp4"), source.with_name("b.partial2.mp4")
    source.with_name("b.partial.mp4").write_text("somebody else's")
    message = f"the first 10 frames are in {partial}; the same command goes on after frame 8, since whole pieces of 4"
    with pytest.raises(VideoInterrupted, match=message):
        VideoUpscaler(Counting(11, KeyboardInterrupt()), SETTINGS)(source, target)
    assert names(source.parent) == {"b.partial.mp4", "b.partial2.mp4", work_folder(target).name}
    beginning = read(partial)
    assert beginning.hashes[:8] == whole[:8]  # the rest is of a segment that was closed early
    assert len(beginning.hashes) == 10
    assert 0.3 < beginning.packets[1][-1][0] < 0.4
    again = Counting()
    VideoUpscaler(again, SETTINGS)(source, target)
    assert again.calls == FRAMES - 8
    assert read(target).hashes == whole
    assert names(source.parent) == {"b.mp4", "b.partial.mp4"}


def test_a_shorter_beginning_does_not_replace_a_longer_one(source: Path, whole: list[int]) -> None:
    target, partial = source.with_name("b.mp4"), source.with_name("b.partial.mp4")
    upscalers = [VideoUpscaler(Counting(at, KeyboardInterrupt()), SETTINGS) for at in (12, 3, 6)]
    frames = []
    for upscaler in upscalers:  # after 11 frames, 2 new ones behind 8, 5 new ones behind 8
        with pytest.raises(VideoInterrupted) as raised:
            upscaler(source, target)
        frames.append(len(read(partial).hashes))
        assert f"the first {frames[-1]} frames are in {partial}" in str(raised.value)
    assert frames == [11, 11, 13]
    partial.unlink()
    with pytest.raises(VideoInterrupted, match="the first 14 frames are in"):
        VideoUpscaler(Counting(3, KeyboardInterrupt()), SETTINGS)(source, target)
    VideoUpscaler(Counting(), SETTINGS)(source, target)
    assert read(target).hashes == whole
    assert names(source.parent) == {"b.mp4"}


def test_a_beginning_shorter_than_a_piece(source: Path) -> None:
    with pytest.raises(VideoInterrupted, match=r"the first 2 frames are in .*; the same command begins anew, since"):
        VideoUpscaler(Counting(3, KeyboardInterrupt()), SETTINGS)(source, source.with_name("b.mp4"))


def test_ctrl_c_before_the_first_frame(source: Path) -> None:
    with pytest.raises(VideoInterrupted, match="interrupted before the first frame was done"):
        VideoUpscaler(Counting(1, KeyboardInterrupt()), SETTINGS)(source, source.with_name("b.mp4"))
    assert names(source.parent) == set()


def test_a_second_ctrl_c_ends_at_once(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def again(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rsd_edge.video.upscaler.join", again)
    with pytest.raises(KeyboardInterrupt) as raised:
        VideoUpscaler(Counting(11, KeyboardInterrupt()), SETTINGS)(source, source.with_name("b.mp4"))
    assert not isinstance(raised.value, VideoInterrupted)
    assert names(source.parent) == {".b.mp4.rsd-edge"}


def test_ctrl_c_while_the_film_is_put_together(source: Path, whole: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    target = source.with_name("b.mp4")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("rsd_edge.video.joining.copied_packets", stop)
        message = r"interrupted while .*b\.mp4 was put together; all frames are kept, and the same command goes on"
        with pytest.raises(VideoInterrupted, match=message):
            VideoUpscaler(cubic, SETTINGS)(source, target)
    assert names(source.parent) == {work_folder(target).name}
    assert not (work_folder(target) / "joined.part").exists()
    assert VideoUpscaler(cubic, SETTINGS)(source, target).new_frames == 0
    assert read(target).hashes == whole


def interrupted(source: Path, target: Path) -> None:
    with pytest.raises(ValueError, match="stop"):
        VideoUpscaler(Counting(6, ValueError("stop")), SETTINGS)(source, target)


def test_other_settings_refuse_with_the_cure(source: Path) -> None:
    target = source.with_name("b.mp4")
    interrupted(source, target)
    other = VideoSettings(segment_frames=4, seed=3, crf=30)
    with pytest.raises(OutputError, match=r"\(crf default then, 30 now, seed 0 then, 3 now\); repeat its") as raised:
        VideoUpscaler(cubic, other)(source, target)
    assert "delete that folder to begin again" in str(raised.value)
    source.write_bytes(source.read_bytes() + b"\0")
    with pytest.raises(OutputError, match="another input"):
        VideoUpscaler(cubic, SETTINGS)(source, target)


def test_a_run_goes_on_with_another_limit_of_pixels(source: Path, whole: list[int]) -> None:
    target = source.with_name("b.mp4")
    interrupted(source, target)
    again = Counting()
    VideoUpscaler(again, replace(SETTINGS, max_pixels=SETTINGS.max_pixels + 1))(source, target)
    assert again.calls < FRAMES
    assert read(target).hashes == whole


def test_nothing_done_binds_nobody(source: Path, whole: list[int]) -> None:
    target = source.with_name("b.mp4")
    with pytest.raises(ValueError, match="stop"):
        VideoUpscaler(Counting(1, ValueError("stop")), SETTINGS)(source, target)
    assert names(source.parent) == set()
    interrupted(source, target)  # with one segment; a killed run may leave none
    journal = work_folder(target) / "journal.jsonl"
    journal.write_text(journal.read_text().splitlines()[0].replace('"seed": 0', '"seed": 9') + "\n")
    VideoUpscaler(Counting(), SETTINGS)(source, target)
    assert read(target).hashes == whole


def test_another_engine_refuses(source: Path) -> None:
    target = source.with_name("b.mp4")
    interrupted(source, target)
    engine = Counting()
    engine.engine = SimpleNamespace(tile=TileSpec(size=208))  # type: ignore[attr-defined]
    with pytest.raises(OutputError, match=r"\(batch default then, 1 now, tile default then, 208 now\)"):
        VideoUpscaler(engine, SETTINGS)(source, target)


def test_no_internals_in_the_refusal(source: Path) -> None:
    target = source.with_name("b.mp4")
    interrupted(source, target)
    journal = work_folder(target) / "journal.jsonl"
    kept = journal.read_text()
    for old, new, words in (
        ('"codec": "h264"', '"codec": "other"', "this FFmpeg would encode otherwise"),
        ('"engine": {}', '"engine": {"digest": "123"}', "another digest"),
        ('"version": 5', '"version": 1', "it comes from another version of rsd-edge"),
    ):
        assert kept.count(old) == 1
        journal.write_text(kept.replace(old, new))
        with pytest.raises(OutputError, match=rf"that differs \({words}\); repeat its command"):
            VideoUpscaler(Counting(), SETTINGS)(source, target)


def test_a_damaged_segment_is_told(source: Path) -> None:
    target = source.with_name("b.mp4")
    interrupted(source, target)
    (work_folder(target) / "000000.packets").write_bytes(b"")
    with pytest.raises(OutputError, match=r"is damaged \(000000\.packets\); delete that folder to begin again"):
        VideoUpscaler(Counting(), SETTINGS)(source, target)


def test_two_runs_at_once_are_refused(source: Path) -> None:
    target = source.with_name("b.mp4")

    def second(image: NDArray[PixelT], **options: Any) -> NDArray[PixelT]:
        with pytest.raises(OutputError, match="is being written by another run; wait for it"):
            VideoUpscaler(cubic, SETTINGS)(source, target)
        return cubic(image, **options)

    VideoUpscaler(second, SETTINGS)(source, target)


def test_the_journal_tells_what_it_is_for(source: Path) -> None:
    target = source.with_name("b.mp4")
    interrupted(source, target)
    first = json.loads((work_folder(target) / "journal.jsonl").read_text().splitlines()[0])
    assert first["settings"]["segment_frames"] == 4
    assert first["encoder"]["name"] == "libx264"
    assert first["engine"] == {}


@pytest.mark.parametrize("codec", ["h264", "hevc", "vp9", "av1", "mpeg4"])
def test_segments_are_the_same_whatever_the_codec(source: Path, codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVT_LOG", "1")
    settings = VideoSettings(segment_frames=6, codec=codec)
    target, other = source.with_name("b.mkv"), source.with_name("c.mkv")
    VideoUpscaler(Counting(), settings)(source, other)
    with pytest.raises(ValueError, match="stop"):
        VideoUpscaler(Counting(9, ValueError("stop")), settings)(source, target)
    again = Counting()
    VideoUpscaler(again, settings)(source, target)
    assert again.calls == FRAMES - 6
    assert read(target).hashes == read(other).hashes
