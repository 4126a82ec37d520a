"""The training loop all stages share: batches, learning rate, logging, validation, checkpoints, resume, signals."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import math
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from rsd_edge.bundle import WEIGHTS_FILE
from rsd_edge.distill.changes import Change
from rsd_edge.distill.config import config_to_dict
from rsd_edge.distill.data import Batch, CropDataset, training_batches
from rsd_edge.distill.progress import Progress
from rsd_edge.distill.randomness import Randomness
from rsd_edge.distill.run_log import RunLog
from rsd_edge.distill.snapshot import STATE_FILE, Resumed, resume, save_state
from rsd_edge.distill.stage import DATA, Draw, EncodedBatch, Part, Stage, TrainingDivergedError, Validation
from rsd_edge.distill.stage_config import StageConfig
from rsd_edge.distill.stop_signal import StopSignal
from rsd_edge.errors import InputError
from rsd_edge.models.checkpoint import save_checkpoint
from rsd_edge.stream.atomic import atomic_file, make_folder
from rsd_edge.stream.locking import locked

log = logging.getLogger(__name__)

CONFIG_FILE = "config.yaml"


def learning_rate(stage: StageConfig, iteration: int) -> float:
    """Factor on the peak rate: linear warm-up, then a cosine to `lr_final`."""
    if iteration < stage.warmup:
        return (iteration + 1) / stage.warmup
    progress = (iteration - stage.warmup) / max(1, stage.iterations - stage.warmup)
    return stage.lr_final + (1 - stage.lr_final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


BatchesFrom = Callable[[int], Iterator[Batch]]
"""Endless batches of this process from an iteration on."""


def train(stage: Stage, batches_from: BatchesFrom | None = None) -> Path:
    """Run a stage to its last iteration, resuming if its folder holds a state. Returns the weights' path.

    batches_from: instead of the data that the configuration names, for the same iterations in the same order.
    The first Ctrl-C, SIGTERM or SIGHUP ends the iteration, saves and raises KeyboardInterrupt; a second Ctrl-C
    does not wait. Raises TrainingDivergedError, ModelError for a state that does not fit, has other settings or is
    beyond the last iteration, OutputError if the folder cannot be written or another run trains in it; in each case the
    last state saved stays as it is.
    """
    check_share(stage)
    stage.validation  # noqa: B018 (what is missing there should not show after the first five hundred iterations)
    folder = stage.config.stage_dir(stage.name)
    alone = locked(folder.parent, folder.name, "trains", refusal="wait for its end, or choose another run_dir")
    with alone if stage.runtime.is_main else contextlib.nullcontext():
        return _train(stage, folder, batches_from)


def _train(stage: Stage, folder: Path, batches_from: BatchesFrom | None) -> Path:
    if stage.runtime.is_main:
        make_folder(folder)
    stage.runtime.wait()
    if batches_from is None:
        dataset = _dataset(stage)
        stage.given[DATA] = dataset.digest()
        batches_from = functools.partial(_batches, stage, dataset)
    run = _Run(stage, folder, resume(stage, folder / STATE_FILE))
    if stage.runtime.is_main:
        _write_config(stage, folder, run.changes)
    figures = run.iterate(batches_from)
    path = folder / WEIGHTS_FILE
    if stage.runtime.is_main:
        save_checkpoint(path, stage.weights(_record(stage, run, figures)))
    stage.runtime.wait()
    return path


def _record(stage: Stage, run: _Run, figures: dict[str, float]) -> dict[str, Any]:
    """How the weights were made. `config` has the last settings, `changes` the earlier ones."""
    record = {
        "stage": stage.name,
        "iterations": stage.stage.iterations,
        "seconds": round(run.seconds),
        "validation": figures,
        "config": dict(config_to_dict(stage.config)),
        "torch": torch.__version__,
    }
    record |= {"started_from": stage.origin} if stage.origin else {}
    return record | ({"changes": [change._asdict() for change in run.changes]} if run.changes else {})


def check_share(stage: Stage) -> None:
    """Raise InputError unless the batch can be shared among the processes and their parts."""
    shares = stage.runtime.processes * stage.stage.accumulate
    if stage.stage.batch % shares:
        raise InputError(
            f"{stage.name}.batch is {stage.stage.batch}; {stage.runtime.processes} processes with accumulate "
            f"{stage.stage.accumulate} need a multiple of {shares}"
        )


def parts_of(stage: Stage, batch: Batch, update: str) -> list[Part]:
    """This process's samples of a batch, in the parts that gradients are accumulated over."""
    settings, runtime = stage.stage, stage.runtime
    count = len(batch.x0) // settings.accumulate
    parts = []
    for i in range(settings.accumulate):
        inside = slice(i * count, (i + 1) * count)
        x0, y0 = (image[inside].to(runtime.device) for image in (batch.x0, batch.y0))
        noise = Randomness(update, runtime.rank * len(batch.x0) + i * count, count, runtime.device)
        latents = None
        if isinstance(batch, EncodedBatch) and batch.z0 is not None and batch.z_y is not None:
            latents = batch.z0[inside].to(runtime.device), batch.z_y[inside].to(runtime.device)
        parts.append(Part(Batch(x0, y0), noise, latents))
    return parts


