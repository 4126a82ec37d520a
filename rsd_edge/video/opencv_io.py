"""The other way to read and write videos, for cameras, streams and files that PyAV's libraries do not open."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from rsd_edge.errors import InputError, OutputError, VideoInterrupted, VideoReadError
from rsd_edge.frames import SCALE
from rsd_edge.opencv import cv2, quiet
from rsd_edge.stream.atomic import check_target, folder_for, output_error
from rsd_edge.stream.missing import missing
from rsd_edge.stream.passwords import without_password
from rsd_edge.video.encoder import fitted
from rsd_edge.video.journal import free_partial
from rsd_edge.video.settings import FrameResolver, Progress, VideoResult, VideoSettings, check_pixels
from rsd_edge.video.source import opened
from rsd_edge.video.steady import Steadier

_CODES = {".mp4": "mp4v", ".m4v": "mp4v", ".mov": "mp4v", ".mkv": "mp4v", ".avi": "MJPG", ".webm": "VP80"}
_USUAL_RATE = 25.0
_RATES = (1, 240)
"""Beyond these, what a camera says of itself is made up."""
_LEAST_SIDE = 16
"""Pixels: with less, OpenCV's encoders lose frames (VP8), or write beyond their memory (MJPG)."""
_ONLY_UTF8 = "which OpenCV cannot take; rename it or try --video-io av"
_NOTE = (
    "--video-io opencv: pictures only (no audio, subtitles or tags), 8 bits, one fixed rate, OpenCV's own colours, HDR "
    "not recognised"
)


def upscale_with_opencv(
    resolver: FrameResolver,
    settings: VideoSettings,
    source: Path | str,
    target: Path,
    progress: Progress | None,
) -> VideoResult:
    """Like `VideoUpscaler`, with OpenCV's reader and writer.

    source: a file, a camera's device, or the address of a stream as text. After Ctrl-C what there is becomes a file:
    the target where the source is live, its beginning otherwise. A source whose size changes on the way becomes a film
    of the size that it began with. Raises VideoReadError, InputError, OutputError, VideoInterrupted.
    """
    began = time.perf_counter()
    code = _checked_code(settings, target)
    name = _name(source)
    with _reader(source) as capture, folder_for(target):
        rate = float(capture.get(cv2.CAP_PROP_FPS))
        rate = rate if _RATES[0] <= rate <= _RATES[1] else _USUAL_RATE
        frames, expected = _wanted(capture, rate, settings)
        size = (0, 0)
        steady, scale = Steadier(settings.scale), SCALE if settings.blends else settings.scale
        with _Writer(target, code, rate) as writer:
            try:
                for frame in frames:
                    check_pixels(name, frame.shape[1], frame.shape[0], settings.max_pixels)
                    result = resolver(frame, seed=settings.seed, strength=settings.strength, scale=scale)
                    if not writer.frames:
                        size = (frame.shape[1], frame.shape[0])
                    writer.write(steady(frame, result) if settings.blends else result)
                    if progress is not None:
                        progress(writer.frames, expected, time.perf_counter() - began)
                if not writer.frames:
                    raise _nothing(source, capture, settings)
                writer.publish(target)
            except KeyboardInterrupt:
                raise _interrupted(writer, source, target) from None
    return VideoResult(
        source=Path(source),
        target=target,
        frames=writer.frames,
        duration=writer.frames / rate,
        input_size=size,
        output_size=writer.size,
        encoder=f"OpenCV {code}",
        bytes=target.stat().st_size,
        seconds=time.perf_counter() - began,
        new_frames=writer.frames,
        notes=(_NOTE, *writer.notes),
    )


def _checked_code(settings: VideoSettings, target: Path) -> str:
    """Of the encoder for the target. Raises OutputError and InputError for what OpenCV cannot do."""
    for name in ("codec", "crf", "preset"):
        if getattr(settings, name) is not None:
            raise OutputError(f"--{name} does not go with --video-io opencv, which has one encoder; leave it out")
    if settings.hdr != "refuse":
        raise InputError("--hdr does not go with --video-io opencv, which knows no HDR; leave it out")
    code = _CODES.get(target.suffix.lower())
    if code is None:
        raise OutputError(f"cannot write {target}: OpenCV writes {', '.join(_CODES)}")
    if not _is_utf8(target.parent.absolute()):  # of which OpenCV sees no more
        raise OutputError(f"cannot write {target}: its folder's path is not UTF-8, {_ONLY_UTF8}")
    check_target(target)
    return code


def _is_utf8(name: Path | str) -> bool:
    """Whether OpenCV can take the name at all: any other ends the process."""
    try:
        str(name).encode()
    except UnicodeEncodeError:
        return False
    return True


def _name(source: Path | str) -> str:
    """What may be shown of a source."""
    return str(source) if isinstance(source, Path) else without_password(source)


@contextmanager
def _reader(source: Path | str) -> Iterator[Any]:
    if isinstance(source, Path) and not source.exists():
        raise VideoReadError(missing(source))
    if isinstance(source, Path) and not source.is_file():
        raise VideoReadError(f"{source} is no video file and no camera; name one")
    name = str(source.absolute()) if isinstance(source, Path) else source
    if not _is_utf8(name):
        raise VideoReadError(f"{_name(source)} has a path that is not UTF-8, {_ONLY_UTF8}")
    # OpenCV's own FFmpeg writes to stderr, and only this variable, read when it first starts, makes it quiet.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    try:
        with quiet():
            capture = cv2.VideoCapture(name)
    except cv2.error as error:
        reason = without_password(error.err)
        raise VideoReadError(f"{_name(source)} cannot be opened by OpenCV ({reason}); {_cure(source)}") from None
    try:
        if not capture.isOpened():
            raise VideoReadError(f"{_name(source)} cannot be opened by OpenCV; {_cure(source)}")
        yield capture
    finally:
        capture.release()


