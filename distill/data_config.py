"""What a run trains on: where photographs are, and how they are degraded."""

from __future__ import annotations

from dataclasses import dataclass, field

from rsd_edge.distill.presets import Presets
from rsd_edge.errors import InputError


def check_crop(name: str, crop: int) -> None:
    """Raise InputError unless an HR crop of that side can be cut, reduced and encoded."""
    if crop % 8 or crop < 64:
        raise InputError(f"{name} is {crop}; it must be a multiple of 8, at least 64")


@dataclass(frozen=True)
class DataConfig:
    """Where the HR images are, and where LR images are or how they are made."""

    train: str = ""
    """HR training images: a folder (searched recursively), a list of files (.txt), a shard (.tar) or several of them
    (`photos-{0000..0041}.tar`)."""
    val: str = ""
    """HR validation images, never trained on; given like `train`."""
    train_lr: str = ""
    """LR images of the same names, a quarter as large, given like `train`; without them LR images are made."""
    val_lr: str = ""
    """LR images of `val`."""
    crop: int = 128
    """HR side of a training crop, a multiple of 8."""
    rescale: bool = False
    """Cut the largest square there is and reduce it to the crop, as ResShift does with ImageNet; not for pairs."""
    degradations: dict[str, float] = field(default_factory=lambda: {"real": 0.5, "light": 0.4, "bicubic": 0.1})
    """Preset name to share of the samples."""
    presets: Presets = field(default_factory=Presets)
    """The ranges of each preset."""
    workers: int = 2
    val_crops: int = 32
    cache_mb: int = 2000
    """Decoded training images that each worker keeps in memory."""

    def __post_init__(self) -> None:
        check_crop("data.crop", self.crop)
        shares = self.degradations.values()
        if any(share < 0 for share in shares) or not sum(shares) > 0:
            raise InputError("data.degradations needs at least one preset, with shares that are not negative nor all 0")
        for name in self.degradations:
            self.presets.named(name)
        if self.rescale and (self.train_lr or self.val_lr):
            raise InputError("data.rescale would part HR images from their LR images; leave it out with paired data")
        if self.workers < 0 or self.val_crops < 1 or self.cache_mb < 0:
            raise InputError("data.workers and data.cache_mb must not be negative, and data.val_crops at least 1")
