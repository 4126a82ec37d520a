"""What identifies a trained row of a report, so that a command with other settings takes none of the old ones."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from rsd_edge.distill.changes import plain
from rsd_edge.distill.config import DistillConfig


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


def digest(*parts: Any) -> str:
    """Stands for all that something was made from, given as what JSON holds."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=6).hexdigest()
