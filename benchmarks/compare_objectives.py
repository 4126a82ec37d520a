"""Objectives side by side with the compact networks: rsd (N = 4 and 1), vsd, sinsr, regression, without and with GAN.

    python benchmarks/compare_objectives.py --config edge-n --teacher runs/edge-n/teacher/weights.safetensors
        --train PHOTOS --val OTHER_PHOTOS --work runs/objectives --score NAME LR_DIR REF_DIR
        --json benchmarks/reports/objectives.json

All rows share the teacher, the pairs, iterations, learning rates, LPIPS and GAN weights, and their students are trained
on the same sequence of batches. Rows with a fake model draw K more batches an iteration for it, from the same pairs in
an order of their own; the noise of the students' steps is another one there, since it is named by the batch's place in
the iteration. LR images and latents are made once and kept in --work. Every row is a run of its own that resumes: the
same command goes on after an interruption, and finished rows are not run again. Pairs and rows are kept under a digest
of all that makes them (teacher, data, settings), so that a command with other settings takes none of the old ones.
`--plan` times an iteration of each row and says what all would take: 0.39 hours for 150 iterations of edge-n on two
cores of an AMD EPYC, so the default of 600 stays within two hours with its validations.

vsd and sinsr start the student from the prior always, so that N has no meaning for them; regression without GAN has no
latent term, so N has none there either.
"""

from __future__ import annotations

import hashlib
import logging
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch
from made_from import digest
from origin import origin
from safetensors.torch import load_file, save
from score_engine import Scores, TestSet, score
from torch import Tensor

from rsd_edge import SuperResolver
from rsd_edge.cli.distill import find_config
from rsd_edge.distill.changes import plain
from rsd_edge.distill.config import DistillConfig, load_config
from rsd_edge.distill.data import CropDataset, training_batches
from rsd_edge.distill.loop import draws, train
from rsd_edge.distill.roles import stage_weights
from rsd_edge.distill.stage import EncodedBatch
from rsd_edge.distill.stages import prepare_torch
from rsd_edge.distill.stages.student import StudentStage
from rsd_edge.models.checkpoint import Checkpoint, load_checkpoint
from rsd_edge.stream.atomic import atomic_file, make_folder, write_json

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One run."""

    name: str
    settings: dict[str, Any]


def rows(gan_weight: float, distill_weights: tuple[float, ...] = ()) -> list[Row]:
    """All runs, those without GAN first; last, rsd with other weights of the distillation."""
    objectives: dict[str, dict[str, Any]] = {
        "rsd, N = 4": {"objective": "rsd"},
        "rsd, N = 1": {"objective": "rsd", "timesteps": None},
        "vsd": {"objective": "vsd"},
        "sinsr": {"objective": "sinsr"},
        "regression": {"distill_weight": 0.0},
    }
    gans: dict[str, dict[str, Any]] = {"": {"gan_weight": 0.0}, " + GAN": {"gan_weight": gan_weight, "gan": "features"}}
    found = [
        Row(f"{name}{suffix}", {**settings, **gan})
        for suffix, gan in gans.items()
        for name, settings in objectives.items()
    ]
    without = gans[""]
    return found + [
        Row(f"rsd, N = 4, weight {weight:g}", {"objective": "rsd", "distill_weight": weight, **without})
        for weight in distill_weights
    ]


def pairs_path(work: Path, config: DistillConfig, teacher: str, samples: int) -> Path:
    """Where pairs are kept; teacher: digest of its file."""
    data = dict(plain(config)["data"])
    for name in ("val", "val_lr", "val_crops", "workers", "cache_mb"):
        del data[name]
    space = config.roles.autoencoder.weights
    space = hashlib.blake2b(Path(space).read_bytes()).hexdigest() if space else ""
    made_from = digest(teacher, space, data, config.crop_of(config.student), config.seed)
    return work / f"pairs-{samples}-{made_from}.safetensors"


class CachedPairs:
    """Degraded crops and their latents, drawn in batches by the iteration of a run."""

    def __init__(self, path: Path, config: DistillConfig, teacher: Checkpoint, samples: int) -> None:
        if not path.is_file():
            make_folder(path.parent)
            _encode(path, config, teacher, samples)
        self.name = path.stem
        self.tensors = load_file(path)
        self.batch = config.student.batch

    def batches_from(self, first: int, fake_steps: int) -> Iterator[EncodedBatch]:
        """Endless batches from iteration `first` on: `fake_steps` for the fake model, then the student's.

        The student's sequence is the same whatever `fake_steps` is.
        """
        iteration = first
        while True:
            for step in range(fake_steps):
                yield self._batch("fake", iteration * fake_steps + step)
            yield self._batch("student", iteration)
            iteration += 1

    def _batch(self, role: str, position: int) -> EncodedBatch:
        """A role's batch; the samples are in another order each time round."""
        count = len(self.tensors["x0"]) // self.batch
        seed = zlib.crc32(f"{role}/{position // count}".encode())
        order = torch.randperm(count * self.batch, generator=torch.Generator().manual_seed(seed))
        chosen = order.view(count, self.batch)[position % count]
        x0, y0, z0, z_y = (self.tensors[name][chosen] for name in ("x0", "y0", "z0", "z_y"))
        return EncodedBatch(_to_model(x0), _to_model(y0), z0=z0, z_y=z_y)


