"""Films by OpenCV's writer, which fails without a word, and what is told of its sources."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from video_clips import Recipe, cubic, make, picture, read

from rsd_edge import VideoSettings, VideoUpscaler
from rsd_edge.cli import main
from rsd_edge.errors import OutputError, VideoInterrupted, VideoReadError
from rsd_edge.stream.discovery import Job
from rsd_edge.video import opencv_io

ADDRESS = "rtsp://me:secret@camera.invalid:554/stream?token=secret"
SHOWN = "rtsp://me:***@camera.invalid:554/stream?token=***"


class Camera:
    """Called like a `cv2.VideoCapture` that is open: pictures of some sizes, then an end or what it raises."""

    def __init__(self, frames: int = 3, end: type[BaseException] | None = None, there: bool = True) -> None:
        self.pictures = [picture(Recipe(size=(32, 24)), index) for index in range(frames)]
        self._end, self._there, self._next = end, there, 0

    def isOpened(self) -> bool:  # noqa: N802 (OpenCV's name)
        return self._there

    def get(self, _: int) -> float:
        return 0.0

    def read(self) -> tuple[bool, NDArray[np.uint8] | None]:
        if self._next == len(self.pictures):
            if self._end is not None:
                raise self._end
            return False, None
        self._next += 1
        return True, self.pictures[self._next - 1]

    def release(self) -> None:
        pass


def decoded(path: Path) -> list[NDArray[np.uint8]]:
    """By OpenCV, which writes other colours than the rest."""
    capture, frames = cv2.VideoCapture(str(path)), []
    while (found := capture.read())[0]:
        frames.append(found[1])
    return frames


def never(image: NDArray[Any], **_: Any) -> NDArray[Any]:
    raise AssertionError("the work has begun")


@contextmanager
def room(most: int) -> Iterator[None]:
    """No file may become larger, in bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def noisy(image: NDArray[Any], **_: Any) -> NDArray[Any]:
    """Frames that no encoder makes small."""
    return np.random.default_rng(int(image.sum())).integers(0, 256, (192, 256, 3), np.uint8)


