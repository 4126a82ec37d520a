"""What `--camera` takes, the test pattern, and real streams that die and come back."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import time
import types
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from live_doubles import RecordingSink, TimedStages
from stream_server import mjpeg_server, ts_server
from virtual_clock import VirtualClock

from rsd_edge.errors import CameraError, InputError
from rsd_edge.live import devices, gstreamer
from rsd_edge.live.clock import SystemClock
from rsd_edge.live.devices import OpenCvCapture, StreamSource, V4l2Source, fourcc
from rsd_edge.live.pattern import PatternSource
from rsd_edge.live.runner import LiveRunner, RunLimits
from rsd_edge.live.sources import CaptureRequest, open_source
from rsd_edge.live.statistics import Statistics
from rsd_edge.stream.passwords import without_password


def test_sources_are_told_apart() -> None:
    clock = VirtualClock()
    assert open_source("test", clock).name == "test:160x90@24"
    assert open_source("test:64x48@5", clock).name == "test:64x48@5"
    assert open_source("test", clock, CaptureRequest((320, 180), 12)).name == "test:320x180@12"
    for text, device in (("0", "/dev/video0"), ("12", "/dev/video12"), ("/dev/cam", "/dev/cam")):
        source = open_source(text, clock)
        assert isinstance(source, V4l2Source)
        assert source.name == device
    for url in ("rtsp://10.0.0.2/live", "http://host/x.mjpg", "tcp://host:99", "udp://@:1234"):
        assert isinstance(open_source(url, clock), StreamSource)
    for text in (
        "",
        'gst:"videotestsrc',
        "test:4x4@1",
        "test:64x48@0",
        "gst:",
        "csi://x",
        "ftp://host/x",
        "rtsp://",
        "file.mp4",
        "-1",
    ):
        with pytest.raises(InputError):
            open_source(text, clock)


def test_a_size_is_not_asked_of_what_has_its_own() -> None:
    clock = VirtualClock()
    for text in ("rtsp://host/x", "http://host/x.mjpg", "gst:videotestsrc", "test:64x48"):
        with pytest.raises(InputError, match=rf"^capture 640x480 is not for {text}.*leave it out, or give @FPS alone"):
            open_source(text, clock, CaptureRequest((640, 480), 10))
    assert isinstance(open_source("rtsp://host/x", clock, CaptureRequest(None, 10)), StreamSource)
    assert open_source("test:64x48", clock, CaptureRequest(None, 10)).name == "test:64x48@10"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rtsp://me:secret@10.0.0.2:554/a?token=abc&x=1", "rtsp://me:***@10.0.0.2:554/a?token=***&x=1"),
        ("rtsp://me@mail:p@ss:w'rd@host/", "rtsp://me@mail:***@host/"),
        ("http://cam/video?user=me&pwd=it's&size=2", "http://cam/video?user=me&pwd=***&size=2"),
        ("rtspsrc location=rtsp://me:secret@cam ! x", "rtspsrc location=rtsp://me:***@cam ! x"),
        ('gst:"rtspsrc user-id=me user-pw=se&c=ret"', 'gst:"rtspsrc user-id=me user-pw=***"'),
        ('"souphttpsrc location=http://cam/?pwd=secret" ! x', '"souphttpsrc location=http://cam/?pwd=***" ! x'),
        ("souphttpsrc user-pw = 'two words' ! x", "souphttpsrc user-pw = *** ! x"),
        ('rtmp2src password="never closed ! x', "rtmp2src password=***"),
    ],
)
def test_passwords_are_not_shown(text: str, shown: str) -> None:
    assert without_password(text) == shown
    assert without_password(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "rtsp://[::1]:554/a@b",
        "rtsp://me@host:554/live",
        "udp://@:1234",
        "/dev/video0",
        "videotestsrc pattern=smpte ! x",
    ],
)
def test_what_holds_no_password_is_shown_as_it_is(text: str) -> None:
    assert without_password(text) == text


def test_sources_and_their_errors_tell_no_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = VirtualClock()
    told: list[Exception] = []
    assert StreamSource("rtsp://me:secret@host/").name == "rtsp://me:***@host/"
    monkeypatch.setattr(gstreamer, "opencv_has_gstreamer", lambda: False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    _launcher(tmp_path, "exit 1")
    pipeline = 'gst:"rtspsrc location=rtsp://me:secret@cam user-pw=secret ! decodebin"'
    source = open_source(pipeline, clock)
    assert source.name == 'gst:"rtspsrc location=rtsp://me:***@cam user-pw=*** ! decodebin"'
    with pytest.raises(CameraError, match=r"gives no pictures; try it with 'gst-launch-1\.0 rtspsrc") as raised:
        source.open()
    told.append(raised.value)
    for text in ('gst:rtspsrc user-pw="secret', "ftp://me:secret@host/x"):
        with pytest.raises(InputError) as refused:
            open_source(text, clock)
        told.append(refused.value)
    monkeypatch.setattr(gstreamer, "opencv_has_gstreamer", lambda: True)
    shut = types.SimpleNamespace(isOpened=lambda: False, release=lambda: None)
    monkeypatch.setattr(gstreamer.cv2, "VideoCapture", lambda *given: shut)
    with pytest.raises(CameraError, match=r"does not start; try it with 'gst-launch-1\.0 rtspsrc") as raised:
        open_source(pipeline, clock).open()
    told.append(raised.value)
    assert not [error for error in told if "secret" in str(error)]


def test_the_pattern_comes_at_its_times_moves_and_waits_for_a_late_reader() -> None:
    clock = VirtualClock()
    capture = PatternSource(clock, 64, 48, 8.0).open()
    pictures, times = [], []
    for _ in range(4):
        picture = capture.read()
        assert picture is not None
        pictures.append(picture)
        times.append(clock.now())
    assert times == [0.125, 0.25, 0.375, 0.5]
    assert all(not np.array_equal(a, b) for a, b in pairwise(pictures))
    clock.spend(1.05)
    late = capture.read()
    assert clock.now() == pytest.approx(1.55)  # at once, and the next one after the usual time
    following = capture.read()
    assert clock.now() == pytest.approx(1.55 + 0.125)
    in_time = PatternSource(VirtualClock(), 64, 48, 8.0).open()
    wanted = [in_time.read() for _ in range(6)]  # nothing was left out
    assert np.array_equal(late, wanted[4])
    assert np.array_equal(following, wanted[5])
    capture.interrupt()
    assert capture.read() is None


def test_a_camera_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(CameraError, match="does not exist, there is no camera; plug it in, or try --camera test"):
        V4l2Source(str(tmp_path / "video7")).open()
    (tmp_path / "video0").write_bytes(b"")
    with pytest.raises(CameraError, match=r"there are .*video0"):
        V4l2Source(str(tmp_path / "video7")).open()
    with pytest.raises(CameraError, match="another program may be using it"):
        V4l2Source(str(tmp_path / "video0")).open()


class FakeCapture:
    """A camera that takes no MJPG and has one size."""

    def __init__(self, target: str, api: int, options: list[int]) -> None:
        self.asked = dict(zip(options[::2], options[1::2], strict=True))
        self.given = {cv2.CAP_PROP_FOURCC: float(cv2.VideoWriter.fourcc(*"YUYV")), 3: 640.0, 4: 480.0}

    def isOpened(self) -> bool:  # noqa: N802 (OpenCV's name)
        return True

    def get(self, key: int) -> float:
        return self.given[key]

    def set(self, key: int, value: float) -> bool:
        self.asked[key] = value
        return True

    def read(self) -> tuple[bool, Any]:
        raise cv2.error("unplugged")

    def release(self) -> None:
        pass


def test_mjpg_is_asked_for_and_what_comes_instead_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[FakeCapture] = []
    monkeypatch.setattr(devices.cv2, "VideoCapture", lambda *given: made.append(FakeCapture(*given)) or made[-1])
    (tmp_path / "video0").write_bytes(b"")
    source = V4l2Source(str(tmp_path / "video0"), (1280, 720), 30)
    capture = source.open()
    asked = made[0].asked
    assert fourcc(asked[cv2.CAP_PROP_FOURCC]) == "MJPG"
    assert (asked[3], asked[4], asked[cv2.CAP_PROP_FPS], asked[cv2.CAP_PROP_BUFFERSIZE]) == (1280, 720, 30, 1)
    assert "gives YUYV and not MJPG" in caplog.text
    assert "gives 640x480, the nearest that it has to 1280x720" in caplog.text
    assert capture.read() is None
    source.open()
    assert caplog.text.count("YUYV") == 1


def test_gstreamer_is_missing_with_a_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gstreamer, "opencv_has_gstreamer", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(CameraError, match=r"csi://0 needs GStreamer.*apt-get install gstreamer1.0-tools"):
        open_source("csi://0", VirtualClock())


def test_csi_cameras_are_asked_in_the_words_of_a_jetson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = tmp_path / "told"
    _launcher(tmp_path, f'printf "%s\\n" "$@" > {told}')
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(gstreamer, "opencv_has_gstreamer", lambda: False)
    with pytest.raises(CameraError, match="the pipeline gives no pictures"):
        open_source("csi://1", VirtualClock(), CaptureRequest((1920, 1080), 30)).open()
    words = told.read_text().split("\n")
    assert "sensor-id=1" in words
    assert "video/x-raw(memory:NVMM),width=1920,height=1080,framerate=30/1" in words
    # What PyAV takes pictures for that do not say; GStreamer itself would take BT.709 for these.
    assert "video/x-raw,format=I420,colorimetry=bt601" in words
    assert words[-3:-1] == ["fd=1", "sync=false"]


@pytest.mark.skipif(shutil.which("gst-launch-1.0") is None, reason="gst-launch-1.0 is not installed")
@pytest.mark.parametrize(("width", "height"), [(64, 48), (1280, 720)])
def test_a_pipeline_comes_through_a_pipe_and_ends_with_its_process(width: int, height: int) -> None:
    source = open_source(
        f'gst:"videotestsrc pattern=smpte ! video/x-raw,width={width},height={height},framerate=30/1"', SystemClock()
    )
    capture = source.open()
    try:
        pictures = [capture.read() for _ in range(3)]
    finally:
        capture.close()
    first = pictures[0]
    assert first is not None
    assert first.shape == (height, width, 3)
    bars = np.array([first[height // 10, (2 * bar + 1) * width // 14] for bar in range(7)], int)
    # White, yellow, cyan, green, magenta, red, blue in BGR, to what limited range and swscale's tables leave of them;
    # with the matrix of BT.709 read as that of BT.601, green, magenta and red are off by 20.
    drawn = [(255, 255, 255), (0, 255, 255), (255, 255, 0), (0, 255, 0), (255, 0, 255), (0, 0, 255), (255, 0, 0)]
    assert np.abs(bars - drawn).max() <= 10
    assert capture._process.poll() is not None  # type: ignore[attr-defined]


_GIVE_ONE_PICTURE = """
import os, sys
from rsd_edge.live.gstreamer import PipeSource
capture = PipeSource("gst", sys.argv[1]).open()
print(capture.read().shape, flush=True)
os.kill(os.getpid(), 9)
"""


def test_a_pipeline_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    started = tmp_path / "pid"
    _launcher(
        tmp_path,
        f'echo $$ > {started}; printf "YUV4MPEG2 W2 H2 F25:1 C420jpeg\\nFRAME\\n123456FRAME\\n123456"; exec sleep 60',
    )
    path = f"{tmp_path}:{os.environ['PATH']}"
    ended = subprocess.run(
        [sys.executable, "-c", _GIVE_ONE_PICTURE, "anything"], cwd=tmp_path,
        env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (-9, "(2, 2, 3)\n"), ended.stderr
    until = time.monotonic() + 10
    while _runs(int(started.read_text())) and time.monotonic() < until:
        time.sleep(0.02)
    assert not _runs(int(started.read_text()))


def test_a_pipeline_that_falls_silent_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(gstreamer, "_SECONDS_OF_SILENCE", 0.2)
    _launcher(tmp_path, "exec sleep 60")
    with pytest.raises(CameraError, match="gives no pictures"):
        gstreamer.PipeSource("gst", "anything").open()
    _launcher(tmp_path, 'printf "YUV4MPEG2 W2 H2 F25:1 C420jpeg\\nFRAME\\n123456FRAME\\n123456"; exec sleep 60')
    capture = gstreamer.PipeSource("gst", "anything").open()
    try:
        while (picture := capture.read()) is not None:
            assert picture.shape == (2, 2, 3)
    finally:
        capture.close()


def _launcher(folder: Path, script: str) -> None:
    """A gst-launch-1.0 that is this script."""
    launcher = folder / "gst-launch-1.0"
    launcher.write_text(f"#!/bin/sh\n{script}\n")
    launcher.chmod(launcher.stat().st_mode | stat.S_IEXEC)


def _runs(pid: int) -> bool:
    """Not one that has ended and waits for its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden", "404 Not Found"])
