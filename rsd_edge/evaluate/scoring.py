"""Scores of single images, and of whole sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rsd_edge.errors import InputError
from rsd_edge.evaluate.catalogue import CATALOGUE, FID, METRICS
from rsd_edge.evaluate.image_sets import Pair, load_pair
from rsd_edge.evaluate.lattice import measure_lattice
from rsd_edge.evaluate.lpips import LpipsMetric
from rsd_edge.evaluate.metrics import Image, psnr_rgb, psnr_y, ssim_rgb, ssim_y
from rsd_edge.evaluate.niqe import niqe
from rsd_edge.evaluate.protocol import PLAIN, Protocol
from rsd_edge.evaluate.pyiqa_metrics import PyiqaMetric, check_fid, fid
from rsd_edge.evaluate.spectrum import measure_spectrum
from rsd_edge.stream.images import read_image

Scores = dict[str, float | None]
LATTICE = ("lattice_spread", "lattice_mean")
_SPECTRUM = ("spectrum_db", "spectrum_bias_db")


@dataclass(frozen=True)
class Row:
    """Scores of one image, as it was before any border was cut."""

    stem: str
    width: int
    height: int
    scores: Mapping[str, float | None]
    """None where a metric has no value: the lattice without an LR image, NIQE and spectrum of too small images."""
    reference_cut: tuple[int, int] = (0, 0)
    """Columns and rows of the reference, at the right and below, that the result does not have."""


@dataclass(frozen=True)
class EvaluationSettings:
    """What is measured, and how."""

    metrics: tuple[str, ...] = METRICS
    protocol: Protocol = PLAIN
    threads: int | None = None
    """For LPIPS-squeeze; None for all cores."""
    device: str = "cpu"
    """Of the metrics of pyiqa."""
    force_fid: bool = False
    subset: bool = False
    """Of the results, only those that the test set names count."""


class Scorer:
    """Measures the chosen metrics, image by image, and FID of whole sets."""

    def __init__(self, settings: EvaluationSettings) -> None:
        """Loads networks. Raises MissingDependencyError where pyiqa is missing, FetchError where its weights are."""
        self.settings = settings
        self._metrics = tuple(name for name in settings.metrics if name != FID)
        self._protocol = settings.protocol
        self._lpips = LpipsMetric(settings.threads) if "lpips_squeeze" in settings.metrics else None
        networks = {name: PyiqaMetric(name, settings.device) for name in settings.metrics if CATALOGUE[name].pyiqa}
        self._fid = networks.pop(FID, None)
        self._pyiqa = networks

    def __call__(self, pair: Pair) -> Row:
        """Read the files of one image and score it. Raises InputError and ImageReadError with the name of the file."""
        image, reference = load_pair(pair, self._protocol)
        try:
            scores = self._lattice(image, pair.source)
            measured, cut = image, (0, 0)
            if reference is not None:
                tall, wide = reference.shape[:2]
                measured, reference = self._protocol.align(image, reference)
                cut = (wide - reference.shape[1], tall - reference.shape[0])
                reference = self._protocol.cut(reference)
            measured = self._protocol.cut(measured)
            scores |= self._alone(measured)
            if reference is not None:
                scores |= self._compared(measured, reference)
        except InputError as error:
            raise InputError(f"{pair.result}: {error}") from error
        height, width = image.shape[:2]
        return Row(pair.stem, width, height, {name: scores.get(name) for name in self._metrics}, cut)

    def whole(self, pairs: Sequence[Pair]) -> dict[str, float]:
        """What the images have together only. Raises InputError for sets that are too small, unless that is forced."""
        if self._fid is None:
            return {}
        check_fid(len(pairs), force=self.settings.force_fid)
        references = {pair.stem: pair.reference for pair in pairs if pair.reference is not None}
        return {FID: fid(self._fid, {pair.stem: pair.result for pair in pairs}, references)}

    def _lattice(self, image: Image, source: Path | None) -> Scores:
        if source is None or not set(LATTICE) & set(self._metrics):
            return {}
        found = measure_lattice(image, read_image(source))
        return {"lattice_spread": found.spread, "lattice_mean": found.mean}

    def _alone(self, image: Image) -> Scores:
        """What needs no reference."""
        scores: Scores = {"niqe": niqe(image)} if "niqe" in self._metrics else {}
        return scores | {name: metric(image) for name, metric in self._pyiqa.items() if not CATALOGUE[name].reference}

    def _compared(self, image: Image, reference: Image) -> Scores:
        """What needs one."""
        rules = self._protocol
        measures: dict[str, Callable[[], float]] = {
            "psnr_y": lambda: psnr_y(image, reference, rounded=rules.psnr_rounded),
            "ssim_y": lambda: ssim_y(image, reference, rounded=rules.ssim_rounded, clipped=rules.ssim_clipped),
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
