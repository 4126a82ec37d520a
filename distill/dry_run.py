"""A few steps of a configuration on made-up images, and what they say about a whole run: memory and time."""

from __future__ import annotations

import itertools
import logging
import os
import resource
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from rsd_edge.distill.config import DistillConfig
from rsd_edge.distill.data import Batch, CropDataset
from rsd_edge.distill.loop import check_share, draws
from rsd_edge.distill.roles import random_teacher, stage_weights, teacher_checkpoint
from rsd_edge.distill.runtime import Runtime
from rsd_edge.distill.stage import Stage
from rsd_edge.distill.stages import STAGES, check_start, prepare_torch
from rsd_edge.distill.stages.student import StudentStage

log = logging.getLogger(__name__)

_MB = 1e6
_LONG = 20.0
"""Seconds of an iteration that is not repeated; less may be what a GPU takes to set up its first one."""
_REPEATS = 2
_BUSY = 1.0
"""Load average from which on other programs take cores away; PyTorch's threads wait for the slowest one."""
_SEVERAL = 4
"""Samples of the second size."""


def rehearse(name: str, config: DistillConfig, runtime: Runtime) -> Iterator[str]:
    """Lines about a stage: its weights, its networks, iterations with one and more samples, and estimates of its batch.

    Nothing is written, and of the data, if the configuration names any, one image each is read. Where the student's
    teacher has no weights yet, random ones of the sizes that the configuration gives stand for it, and a line says so.
    Raises what building and running the stage raise.
    """
    check_start(name, config)
    load = os.getloadavg()[0]
    prepare_torch(config)
    stage, where = _build(name, config, runtime)
    check_share(stage)
    _check_data(stage)
    processes = f"{runtime.processes} process(es)"
    yield f"stage {name} of {config.model.name} on {runtime.device} in {config.precision}, {processes}"
    yield where
    yield "; ".join(f"{part} {_millions(network)}" for part, network in _networks(stage).items())
    static = _static_bytes(stage)
    yield f"memory: {static / _MB:.0f} MB for weights, averages, gradients and moments"
    log.info("measuring iterations on made-up images, the first with one sample")
    before = _peak(runtime)
    cold, scalars = _iteration(stage, 1)
    yield f"one iteration on made-up images: {', '.join(f'{key} {value:.4g}' for key, value in scalars.items())}"
    yield _memory(stage, before, static)
    yield f"{_time(stage, cold)}; {_others(load)}"


def _build(name: str, config: DistillConfig, runtime: Runtime) -> tuple[Stage, str]:
    if name != "student":
        stage = STAGES[name](config, runtime)
        begun_from = config.finetune_from or ("the stages before it" if stage.given else "")
        return stage, f"weights of {begun_from}: loaded" if begun_from else "weights of other stages: none are needed"
    path = Path(config.roles.teacher.weights) if config.roles.teacher.weights else stage_weights(config, "teacher")
    if path.is_file():
        return StudentStage(config, runtime, teacher_checkpoint(config)), f"teacher: loaded from {path}"
    torch.manual_seed(config.seed)
    teacher = random_teacher(config)
    count = sum(tensor.numel() for part in teacher.parts.values() for tensor in part.values())
    size = f"{teacher.spec.family}, {count / 1e6:.1f} M with its autoencoder"
    return StudentStage(config, runtime, teacher), f"teacher: RANDOM weights ({size}); {path} is not there"


def _check_data(stage: Stage) -> None:
    """Raise InputError for data that is named and that nothing could be cut from."""
    data, crop = stage.config.data, stage.config.crop_of(stage.stage)
    if data.train or data.val:
        for validation in (False, True):
            CropDataset(data, crop, stage.config.seed, validation=validation)[0]


def _networks(stage: Stage) -> dict[str, nn.Module]:
    networks = {f"{name} (trained)": network for name, network in stage.networks.items()}
    networks |= dict(stage.frozen)
    if isinstance(stage, StudentStage) and any(True for _ in stage.teacher.parameters()):
        networks.setdefault("teacher", stage.teacher)
    return networks


def _millions(network: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in network.parameters()) / 1e6:.2f} M"


def _iteration(stage: Stage, samples: int) -> tuple[float, dict[str, float]]:
    """Seconds and scalars of one iteration with some samples a process, in one part."""
    settings = stage.stage
    crop, runtime = stage.config.crop_of(settings), stage.runtime
    generator = torch.Generator().manual_seed(stage.config.seed)
    x0 = torch.rand((samples, 3, crop, crop), generator=generator).mul(2).sub(1)
    batch = Batch(x0, torch.nn.functional.avg_pool2d(x0, 4))
    stage.stage = replace(settings, batch=samples * runtime.processes, accumulate=1)
    try:
        began = time.perf_counter()
        scalars = stage.step(0, draws(stage, itertools.repeat(batch), 0))
        for ema in stage.averages.values():
            ema.update()
        values = {name: float(value.detach()) for name, value in scalars.items()}  # waits for a GPU
        return time.perf_counter() - began, values
    finally:
        stage.stage = settings


def _together(stage: Stage) -> int:
    """Samples that a process computes at a time."""
    return stage.stage.batch // stage.runtime.processes // stage.stage.accumulate


def _memory(stage: Stage, before: float, static: float) -> str:
    """After an iteration with one sample."""
    together = _together(stage)
    one = max(0.0, _peak(stage.runtime) - max(before, static))
    return (
        f"memory: about {one / _MB:.0f} MB more for one sample; about {(static + one * together) / _MB:.0f} MB in all "
        f"with {together} samples at a time"
    )


def _time(stage: Stage, cold: float) -> str:
    """From iterations of two sizes, since much of an iteration does not grow with its samples.

    cold: seconds of the iteration with one sample that has just been the first.
    """
    settings, together = stage.stage, _together(stage)
    # What a first iteration sets up weighs little in one that takes long, and its repetition would.
    one = cold if cold > _LONG else min(_iteration(stage, 1)[0] for _ in range(_REPEATS))
    several = min(together, 2 if cold > _LONG else _SEVERAL)
    each = one
    if several > 1:
        more = min(_iteration(stage, several)[0] for _ in range(1 if cold > _LONG else _REPEATS))
        each = max(0.0, more - one) / (several - 1)
    total = settings.accumulate * (one + each * (together - 1))
    return (
        f"time: {one:.2f} s an iteration with one sample ({stage.batches_per_iteration} batches each), "
        f"{each:.2f} s for each more; about {total:.1f} s with {settings.accumulate} x {together} a process, "
        f"{total * settings.iterations / 3600:.1f} h for {settings.iterations} iterations, data and validation apart"
    )


def _others(load: float) -> str:
    """What the programs that ran before this one mean for the estimate; load: their average number of threads."""
    if load < _BUSY:
        return "more where other programs run"
    return f"other programs are running (load {load:.1f}), without them it may be several times faster"


def _static_bytes(stage: Stage) -> float:
    def size(networks: Iterator[nn.Module]) -> int:
        return sum(4 * parameter.numel() for network in networks for parameter in network.parameters())

    trained = size(iter(stage.networks.values()))
    averages = size(ema.average for ema in stage.averages.values())
    return 4 * trained + averages + size(iter(_networks(stage).values())) - trained


def _peak(runtime: Runtime) -> float:
    """Bytes: the most that this process has held so far; on a GPU, that its allocator has."""
    if runtime.device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(runtime.device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