def test_a_server_that_refuses_is_quoted(status: str, capfd: pytest.CaptureFixture[str]) -> None:
    with (
        mjpeg_server(kind=status) as url,
        pytest.raises(CameraError, match=f" is refused: .*{status}"),
    ):
        StreamSource(url).open()
    assert capfd.readouterr().err == ""


def test_a_stream_that_was_open_is_not_asked_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    with mjpeg_server() as url:
        source = StreamSource(url)
        source.open().close()
    monkeypatch.setattr(devices, "_refusal", lambda url: pytest.fail("asked again"))
    with pytest.raises(CameraError, match="does not answer or sends no video"):
        source.open()


def test_a_damaged_frame_is_left_out_and_counted() -> None:
    clock = SystemClock()
    statistics, sink = Statistics(clock.now), RecordingSink(clock)
    with mjpeg_server(kind="damaged") as url:
        limits = RunLimits(drop="none", max_frames=20)
        LiveRunner(StreamSource(url), TimedStages(time.sleep), [sink], clock, statistics, limits).run()
    report = statistics.report()
    assert (report["delivered"], report["reconnects"]) == (20, 0)
    assert 9 <= report["damaged"] <= report["captured"] / 2  # one between two pairs


def test_reads_that_fail_are_silent_and_repeated_only_while_that_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    logging = getattr(cv2.utils, "logging", cv2)
    levels: list[int] = []
    shut = types.SimpleNamespace(read=lambda: (levels.append(logging.getLogLevel()), None))
    assert OpenCvCapture(shut, forgiven=3).read() is None
    assert levels == [0] * 4
    stopped = OpenCvCapture(shut, forgiven=3)
    stopped.interrupt()
    assert stopped.read() is None
    monkeypatch.setattr(devices, "_READ_TIMEOUT_MS", 0)
    assert OpenCvCapture(shut, forgiven=3).read() is None
    assert len(levels) == 4 + 1 + 1


@pytest.mark.parametrize("serve", [mjpeg_server, ts_server])
def test_streams_are_read_and_their_end_is_noticed(serve: Any, capfd: pytest.CaptureFixture[str]) -> None:
    with serve(frames=12) as url:
        capture = StreamSource(url).open()
        pictures = []
        while (picture := capture.read()) is not None:
            pictures.append(picture)
        capture.close()
    assert len(pictures) >= 10  # a decoder may keep the last ones
    assert pictures[0].shape == (48, 64, 3)
    with pytest.raises(CameraError, match="does not answer or sends no video"):
        StreamSource(url).open()
    assert capfd.readouterr().err == ""
