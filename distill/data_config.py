"""What a run trains on: where photographs are, and how they are degraded."""

from __future__ import annotations

from dataclasses import dataclass, field

from rsd_edge.errors import InputError


def check_crop(name: str, crop: int) -> None:
    """Raise InputError unless an HR crop of that side can be cut, reduced and encoded."""
    if crop % 8 or crop < 64:
        raise InputError(f"{name} is {crop}; it must be a multiple of 8, at least 64")


@dataclass(frozen=True)
class DataConfig:
    """Where the HR images are and how LR images are made of them."""

    train: str = ""
    """Folder of HR training images (searched recursively)."""
    val: str = ""
    """Folder of HR validation images; never trained on."""
    crop: int = 128
    """HR side of a training crop, a multiple of 8."""
    degradations: dict[str, float] = field(default_factory=lambda: {"real": 0.5, "light": 0.4, "bicubic": 0.1})
    """Preset name to share of the samples."""
    workers: int = 2
    val_crops: int = 32
    cache_mb: int = 2000
    """Decoded training images that each worker keeps in memory."""

    def __post_init__(self) -> None:
        check_crop("data.crop", self.crop)
        shares = self.degradations.values()
        if any(share < 0 for share in shares) or not sum(shares) > 0:
            raise InputError("data.degradations needs at least one preset, with shares that are not negative nor all 0")
        if self.workers < 0 or self.val_crops < 1 or self.cache_mb < 0:
            raise InputError("data.workers and data.cache_mb must not be negative, and data.val_crops at least 1")
