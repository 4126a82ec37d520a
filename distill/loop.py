"""The training loop all stages share: batches, learning rate, logging, validation, checkpoints, resume, NaN guard.

Nothing random survives between iterations: noise comes from a generator seeded by (seed, stage, iteration) and samples
from their indices. A resumed run therefore repeats an uninterrupted one from its networks, EMA and optimisers alone.
"""

from __future__ import annotations

import io
import logging
import math
import pickle
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
from rsd_edge.distill.run_log import RunLog
from rsd_edge.errors import InputError, ModelError, RsdEdgeError
from rsd_edge.models.checkpoint import Checkpoint, save_checkpoint, state_of
from rsd_edge.stream.atomic import atomic_file, make_folder

log = logging.getLogger(__name__)

Draw = Callable[[], Batch]
STATE_FILE = "state.pt"
WEIGHTS_FILE = "weights.safetensors"


class TrainingDivergedError(RsdEdgeError):
    """A loss, gradient or weight became NaN or infinite."""


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

    def require_loss(self, *weights: str) -> None:
        """Raise InputError unless one of these weights is set: without a loss the stage would run and learn nothing."""
        if not any(getattr(self.stage, weight) for weight in weights):
            raise InputError(f"stage {self.name} has no loss; set {self.name}.{f' or {self.name}.'.join(weights)}")

    def update(self, name: str, loss: Tensor) -> Tensor:
        """Backward and step of one optimiser; returns the gradient norm before clipping.

        Raises TrainingDivergedError, before any weight changes, if the loss or its gradient is not finite.
        """
        if not torch.isfinite(loss):
            raise self.diverged(f"loss of '{name}' is {float(loss.detach())}")
        optimizer = self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, self.stage.clip)
        if not torch.isfinite(norm):
            raise self.diverged(f"gradient of '{name}' is not finite (loss {float(loss.detach()):.4g})")
        optimizer.step()
        return norm

    def diverged(self, what: str) -> TrainingDivergedError:
        """The error to raise; it says what to do about it."""
        return TrainingDivergedError(
            f"stage {self.name}: {what}; the last state saved is kept, resume with a lower {self.name}.lr"
        )

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
    """Run a stage to its last iteration, resuming if its folder holds a state. Returns the weights' path.

    Raises TrainingDivergedError, ModelError for a state that does not fit, OutputError if the folder cannot be written;
    in every case, and after Ctrl-C, the last state saved stays as it is.
    """
    folder = stage.config.stage_dir(stage.name)
    make_folder(folder)
    start, elapsed = _resume(stage, folder / STATE_FILE)
    began = time.monotonic() - elapsed
    with RunLog(folder, stage.name, start) as run_log:
        figures = _iterate(stage, folder, start, began, run_log)
    done = max(start, stage.stage.iterations)
    record = {"stage": stage.name, "iterations": done, "seconds": round(time.monotonic() - began)}
    record |= {"validation": figures, "config": dict(config_to_dict(stage.config)), "torch": torch.__version__}
    path = folder / WEIGHTS_FILE
    save_checkpoint(path, stage.weights(record))
    return path


def _iterate(stage: Stage, folder: Path, start: int, began: float, run_log: RunLog) -> dict[str, float]:
    """Iterations from `start` on; returns the figures of the last validation."""
    config, settings = stage.config, stage.stage
    if start >= settings.iterations:
        return _validate(stage)
    consumed = start * stage.batches_per_iteration * settings.batch
    batches = training_batches(config.data, config.crop_of(settings), settings.batch, _data_seed(stage), consumed)
    figures: dict[str, float] = {}
    saved = start
    try:
        for iteration in range(start, settings.iterations):
            _set_learning_rates(stage, iteration)
            generator = iteration_generator(config.seed, stage.name, iteration)
            run_log.add(stage.step(iteration, lambda: next(batches), generator))
            for ema in stage.averages.values():
                ema.update()
            done = iteration + 1
            last = done == settings.iterations
            if last or done % settings.log_every == 0:
                run_log.flush(done, time.monotonic() - began)
            if last or done % settings.validate_every == 0:
                figures = _validate(stage)
                run_log.validation(done, figures)
            if last or done % settings.save_every == 0:
                _save(stage, folder, done, time.monotonic() - began)
                saved = done
    except KeyboardInterrupt:
        kept = f"iteration {saved} of {settings.iterations} is kept, the same command goes on from there"
        log.warning("%s interrupted: %s", stage.name, kept if saved else "no iteration was saved yet")
        raise
    return figures


def _validate(stage: Stage) -> dict[str, float]:
    return stage.validate(iteration_generator(stage.config.seed, "validation", 0))


def _data_seed(stage: Stage) -> int:
    # Each stage sees crops of its own.
    return zlib.crc32(f"{stage.config.seed}/{stage.name}".encode())


def _set_learning_rates(stage: Stage, iteration: int) -> None:
    factor = learning_rate(stage.stage, iteration)
    for optimizer in stage.optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor


def _save(stage: Stage, folder: Path, done: int, elapsed: float) -> None:
    networks = {name: network.state_dict() for name, network in stage.networks.items()}
    averages = {name: ema.average.state_dict() for name, ema in stage.averages.items()}
    for name, tensors in (*networks.items(), *averages.items()):
        # A step with a finite gradient can still overflow, and what cannot be trained on must not replace a good state.
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
            raise stage.diverged(f"weights of '{name}' are not finite after iteration {done}")
    state = {
        "iteration": done,
        "seconds": elapsed,
        "networks": networks,
        "averages": averages,
        "ema_updates": {name: ema.updates for name, ema in stage.averages.items()},
        "optimizers": {name: optimizer.state_dict() for name, optimizer in stage.optimizers.items()},
    }
    # Through memory, because torch.save to a file reports a full disk as an error of its own that does not say so.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with atomic_file(folder / STATE_FILE) as file:
        file.write(buffer.getbuffer())


def _resume(stage: Stage, path: Path) -> tuple[int, float]:
    """Iterations done and seconds spent; (0, 0.0) without a state."""
    if not path.is_file():
        return 0, 0.0
    try:
        state = torch.load(path, weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise ModelError(
            f"{path} cannot be read ({type(error).__name__}), it may be truncated; delete it to start this stage again"
        ) from error
    try:
        _restore(stage, state)
        done, elapsed = int(state["iteration"]), float(state["seconds"])
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"{path} does not fit this configuration ({' '.join(str(error).split())}); "
            "restore the configuration it was written with, or choose another run_dir"
        ) from error
    log.info("resuming %s at iteration %d", stage.name, done)
    return done, elapsed


def _restore(stage: Stage, state: dict[str, Any]) -> None:
    for kind, members in (("networks", stage.networks), ("optimizers", stage.optimizers)):
        # Resuming with a part too many would train it from its start, with one too few would forget it, both silently.
        if state[kind].keys() != members.keys():
            raise ValueError(f"it holds {kind} {', '.join(state[kind])}; this run has {', '.join(members)}")
    for name, network in stage.networks.items():
        network.load_state_dict(state["networks"][name])
    for name, ema in stage.averages.items():
        ema.average.load_state_dict(state["averages"][name])
        ema.updates = state["ema_updates"][name]
    for name, optimizer in stage.optimizers.items():
        peaks = [group["peak_lr"] for group in optimizer.param_groups]
        optimizer.load_state_dict(state["optimizers"][name])
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            # Rates are the configuration's: a run that diverged is resumed with a lower one.
            group["peak_lr"], group["betas"] = peak, stage.stage.betas
