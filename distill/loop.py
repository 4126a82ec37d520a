"""The training loop all stages share: batches, learning rate, logging, validation, checkpoints, resume, NaN guard.

Nothing random survives between iterations: noise comes from a generator seeded by (seed, stage, iteration) and samples
from their indices. A resumed run therefore repeats an uninterrupted one from its networks, EMA and optimisers alone.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rsd_edge.distill.config import DistillConfig, StageConfig, config_to_dict
from rsd_edge.distill.data import Batch, training_batches
from rsd_edge.distill.ema import Ema
from rsd_edge.errors import ModelError, RsdEdgeError
from rsd_edge.models.checkpoint import Checkpoint, save_checkpoint, state_of

log = logging.getLogger(__name__)

Draw = Callable[[], Batch]
STATE_FILE = "state.pt"
WEIGHTS_FILE = "weights.safetensors"
LOG_FILE = "log.jsonl"


class TrainingDivergedError(RsdEdgeError):
    """A loss or gradient became NaN or infinite."""


class Stage(ABC):
    """What one stage trains and how. Subclasses fill the dictionaries in their constructor."""

    name: str

    def __init__(self, config: DistillConfig, stage: StageConfig) -> None:
        self.config = config
        self.stage = stage
        self.networks: dict[str, nn.Module] = {}
        """Trained networks; all of their state is kept for resuming."""
        self.averages: dict[str, Ema] = {}
        """Averages by part name; these are the weights that a finished stage hands on."""
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.frozen: dict[str, nn.Module] = {}
        """Parts handed on unchanged."""

    @property
    def batches_per_iteration(self) -> int:
        return 1

    @abstractmethod
    def step(self, iteration: int, draw: Draw, generator: torch.Generator) -> dict[str, Tensor]:
        """One iteration: take batches with `draw`, update, return scalars to log."""

    @abstractmethod
    def validate(self, generator: torch.Generator) -> dict[str, float]:
        """Figures of the averaged weights on the fixed validation crops."""

    def add_optimizer(self, name: str, parameters: Iterator[nn.Parameter], lr: float) -> None:
        self.optimizers[name] = torch.optim.AdamW(parameters, lr=lr, betas=self.stage.betas, weight_decay=0.0)
        self.optimizers[name].param_groups[0]["peak_lr"] = lr

    def update(self, name: str, loss: Tensor) -> Tensor:
        """Backward and step of one optimiser; returns the gradient norm before clipping."""
        optimizer = self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, self.stage.clip)
        if not torch.isfinite(norm):
            raise TrainingDivergedError(
                f"stage {self.name}: gradient of '{name}' is not finite (loss {float(loss):.4g}); "
                f"the last checkpoint is kept, resume with a lower {self.name}.lr"
            )
        optimizer.step()
        return norm

    def autocast(self) -> torch.autocast:
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.config.precision == "bf16")

    def weights(self, record: dict[str, Any]) -> Checkpoint:
        parts = {name: state_of(ema.average) for name, ema in self.averages.items()}
        parts |= {name: state_of(module) for name, module in self.frozen.items()}
        return Checkpoint(self.config.model, parts, record)


def learning_rate(stage: StageConfig, iteration: int) -> float:
    """Factor on the peak rate: linear warm-up, then a cosine to `lr_final`."""
    if iteration < stage.warmup:
        return (iteration + 1) / stage.warmup
    progress = (iteration - stage.warmup) / max(1, stage.iterations - stage.warmup)
    return stage.lr_final + (1 - stage.lr_final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def iteration_generator(seed: int, stage: str, iteration: int) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(f"{seed}/{stage}/{iteration}".encode()))


def train(stage: Stage) -> Path:
    """Run a stage to its last iteration, resuming if its folder holds a state. Returns the weights' path."""
    config, settings = stage.config, stage.stage
    folder = config.stage_dir(stage.name)
    folder.mkdir(parents=True, exist_ok=True)
    start, elapsed = _resume(stage, folder / STATE_FILE)
    consumed = start * stage.batches_per_iteration * settings.batch
    batches = training_batches(config.data, config.crop_of(settings), settings.batch, _data_seed(stage), consumed)
    writer = _Log(folder / LOG_FILE)
    began = time.monotonic() - elapsed
    figures: dict[str, float] = {}
    for iteration in range(start, settings.iterations):
        _set_learning_rates(stage, iteration)
        scalars = stage.step(iteration, lambda: next(batches), iteration_generator(config.seed, stage.name, iteration))
        for ema in stage.averages.values():
            ema.update()
        writer.add(scalars)
        done = iteration + 1
        if done % settings.log_every == 0:
            writer.flush(stage.name, done, time.monotonic() - began)
        last = done == settings.iterations
        if last or done % settings.validate_every == 0:
            figures = stage.validate(iteration_generator(config.seed, "validation", 0))
            writer.write({"stage": stage.name, "iteration": done, "validation": figures})
        if last or done % settings.save_every == 0:
            _save(stage, folder, done, time.monotonic() - began)
    record = {"stage": stage.name, "seconds": round(time.monotonic() - began), "validation": figures}
    record |= {"config": dict(config_to_dict(config)), "torch": torch.__version__}
    path = folder / WEIGHTS_FILE
    save_checkpoint(path, stage.weights(record))
    return path


def _data_seed(stage: Stage) -> int:
    # Each stage sees crops of its own.
    return zlib.crc32(f"{stage.config.seed}/{stage.name}".encode())


def _set_learning_rates(stage: Stage, iteration: int) -> None:
    factor = learning_rate(stage.stage, iteration)
    for optimizer in stage.optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor


def _save(stage: Stage, folder: Path, done: int, elapsed: float) -> None:
    state = {
        "iteration": done,
        "seconds": elapsed,
        "networks": {name: network.state_dict() for name, network in stage.networks.items()},
        "averages": {name: ema.average.state_dict() for name, ema in stage.averages.items()},
        "ema_updates": {name: ema.updates for name, ema in stage.averages.items()},
        "optimizers": {name: optimizer.state_dict() for name, optimizer in stage.optimizers.items()},
    }
    partial = folder / f"{STATE_FILE}.part"
    torch.save(state, partial)
    os.replace(partial, folder / STATE_FILE)


def _resume(stage: Stage, path: Path) -> tuple[int, float]:
    if not path.is_file():
        return 0, 0.0
    state = torch.load(path, weights_only=True)
    try:
        for name, network in stage.networks.items():
            network.load_state_dict(state["networks"][name])
        for name, ema in stage.averages.items():
            ema.average.load_state_dict(state["averages"][name])
            ema.updates = state["ema_updates"][name]
        for name, optimizer in stage.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
    except (KeyError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"{path} does not fit this configuration ({' '.join(str(error).split())}); "
            "restore the configuration it was written with, or choose another run_dir"
        ) from error
    log.info("resuming %s at iteration %d", stage.name, state["iteration"])
    return int(state["iteration"]), float(state["seconds"])


class _Log:
    """Means of the scalars since the last line, as one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sums: dict[str, float] = {}
        self.count = 0

    def add(self, scalars: dict[str, Tensor]) -> None:
        self.count += 1
        for name, value in scalars.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value.detach())

    def flush(self, stage: str, iteration: int, seconds: float) -> None:
        means = {name: round(total / self.count, 5) for name, total in self.sums.items()}
        self.write({"stage": stage, "iteration": iteration, "seconds": round(seconds, 1), **means})
        self.sums, self.count = {}, 0

    def write(self, row: dict[str, Any]) -> None:
        line = json.dumps(row)
        log.info("%s", line)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
