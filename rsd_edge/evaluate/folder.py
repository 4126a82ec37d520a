"""A folder of upscaled images against a folder of references."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rsd_edge import __version__
from rsd_edge.errors import InputError
from rsd_edge.evaluate.lattice import SCALE, measure_lattice
from rsd_edge.evaluate.lpips import LpipsMetric
from rsd_edge.evaluate.metrics import Image, psnr_y, ssim_y
from rsd_edge.evaluate.niqe import niqe
from rsd_edge.evaluate.spectrum import measure_spectrum
from rsd_edge.opencv import cv2
from rsd_edge.ort import ort
from rsd_edge.stream.discovery import images_in
from rsd_edge.stream.images import MAX_PIXELS, read_image

METRICS = (
    "psnr_y",
    "ssim_y",
    "lpips_squeeze",
    "lattice_spread",
    "lattice_mean",
    "niqe",
    "spectrum_db",
    "spectrum_bias_db",
)

PROTOCOL = {
    "matching": "by file stem; a reference is cut at the right and bottom if it is up to 3 pixels larger",
    "psnr_y": "dB, BT.601 studio-range luma, not rounded, peak 255, no border cut",
    "ssim_y": "same luma, 11x11 Gaussian window of sigma 1.5, where the window fits",
    "lpips_squeeze": "LPIPS 0.1 on SqueezeNet 1.1, RGB in [-1, 1]; lower is better",
    "lattice_spread": "same luma of output - bicubic x4 of the LR image (8 bits), minus its Gaussian blur of sigma 2; "
    "(max - min) / mean of the variances of the 16 phases of a 4x4 lattice; lower is better",
    "lattice_mean": "of the same, standard deviation of the 16 means, in grey levels; lower is better",
    "niqe": "of the output alone, same luma, whole 96x96 patches, statistics fitted by this project: values do not "
    "compare with those of other fits; lower is better; null below two patches that are not flat",
    "spectrum_db": "same luma, Hann window, rings of radial frequency 1/32 cycle a pixel wide from 1/16 to 1/2; mean "
    "of |10 log10(power of output / power of reference)|, powers at least that of 8-bit rounding; lower is better; "
    "null for sides below 64 pixels",
    "spectrum_bias_db": "the same with its sign: positive for more detail than the reference has; nearest to 0 is best",
    "means": "over the images that have the value",
}

_LARGEST_CUT = SCALE - 1


@dataclass(frozen=True)
class Row:
    """Scores of one image. The lattice is None if no LR image was given, NIQE and spectrum are for too small images."""

    stem: str
    width: int
    height: int
    psnr_y: float
    ssim_y: float
    lpips_squeeze: float
    lattice_spread: float | None = None
    lattice_mean: float | None = None
    niqe: float | None = None
    spectrum_db: float | None = None
    spectrum_bias_db: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """Scores of all images, in the order of their stems."""

    rows: tuple[Row, ...]

    def mean(self, metric: str) -> float | None:
        """Mean of one of METRICS over the images that have it, or None if none has."""
        values = [value for row in self.rows if (value := getattr(row, metric)) is not None]
        return sum(values) / len(values) if values else None

    def to_json(self) -> dict[str, Any]:
        """JSON-ready: the means under the names of METRICS, then what they mean, then each image.

        An infinite PSNR (identical images) is null, because JSON has no infinity.
        """
        return {
            **{metric: _finite(self.mean(metric)) for metric in METRICS},
            "images": len(self.rows),
            "protocol": PROTOCOL,
            "versions": {
                "rsd_edge": __version__,
                "numpy": np.__version__,
                "opencv": cv2.__version__,
                "onnxruntime": ort.__version__,
            },
            "rows": [
                {
                    "stem": row.stem,
                    "size": [row.width, row.height],
                    **{metric: _finite(getattr(row, metric)) for metric in METRICS},
                }
                for row in self.rows
            ],
        }


def evaluate_folders(
    predictions: Path,
    references: Path,
    *,
    lq: Path | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Score every image of `predictions` against the image of the same stem in `references`.

    lq: folder of the LR images that the predictions were made from, for the lattice metric. progress: called with
    (images done, images in all). Raises InputError unless every file has exactly one partner and sizes fit,
    ImageReadError for files that cannot be read.
    """
    pairs = _by_stem(predictions)
    reference_of = _by_stem(references)
    _check_partners(pairs, reference_of, (predictions, references))
    _check_partners(reference_of, pairs, (references, predictions))
    lq_of = None if lq is None else _by_stem(lq)
    if lq is not None and lq_of is not None:
        _check_partners(pairs, lq_of, (predictions, lq))
    lpips = LpipsMetric(threads)
    rows = []
    for stem, path in pairs.items():
        rows.append(_score(stem, (path, reference_of[stem], lq_of[stem] if lq_of else None), lpips))
        if progress is not None:
            progress(len(rows), len(pairs))
    return Evaluation(tuple(rows))


def _score(stem: str, paths: tuple[Path, Path, Path | None], lpips: LpipsMetric) -> Row:
    prediction, reference, lq = paths
    limit = SCALE * SCALE * MAX_PIXELS
    image = read_image(prediction, limit)
    truth = _cut(read_image(reference, limit), image, paths)
    height, width = image.shape[:2]
    try:
        scores: dict[str, Any] = {
            "psnr_y": psnr_y(image, truth),
            "ssim_y": ssim_y(image, truth),
            "lpips_squeeze": lpips(image, truth),
            "niqe": niqe(image),
        }
        if spectrum := measure_spectrum(image, truth):
            scores |= {"spectrum_db": spectrum.error, "spectrum_bias_db": spectrum.bias}
        if lq is not None:
            lattice = measure_lattice(image, read_image(lq, limit))
            scores |= {"lattice_spread": lattice.spread, "lattice_mean": lattice.mean}
    except InputError as error:
        raise InputError(f"{prediction}: {error}") from error
    return Row(stem, width, height, **scores)


def _cut(reference: Image, image: Image, paths: tuple[Path, Path, Path | None]) -> Image:
    """The part of the reference that an LR image of whole pixels can stand for."""
    height, width = image.shape[:2]
    surplus = reference.shape[0] - height, reference.shape[1] - width
    if min(surplus) < 0 or max(surplus) > _LARGEST_CUT:
        sizes = f"{width}x{height} and {reference.shape[1]}x{reference.shape[0]}"
        raise InputError(f"{paths[0]} and {paths[1]} differ in size ({sizes}); compare images of the same size")
    return reference[:height, :width]


def _by_stem(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        state = "is not a folder" if folder.exists() else "does not exist"
        raise InputError(f"{folder} {state}; give a folder of images")
    found: dict[str, Path] = {}
    for path in images_in(folder):
        other = found.setdefault(path.stem, path)
        if other is not path:
            raise InputError(f"{other} and {path.name} have the same stem; keep one of them in the folder")
    return found


def _check_partners(these: Iterable[str], those: Iterable[str], folders: tuple[Path, Path]) -> None:
    alone = sorted(set(these) - set(those))
    if alone:
        names = ", ".join(alone[:3]) + (", ..." if len(alone) > 3 else "")
        raise InputError(
            f"{len(alone)} images of {folders[0]} have no partner in {folders[1]} ({names}); add or remove files "
            "until both hold the same stems"
        )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
