"""Where a fine-tune begins when it does not follow a run's own stages: at a model that ships, or at other weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rsd_edge.bundle import hash_file, resolve_engine
from rsd_edge.distill.config import DistillConfig
from rsd_edge.distill.roles import Roles, check_model, without_teacher
from rsd_edge.errors import InputError
from rsd_edge.export.restore import restored
from rsd_edge.models.checkpoint import Checkpoint, load_checkpoint


@dataclass
class Start:
    """The networks that a fine-tune begins with."""

    roles: Roles
    origin: dict[str, str]
    """What they are: `model` and `digest` of an engine, or `file` and `sha256` of a checkpoint."""


def start_of(config: DistillConfig) -> Start:
    """Read what `finetune_from` names.

    Raises InputError for losses that need a teacher, which neither an engine nor a student brings along, and ModelError
    for what cannot be read or is of another architecture than `model`.
    """
    if config.finetune.needs_teacher:
        raise InputError(
            f"finetune_from is {config.finetune_from}, which comes without a teacher; set finetune.distill_weight=0, "
            "and finetune.gan=pixels or finetune.gan_weight=0"
        )
    checkpoint, origin = _read(config.finetune_from)
    cure = f"take the configuration of {checkpoint.spec.name}, or other weights"
    check_model(checkpoint, config, config.finetune_from, cure)
    return Start(without_teacher(checkpoint), origin)


def _read(source: str) -> tuple[Checkpoint, dict[str, str]]:
    path = Path(source)
    if path.suffix == ".safetensors":
        checkpoint = load_checkpoint(path)
        return checkpoint, {"file": path.name, "sha256": hash_file(path)}
    bundle = resolve_engine(source)
    return restored(bundle), {"model": bundle.spec.model.name, "digest": bundle.digest}
