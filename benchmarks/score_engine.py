"""Quality of an engine beside bicubic on test sets of LR images with references, scored by the code of `rsd-edge eval`.

    python -P benchmarks/score_engine.py --set NAME LR_DIR REF_DIR --set ... --json benchmarks/reports/edge-s.json

Bicubic is the engine at strength 0. `seed_std` is the standard deviation, in grey levels, that another seed makes.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from rsd_edge import SuperResolver, __version__
from rsd_edge.bundle import resolve_engine
from rsd_edge.evaluate.folder import METRICS, evaluate_folders
from rsd_edge.machine import cpu_name
from rsd_edge.stream.discovery import images_in
from rsd_edge.stream.images import read_image, write_image

Image = NDArray[np.uint8]
Scores = dict[str, float | None]


def score(enlarge: SuperResolver, lq: Path, ref: Path, strength: float) -> Scores:
    """Mean scores over a folder, and what a second seed changes."""
    deviations = []
    with tempfile.TemporaryDirectory() as folder:
        for path in images_in(lq):
            image = read_image(path)
            result = enlarge(image, strength=strength)
            write_image(Path(folder) / f"{path.stem}.png", result)
            if strength:
                other = enlarge(image, strength=strength, seed=1)
                deviations.append(float((result.astype(np.int16) - other).std()) / 2**0.5)
        scores = evaluate_folders(Path(folder), ref, lq=lq)
    row = {metric: scores.mean(metric) for metric in METRICS}
    return row | ({"seed_std": float(np.mean(deviations))} if deviations else {})


def markdown(name: str, row: Scores) -> str:
    """One line of a table."""
    cells = [f"{row['psnr_y']:.2f}", *(f"{row[key]:.3f}" for key in METRICS[1:])]
    return f"| {name} | {' | '.join(cells)} |"


@click.command()
@click.option("--engine", default="edge-s", show_default=True)
@click.option("--set", "sets", type=(str, click.Path(path_type=Path), click.Path(path_type=Path)), multiple=True)
@click.option("--json", "json_path", required=True, type=click.Path(path_type=Path))
def main(engine: str, sets: tuple[tuple[str, Path, Path], ...], json_path: Path) -> None:
    """Score an engine and bicubic on every set, and write all figures."""
    bundle = resolve_engine(engine)
    rows: dict[str, Any] = {}
    with SuperResolver.load(engine) as enlarge:
        for name, lq, ref in sets:
            rows[name] = {"bicubic": score(enlarge, lq, ref, 0.0), bundle.spec.model.name: score(enlarge, lq, ref, 1.0)}
            for method, row in rows[name].items():
                click.echo(markdown(f"{name}: {method}", row))
    document = {"engine": bundle.digest, "rsd_edge": __version__, "machine": cpu_name(), "sets": rows}
    json_path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
