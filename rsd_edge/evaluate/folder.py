"""A folder of upscaled images against a folder of references."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsd_edge.evaluate.catalogue import FID, METRICS
from rsd_edge.evaluate.image_sets import Images, Pair, TestSet, check_pairs, folder_images, match
from rsd_edge.evaluate.protocol import PLAIN, Protocol
from rsd_edge.evaluate.pyiqa_metrics import check_fid, fid
from rsd_edge.evaluate.report import UNKNOWN_METHOD, Evaluation
from rsd_edge.evaluate.scoring import Scorer

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Results:
    """What one method made of a test set."""

    name: str
    images: Images
    method: dict[str, Any]


@dataclass(frozen=True)
class EvaluationSettings:
    """What is measured, and how."""

    metrics: tuple[str, ...] = METRICS
    protocol: Protocol = PLAIN
    threads: int | None = None
    device: str = "cpu"
    """Of pyiqa's metrics."""
    force_fid: bool = False
    subset: bool = False
    """Of the results, only those that the set names count."""


def evaluate_folders(
    predictions: Path,
    references: Path,
    *,
    lq: Path | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Score every image of `predictions` against the image of the same stem in `references`, with METRICS.

    lq: folder of the LR images that the predictions were made from, for the lattice metric. progress: called with
    (images done, images in all). Raises InputError unless every file has exactly one partner and sizes fit,
    ImageReadError for files that cannot be read.
    """
    test_set = TestSet(folder_images(references), None if lq is None else folder_images(lq))
    results = Results(str(predictions), folder_images(predictions), dict(UNKNOWN_METHOD))
    return evaluate(results, test_set, EvaluationSettings(threads=threads), progress)


def evaluate(
    results: Results, test_set: TestSet, settings: EvaluationSettings, progress: Progress | None = None
) -> Evaluation:
    """Score the results of one method; every file is read once before the first is scored.

    Raises InputError that names and counts what has no partner, cannot be read or does not fit, MissingDependencyError
    for metrics of pyiqa where it is not installed, FetchError where their weights cannot be had.
    """
    pairs = match(results.images, test_set, subset=settings.subset)
    if FID in settings.metrics:
        check_fid(len(pairs), force=settings.force_fid)
    scorer = Scorer(settings.metrics, settings.protocol, threads=settings.threads, device=settings.device)
    check_pairs(pairs, settings.protocol)
    rows = []
    for pair in pairs:
        rows.append(scorer(pair))
        if progress is not None:
            progress(len(rows), len(pairs))
    whole = {FID: _fid(pairs, settings.device)} if FID in settings.metrics else {}
    return Evaluation(tuple(rows), settings.metrics, settings.protocol, results.name, results.method, whole)


def _fid(pairs: Sequence[Pair], device: str) -> float:
    references = {pair.stem: pair.reference for pair in pairs if pair.reference is not None}
    return fid({pair.stem: pair.result for pair in pairs}, references, device)
