"""A folder of upscaled images against a folder of references."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsd_edge.evaluate.checks import check_pairs
from rsd_edge.evaluate.image_sets import Images, TestSet, folder_images, match
from rsd_edge.evaluate.report import UNKNOWN_METHOD, Evaluation
from rsd_edge.evaluate.scoring import EvaluationSettings, Scorer

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Results:
    """What one method made of a test set."""

    name: str
    images: Images
    method: dict[str, Any]


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
    scorer = Scorer(EvaluationSettings(threads=threads))
    check_results(results, test_set, scorer.settings)
    return evaluate(results, test_set, scorer, progress)


def check_results(results: Results, test_set: TestSet, settings: EvaluationSettings) -> None:
    """Read every file once. Raises InputError that names and counts what has no partner or cannot be scored."""
    check_pairs(match(results.images, test_set, subset=settings.subset), settings)


def evaluate(results: Results, test_set: TestSet, scorer: Scorer, progress: Progress | None = None) -> Evaluation:
    """Score the results of one method, which `check_results` found fit or `check_sources` before they were made.

    Raises InputError as they do, at the image at fault.
    """
    settings = scorer.settings
    pairs = match(results.images, test_set, subset=settings.subset)
    rows = []
    for pair in pairs:
        rows.append(scorer(pair))
        if progress is not None:
            progress(len(rows), len(pairs))
    whole = scorer.whole(pairs)
    return Evaluation(
        tuple(rows),
        settings.metrics,
        settings.protocol,
        results.name,
        results.method,
        whole,
        own_sources=test_set.own_sources,
    )
