"""What an evaluation found: means, intervals, differences between two methods; as JSON and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rsd_edge import __version__
from rsd_edge.evaluate.bootstrap import Interval, mean_interval, settings, warning
from rsd_edge.evaluate.catalogue import CATALOGUE, METRICS
from rsd_edge.evaluate.protocol import PLAIN, Protocol
from rsd_edge.evaluate.pyiqa_metrics import pyiqa_version
from rsd_edge.evaluate.scoring import Row
from rsd_edge.opencv import cv2
from rsd_edge.ort import ort
from rsd_edge.stream.atomic import atomic_file

UNKNOWN_METHOD = {"results": "files; how they were made is not known here"}


@dataclass(frozen=True)
class Evaluation:
    """Scores of all images of one method, in the order of their stems."""

    rows: tuple[Row, ...]
    metrics: tuple[str, ...] = METRICS
    protocol: Protocol = PLAIN
    name: str = ""
    method: Mapping[str, Any] = field(default_factory=lambda: dict(UNKNOWN_METHOD))
    """How the results were made: engine, tile, seed."""
    whole: Mapping[str, float] = field(default_factory=dict)
    """Metrics that the set has and its images have not: FID."""
    own_sources: bool = False
    """See `TestSet`."""

    def values(self, metric: str) -> dict[str, float]:
        """By stem, for the images that have a value."""
        return {row.stem: value for row in self.rows if (value := row.scores.get(metric)) is not None}

    def mean(self, metric: str) -> float | None:
        """Mean over the images that have the metric, or its value for the whole set; None if there is none."""
        if metric in self.whole:
            return self.whole[metric]
        values = self.values(metric).values()
        return sum(values) / len(values) if values else None

    def interval(self, metric: str) -> Interval | None:
        """95 % bootstrap interval of the mean; None where single images have no value, or fewer than two."""
        return mean_interval(list(self.values(metric).values()))

    @property
    def fewest(self) -> int:
        """The smallest number of images that an interval is over; 0 without any interval."""
        found = [list(self.values(metric).values()) for metric in self.metrics]
        return min((len(values) for values in found if len(values) > 1 and all(map(math.isfinite, values))), default=0)

    @property
    def chop(self) -> str:
        """In which parts the method saw its inputs, in words."""
        if "tile" not in self.method:
            return "not known (files of another program or an earlier run)"
        tile = self.method["tile"]
        return "whole images" if tile is None else f"tiles of {tile} LR pixels, halo included"

    def to_json(self) -> dict[str, Any]:
        """JSON-ready: the means under the names of the metrics, then what they mean, then each image.

        An infinite PSNR (identical images) is null, because JSON has no infinity.
        """
        return {
            **{metric: _finite(self.mean(metric)) for metric in self.metrics},
            "images": len(self.rows),
            "references_cut": sum(any(row.reference_cut) for row in self.rows),
            "name": self.name,
            "method": dict(self.method),
            "intervals": {metric: self.interval(metric) for metric in self.metrics},
            "bootstrap": {**settings(), "warning": warning(self.fewest)},
            "protocol": {**self.protocol.words(self.metrics), "chop": self.chop},
            "versions": self._versions(),
            "rows": [
                {
                    "stem": row.stem,
                    "size": [row.width, row.height],
                    **{metric: _finite(row.scores.get(metric)) for metric in self.metrics if metric not in self.whole},
                }
                for row in self.rows
            ],
        }

    def _versions(self) -> dict[str, str]:
        optional = [metric for metric in self.metrics if CATALOGUE[metric].pyiqa]
        return {
            "rsd_edge": __version__,
            "numpy": np.__version__,
            "opencv": cv2.__version__,
            "onnxruntime": ort.__version__,
            **({"pyiqa": pyiqa_version(optional[0])} if optional else {}),
        }


@dataclass(frozen=True)
class Difference:
    """A method minus another, over the images that both have a value for."""

    mean: float
    interval: Interval | None
    images: int


def difference(one: Evaluation, other: Evaluation, metric: str) -> Difference | None:
    """`one` minus `other`, image by image; None where no image has both values, or one is infinite."""
    values, others = one.values(metric), other.values(metric)
    paired = [value - others[stem] for stem, value in values.items() if stem in others]
    if not paired or not np.isfinite(paired).all():
        return None
    return Difference(sum(paired) / len(paired), mean_interval(paired), len(paired))


def differences(one: Evaluation, other: Evaluation) -> dict[str, Difference]:
    """`one` minus `other` by metric, as far as there is any."""
    found = {metric: difference(one, other, metric) for metric in other.metrics}
    return {metric: item for metric, item in found.items() if item is not None}


def cut_warning(evaluations: Sequence[Evaluation]) -> str | None:
    """What to say of references that were cut because results were smaller; None if none was."""
    cuts = [row.reference_cut for evaluation in evaluations for row in evaluation.rows]
    number = sum(map(any, cuts))
    if not number:
        return None
    columns, rows = (max(part) for part in zip(*cuts, strict=True))
    return (
        f"for {number} of {len(cuts)} results the reference was cut by up to {columns} columns at the right and {rows} "
        "rows below, which they lack; where they lack others, their scores are wrong"
    )


def interval_warning(evaluations: Sequence[Evaluation]) -> str | None:
    """What to say of the intervals of all these and of their differences to the first: of those over fewest images."""
    first, *others = evaluations
    counts = [evaluation.fewest for evaluation in evaluations]
    counts += [item.images for other in others for item in differences(other, first).values() if item.interval]
    return warning(min(filter(None, counts), default=0))


def comparison(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """JSON-ready: the first evaluation at the top level, the others, and how each of them differs from the first."""
    first, *others = evaluations
    if not others:
        return first.to_json()
    return {
        **first.to_json(),
        "others": [other.to_json() for other in others],
        "differences": [
            {
                "name": other.name,
                "minus": first.name,
                "warning": interval_warning([first, other]),
                **{
                    metric: {"mean": found.mean, "interval": found.interval, "images": found.images}
                    for metric, found in differences(other, first).items()
                },
            }
            for other in others
        ],
    }


def write_csv(path: Path, evaluations: Sequence[Evaluation]) -> None:
    """One line for each image of each method; no value is an empty cell. Raises OutputError."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    metrics = [metric for metric in evaluations[0].metrics if metric not in evaluations[0].whole]
    writer.writerow(["method", "stem", "width", "height", *metrics])
    for evaluation in evaluations:
        for row in evaluation.rows:
            scores = (row.scores.get(metric) for metric in metrics)
            cells = ("" if score is None else repr(score) for score in scores)
            writer.writerow([evaluation.name, row.stem, row.width, row.height, *cells])
    with atomic_file(path) as file:
        file.write(text.getvalue().encode(errors="backslashreplace"))


def worst_stems(evaluation: Evaluation, metric: str, count: int) -> list[str]:
    """The stems of the `count` images with the worst values, worst first."""
    values = {stem: abs(value) for stem, value in evaluation.values(metric).items()}
    return sorted(values, key=lambda stem: values[stem], reverse=CATALOGUE[metric].lower_better)[:count]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
