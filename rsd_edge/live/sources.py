"""What `--camera` takes, as a source that can be opened."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rsd_edge.errors import InputError
from rsd_edge.live.clock import Clock
from rsd_edge.live.devices import StreamSource, V4l2Source
from rsd_edge.live.gstreamer import csi_pipeline, gstreamer_source
from rsd_edge.live.pattern import PatternSource
from rsd_edge.live.receiver import Source
from rsd_edge.stream.passwords import without_password

_TEST = re.compile(r"test(?::(\d{1,5})x(\d{1,5}))?(?:@(\d+(?:\.\d+)?))?")
_STREAMS = ("rtsp", "rtsps", "http", "https", "tcp", "udp", "rtmp", "srt", "rtp")
_FORMS = '0, /dev/video0, csi://0, rtsp://..., http://..., tcp://..., gst:"..." or test[:WxH@FPS]'
_SMALLEST, _LARGEST = 8, 8192


@dataclass(frozen=True)
class CaptureRequest:
    """What a camera is asked for; None leaves it to the camera."""

    size: tuple[int, int] | None = None
    """(width, height)."""
    rate: float | None = None


def open_source(text: str, clock: Clock, request: CaptureRequest | None = None) -> Source:
    """The source that `--camera` names; it is not opened yet.

    Raises InputError for anything that is no source and for a size that is asked of one that has its own, CameraError
    where something that it needs is not installed.
    """
    request = request or CaptureRequest()
    test = _TEST.fullmatch(text)
    if test is not None:
        return _pattern(test, clock, request)
    if re.fullmatch(r"\d{1,3}", text):
        return V4l2Source(f"/dev/video{text}", request.size, request.rate)
    if text.startswith("/dev/"):
        return V4l2Source(text, request.size, request.rate)
    scheme, separator, rest = text.partition(":")
    if scheme == "csi" and re.fullmatch(r"//\d{1,2}", rest):
        return gstreamer_source(text, csi_pipeline(int(rest[2:]), request.size, request.rate))
    name = without_password(text)
    if scheme == "gst" and rest.strip():
        _check_no_size(name, request)
        quoted = re.fullmatch(r'\s*"([^"]*)"\s*', rest)
        return gstreamer_source(name, quoted[1] if quoted else rest.strip())
    if scheme.lower() in _STREAMS and separator and rest.startswith("//") and len(rest) > 2:
        _check_no_size(name, request)
        return StreamSource(text)
    raise InputError(f"camera '{name}' is none of {_FORMS}")


def _pattern(match: re.Match[str], clock: Clock, request: CaptureRequest) -> PatternSource:
    width, height = request.size or (160, 90)
    if match[1]:
        _check_no_size(match[0], request)
        width, height = int(match[1]), int(match[2])
    rate = float(match[3]) if match[3] else request.rate or 24.0
    if not (min(width, height) >= _SMALLEST and max(width, height) <= _LARGEST and 0 < rate <= 1000):
        raise InputError(
            f"test pattern {width}x{height}@{rate:g} is out of range; "
            f"sides go from {_SMALLEST} to {_LARGEST}, rates up to 1000"
        )
    return PatternSource(clock, width, height, rate)


def _check_no_size(name: str, request: CaptureRequest) -> None:
    if request.size is not None:
        width, height = request.size
        raise InputError(
            f"capture {width}x{height} is not for {name}, which has a size of its own; leave it out, or give @FPS alone"
        )
