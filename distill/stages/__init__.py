"""The four stages of a run, in their order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from rsd_edge.distill.config import DistillConfig
from rsd_edge.distill.loop import train
from rsd_edge.distill.runtime import Runtime
from rsd_edge.distill.stage import Stage
from rsd_edge.distill.stages.autoencoder import AutoencoderStage
from rsd_edge.distill.stages.student import FinetuneStage, StudentStage
from rsd_edge.distill.stages.teacher import TeacherStage
from rsd_edge.errors import InputError
from rsd_edge.specs import EDGE_FAMILY

STAGES: dict[str, Callable[[DistillConfig, Runtime | None], Stage]] = {
    "autoencoder": AutoencoderStage,
    "teacher": TeacherStage,
    "student": StudentStage,
    "finetune": FinetuneStage,
}


def run_stage(name: str, config: DistillConfig, runtime: Runtime | None = None) -> Path:
    """Train one stage to its end, resuming what its folder holds. Returns the path of its weights."""
    check_start(name, config)
    prepare_torch(config)
    return train(STAGES[name](config, runtime))


def check_start(name: str, config: DistillConfig) -> None:
    """Raise InputError for a stage that the run has no use for."""
    if config.model.family != EDGE_FAMILY and name in ("autoencoder", "teacher"):
        raise InputError(
            f"stage {name} trains compact networks, and the model is of family {config.model.family}; set "
            "roles.teacher.weights, and run 'rsd-edge distill student'"
        )
    if config.finetune_from and name != "finetune":
        raise InputError(
            f"finetune_from is {config.finetune_from}, so that stage {name} is not needed; run 'rsd-edge distill "
            "finetune', or leave it out"
        )


def prepare_torch(config: DistillConfig) -> None:
    """Process-wide settings, made before any other work."""
    # Zero-initialised layers make denormal gradients by the million, and a CPU works on those many times slower. The
    # mode is inherited by threads that start later, so it is set before any other work.
    torch.set_flush_denormal(True)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