def _cure(source: Path | str) -> str:
    return "try --video-io av" if isinstance(source, Path) else "check that it is there and that this user may read it"


def _wanted(capture: Any, rate: float, settings: VideoSettings) -> tuple[Iterator[NDArray[np.uint8]], int | None]:
    """The frames that were asked for, and how many of them to expect."""
    stated = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    first, last = round(settings.start * rate), None
    if settings.duration is not None:
        last = first + round(settings.duration * rate)
    expected = None if stated <= 0 else max(0, min(stated if last is None else last, stated) - first)
    if expected is not None and settings.max_frames is not None:
        expected = min(expected, settings.max_frames)
    return _frames(capture, first, last, settings.max_frames), expected


def _frames(capture: Any, first: int, last: int | None, most: int | None) -> Iterator[NDArray[np.uint8]]:
    index = taken = 0
    while (last is None or index < last) and (most is None or taken < most):
        found, frame = capture.read()
        if not found:
            return
        if index >= first:
            taken += 1
            yield np.ascontiguousarray(frame, np.uint8)
        index += 1


def _nothing(source: Path | str, capture: Any, settings: VideoSettings) -> InputError:
    """Why there was no frame."""
    if settings.start and capture.get(cv2.CAP_PROP_POS_FRAMES) > 0:
        return InputError(f"{_name(source)} has no frame after {settings.start:g} s; lower --start")
    return VideoReadError(f"{_name(source)} holds no frame that OpenCV can decode; {_cure(source)}")


def _interrupted(writer: _Writer, source: Path | str, target: Path) -> KeyboardInterrupt:
    if not writer.frames:
        return VideoInterrupted(f"{_name(source)}: interrupted before the first frame was done")
    live = isinstance(source, str)
    path = target if live else free_partial(target)
    writer.publish(path)
    rest = "" if live else "; with --video-io opencv no run goes on from there"
    return VideoInterrupted(f"{_name(source)}: the first {writer.frames} frames are in {path}{rest}")


def _whole_frames(path: Path) -> int:
    """How many frames are in a film that may be torn.

    Counted by packets, which takes no decoding: what the header says was written without regard to what arrived, and
    not every container has it.
    """
    whole = 0
    with suppress(VideoReadError, av.FFmpegError, IndexError), opened(path) as film:
        for packet in film.demux(video=0):
            whole += packet.size > 0 and not packet.is_corrupt
    return whole


class _Writer:
    """Writes frames beside the target and puts the file into its place when it is told to; use it as a context."""

    def __init__(self, target: Path, code: str, rate: float) -> None:
        # The suffix stays: OpenCV finds the container by it.
        self._partial = target.with_name(f".rsd-edge-{secrets.token_hex(8)}.part{target.suffix}")
        self._target, self._code, self._rate = target, cv2.VideoWriter.fourcc(*code), rate
        self._writer: Any = None
        self.frames = 0
        self.size = (0, 0)
        """(width, height) of frames as written."""
        self.notes: tuple[str, ...] = ()
        """What became of frames on the way."""

    def write(self, image: NDArray[Any]) -> None:
        """uint8 BGR (h, w, 3); what has not the size of the first one is resized to it. Raises OutputError."""
        size = (image.shape[1] + image.shape[1] % 2, image.shape[0] + image.shape[0] % 2)
        if self._writer is None:
            if min(size) < _LEAST_SIDE:
                what = f"OpenCV needs {_LEAST_SIDE} pixels each way and gets {size[0]}x{size[1]}"
                raise OutputError(f"cannot write {self._target}: {what}; take a larger --scale or --video-io av")
            self.size = size
            self._writer = cv2.VideoWriter(str(self._partial.absolute()), self._code, self._rate, self.size)
            if not self._writer.isOpened():
                raise OutputError(f"cannot write {self._target}: OpenCV has no encoder for it; try --video-io av")
        if size != self.size and not self.notes:
            width, height = self.size
            self.notes = (f"its size changes on the way; the result keeps {width}x{height}, frames are resized",)
        with quiet():  # what fails here is counted at the end, and told once
            self._writer.write(fitted(image, *self.size))
        self.frames += 1

    def publish(self, path: Path) -> None:
        """Finish the file and put it there.

        Raises OutputError, also if frames are missing in it: OpenCV does not say when it fails to write. Those that can
        be played are then kept under a name of their own.
        """
        with quiet():
            self._writer.release()
        whole = _whole_frames(self._partial)
        if whole != self.frames:
            kept = ""
            if whole:
                beginning = free_partial(self._target)
                self._move(beginning)
                kept = f"; those are in {beginning}"
            raise OutputError(
                f"cannot write {path}: {whole} of {self.frames} frames arrived in the file, as when the disk is full"
                f"{kept}; free some space or choose another folder, or try --video-io av"
            )
        self._move(path)

    def _move(self, path: Path) -> None:
        try:
            os.replace(self._partial, path)
        except OSError as error:
            raise output_error(path, error) from error

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.release()
        self._partial.unlink(missing_ok=True)
