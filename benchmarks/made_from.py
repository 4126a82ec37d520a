"""What identifies a trained row of a report, so that a command with other settings takes none of the old ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from score_engine import TestSet, digest_of

from rsd_edge.distill.changes import plain
from rsd_edge.distill.config import DistillConfig
from rsd_edge.distill.data import CropDataset


def configuration(config: DistillConfig) -> str:
    """Stands for all that a run is set to, but for where things lie on this machine."""
    found = plain(config)
    del found["threads"]
    for name in ("train", "val", "train_lr", "val_lr"):
        found["data"].pop(name, None)
    for role in found["roles"].values():
        if isinstance(role, dict):
            role.pop("weights", None)
    return digest(found)


def photos(config: DistillConfig) -> dict[str, str]:
    """Stand for the images that a run is trained and validated on, by their names; raises what `CropDataset` does."""
    sources = {"train": False, "val": True}
    return {
        name: CropDataset(config.data, config.data.crop, config.seed, validation=validation).digest()
        for name, validation in sources.items()
    }


def images_of(sets: Sequence[TestSet]) -> dict[str, str]:
    """Stand for the images that a row is scored on, by the names of the sets."""
    return {name: digest_of(lq, ref) for name, lq, ref in sets}


def digest(*parts: Any) -> str:
    """Stands for all that something was made from, given as what JSON holds."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=6).hexdigest()
