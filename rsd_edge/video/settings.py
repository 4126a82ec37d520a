"""What a caller may ask of a video, and what it gets back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from numpy.typing import NDArray

from rsd_edge.errors import InputError, VideoReadError
from rsd_edge.frames import PixelT
from rsd_edge.pipeline import check_strength
from rsd_edge.resample import check_scale
from rsd_edge.stream.images import MAX_PIXELS

Progress = Callable[[int, int | None, float], None]
"""Called with frames done, frames expected (None where the file does not tell) and seconds since the start."""


class FrameResolver(Protocol):
    """What videos need of `SuperResolver`."""

    def __call__(
        self,
        image_bgr: NDArray[PixelT],
        *,
        seed: int = 0,
        strength: float = 1.0,
        scale: float = 4.0,
        out: NDArray[PixelT] | None = None,
    ) -> NDArray[PixelT]:
        """(h, w, 3) BGR, uint8 or uint16 -> (round(scale * h), round(scale * w), 3) of the same dtype."""


@dataclass(frozen=True)
class VideoSettings:
    """Everything that decides what a video becomes, the engine apart."""

    seed: int = 0
    strength: float = 1.0
    scale: float = 4.0
    temporal: str = "blend"
    """blend: detail is averaged along what moves, so that texture does not shimmer; anew at cuts. fixed: each frame is
    what it would be as an image."""
    codec: str | None = None
    """h264, hevc, av1, vp9, mpeg4, or the name of an FFmpeg encoder; None for what suits the container."""
    crf: float | None = None
    """Constant quality of the encoder, lower is better and larger; None for its default here."""
    preset: str | None = None
    """Speed of the encoder in its own words; None for the default here."""
    start: float = 0.0
    """Seconds to leave out at the beginning."""
    duration: float | None = None
    """Seconds to take; None for all."""
    max_frames: int | None = None
    hdr: str = "refuse"
    """refuse, or pass: treat PQ and HLG values like any others and keep the tags."""
    io: str = "av"
    """av, or opencv for cameras, streams and odd files: video only, 8 bits, no resuming."""
    strip: bool = False
    """Leave the tags of the file and of its tracks out, languages apart."""
    max_pixels: int = MAX_PIXELS
    """Largest input frame."""
    segment_frames: int = 60
    """Frames between two points from which an interrupted run can go on."""

    def __post_init__(self) -> None:
        check_scale(self.scale)
        check_strength(self.strength)
        if not (math.isfinite(self.start) and self.start >= 0):
            raise InputError(f"start is {self.start:g}; give seconds, 0 or more")
        if self.duration is not None and not (math.isfinite(self.duration) and self.duration > 0):
            raise InputError(f"duration is {self.duration:g}; give seconds, more than 0")
        if self.crf is not None and not 0 <= self.crf <= 63:
            raise InputError(f"crf is {self.crf:g}; it must lie between 0 and 63, and 18 to 28 is usual")
        for name in ("max_frames", "max_pixels", "segment_frames"):
            value = getattr(self, name)
            if value is not None and (value != int(value) or value < 1):
                raise InputError(f"{name.replace('_', '-')} is {value}; it must be a whole number, at least 1")
        for name in ("codec", "preset"):
            if getattr(self, name) == "":
                raise InputError(f"{name} is empty; name one or leave it out")
        choices = {"temporal": ("blend", "fixed"), "hdr": ("refuse", "pass"), "io": ("av", "opencv")}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise InputError(f"{name} is '{getattr(self, name)}'; it must be one of {', '.join(known)}")

    @property
    def blends(self) -> bool:
        """Whether frames are averaged; without detail there is nothing to average."""
        return self.temporal == "blend" and self.strength > 0


def check_pixels(source: Path | str, width: int, height: int, most: int) -> None:
    """Raises VideoReadError if a frame has more pixels than the limit."""
    pixels = width * height
    if pixels > most:
        raise VideoReadError(
            f"{source} has frames of {width}x{height} = {pixels} pixels, more than the limit of {most}; "
            f"if you trust it, raise it with --max-pixels {pixels}"
        )


@dataclass(frozen=True)
class Forecast:
    """What is known of a result before the work begins."""

    frames: int | None
    """None where the file does not tell."""
    size: tuple[int, int]
    """(width, height) in pixels."""
    encoder: str
    bytes: int | None
    """Of the pictures, by experience with the encoder's quality; films differ by a factor of three and more."""


@dataclass(frozen=True)
class VideoResult:
    """What became of a video. Sizes are (width, height) in pixels, upright."""

    source: Path
    target: Path
    frames: int
    """In the result, those of earlier runs included."""
    duration: float
    """Of the result's video in seconds."""
    input_size: tuple[int, int]
    output_size: tuple[int, int]
    encoder: str
    bytes: int
    seconds: float
    """Of this run."""
    new_frames: int
    """Enlarged in this run."""
    notes: tuple[str, ...] = field(default=())
    encoder_options: Mapping[str, str] = field(default_factory=dict)
    """As FFmpeg got them."""

    @property
    def frames_per_second(self) -> float | None:
        """Of this run, or None if nothing was left to enlarge."""
        return self.new_frames / self.seconds if self.new_frames and self.seconds else None
