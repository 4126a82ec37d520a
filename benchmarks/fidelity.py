"""What must not show: the borders of tiles and a change of colour. Images of a folder, cut into many tiles and whole.

    python benchmarks/fidelity.py --engine edge-s --set kodak24_real LR_DIR REF_DIR --set ... \\\\
        --json benchmarks/reports/fidelity-edge-s.json

- *seam ratio*: mean gradient across the borders of tiles (the three columns or rows of steps where a cross-fade begins,
  has its middle and ends) over the mean gradient elsewhere; beside it the same places in the result of one tile, and in
  the reference, which tell how much of it is what the pictures show there.
- *colour shift*: difference between the means of result and input, by channel, in grey levels; its correlation, over
  images and channels, with what would take the input's mean to that of the reference.
- *bias*: difference between the means of result and reference, and of input and reference, which tells a correction
  from an error; channels in the order BGR.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from origin import origin

from rsd_edge import SuperResolver
from rsd_edge.frames import SCALE
from rsd_edge.stream.atomic import write_json
from rsd_edge.stream.discovery import images_in
from rsd_edge.stream.images import MAX_PIXELS, read_image
from rsd_edge.tiling import AxisPlan, plan_tiles

Image = NDArray[np.uint8]

WHOLE = 512
"""Side of a tile that no image of the test sets exceeds."""


def seam_steps(axis: AxisPlan) -> list[int]:
    """Output positions p so that the step from p - 1 to p crosses a border or an end of its cross-fade."""
    borders = [(i + 1) * axis.stride for i in range(axis.count - 1)]
    steps = {SCALE * (border + side * axis.feather) for border in borders for side in (-1, 0, 1)}
    return sorted(step for step in steps if 0 < step < SCALE * axis.length)


def gradients(image: Image, axes: tuple[AxisPlan, AxisPlan]) -> tuple[list[float], list[float]]:
    """Mean gradients of the rows and columns of steps: at borders, and elsewhere between input pixels, because a step
    from one input pixel to the next is larger than one within."""
    at, elsewhere = [], []
    for dimension, axis in enumerate(axes):
        other = tuple(i for i in range(3) if i != dimension)
        means = np.abs(np.diff(image.astype(np.float32), axis=dimension)).mean(other)
        places = np.array(seam_steps(axis), int) - 1
        others = np.setdiff1d(np.arange(SCALE, SCALE * axis.length, SCALE) - 1, places)
        at += means[places].tolist()
        elsewhere += means[others].tolist()
    return at, elsewhere


def seam_ratio(images: list[Image], axes: list[tuple[AxisPlan, AxisPlan]]) -> float:
    """Over all images."""
    pairs = [gradients(image, plan) for image, plan in zip(images, axes, strict=True)]
    at, elsewhere = (np.concatenate([pair[i] for pair in pairs]) for i in range(2))
    return round(float(at.mean() / elsewhere.mean()), 4)


def means(images: list[Image]) -> NDArray[np.float64]:
    """By image, for each channel (BGR), in grey levels."""
    return np.array([image.mean((0, 1)) for image in images])


def measure(engine: str, precision: str, side: int, lq: Path, ref: Path) -> dict[str, Any]:
    """One test set."""
    found = images_in(lq)
    inputs = [read_image(path, MAX_PIXELS) for path in found]
    by_stem = {path.stem: path for path in images_in(ref)}
    originals = [read_image(by_stem[path.stem], MAX_PIXELS) for path in found]
    results = {}
    for name, tile in (("tiled", side), ("whole", WHOLE)):
        with SuperResolver.load(engine, precision=precision, backend="onnxruntime", tile=tile) as enlarge:
            results[name] = [enlarge(image) for image in inputs]
            if name == "tiled":
                plans = [plan_tiles(*image.shape[:2], enlarge.engine.tile) for image in inputs]
    axes = [(plan.y, plan.x) for plan in plans]
    before, after, references = means(inputs), means(results["tiled"]), means(originals)
    moved, wrong = after - before, before - references
    return {
        "images": len(inputs),
        "seam_ratio": seam_ratio(results["tiled"], axes),
        "same_places_in_one_tile": seam_ratio(results["whole"], axes),
        "same_places_in_the_reference": seam_ratio(originals, axes),
        "colour_shift_mean": [round(float(value), 3) for value in moved.mean(0)],
        "colour_shift_mean_of_images": round(float(np.abs(moved).mean()), 3),
        "colour_shift_median_of_images": round(float(np.median(np.abs(moved))), 3),
        "colour_shift_largest": round(float(np.abs(moved).max()), 3),
        "correlation_with_correction": round(float(np.corrcoef(moved.ravel(), -wrong.ravel())[0, 1]), 3),
        "bias_mean": [round(float(value), 3) for value in (after - references).mean(0)],
        "input_bias_mean": [round(float(value), 3) for value in wrong.mean(0)],
        "input_from_reference": round(float(np.abs(wrong).mean()), 3),
        "result_from_reference": round(float(np.abs(after - references).mean()), 3),
    }


@click.command()
@click.option("--engine", default="edge-s", show_default=True)
@click.option("--precision", default="fp32", show_default=True)
@click.option("--tile", "side", default=64, show_default=True, help="Small, so that there are many borders.")
@click.option("--set", "sets", nargs=3, multiple=True, required=True, metavar="NAME LR_DIR REF_DIR")
@click.option("--json", "json_path", required=True, type=click.Path(path_type=Path))
def main(engine: str, precision: str, side: int, sets: tuple[tuple[str, str, str], ...], json_path: Path) -> None:
    """Measure, print and store."""
    document = {**origin(), "engine": f"{engine} {precision}", "tile": side}
    document["sets"] = {name: measure(engine, precision, side, Path(lq), Path(ref)) for name, lq, ref in sets}
    click.echo(json.dumps(document["sets"], indent=1))
    write_json(json_path, document)


if __name__ == "__main__":
    main()
