"""Losses and data of the fine-tune side by side: short fine-tunes of one shipped model, a setting changed in each.

    python benchmarks/compare_finetunes.py --model edge-n --train PHOTOS --val OTHER_PHOTOS --work runs/finetunes \\\\
        --set kodak24_real LR_DIR REF_DIR --set ... --json benchmarks/reports/finetunes.json

All rows begin with the model as it ships (`finetune_from`) and share seed, iterations, rate and, unless that is what
the row is about, data. The first row is the model itself. Scores are those of `rsd-edge eval` with the averaged weights
in fp32. Rows that the JSON file has are kept if they were made from the same weights and photos with the same settings
and have the same test sets, and runs in --work resume, so the same command goes on after an interruption.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
from made_from import configuration, images_of, photos
from origin import begun_report, origin
from score_engine import TestSet, score

from rsd_edge import SuperResolver
from rsd_edge.bundle import resolve_engine
from rsd_edge.cli.distill import find_config
from rsd_edge.distill.config import load_config
from rsd_edge.distill.stages import run_stage
from rsd_edge.stream.atomic import write_json

UNTRAINED = "as it ships"
CHANGES: dict[str, tuple[str, ...]] = {
    "the same losses": (),
    "LPIPS weight 2": ("finetune.lpips_weight=2.0",),
    "LPIPS weight 0.5": ("finetune.lpips_weight=0.5",),
    "LPIPS on whole crops": ("finetune.lpips_windows=false",),
    "light and clean inputs only": ("data.degradations={light: 0.6, bicubic: 0.4}",),
    "no discriminator": ("finetune.gan_weight=0.0",),
}
"""Settings of each row, beside the shipped configuration of the model."""


def common(model: str, iterations: int, train: Path, val: Path) -> list[str]:
    """Settings of all rows. The rate is well below the shipped configurations', whose weights had still to converge."""
    return [
        f"finetune_from={model}", "seed=1", f"data.train={train}", f"data.val={val}",
        f"finetune.iterations={iterations}", "finetune.lr=3.0e-4", "finetune.warmup=20", "finetune.gan_start=50",
        "finetune.lpips_weight=1.0",  # the configuration has 2, which these rows led to
    ]  # fmt: skip


@click.command()
@click.option("--model", default="edge-n", show_default=True)
@click.option("--iterations", default=500, show_default=True)
@click.option("--train", required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--val", required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--work", required=True, type=click.Path(path_type=Path), help="Folder of the runs.")
@click.option("--row", "chosen", multiple=True, type=click.Choice(list(CHANGES)), help="Several; all if not given.")
@click.option("--set", "sets", type=(str, click.Path(path_type=Path), click.Path(path_type=Path)), multiple=True)
@click.option("--json", "json_path", required=True, type=click.Path(path_type=Path))
def main(
    model: str,
    iterations: int,
    train: Path,
    val: Path,
    work: Path,
    chosen: tuple[str, ...],
    sets: tuple[TestSet, ...],
    json_path: Path,
) -> None:
    """Train and score each row, and store it."""
    known = begun_report(json_path).get("rows", {})
    document: dict[str, Any] = {
        **origin(),
        "model": model,
        "rows": known,
    }
    start, images = resolve_engine(model).digest, images_of(sets)
    for name in (UNTRAINED, *(chosen or CHANGES)):
        trained = name != UNTRAINED
        settings = [*common(model, iterations, train, val), *CHANGES[name]] if trained else []
        config = load_config(find_config(model), settings)
        made_from: dict[str, Any] = {"start": start, "images": images}
        if trained:
            made_from |= {"configuration": configuration(config), "photos": photos(config)}
        if name in known and known[name]["made_from"] == made_from:
            continue
        engine = model
        if trained:
            run = work / name.replace(" ", "-")
            engine = str(run_stage("finetune", replace(config, run_dir=str(run))))
        known[name] = {"made_from": made_from, "changed": CHANGES.get(name, ()), "sets": _scores(engine, sets)}
        write_json(json_path, document)
        click.echo(f"{name}: {json.dumps(known[name]['sets'])}")


def _scores(engine: str, sets: tuple[TestSet, ...]) -> dict[str, dict[str, float | None]]:
    trained = engine.endswith(".safetensors")
    load = SuperResolver.load if trained else partial(SuperResolver.load, precision="fp32", backend="onnxruntime")
    with load(engine) as enlarge:
        return {name: score(enlarge, lq, ref) for name, lq, ref in sets}


if __name__ == "__main__":
    main()
