"""Which files are videos, and what each container takes. Imports nothing, because finding files asks too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Container:
    """A file format that videos are written in."""

    name: str
    """Of the FFmpeg muxer."""
    codecs: tuple[str, ...]
    """Video codecs by preference; the first whose encoder works here is the default."""
    fixed_rate: bool = False
    """Frames have numbers instead of times."""
    negative_times: bool = False
    """Packets may begin before zero, as the priming samples of AAC do."""
    equal_times: bool = False
    """Packets of one track may have the same time."""

    @property
    def suffix(self) -> str:
        """As users know the format."""
        return ".mkv" if self.name == "matroska" else f".{self.name}"


_MP4 = Container("mp4", ("h264", "hevc", "mpeg4"), negative_times=True)
CONTAINERS = {
    ".mp4": _MP4,
    ".m4v": _MP4,
    ".mov": Container("mov", ("h264", "hevc", "mpeg4"), negative_times=True),
    ".mkv": Container("matroska", ("h264", "hevc", "mpeg4"), equal_times=True),
    ".webm": Container("webm", ("vp9", "av1"), equal_times=True),
    ".avi": Container("avi", ("mpeg4",), fixed_rate=True),
}
_READ_ONLY = (".ts", ".m2ts", ".mts", ".mpg", ".mpeg", ".vob", ".wmv", ".asf", ".flv", ".3gp", ".ogv", ".mxf")
VIDEO_SUFFIXES = (*CONTAINERS, *_READ_ONLY)


def is_video(path: Path) -> bool:
    """Judged by the suffix alone."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def is_live(source: Path | str) -> bool:
    """A camera's device, or the address of a stream."""
    return "://" in str(source) or Path(source).is_char_device()


def result_suffix(source: Path) -> str:
    """That of the source, or .mkv, which takes almost every track, where the source's cannot be written."""
    suffix = source.suffix.lower()
    return suffix if suffix in CONTAINERS else ".mkv"
