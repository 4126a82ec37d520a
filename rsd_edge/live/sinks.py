"""Where results go: nowhere, images, a window, a virtual camera; see `recording` for videos, `server` for browsers."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from rsd_edge.errors import MissingDependencyError, OutputError
from rsd_edge.live.clock import Clock
from rsd_edge.live.frames import LiveResult
from rsd_edge.live.letterbox import letterboxed
from rsd_edge.opencv import cv2
from rsd_edge.stream.atomic import check_writable
from rsd_edge.stream.images import write_image
from rsd_edge.stream.results import IMAGE_SUFFIXES, check_suffix

_DEFAULT_NAME = "%06d.png"
_NUMBERED = re.compile(r"[^%]*%0?\d{0,2}d[^%]*")
_TITLE = "rsd-edge"
_QUIT = (27, ord("q"))


class NullSink:
    """Takes everything and keeps nothing: for measuring."""

    name = "null"

    def write(self, result: LiveResult) -> None:
        """See Sink."""

    def close(self) -> None:
        """See Sink."""


class ImageSequenceSink:
    """One image file for each result, numbered from 0; each appears whole or not at all."""

    def __init__(self, target: Path) -> None:
        """target: a folder, which gets 000000.png and so on, or a path whose name has a number such as %06d.

        Raises OutputError for a name without a number or of no image format, for one with a suffix that is no folder,
        where a sequence of that name is, and for a folder that cannot be written into.
        """
        if "%" not in target.name or target.is_dir():
            _check_folder(target)
            target = target / _DEFAULT_NAME
        if not _NUMBERED.fullmatch(target.name):
            raise OutputError(
                f"cannot write {target}: its name needs one number such as %06d; make the folder first if it is to be "
                "one"
            )
        check_suffix(target)
        self.name = str(target)
        self._target, self._next = target, 0
        if self._path().exists():
            raise OutputError(
                f"{self._path()} exists, and two sequences would be mixed; give another name, or remove it"
            )
        check_writable(target.parent)

    def _path(self) -> Path:
        return self._target.with_name(self._target.name % self._next)

    def write(self, result: LiveResult) -> None:
        """See Sink."""
        write_image(self._path(), result.pixels)
        self._next += 1

    def close(self) -> None:
        """See Sink."""


def _check_folder(target: Path) -> None:
    """Raises OutputError for what is meant as a file."""
    if target.is_dir() or not target.suffix:
        return
    if target.suffix.lower() in IMAGE_SUFFIXES:
        raise OutputError(
            f"cannot write {target}: one file has no room for all frames; give a folder, or a name with a number "
            f"such as {target.stem}_%06d{target.suffix}"
        )
    raise OutputError(
        f"cannot write {target}: it ends in '{target.suffix}' and is no folder; end it in .mkv or .mp4 for a "
        "film, or give numbered images such as x_%06d.png, or make the folder first"
    )


class VirtualCameraSink:
    """A camera that other programs see, through v4l2loopback."""

    def __init__(self, device: str | None, rate: float) -> None:
        """Raises MissingDependencyError without pyvirtualcam, OutputError where there is no such device."""
        try:
            import pyvirtualcam
        except ModuleNotFoundError:
            raise MissingDependencyError(
                "--virtual-camera needs 'pyvirtualcam'; run: pip install 'rsd-edge[virtualcam]'"
            ) from None
        self.name = device or "virtual camera"
        self._module: Any = pyvirtualcam
        self._device, self._rate = device, rate
        self._camera: Any = None
        if sys.platform == "linux" and not Path("/sys/module/v4l2loopback").exists():
            raise OutputError(
                f"{self.name} cannot be opened: v4l2loopback is not loaded; run 'sudo apt-get install "
                "v4l2loopback-dkms && sudo modprobe v4l2loopback'"
            )

    def write(self, result: LiveResult) -> None:
        """See Sink."""
        height, width = result.pixels.shape[:2]
        if self._camera is None:
            try:
                self._camera = self._module.Camera(
                    width=width, height=height, fps=self._rate, fmt=self._module.PixelFormat.BGR, device=self._device
                )
            except RuntimeError as error:
                raise OutputError(f"{self.name} cannot be opened ({error}); run 'sudo modprobe v4l2loopback'") from None
        if (self._camera.width, self._camera.height) == (width, height):
            picture = result.pixels
        else:
            picture = letterboxed(result.pixels, self._camera.width, self._camera.height)
        self._camera.send(picture)

    def close(self) -> None:
        """See Sink."""
        if self._camera is not None:
            self._camera.close()


class WindowSink:
    """The newest result on the screen. `show` belongs to the main thread, as toolkits want it."""

    name = "window"

    def __init__(self, clock: Clock) -> None:
        """Raises OutputError where there is no display or OpenCV has no windows."""
        if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            raise OutputError("--window needs a display and there is none; use --serve 8080 and look with a browser")
        try:
            cv2.namedWindow(_TITLE, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)
        except cv2.error:
            raise OutputError(
                "--window: this OpenCV has no windows; use --serve 8080, or install opencv-python without -headless"
            ) from None
        self._clock = clock
        self._latest: LiveResult | None = None
        self._sized = self._closed = False

    def write(self, result: LiveResult) -> None:
        """See Sink."""
        with self._clock.changing():
            self._latest = result

    def show(self) -> bool:
        """Draw what came since the last call; False once the window has been closed, or Escape or q pressed."""
        with self._clock.changing():
            latest, self._latest = self._latest, None
        if not self._closed:
            self._closed = not self._drawn(latest)
        return not self._closed

    def _drawn(self, latest: LiveResult | None) -> bool:
        if latest is not None:
            if not self._sized:
                height, width = latest.pixels.shape[:2]
                cv2.resizeWindow(_TITLE, width, height)
                self._sized = True
            cv2.imshow(_TITLE, latest.pixels)
        if cv2.waitKey(1) & 0xFF in _QUIT:
            return False
        try:
            return cv2.getWindowProperty(_TITLE, cv2.WND_PROP_VISIBLE) >= 1
        except cv2.error:  # what OpenCV's Qt windows answer once the last one is gone
            return False

    def close(self) -> None:
        """See Sink."""
        cv2.destroyAllWindows()
