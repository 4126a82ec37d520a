"""Scores of single images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rsd_edge.errors import InputError
from rsd_edge.evaluate.catalogue import CATALOGUE, FID
from rsd_edge.evaluate.image_sets import Pair, load_pair
from rsd_edge.evaluate.lattice import measure_lattice
from rsd_edge.evaluate.lpips import LpipsMetric
from rsd_edge.evaluate.metrics import Image, psnr_rgb, psnr_y, ssim_rgb, ssim_y
from rsd_edge.evaluate.niqe import niqe
from rsd_edge.evaluate.protocol import Protocol
from rsd_edge.evaluate.pyiqa_metrics import PyiqaMetric
from rsd_edge.evaluate.spectrum import measure_spectrum
from rsd_edge.stream.images import read_image

Scores = dict[str, float | None]
_LATTICE = ("lattice_spread", "lattice_mean")
_SPECTRUM = ("spectrum_db", "spectrum_bias_db")


@dataclass(frozen=True)
class Row:
    """Scores of one image, as it was before any border was cut."""

    stem: str
    width: int
    height: int
    scores: Mapping[str, float | None]
    """None where a metric has no value: the lattice without an LR image, NIQE and spectrum of too small images."""


class Scorer:
    """Measures the chosen metrics of CATALOGUE but FID, which single images do not have."""

    def __init__(
        self, metrics: Sequence[str], protocol: Protocol, *, threads: int | None = None, device: str = "cpu"
    ) -> None:
        """threads: for LPIPS-squeeze. device: for pyiqa. Raises MissingDependencyError or FetchError."""
        self._metrics = tuple(name for name in metrics if name != FID)
        self._protocol = protocol
        self._lpips = LpipsMetric(threads) if "lpips_squeeze" in metrics else None
        self._pyiqa = {name: PyiqaMetric(name, device) for name in self._metrics if CATALOGUE[name].pyiqa}

    def __call__(self, pair: Pair) -> Row:
        """Read the files of one image and score it. Raises InputError and ImageReadError with the name of the file."""
        image, reference = load_pair(pair, self._protocol)
        try:
            scores = self._lattice(image, pair.source)
            measured = image
            if reference is not None:
                measured, reference = self._protocol.align(image, reference)
                reference = self._protocol.cut(reference)
            measured = self._protocol.cut(measured)
            scores |= self._alone(measured)
            if reference is not None:
                scores |= self._compared(measured, reference)
        except InputError as error:
            raise InputError(f"{pair.result}: {error}") from error
        height, width = image.shape[:2]
        return Row(pair.stem, width, height, {name: scores.get(name) for name in self._metrics})

    def _lattice(self, image: Image, source: Path | None) -> Scores:
        if source is None or not set(_LATTICE) & set(self._metrics):
            return {}
        found = measure_lattice(image, read_image(source))
        return {"lattice_spread": found.spread, "lattice_mean": found.mean}

    def _alone(self, image: Image) -> Scores:
        """What needs no reference."""
        scores: Scores = {"niqe": niqe(image)} if "niqe" in self._metrics else {}
        return scores | {name: metric(image) for name, metric in self._pyiqa.items() if not CATALOGUE[name].reference}

    def _compared(self, image: Image, reference: Image) -> Scores:
        """What needs one."""
        rounded = self._protocol.rounded
        measures: dict[str, Callable[[], float]] = {
            "psnr_y": lambda: psnr_y(image, reference, rounded=rounded),
            "ssim_y": lambda: ssim_y(image, reference, rounded=rounded),
            "psnr_rgb": lambda: psnr_rgb(image, reference),
            "ssim_rgb": lambda: ssim_rgb(image, reference),
        }
        scores: Scores = {name: measure() for name, measure in measures.items() if name in self._metrics}
        if self._lpips is not None:
            scores["lpips_squeeze"] = self._lpips(image, reference)
        if set(_SPECTRUM) & set(self._metrics) and (spectrum := measure_spectrum(image, reference)):
            scores |= {"spectrum_db": spectrum.error, "spectrum_bias_db": spectrum.bias}
        pairs = ((name, metric) for name, metric in self._pyiqa.items() if CATALOGUE[name].reference)
        return scores | {name: metric(image, reference) for name, metric in pairs}
