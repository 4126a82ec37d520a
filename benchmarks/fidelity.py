"""What must not show: the borders of tiles and a change of colour. Images of a folder, cut into many tiles and whole.

    python benchmarks/fidelity.py --engine edge-s --set kodak24_real LR_DIR REF_DIR --set ... \\\\
        --json benchmarks/reports/fidelity-edge-s.json

- *seam ratio*: mean gradient across the borders of tiles (the three columns or rows of steps where a cross-fade begins,
  has its middle and ends) over the mean gradient eight input pixels before and after them; *to all*: over all other
  steps from one input pixel to the next. Both also at the same places in the result of one tile, and in the reference,
  which tell how much of it is what the pictures show there. It sees steps, such as a broken cross-fade makes.
- *off one tile*: difference of results in tiles from those in one tile, where tiles are cross-faded and elsewhere. It
  sees what a cross-fade hides from gradients: tiles of different brightness, or texture.
- *grid*: mean gradient across each of the places between output pixels that repeat with the input's, 4 along rows and 4
  along columns, over the mean of the 4; the least and the most, in the result of one tile and in the reference. Equal
  places are 1; others are seen as a weave.
- *directions*: difference of the power of fine detail from the reference's, in the result of one tile, by frequency,
  less its mean over all directions; root mean square in dB. Detail that runs along rows and columns more than it should
  is seen as a canvas. The loss that models are trained with takes other windows, colours and a higher floor.
- *colour shift*: difference between the means of result and input, by channel, in grey levels; its correlation, over
  images and channels, with what would take the input's mean to that of the reference.
- *bias*: difference between the means of result and reference, and of input and reference, which tells a correction
  from an error; channels in the order BGR.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from origin import origin

from rsd_edge import SuperResolver
from rsd_edge.errors import InputError
from rsd_edge.evaluate.metrics import to_y
from rsd_edge.frames import SCALE
from rsd_edge.stream.atomic import write_json
from rsd_edge.stream.discovery import images_in
from rsd_edge.stream.images import MAX_PIXELS, read_image
from rsd_edge.tiling import AxisPlan, plan_tiles

Image = NDArray[np.uint8]

PERIOD = 8 * SCALE
"""Output pixels between blocks of JPEG in an input, and a multiple of the 8 after which the network's lattice repeats.
Steps so far from a border have either as it does, and nearly the same surroundings. In a whole picture, most of what
there is to see lies away from the edges, where there are no borders."""

WINDOW = 64
"""Side of the windows of spectra; detail from eight pixels a period on is fine."""

WHOLE = 512
"""Side of a tile that no image of the test sets exceeds."""


def seam_steps(axis: AxisPlan) -> list[int]:
    """Output positions p so that the step from p - 1 to p crosses a border or an end of its cross-fade."""
    borders = [(i + 1) * axis.stride for i in range(axis.count - 1)]
    steps = {SCALE * (border + side * axis.feather) for border in borders for side in (-1, 0, 1)}
    return sorted(step for step in steps if 0 < step < SCALE * axis.length)


def step_means(image: Image, dimension: int) -> NDArray[np.float32]:
    """Mean gradient of each step along a dimension, over the other one and the channels."""
    other = tuple(i for i in range(3) if i != dimension)
    return np.asarray(np.abs(np.diff(image.astype(np.float32), axis=dimension)).mean(other))


@dataclass
class Gradients:
    """Mean gradients of rows and columns of steps."""

    borders: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    """For each border, of the steps `PERIOD` before and after it."""
    others: list[float] = field(default_factory=list)
    """Of all steps from one input pixel to the next, but for borders; steps within one are smaller."""

    def add(self, image: Image, axes: tuple[AxisPlan, AxisPlan]) -> None:
        """One image and its tiles. Borders with nothing but other borders `PERIOD` away are left out."""
        for dimension, axis in enumerate(axes):
            means = step_means(image, dimension)
            places = seam_steps(axis)
            elsewhere = np.setdiff1d(np.arange(SCALE, SCALE * axis.length, SCALE), places)
            self.others += means[elsewhere - 1].tolist()
            for place in places:
                near = elsewhere[np.abs(elsewhere - place) == PERIOD]
                if near.size:
                    self.borders.append(float(means[place - 1]))
                    self.beside.append(float(means[near - 1].mean()))


def seam_ratios(images: Iterable[Image], plans: Iterable[tuple[AxisPlan, AxisPlan]]) -> tuple[float, float]:
    """Borders to the steps beside them, and borders to all other steps, over all images and the plan of each."""
    found = Gradients()
    for image, axes in zip(images, plans, strict=True):
        found.add(image, axes)
    if not found.borders:
        raise InputError("no image is large enough for a border between tiles; give larger ones, or smaller --stride")
    beside, to_all = (float(np.mean(found.borders) / np.mean(steps)) for steps in (found.beside, found.others))
    return round(beside, 4), round(to_all, 4)


def grid(images: Iterable[Image]) -> tuple[float, float]:
    """Least and most of the mean gradients at the places within an input pixel, over their mean; over all images."""
    sums = np.zeros((2, SCALE))
    for image in images:
        for dimension in (0, 1):
            means = step_means(image, dimension)
            sums[dimension] += [means[place::SCALE].mean() for place in range(SCALE)]
    ratios = sums / sums.mean(1, keepdims=True)
    return round(float(ratios.min()), 3), round(float(ratios.max()), 3)


def directions_off(images: list[Image], originals: list[Image]) -> float:
    """In dB: how far the power of detail depends on its direction, more than the originals' does.

    Mean over all images and windows, less the mean of each ring of frequencies; root mean square over frequencies.
    """
    pairs = zip(images, originals, strict=True)
    difference = np.mean([_log_power(image) - _log_power(original) for image, original in pairs], axis=0)
    frequency = np.fft.fftfreq(WINDOW, 1 / WINDOW)
    radius = np.rint(np.hypot(frequency[:, None], frequency))
    rings = [difference[radius == ring] for ring in range(WINDOW // 8, WINDOW // 2 + 1)]
    return round(float(np.sqrt(np.mean(np.concatenate([ring - ring.mean() for ring in rings]) ** 2))), 3)


def _log_power(image: Image) -> NDArray[np.float64]:
    """Power spectrum of luma in Hann windows that overlap by half, in dB, mean over the windows."""
    windows = sliding_window_view(to_y(image), (WINDOW, WINDOW))[:: WINDOW // 2, :: WINDOW // 2]
    taper = np.hanning(WINDOW + 1)[:-1]
    spectrum = np.fft.fft2((windows - windows.mean((2, 3), keepdims=True)) * taper * taper[:, None])
    rounding = (taper**2).sum() ** 2 / 12  # of 8 bits: what is below cannot be told
    return np.asarray(10 * np.log10(np.abs(spectrum) ** 2 + rounding).mean((0, 1)))


def faded(axes: tuple[AxisPlan, AxisPlan]) -> NDArray[np.bool_]:
    """(4h, 4w): where two tiles or more are cross-faded."""
    sides = []
    for axis in axes:
        side = np.zeros(SCALE * axis.length, bool)
        for i in range(axis.count):
            stop = axis.finished(i)[1]
            side[SCALE * stop : SCALE * (stop + axis.seam(i))] = True
        sides.append(side)
    return sides[0][:, None] | sides[1]


def means(images: list[Image]) -> NDArray[np.float64]:
    """By image, for each channel (BGR), in grey levels."""
    return np.array([image.mean((0, 1)) for image in images])


def off_one_tile(tiled: list[Image], whole: list[Image], plans: list[tuple[AxisPlan, AxisPlan]]) -> dict[str, float]:
    """Mean absolute difference of results in tiles from those in one, in grey levels, where tiles are cross-faded and
    elsewhere: two tiles that differ in brightness, or blur each other's texture, do so there."""
    inside, outside = [], []
    for one, other, axes in zip(tiled, whole, plans, strict=True):
        off, fades = np.abs(one.astype(np.int16) - other).mean(2), faded(axes)
        inside.append(off[fades])
        outside.append(off[~fades])
    parts = {"off_one_tile_in_fades": inside, "off_one_tile_elsewhere": outside}
    return {name: round(float(np.concatenate(values).mean()), 4) for name, values in parts.items()}


