"""GStreamer pipelines: through OpenCV where it was built with GStreamer, through `gst-launch-1.0` elsewhere.

The wheels of PyPI come without, and the CSI cameras of a Jetson are reached in no other way.
"""

from __future__ import annotations

import os
import select
import shlex
import shutil
import signal
import subprocess
from contextlib import suppress
from typing import Any

import numpy as np

from rsd_edge.errors import CameraError, InputError
from rsd_edge.live.devices import OpenCvCapture
from rsd_edge.live.frames import Picture
from rsd_edge.live.receiver import Capture, Source
from rsd_edge.opencv import cv2, quiet
from rsd_edge.pyav import av
from rsd_edge.stream.passwords import without_password

_LAUNCHER = "gst-launch-1.0"
NO_GSTREAMER = (
    f"this OpenCV was built without, and {_LAUNCHER} is not installed; "
    "run 'apt-get install gstreamer1.0-tools gstreamer1.0-plugins-good'"
)
_NEWEST = "videoconvert ! video/x-raw,format=BGR ! appsink max-buffers=1 drop=true sync=false"
_TO_PIPE = "videoconvert ! video/x-raw,format=I420,colorimetry=bt601 ! y4menc ! fdsink fd=1 sync=false"
"""BT.601 is what pictures without a tag count as where they are read, and Y4M has none for the matrix; GStreamer itself
takes BT.709 above 576 lines."""
_SECONDS_TO_END = 2.0
_SECONDS_OF_SILENCE = 8.0
"""After which a pipeline counts as lost; a CSI camera may take some to start."""
_WITH_INPUT = 'exec 3<&0; "$@" </dev/null & exec >&-; read -r _ <&3; kill $!; wait'
"""For sh: the pipeline ends with its standard input, which the kernel closes even where this process was killed."""


def csi_pipeline(sensor: int, size: tuple[int, int] | None, rate: float | None) -> str:
    """The camera `sensor` of a Jetson, in the memory of the CPU."""
    (width, height), frames = size or (1280, 720), round(rate or 30)
    return (
        f"nvarguscamerasrc sensor-id={sensor} ! "
        f"video/x-raw(memory:NVMM),width={width},height={height},framerate={frames}/1 ! "
        "nvvidconv ! video/x-raw,format=BGRx"
    )


def gstreamer_source(name: str, pipeline: str) -> Source:
    """A source for a pipeline without its sink.

    Raises InputError for quotes that are not closed, CameraError where there is no GStreamer at all.
    """
    way = gstreamer_way()
    if way == "OpenCV":
        return OpenCvGstreamerSource(name, pipeline)
    source = PipeSource(name, pipeline)
    if way is None:
        raise CameraError(f"{name} needs GStreamer: {NO_GSTREAMER}")
    return source


def gstreamer_way() -> str | None:
    """What pipelines run through here: `OpenCV` or `gst-launch-1.0`; None where there is neither."""
    if opencv_has_gstreamer():
        return "OpenCV"
    return _LAUNCHER if shutil.which(_LAUNCHER) else None


def opencv_has_gstreamer() -> bool:
    """Built in or there as a plugin."""
    return bool(cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER))


class OpenCvGstreamerSource:
    """A pipeline inside OpenCV."""

    def __init__(self, name: str, pipeline: str) -> None:
        self.name, self._pipeline = name, f"{pipeline} ! {_NEWEST}"

    def open(self) -> Capture:
        """See Source."""
        with quiet():
            capture = cv2.VideoCapture(self._pipeline, cv2.CAP_GSTREAMER)
        if not capture.isOpened():
            capture.release()
            tried = without_password(self._pipeline)
            raise CameraError(f"{self.name}: the pipeline does not start; try it with '{_LAUNCHER} {tried}'")
        return OpenCvCapture(capture)


class PipeSource:
    """A pipeline in a process of its own, which sends raw pictures through a pipe."""

    def __init__(self, name: str, pipeline: str) -> None:
        """Raises InputError for quotes that are not closed."""
        self.name, self._pipeline = name, pipeline
        try:
            self._words = shlex.split(f"{pipeline} ! {_TO_PIPE}")
        except ValueError as error:
            raise InputError(f"camera '{name}' cannot be read ({error}); close its quotes") from None

    def open(self) -> Capture:
        """See Source."""
        command = [_LAUNCHER, "-q", *self._words]
        # Its own session: Ctrl-C is for us, and we end it when the last frame is taken.
        process = subprocess.Popen(
            ["sh", "-c", _WITH_INPUT, "sh", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            container = av.open(_Pictures(process), format="yuv4mpegpipe")
        except (av.FFmpegError, OSError):
            _end(process)
            tried = without_password(self._pipeline)
            raise CameraError(
                f"{self.name}: the pipeline gives no pictures; try it with '{_LAUNCHER} {tried} ! fakesink'"
            ) from None
        return _PipeCapture(process, container)


class _Pictures:
    """The standard output of a pipeline, which ends where nothing comes for too long."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        self._pipe = process.stdout.fileno()

    def read(self, size: int) -> bytes:
        """For PyAV."""
        ready, _, _ = select.select([self._pipe], [], [], _SECONDS_OF_SILENCE)
        return os.read(self._pipe, size) if ready else b""


class _PipeCapture:
    damaged = 0

    def __init__(self, process: subprocess.Popen[bytes], container: Any) -> None:
        self._process, self._container = process, container
        self._frames = container.decode(video=0)

    def read(self) -> Picture | None:
        """See Capture."""
        try:
            frame = next(self._frames, None)
        except (av.FFmpegError, ValueError):
            return None
        return None if frame is None else np.ascontiguousarray(frame.to_ndarray(format="bgr24"))

    def interrupt(self) -> None:
        """See Capture."""
        _let_go(self._process)

    def close(self) -> None:
        """See Capture."""
        _end(self._process)
        with suppress(av.FFmpegError):
            self._container.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    _let_go(process)
    try:
        process.wait(_SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _let_go(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()