def _to_model(pixels: Tensor) -> Tensor:
    return pixels.float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)


def _encode(path: Path, config: DistillConfig, teacher: Checkpoint, samples: int) -> None:
    """Pairs as training draws them, uint8, and z0 and z_y, float32."""
    stage = StudentStage(_alone(config), None, teacher)
    batches = training_batches(CropDataset(config.data, config.crop_of(config.student), config.seed), 16, 0)
    found: dict[str, list[Tensor]] = {name: [] for name in ("x0", "y0", "z0", "z_y")}
    with torch.no_grad():
        for _ in range(-(-samples // 16)):
            batch = next(batches)
            z0, z_y = stage.latent.encode(batch.x0, batch.y0)
            pixels = (image.add(1).mul(127.5).round().byte() for image in (batch.x0, batch.y0))
            for name, tensor in zip(found, (*pixels, z0, z_y), strict=True):
                found[name].append(tensor.contiguous())
    log.info("encoded %d pairs", 16 * len(found["z0"]))
    tensors = {name: torch.cat(tensors)[:samples].contiguous() for name, tensors in found.items()}
    with atomic_file(path) as file:
        file.write(save(tensors))


def _alone(config: DistillConfig) -> DistillConfig:
    """Without the networks that encoding does not need."""
    return replace(config, student=replace(config.student, distill_weight=0.0, gan_weight=0.0, lpips_weight=1.0))


def configured(base: DistillConfig, row: Row, seed: int, work: Path, made_from: tuple[str, ...] = ()) -> DistillConfig:
    """The configuration of a row; `made_from` tells what it is made from beside its settings."""
    settings = dict(row.settings)
    if "timesteps" in settings:
        settings["timesteps"] = (base.model.schedule.steps - 1,)
    config = replace(base, seed=seed, student=replace(base.student, **settings))
    folder = work / row.name.replace(", ", "-").replace(" = ", "").replace(" + ", "-").replace(" ", "-").lower()
    made = digest({**plain(config), "threads": None}, *made_from)
    return replace(config, run_dir=str(folder / f"seed{seed}-{made}"))


def run(config: DistillConfig, teacher: Checkpoint, pairs: CachedPairs) -> dict[str, Any]:
    """Train a row, or find it trained; its figures."""
    path = stage_weights(config, "student")
    if not path.is_file():
        stage = StudentStage(config, None, teacher)
        train(stage, lambda start: pairs.batches_from(start, stage.batches_per_iteration - 1))
    record = load_checkpoint(path).record
    return {"seconds": record["seconds"], "iterations": record["iterations"], **record["validation"]}


def scored(weights: Path, sets: tuple[TestSet, ...]) -> dict[str, Scores]:
    """Scores of a row's averaged weights in fp32."""
    with SuperResolver.load(str(weights)) as enlarge:
        return {name: score(enlarge, lq, ref) for name, lq, ref in sets}


def plan(base: DistillConfig, teacher: Checkpoint, pairs: CachedPairs, chosen: list[Row]) -> dict[str, float]:
    """Seconds that each row would take on this machine."""
    estimates = {}
    for row in chosen:
        stage = StudentStage(configured(base, row, 0, Path("unused")), None, teacher)
        batches = pairs.batches_from(0, stage.batches_per_iteration - 1)
        for iteration in range(2):
            began = time.monotonic()
            stage.step(iteration, draws(stage, batches, iteration))
        estimates[row.name] = round((time.monotonic() - began) * stage.stage.iterations, 1)
    return estimates


def report(
    results: dict[str, list[dict[str, Any]]], base: DistillConfig, teacher: Checkpoint, pairs: int
) -> dict[str, Any]:
    """The document: every seed's figures, and what was the same for all."""
    student = base.student
    same = ("iterations", "batch", "lr", "fake_lr", "fake_steps", "betas", "ema", "lpips_weight")
    return {
        **origin(),
        "threads": torch.get_num_threads(),
        "model": base.model.name,
        "same_for_all": {**{name: getattr(student, name) for name in same}, "pairs": pairs},
        "batches": "the students' are the same in all rows; fake models take fake_steps more an iteration",
        "teacher": teacher.record.get("validation", {}),
        "rows": results,
        "cpu_hours": round(sum(run["seconds"] for runs in results.values() for run in runs) / 3600, 2),
    }


@click.command()
@click.option("--config", default="edge-n", show_default=True)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE")
@click.option("--teacher", "teacher_path", required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--train", "train_from", required=True, help="HR training images, as data.train.")
@click.option("--val", required=True, help="HR validation images.")
@click.option("--work", required=True, type=click.Path(path_type=Path), help="Folder of the cache and the runs.")
@click.option("--iterations", default=600, show_default=True)
@click.option("--samples", default=2048, show_default=True, help="Cached pairs.")
@click.option("--seeds", default="0", show_default=True, help="Comma-separated; three of them where a GPU is.")
@click.option("--gan-weight", default=3e-3, show_default=True)
@click.option("--distill-weight", "distill_weights", multiple=True, type=float, help="Another row of rsd; several.")
@click.option("--row", "chosen", multiple=True, help="Such as 'rsd, N = 4'; several; all if not given.")
@click.option(
    "--score",
    "sets",
    type=(str, click.Path(path_type=Path), click.Path(path_type=Path)),
    multiple=True,
    help="Name, LR images and references, on which each run is scored as by rsd-edge eval; several.",
)
@click.option("--plan", "only_plan", is_flag=True, help="Say how long all rows would take, and stop.")
@click.option("--json", "json_path", required=True, type=click.Path(path_type=Path))
def main(
    config: str,
    overrides: tuple[str, ...],
    teacher_path: Path,
    train_from: str,
    val: str,
    work: Path,
    iterations: int,
    samples: int,
    seeds: str,
    gan_weight: float,
    distill_weights: tuple[float, ...],
    chosen: tuple[str, ...],
    sets: tuple[TestSet, ...],
    only_plan: bool,
    json_path: Path,
) -> None:
    """Train every row on the same pairs, and write their figures on the validation crops."""
    known = {row.name: row for row in rows(gan_weight, distill_weights)}
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise click.BadParameter(f"'{unknown[0]}' is none of: {'; '.join(known)}", param_hint="--row")
    runs = [known[name] for name in chosen or known]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    settings = [f"student.iterations={iterations}", f"data.train={train_from}", f"data.val={val}", *overrides]
    base = load_config(find_config(config), settings)
    if samples < base.student.batch:
        raise click.BadParameter(f"{samples} are fewer than one batch of {base.student.batch}", param_hint="--samples")
    prepare_torch(base)
    teacher = load_checkpoint(teacher_path)
    teacher_file = hashlib.blake2b(teacher_path.read_bytes()).hexdigest()
    pairs = CachedPairs(pairs_path(work, base, teacher_file, samples), base, teacher, samples)
    if only_plan:
        estimates = plan(base, teacher, pairs, runs)
        for name, seconds in estimates.items():
            click.echo(f"{name}: {seconds / 60:.1f} min")
        click.echo(f"all: {sum(estimates.values()) / 3600:.2f} h")
        return
    results: dict[str, list[dict[str, Any]]] = {}
    for row in runs:
        for seed in map(int, seeds.split(",")):
            changed = configured(base, row, seed, work, (teacher_file, pairs.name))
            figures = run(changed, teacher, pairs)
            if sets:
                figures["sets"] = scored(stage_weights(changed, "student"), sets)
            results.setdefault(row.name, []).append({"seed": seed, **figures})
            document = report(results, base, teacher, samples)
            write_json(json_path, document)
            click.echo(f"{row.name}, seed {seed}: LPIPS {figures['lpips_squeeze']}, PSNR-Y {figures['psnr_y']}")


if __name__ == "__main__":
    main()
