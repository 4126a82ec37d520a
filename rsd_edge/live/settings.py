"""What a caller may ask of a live run, the engine apart."""

from __future__ import annotations

from dataclasses import dataclass

from rsd_edge.errors import InputError
from rsd_edge.noise import NoiseField
from rsd_edge.pipeline import check_strength
from rsd_edge.resample import check_scale

TEMPORAL = ("fixed", "flow", "blend")
DROP = ("newest", "none")


@dataclass(frozen=True)
class StreamSettings:
    """How the frames of one film are enlarged."""

    seed: int = 0
    strength: float = 1.0
    scale: float = 4.0
    temporal: str = "fixed"
    """fixed: the noise stays where it is in the image. flow: it moves with what is seen. blend: it stays, and detail is
    averaged along what is seen. Both start anew at cuts."""
    reuse: bool = True
    """Tiles whose input, halo and noise are what they were are not computed again; results stay the same, byte for
    byte."""
    reuse_threshold: float = 0.0
    """Grey levels: tiles are left as they are while no 8x8 pixels of theirs have changed by more than this on average;
    a tile that moves is computed until it changes by less than three quarters of it. 0: no change at all."""
    refresh: int = 60
    """Frames after which a tile is computed again at the latest, if there is a threshold."""

    def __post_init__(self) -> None:
        NoiseField(self.seed)
        check_scale(self.scale)
        check_strength(self.strength)
        if self.temporal not in TEMPORAL:
            raise InputError(f"temporal is '{self.temporal}'; it must be one of {', '.join(TEMPORAL)}")
        if not 0 <= self.reuse_threshold <= 255:
            raise InputError(f"reuse-threshold is {self.reuse_threshold:g}; give 0 to 255 grey levels, such as 3")
        if self.reuse_threshold and not self.reuse:
            raise InputError("reuse-threshold needs the reuse of tiles; leave out --no-reuse")
        if self.refresh < 1:
            raise InputError(f"reuse-refresh is {self.refresh}; it must be at least 1 frame")