def draws(stage: Stage, batches: Iterator[Batch], iteration: int) -> Draw:
    """What an iteration takes its batches with. Each has noise of its own, named by its place in the run."""
    names = (f"{stage.config.seed}/{stage.name}/{iteration}/{i}" for i in itertools.count())

    def draw() -> Sequence[Part]:
        return parts_of(stage, next(batches), next(names))

    return draw


class _Run:
    """One call of `train`."""

    def __init__(self, stage: Stage, folder: Path, resumed: Resumed) -> None:
        self.stage, self.folder = stage, folder
        self.start = self.saved = resumed.iteration
        self.began = time.monotonic() - resumed.seconds
        self.changes = resumed.changes

    @property
    def seconds(self) -> float:
        """Spent on this stage, earlier runs included."""
        return time.monotonic() - self.began

    def iterate(self, batches_from: BatchesFrom) -> dict[str, float]:
        """Iterations from the start on; returns the figures of the last validation."""
        stage, settings = self.stage, self.stage.stage
        writes = stage.runtime.is_main
        if self.start >= settings.iterations:
            return self._validate().figures if writes else {}
        batches = batches_from(self.start)
        with (
            RunLog(self.folder if writes else None, stage.name, self.start) as run_log,
            Progress(stage.name, self.start, settings.iterations, shown=writes) as progress,
            StopSignal() as stop,
        ):
            try:
                return self._iterate(batches, run_log, progress, stop)
            except BaseException as error:
                how = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
                log.warning("%s %s: %s", stage.name, how, self._kept(error))
                raise

    def _kept(self, error: BaseException) -> str:
        """What can be gone on from after this error."""
        if not self.saved:
            return "no iteration was saved yet"
        kept = f"iteration {self.saved} of {self.stage.stage.iterations} is kept"
        if isinstance(error, TrainingDivergedError):
            state = self.folder / STATE_FILE  # finite weights may be ruined all the same
            return f"{kept}; if it fails from there with lower rates, too, delete {state} to start this stage again"
        return f"{kept}, the same command goes on from there"

    def _iterate(
        self, batches: Iterator[Batch], run_log: RunLog, progress: Progress, stop: StopSignal
    ) -> dict[str, float]:
        stage, settings = self.stage, self.stage.stage
        figures: dict[str, float] = {}
        if stage.origin and self.start == 0 and stage.runtime.is_main:
            run_log.validation(0, self._validate())  # what a fine-tune of finished weights has to be better than
        for iteration in range(self.start, settings.iterations):
            _set_learning_rates(stage, iteration)
            scalars = stage.step(iteration, draws(stage, batches, iteration))
            run_log.add({name: stage.runtime.mean(value.detach()) for name, value in scalars.items()})
            for ema in stage.averages.values():
                ema.update()
            done = iteration + 1
            last, stopping = done == settings.iterations, stage.runtime.any(stop.asked)
            if last or done % settings.log_every == 0:
                progress.show(run_log.flush(done, self.seconds))
            if stage.runtime.is_main and (last or done % settings.validate_every == 0):
                figures = run_log.validation(done, self._validate())
            if last or stopping or done % settings.save_every == 0:
                self._save(done)
            progress.advance()
            if stopping:
                stop.end()
        return figures

    def _validate(self) -> Validation:
        """Raises TrainingDivergedError for figures that are not finite: before the state that gave them is saved."""
        found = self.stage.validate()
        for name, figure in found.figures.items():
            if not math.isfinite(figure):
                raise self.stage.diverged(f"{name} of the validation is {figure}", "lr")
        return found

    def _save(self, done: int) -> None:
        save_state(self.stage, self.folder, done, self.seconds, self.changes)
        self.stage.runtime.wait()
        self.saved = done


def _batches(stage: Stage, dataset: CropDataset, start: int) -> Iterator[Batch]:
    """This process's batches from an iteration on."""
    settings, runtime = stage.stage, stage.runtime
    return training_batches(
        dataset,
        settings.batch // runtime.processes,
        start * stage.batches_per_iteration * settings.batch,
        rank=runtime.rank,
        ranks=runtime.processes,
    )


def _write_config(stage: Stage, folder: Path, changed: Sequence[Change]) -> None:
    """The resolved configuration, as a file that the same run can be started with; comments tell what changed."""
    text = "".join(f"# {change}\n" for change in changed)
    text += yaml.safe_dump(dict(config_to_dict(stage.config)), sort_keys=False)
    with atomic_file(folder / CONFIG_FILE) as file:
        file.write(text.encode())


def _dataset(stage: Stage) -> CropDataset:
    # Each stage sees crops of its own.
    seed = zlib.crc32(f"{stage.config.seed}/{stage.name}".encode())
    return CropDataset(stage.config.data, stage.config.crop_of(stage.stage), seed)


def _set_learning_rates(stage: Stage, iteration: int) -> None:
    factor = learning_rate(stage.stage, iteration)
    for optimizer in stage.optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
