"""Sizes of a compact model side by side: all four stages, shortened, with one size changed in each row.

    python benchmarks/compare_architectures.py --train PHOTOS --val OTHER_PHOTOS --work runs/architectures
        --set kodak24_real LR_DIR REF_DIR --set ... --json benchmarks/reports/architectures.json

All rows share seed, data, losses and iterations. The stages are far shorter than those of a model that ships, so rows
compare with the first one and not with that. The row with a larger teacher shares autoencoder and start of its student
with the first. Scores are those of `rsd-edge eval` with the averaged weights in fp32. Rows that the JSON file has are
kept if their settings, photos and test sets are the same, and runs in --work resume, so the same command goes on after
an interruption.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from made_from import configuration, images_of, photos
from origin import begun_report, origin
from score_engine import TestSet, score

from rsd_edge import SuperResolver
from rsd_edge.bench.cost import convolution_flops
from rsd_edge.bundle import WEIGHTS_FILE
from rsd_edge.cli.distill import find_config
from rsd_edge.distill.config import load_config
from rsd_edge.distill.stages import STAGES, run_stage
from rsd_edge.export.build import build_engine
from rsd_edge.models.checkpoint import load_checkpoint
from rsd_edge.stream.atomic import write_json

BASE = "as configured"
TILE = 64


@dataclass(frozen=True)
class Row:
    """Sizes that differ from the configuration's, by their names in `model.architecture`."""

    model: tuple[str, ...] = ()
    teacher: tuple[str, ...] = ()
    """Of a teacher that differs from its student; it shares the base's latent space."""


ROWS = {
    BASE: Row(),
    "2 latent channels": Row(("latent_channels=2",)),
    "8 latent channels": Row(("latent_channels=8",)),
    "decoder half as wide": Row(("decoder_width=24", "decoder_half_width=8")),
    "decoder 1.5 times as wide": Row(("decoder_width=72", "decoder_half_width=24")),
    "teacher of edge-s's size": Row(teacher=("generator_widths=[48, 128]", "generator_blocks=[2, 6, 2]")),
}
"""Of edge-n, which has 4 latent channels, a decoder of 48 and 16, and a teacher of its own size."""


def common(train: Path, val: Path, iterations: dict[str, int]) -> list[str]:
    """Settings of all rows; what an iteration is, is as configured."""
    return [
        f"data.train={train}", f"data.val={val}",
        *(f"{stage}.iterations={count}" for stage, count in iterations.items()),
        "finetune.gan_start=100",
    ]  # fmt: skip


def stage_settings(row: Row, work: Path, folder: Path) -> dict[str, list[str]]:
    """What each stage of a row is set to, beside what is common, in the order of the stages.

    work: of all rows; folder: of this one.
    """
    own = [f"run_dir={folder}", *(f"model.architecture.{size}" for size in row.model)]
    if not row.teacher:
        return dict.fromkeys(STAGES, own)
    base = work / folder_name(BASE)
    space = f"roles.autoencoder.weights={base / 'autoencoder' / WEIGHTS_FILE}"
    teacher = f"roles.teacher.weights={folder / 'teacher' / WEIGHTS_FILE}"
    start = f"roles.student.weights={base / 'teacher' / WEIGHTS_FILE}"
    larger = [*own, *(f"model.architecture.{size}" for size in row.teacher), space]
    return {"teacher": larger, "student": [*own, teacher, start], "finetune": [*own, teacher]}


def folder_name(row: str) -> str:
    """Of a row's run."""
    return row.replace(" ", "-").replace("'", "")


def train_row(model: str, shared: list[str], stages: dict[str, list[str]]) -> dict[str, Any]:
    """Train all stages of a row, or find them trained: its last weights, the last validation and seconds of each."""
    found: dict[str, Any] = {"seconds": {}, "validation": {}}
    for stage, settings in stages.items():
        weights = run_stage(stage, load_config(find_config(model), [*shared, *settings]))
        record = load_checkpoint(weights).record
        found["seconds"][stage], found["validation"][stage] = record["seconds"], record["validation"]
        found["weights"] = weights
    return found


def measure(weights: Path, sets: tuple[TestSet, ...]) -> dict[str, Any]:
    """Scores of a model, and operations of a tile, as an fp32 engine."""
    with tempfile.TemporaryDirectory() as scratch:
        bundle = build_engine(str(weights), Path(scratch))
        flops = convolution_flops(bundle.graph_path, 1, TILE, TILE)
        with SuperResolver.load(str(bundle.path)) as enlarge:
            return {"gflop": flops / 1e9, "sets": {name: score(enlarge, lq, ref) for name, lq, ref in sets}}


@click.command()
@click.option("--model", default="edge-n", show_default=True)
@click.option("--iterations", nargs=4, type=int, default=(500, 700, 120, 400), show_default=True, help="Of each stage.")
@click.option("--threads", default=2, show_default=True)
@click.option("--train", required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--val", required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--work", required=True, type=click.Path(path_type=Path), help="Folder of the runs.")
@click.option("--row", "chosen", multiple=True, type=click.Choice(list(ROWS)), help="Several; all if not given.")
@click.option("--set", "sets", type=(str, click.Path(path_type=Path), click.Path(path_type=Path)), multiple=True)
@click.option("--json", "json_path", required=True, type=click.Path(path_type=Path))
def main(
    model: str,
    iterations: tuple[int, ...],
    threads: int,
    train: Path,
    val: Path,
    work: Path,
    chosen: tuple[str, ...],
    sets: tuple[TestSet, ...],
    json_path: Path,
) -> None:
    """Train and score each row, and store it."""
    lengths = dict(zip(STAGES, iterations, strict=True))
    shared = common(train, val, lengths)
    known = begun_report(json_path).get("rows", {})
    document: dict[str, Any] = {
        **origin(),
        "model": model,
        "iterations": lengths,
        "rows": known,
    }
    given, images = photos(load_config(find_config(model), shared)), images_of(sets)
    for name in ROWS:
        if chosen and name not in (*chosen, BASE):
            continue
        stages = stage_settings(ROWS[name], work, work / folder_name(name))
        configurations = {
            stage: configuration(load_config(find_config(model), [*shared, *settings]))
            for stage, settings in stages.items()
        }
        made_from = {"configurations": configurations, "photos": given, "images": images}
        if name in known and known[name]["made_from"] == made_from:
            continue
        trained = train_row(model, [f"threads={threads}", *shared], stages)
        measured = measure(trained.pop("weights"), sets)
        known[name] = {"made_from": made_from, **trained, **measured}
        write_json(json_path, document)
        click.echo(f"{name}: {json.dumps(known[name]['sets'])}")


if __name__ == "__main__":
    main()