def measure(engine: str, precision: str, strides: tuple[int, ...], lq: Path, ref: Path) -> dict[str, Any]:
    """One test set; borders over all tiles, colours with the first."""
    found = images_in(lq)
    inputs = [read_image(path, MAX_PIXELS) for path in found]
    by_stem = {path.stem: path for path in images_in(ref)}
    originals = [read_image(by_stem[path.stem], MAX_PIXELS) for path in found]
    load = partial(SuperResolver.load, engine, precision=precision, backend="onnxruntime")
    with load(tile=WHOLE) as enlarge:
        whole, halo = [enlarge(image) for image in inputs], enlarge.engine.tile.halo
    tiled: dict[tuple[int, AxisPlan, AxisPlan], Image] = {}
    for stride in strides:
        with load(tile=stride + 2 * halo) as enlarge:
            for number, image in enumerate(inputs):
                cut = plan_tiles(*image.shape[:2], enlarge.engine.tile)
                # Tiles share an image evenly, so that two strides may come to the same.
                if (number, cut.y, cut.x) not in tiled:
                    tiled[number, cut.y, cut.x] = enlarge(image)
    plans = [(y, x) for _, y, x in tiled]
    ratios = {
        "": list(tiled.values()),
        "_in_one_tile": [whole[number] for number, _, _ in tiled],
        "_in_the_reference": [originals[number] for number, _, _ in tiled],
    }
    row: dict[str, Any] = {"images": len(inputs), "plans": len(plans)}
    for where, images in ratios.items():
        row[f"seam_ratio{where}"], row[f"seam_to_all{where}"] = seam_ratios(images, plans)
    for where, images in {"": whole, "_of_the_reference": originals}.items():
        row[f"grid_least{where}"], row[f"grid_most{where}"] = grid(images)
    row["directions_off_db"] = directions_off(whole, originals)
    row |= off_one_tile(ratios[""], ratios["_in_one_tile"], plans)
    before, after, references = means(inputs), means(ratios[""][: len(inputs)]), means(originals)
    moved, wrong = after - before, before - references
    return row | {
        "colour_shift_mean": [round(float(value), 3) for value in moved.mean(0)],
        "colour_shift_mean_of_images": round(float(np.abs(moved).mean()), 3),
        "colour_shift_median_of_images": round(float(np.median(np.abs(moved))), 3),
        "colour_shift_largest": round(float(np.abs(moved).max()), 3),
        "images_shifted_by_over_half_a_level": int((np.abs(moved) > 0.5).any(1).sum()),
        "correlation_with_correction": round(float(np.corrcoef(moved.ravel(), -wrong.ravel())[0, 1]), 3),
        "bias_mean": [round(float(value), 3) for value in (after - references).mean(0)],
        "input_bias_mean": [round(float(value), 3) for value in wrong.mean(0)],
        "input_from_reference": round(float(np.abs(wrong).mean()), 3),
        "result_from_reference": round(float(np.abs(after - references).mean()), 3),
    }


@click.command()
@click.option("--engine", default="edge-s", show_default=True)
@click.option("--precision", default="fp32", show_default=True)
@click.option(
    "--stride",
    "strides",
    multiple=True,
    default=(24, 32, 40, 48),
    show_default=True,
    help="Of tiles: small, so that there are many borders; several, so that they fall onto many things.",
)
@click.option("--set", "sets", nargs=3, multiple=True, required=True, metavar="NAME LR_DIR REF_DIR")
@click.option("--json", "json_path", required=True, type=click.Path(path_type=Path))
def main(
    engine: str,
    precision: str,
    strides: tuple[int, ...],
    sets: tuple[tuple[str, str, str], ...],
    json_path: Path,
) -> None:
    """Measure, print and store."""
    document = {**origin(), "engine": f"{engine} {precision}", "strides": list(strides)}
    document["sets"] = {name: measure(engine, precision, strides, Path(lq), Path(ref)) for name, lq, ref in sets}
    click.echo(json.dumps(document["sets"], indent=1))
    write_json(json_path, document)


if __name__ == "__main__":
    main()
