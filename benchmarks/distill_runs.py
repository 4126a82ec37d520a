"""What bench_distill.py runs: one iteration of a stage of training, on made-up images and random weights."""

from __future__ import annotations

import itertools
import logging
from dataclasses import replace

import torch
from distill_step import made_up
from frame_runs import torch_operations
from turns import Job, scratch

from rsd_edge.bench.peaks import CONVOLUTION
from rsd_edge.cli.distill import find_config
from rsd_edge.distill.config import DistillConfig, load_config
from rsd_edge.distill.loop import draws
from rsd_edge.distill.roles import random_teacher, stage_weights
from rsd_edge.distill.runtime import Runtime
from rsd_edge.distill.stage import Stage
from rsd_edge.distill.stages import STAGES, prepare_torch
from rsd_edge.distill.stages.student import StudentStage
from rsd_edge.models.checkpoint import save_checkpoint


def iteration(config: str, name: str, precision: str, samples: int, crop: int, threads: int) -> Job:
    """Forward and backward passes, updates and averages of one iteration of a stage; no data, no files."""
    overrides = (f"run_dir={scratch()}", f"precision={precision}", f"data.crop={crop}", f"{name}.batch={samples}")
    settings = replace(load_config(find_config(config), overrides), threads=threads)
    prepare_torch(settings)
    logging.getLogger("rsd_edge").setLevel(logging.ERROR)
    stage = _stage(settings, name)
    batches = itertools.repeat(made_up(settings.crop_of(stage.stage), samples))
    turn = itertools.count(settings.finetune.gan_start)  # with all terms of the loss

    def run() -> None:
        at = next(turn)
        stage.step(at, draws(stage, batches, at))
        for average in stage.averages.values():
            average.update()

    return Job(run, torch_operations(run), peak=CONVOLUTION.get(precision), threads=threads)


def _stage(config: DistillConfig, name: str) -> Stage:
    """With random weights from the stages before it."""
    runtime = Runtime("cpu", config.precision)
    torch.manual_seed(config.seed)
    teacher = random_teacher(config)
    if name == "student":
        return StudentStage(config, runtime, teacher)
    save_checkpoint(stage_weights(config, "autoencoder"), teacher)
    if name == "finetune":
        finished = StudentStage(config, runtime, teacher).weights({})
        save_checkpoint(stage_weights(config, "student"), finished)
    return STAGES[name](config, runtime)
