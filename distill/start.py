"""Where a fine-tune begins when it does not follow a run's own stages: at a model that ships, or at other weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rsd_edge.bundle import hash_file, resolve_engine, shipped_engines
from rsd_edge.distill.config import DistillConfig
from rsd_edge.distill.roles import Roles, check_model, without_teacher
from rsd_edge.errors import InputError, ModelError
from rsd_edge.export.restore import restored
from rsd_edge.models.checkpoint import Checkpoint, load_checkpoint
from rsd_edge.specs import EDGE_FAMILY


@dataclass
class Start:
    """The networks that a fine-tune begins with."""

    roles: Roles
    origin: dict[str, str]
    """What they are: `model`, and `digest` of an engine or `file` and `sha256` of a checkpoint."""


def start_of(config: DistillConfig) -> Start:
    """Read what `finetune_from` names.

    Raises InputError for losses that need a teacher, since none is taken over, and ModelError for what cannot be read,
    is no student of a compact model, or has another architecture than `model`.
    """
    source = config.finetune_from
    checkpoint, origin = _read(source)
    if checkpoint.spec.family != EDGE_FAMILY or not checkpoint.parts.keys() >= {"stem", "student", "decoder"}:
        raise ModelError(
            f"finetune_from is {source}, which holds {', '.join(sorted(checkpoint.parts))} of the family "
            f"{checkpoint.spec.family}; give a model that ships ({', '.join(shipped_engines())}), the folder of an "
            "fp32 engine of a compact model, or the weights of its stage student or finetune"
        )
    check_model(checkpoint, config, source, f"take the configuration of {checkpoint.spec.name}, or other weights")
    if config.finetune.needs_teacher:
        raise InputError(
            f"finetune_from is {source}, and a fine-tune from there has no teacher; set finetune.distill_weight=0, and "
            "finetune.gan=pixels or finetune.gan_weight=0"
        )
    return Start(without_teacher(checkpoint), origin)


def _read(source: str) -> tuple[Checkpoint, dict[str, str]]:
    path = Path(source)
    if path.suffix == ".safetensors":
        checkpoint = load_checkpoint(path)
        return checkpoint, {"model": checkpoint.spec.name, "file": path.name, "sha256": hash_file(path)}
    bundle = resolve_engine(source)
    return restored(bundle), {"model": bundle.spec.model.name, "digest": bundle.digest}