@pytest.mark.parametrize("suffix", [".mkv", ".avi"])
def test_a_source_whose_size_changes_keeps_all_its_frames(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where OpenCV reads by GStreamer; by FFmpeg it resizes itself."""
    camera, target = Camera(), tmp_path / f"b{suffix}"
    camera.pictures = [
        picture(Recipe(size=size), index) for index, size in enumerate([(64, 48)] * 3 + [(96, 80)] * 3 + [(63, 47)] * 2)
    ]
    with monkeypatch.context() as patched:
        patched.setattr(cv2, "VideoCapture", lambda name: camera)
        settings = VideoSettings(io="opencv", scale=1.5, temporal="fixed")
        result = VideoUpscaler(cubic, settings)("fake://camera", target)
    assert (result.frames, result.input_size, result.output_size) == (8, (64, 48), (96, 72))
    assert result.notes[1:] == ("its size changes on the way; the result keeps 96x72, frames are resized",)
    for image, found in zip(camera.pictures, decoded(target), strict=True):
        enlarged = cubic(image, seed=0, strength=1, scale=1.5)
        expected = cv2.resize(enlarged, (96, 72), interpolation=cv2.INTER_AREA)
        # What the encoder costs; frames in another order, or a part of one, would be off by more than twice as much.
        assert np.abs(expected.astype(int) - found).mean() < 3


def test_a_source_that_keeps_its_size_has_no_note_of_it(tmp_path: Path) -> None:
    source = make(tmp_path / "a.mkv", Recipe(size=(62, 46)))
    result = VideoUpscaler(cubic, VideoSettings(io="opencv", scale=1.5))(source, tmp_path / "b.avi")
    assert (result.output_size, len(result.notes)) == ((94, 70), 1)  # odd sides, whose edge is doubled
    assert len(read(tmp_path / "b.avi").times) == 8


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".webm"])
def test_a_disk_that_fills_up_is_told(tmp_path: Path, suffix: str, capfd: pytest.CaptureFixture[str]) -> None:
    source = make(tmp_path / "a.mp4", Recipe(times=range(0, 40 * 512, 512)))
    target, beginning = tmp_path / f"b{suffix}", tmp_path / f"b.partial{suffix}"
    target.write_bytes(b"of an earlier run")
    settings = VideoSettings(io="opencv", temporal="fixed")
    with room(150_000), pytest.raises(OutputError, match=r"b\.\w+: \d+ of 40 frames arrived .*; free some") as raised:
        VideoUpscaler(noisy, settings)(source, target)
    # OpenCV tells so where it opens a .webm, whatever its level.
    assert [line for line in capfd.readouterr().err.splitlines() if "tag 0x" not in line] == []
    assert target.read_bytes() == b"of an earlier run"
    whole = int(re.findall(r"(\d+) of 40", str(raised.value))[0])
    if suffix == ".mp4":  # whose index comes last
        assert (whole, beginning.exists()) == (0, False)
    else:
        assert f"those are in {beginning};" in str(raised.value)
        assert 0 < whole <= len(decoded(beginning)) <= whole + 1  # it shows half a frame too
    assert {path.name for path in tmp_path.iterdir()} - {beginning.name} == {"a.mp4", target.name}


def test_a_torn_last_frame_does_not_count(tmp_path: Path) -> None:
    source = make(tmp_path / "a.mkv", Recipe())
    VideoUpscaler(noisy, VideoSettings(io="opencv", temporal="fixed"))(source, tmp_path / "b.avi")
    whole = (tmp_path / "b.avi").read_bytes()
    last = whole.rindex(b"00dc", 0, whole.rindex(b"idx1"))
    assert opencv_io._whole_frames(tmp_path / "b.avi") == 8
    (tmp_path / "c.avi").write_bytes(whole[: last + 500])
    assert opencv_io._whole_frames(tmp_path / "c.avi") == 7
    assert opencv_io._whole_frames(tmp_path / "none.avi") == 0


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".webm"])
def test_all_frames_of_longer_films_are_found(tmp_path: Path, suffix: str) -> None:
    source = make(tmp_path / "a.mkv", Recipe(times=range(0, 130 * 512, 512)))
    settings = VideoSettings(io="opencv", scale=1, temporal="fixed")
    assert VideoUpscaler(cubic, settings)(source, tmp_path / f"b{suffix}").frames == 130
    assert len(decoded(tmp_path / f"b{suffix}")) == 130


@pytest.mark.parametrize(("source", "target"), [(b"f\xe9.mkv", b"b.avi"), (b"a.mkv", b"d\xe9/b.avi")])
def test_paths_that_opencv_cannot_take_are_refused(
    tmp_path: Path, source: bytes, target: bytes, toy_bundle: Path
) -> None:
    path = make(tmp_path / "a.mkv", Recipe()).rename(tmp_path / os.fsdecode(source))
    # In another process, which OpenCV would end.
    command = [sys.executable, "-m", "rsd_edge", "run", str(path), "-o", str(tmp_path / os.fsdecode(target))]
    command += ["--video-io", "opencv", "--engine", str(toy_bundle), "--threads", "1"]
    run = subprocess.run(command, capture_output=True, check=False)
    (error,) = run.stderr.splitlines()
    assert run.returncode == 2
    assert error.endswith(b"is not UTF-8, which OpenCV cannot take; rename it or try --video-io av")


def test_a_result_may_have_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    target = tmp_path / os.fsdecode(b"f\xe9.avi")
    VideoUpscaler(cubic, VideoSettings(io="opencv"))(make(tmp_path / "a.mkv", Recipe()), target)
    assert target.stat().st_size


def test_a_folder_that_takes_no_files_is_named_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(**_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    source = make(tmp_path / "a.mkv", Recipe())
    monkeypatch.setattr("tempfile.TemporaryDirectory", denied)  # root may write anywhere
    with pytest.raises(OutputError, match="Permission denied; choose a folder that you may write to"):
        VideoUpscaler(never, VideoSettings(io="opencv"))(source, tmp_path / "b.avi")


def test_films_too_small_for_opencv_are_refused(tmp_path: Path) -> None:
    source = make(tmp_path / "a.mkv", Recipe(size=(8, 6)))
    for suffix in ("avi", "webm"):
        with pytest.raises(OutputError, match=r"needs 16 pixels each way and gets 16x12; take a larger --scale or"):
            VideoUpscaler(cubic, VideoSettings(io="opencv", scale=2))(source, tmp_path / f"b.{suffix}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mkv"]


def test_ctrl_c_while_the_result_is_checked_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: Path) -> int:
        monkeypatch.setattr(opencv_io, "_whole_frames", count)
        raise KeyboardInterrupt

    count = opencv_io._whole_frames
    monkeypatch.setattr(opencv_io, "_whole_frames", interrupted)
    source = make(tmp_path / "a.mkv", Recipe())
    with pytest.raises(VideoInterrupted, match=r"the first 8 frames are in .*b\.partial\.avi"):
        VideoUpscaler(cubic, VideoSettings(io="opencv"))(source, tmp_path / "b.avi")
    assert len(decoded(tmp_path / "b.partial.avi")) == 8


@pytest.mark.parametrize(
    ("camera", "more", "code", "told"),
    [
        (Camera(), (), 0, "warning: {}: --video-io opencv: pictures only"),
        (Camera(there=False), (), 2, "error: {} cannot be opened by OpenCV; check that it is there"),
        (Camera(frames=0), (), 2, "error: {} holds no frame that OpenCV can decode"),
        (Camera(), ("--max-pixels", "9"), 2, "error: {} has frames of 32x24"),
        (Camera(end=KeyboardInterrupt), (), 130, "{}: the first 3 frames are in out.avi"),
        (Camera(frames=0, end=KeyboardInterrupt), (), 130, "{}: interrupted before the first frame was done"),
        (Camera(end=MemoryError), (), 2, "error: not enough memory for {}"),
    ],
)
def test_a_password_is_used_and_not_told(
    camera: Camera,
    more: tuple[str, ...],
    code: int,
    told: str,
    toy_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    asked = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cv2, "VideoCapture", lambda name: asked.append(name) or camera)
    words = ["run", ADDRESS, "-o", "out.avi", "--video-io", "opencv", "--engine", str(toy_bundle), "--threads", "1"]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--report", "r.json", *more])
    assert (ended.value.code, asked) == (code, [ADDRESS])
    err, report = capfd.readouterr().err, Path("r.json").read_text()
    assert told.format(SHOWN) in err
    assert "secret" not in err + report
    assert json.loads(report)["files"][0]["input"] == SHOWN


def test_a_terminal_shows_no_password(toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(cv2, "VideoCapture", lambda name: Camera())
    words = ["run", "rtsp://me:secret@camera", "-o", str(tmp_path / "out.avi"), "--video-io", "opencv"]
    with pytest.raises(SystemExit):
        main([*words, "--engine", str(toy_bundle), "--threads", "1"])
    assert "me:***@camera" in terminal.getvalue()
    assert "secret" not in terminal.getvalue()


def test_an_address_that_does_not_answer_is_told_without_its_password(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = "http://me:secret@127.0.0.1:9/a.mp4"  # where nothing listens
    for io_, why in (("opencv", r"@127.0.0.1:9/a.mp4 cannot be opened"), ("av", r"is a device or a stream; read it")):
        with pytest.raises(VideoReadError, match=why) as raised:
            VideoUpscaler(cubic, VideoSettings(io=io_))(source, tmp_path / "b.mp4")
        assert "secret" not in str(raised.value)
    assert "secret" not in capfd.readouterr().err  # nor by OpenCV itself


def test_a_job_has_a_name_without_a_password() -> None:
    assert Job(Path(ADDRESS), Path("b.mkv"), address=ADDRESS).name == SHOWN
    assert Job(Path("a.mkv"), Path("b.mkv")).name == "a.mkv"
