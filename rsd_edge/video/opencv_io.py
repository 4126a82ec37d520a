"""The other way to read and write videos, for sources that FFmpeg's libraries in PyAV do not open."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsd_edge.errors import OutputError, VideoReadError
from rsd_edge.opencv import cv2
from rsd_edge.stream.atomic import make_folder, output_error
from rsd_edge.video.settings import FrameResolver, Progress, VideoResult, VideoSettings

_CODES = {".mp4": "mp4v", ".m4v": "mp4v", ".mov": "mp4v", ".mkv": "mp4v", ".avi": "MJPG", ".webm": "VP80"}
_USUAL_RATE = 25.0
_NOTE = "--video-io opencv: pictures only (no audio, subtitles or tags), 8 bits, one fixed rate, OpenCV's own colours"


def upscale_with_opencv(
    resolver: FrameResolver, settings: VideoSettings, source: Path, target: Path, progress: Progress | None
) -> VideoResult:
    """Like `VideoUpscaler`, with OpenCV's reader and writer. Raises VideoReadError, OutputError."""
    began = time.perf_counter()
    for name in ("codec", "crf", "preset"):
        if getattr(settings, name) is not None:
            raise OutputError(f"--{name} does not go with --video-io opencv, which has one encoder; leave it out")
    code = _CODES.get(target.suffix.lower())
    if code is None:
        raise OutputError(f"cannot write {target}: OpenCV writes {', '.join(_CODES)}")
    make_folder(target.parent)
    with _reader(source) as capture:
        rate = capture.get(cv2.CAP_PROP_FPS) or _USUAL_RATE
        stated = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        first, last = round(settings.start * rate), None
        if settings.duration is not None:
            last = first + round(settings.duration * rate)
        frames = _frames(capture, first, last, settings.max_frames)
        expected = None if stated <= 0 else min(stated if last is None else last, stated) - first
        if expected is not None and settings.max_frames is not None:
            expected = min(expected, settings.max_frames)
        count, sizes = 0, ((0, 0), (0, 0))
        with _writer(target, code, rate) as write:
            for frame in frames:
                result = resolver(frame, seed=settings.seed, strength=settings.strength, scale=settings.scale)
                sizes = ((frame.shape[1], frame.shape[0]), write(result))
                count += 1
                if progress is not None:
                    progress(count, expected, time.perf_counter() - began)
            if not count:
                raise VideoReadError(f"{source} holds no frame that OpenCV can decode; try --video-io av")
    return VideoResult(
        source=source,
        target=target,
        frames=count,
        duration=count / rate,
        input_size=sizes[0],
        output_size=sizes[1],
        encoder=f"OpenCV {code}",
        bytes=target.stat().st_size,
        seconds=time.perf_counter() - began,
        new_frames=count,
        notes=(_NOTE,),
    )


@contextmanager
def _reader(source: Path) -> Iterator[Any]:
    if not source.is_file():
        raise VideoReadError(f"{source} does not exist; check the spelling")
    # OpenCV's own FFmpeg writes to stderr, and only this variable, read when it first starts, makes it quiet.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    try:
        capture = cv2.VideoCapture(str(source.absolute()))
    except cv2.error as error:
        raise VideoReadError(f"{source} cannot be opened by OpenCV ({error.err}); try --video-io av") from None
    try:
        if not capture.isOpened():
            raise VideoReadError(f"{source} cannot be opened by OpenCV; try --video-io av")
        yield capture
    finally:
        capture.release()


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


@contextmanager
def _writer(target: Path, code: str, rate: float) -> Iterator[Any]:
    """A function that writes a frame and tells the (width, height) written; the file appears when the block ends."""
    # The suffix stays: OpenCV finds the container by it.
    partial = target.with_name(f".rsd-edge-{secrets.token_hex(8)}.part{target.suffix}")
    writers: list[Any] = []

    def write(image: NDArray[Any]) -> tuple[int, int]:
        height, width = (side + side % 2 for side in image.shape[:2])
        if not writers:
            writers.append(
                cv2.VideoWriter(str(partial.absolute()), cv2.VideoWriter.fourcc(*code), rate, (width, height))
            )
            if not writers[0].isOpened():
                raise OutputError(f"cannot write {target}: OpenCV has no encoder for it; try --video-io av")
        bottom, right = height - image.shape[0], width - image.shape[1]
        writers[0].write(cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_REPLICATE))
        return width, height

    try:
        yield write
        for writer in writers:
            writer.release()
        if not partial.is_file() or partial.stat().st_size == 0:
            raise OutputError(f"cannot write {target}: OpenCV wrote nothing; try --video-io av")
        os.replace(partial, target)
    except OutputError:
        raise
    except OSError as error:
        raise output_error(target, error) from error
    finally:
        for writer in writers:
            writer.release()
        partial.unlink(missing_ok=True)
