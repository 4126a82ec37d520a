"""Cameras and streams that OpenCV reads."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rsd_edge.errors import CameraError
from rsd_edge.live.frames import Picture
from rsd_edge.opencv import cv2, quiet
from rsd_edge.pyav import av
from rsd_edge.stream.passwords import without_password

log = logging.getLogger(__name__)

_OPEN_TIMEOUT_MS = 5000
_READ_TIMEOUT_MS = 5000
_REFUSAL_TIMEOUT = 1.0
"""Seconds; a server that refuses does so at once."""
_MJPG = "MJPG"
_FORGIVEN = 8
"""Frames of a stream in a row that cannot be decoded. At the end of one each read fails at once."""


class OpenCvCapture:
    """A `cv2.VideoCapture` that is open."""

    def __init__(self, capture: Any, forgiven: int = 0) -> None:
        """forgiven: how many reads may fail in a row before the source is gone."""
        self._capture, self._forgiven = capture, forgiven
        self.damaged = 0
        self._wanted = True

    def read(self) -> Picture | None:
        """See Capture."""
        # A read that fails by its timeout is not repeated: the next one would wait as long.
        until = time.monotonic() + _READ_TIMEOUT_MS / 1000
        for failed in range(1 + self._forgiven):
            picture = self._read()
            if picture is not None:
                self.damaged += failed
                return picture
            if not self._wanted or time.monotonic() >= until:
                break
        return None

    def _read(self) -> Picture | None:
        try:
            with quiet():
                found, picture = self._capture.read()
        except cv2.error:  # what a driver throws when it is unplugged
            return None
        if not found or picture is None:
            return None
        if picture.ndim == 2:
            picture = cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR)
        return np.ascontiguousarray(picture, np.uint8)

    def interrupt(self) -> None:
        """See Capture. Not possible: a read ends with its timeout, and is not repeated."""
        self._wanted = False

    def close(self) -> None:
        """See Capture."""
        self._capture.release()


class V4l2Source:
    """A camera of Linux by its device file. MJPG is asked for: raw pictures of any size do not fit through USB 2."""

    def __init__(self, device: str, size: tuple[int, int] | None = None, rate: float | None = None) -> None:
        self.name = device
        self._size, self._rate = size, rate
        self._told = False

    def open(self) -> OpenCvCapture:
        """See Source."""
        path = Path(self.name)
        if not path.exists():
            present = sorted(str(item) for item in path.parent.glob("video*"))
            here = f"there are {', '.join(present)}" if present else "there is no camera"
            raise CameraError(f"{self.name} does not exist, {here}; plug it in, or try --camera test")
        if not os.access(path, os.R_OK | os.W_OK):
            raise CameraError(f"{self.name} may not be opened; run 'sudo usermod -aG video $USER' and log in again")
        options = [cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*_MJPG)]
        if self._size is not None:
            options += [cv2.CAP_PROP_FRAME_WIDTH, self._size[0], cv2.CAP_PROP_FRAME_HEIGHT, self._size[1]]
        if self._rate is not None:
            options += [cv2.CAP_PROP_FPS, round(self._rate)]
        capture = _open(self.name, cv2.CAP_V4L2, options)
        if capture is None:
            raise CameraError(f"{self.name} does not open; another program may be using it (see: fuser {self.name})")
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        self._tell(capture)
        return OpenCvCapture(capture)

    def _tell(self, capture: Any) -> None:
        """Warn once if the camera gives something else than it was asked for."""
        if self._told:
            return
        self._told = True
        given = fourcc(capture.get(cv2.CAP_PROP_FOURCC))
        size = tuple(round(capture.get(key)) for key in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        if given != _MJPG:
            log.warning("%s gives %s and not MJPG, which may limit its frame rate", self.name, given or "raw pictures")
        if self._size is not None and size != self._size:
            log.warning("%s gives %dx%d, the nearest that it has to %dx%d", self.name, *size, *self._size)


class StreamSource:
    """RTSP, HTTP, MPEG-TS over TCP and whatever else the FFmpeg inside OpenCV receives."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.name = without_password(url)
        self._opened = False

    def open(self) -> OpenCvCapture:
        """See Source. Waits for five seconds at most, as each read does, and another to learn why it failed."""
        # OpenCV's own FFmpeg writes to stderr, and only this variable, read when it first starts, makes it quiet.
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
        # One thread, because each further one holds a frame back.
        options = [
            cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _OPEN_TIMEOUT_MS,
            cv2.CAP_PROP_READ_TIMEOUT_MSEC, _READ_TIMEOUT_MS,
            cv2.CAP_PROP_N_THREADS, 1,
        ]  # fmt: skip
        capture = _open(self._url, cv2.CAP_FFMPEG, options)
        if capture is None:
            # One that was open has the right address; and who asks too often with a wrong password is locked out.
            why = None if self._opened else _refusal(self._url)
            raise CameraError(
                f"{self.name} {why or 'does not answer or sends no video'}; check the address, user and password in it"
            )
        self._opened = True
        return OpenCvCapture(capture, _FORGIVEN)


def _refusal(url: str) -> str | None:
    """The status with which a server of HTTP or RTSP refuses, by asking once more: OpenCV does not tell. None for any
    other failure."""
    try:
        with av.open(url, timeout=_REFUSAL_TIMEOUT):
            return None
    except (av.HTTPClientError, av.HTTPError) as error:
        return f"is refused: {error.strerror}"
    except (av.FFmpegError, OSError):
        return None


def _open(target: str, api: int, options: Sequence[int]) -> Any | None:
    """A VideoCapture, or None if it does not open."""
    try:
        with quiet():
            capture = cv2.VideoCapture(target, api, options)
    except cv2.error:
        return None
    if capture.isOpened():
        return capture
    capture.release()
    return None


def fourcc(code: float) -> str:
    """Four letters of OpenCV's number; empty for 0."""
    return "".join(chr((int(code) >> shift) & 0xFF) for shift in (0, 8, 16, 24)).strip("\0 ")
