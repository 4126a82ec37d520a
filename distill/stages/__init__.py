"""The four stages of a run, in their order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from rsd_edge.distill.config import DistillConfig
from rsd_edge.distill.loop import Stage, train
from rsd_edge.distill.stages.autoencoder import AutoencoderStage
from rsd_edge.distill.stages.student import FinetuneStage, StudentStage
from rsd_edge.distill.stages.teacher import TeacherStage

STAGES: dict[str, Callable[[DistillConfig], Stage]] = {
    "autoencoder": AutoencoderStage,
    "teacher": TeacherStage,
    "student": StudentStage,
    "finetune": FinetuneStage,
}


def run_stage(name: str, config: DistillConfig) -> Path:
    """Train one stage to its end, resuming what its folder holds. Returns the path of its weights."""
    # Zero-initialised layers make denormal gradients by the million, and a CPU works on those many times slower. The
    # mode is inherited by threads that start later, so it is set before any other work.
    torch.set_flush_denormal(True)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    return train(STAGES[name](config))
