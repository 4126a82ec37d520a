"""The paper's tables, and in which ways a measurement made here differs from them.

Nothing is ranked: a number stands beside the paper's only where the protocols agree, and words say why elsewhere.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from rsd_edge.evaluate.catalogue import CATALOGUE, METRICS
from rsd_edge.evaluate.presets import PRESETS, Preset
from rsd_edge.evaluate.report import Evaluation

Cell = float | str | None

COLUMNS = {
    "PSNR": "psnr_y",
    "SSIM": "ssim_y",
    "LPIPS": "lpips_alex",
    "DISTS": "dists",
    "NIQE": "niqe_pyiqa",
    "MUSIQ": "musiq",
    "MANIQA": "maniqa",
    "CLIPIQA": "clipiqa",
    "FID": "fid",
}
"""What the columns of the paper are called here."""
_NEAR = {
    "LPIPS": ("lpips_squeeze", "measured on SqueezeNet here, on AlexNet there"),
    "NIQE": ("niqe", "with this project's statistics of photographs here, with those of pyiqa there"),
}
"""What resembles a column and does not compare with it."""
_NO_EVALUATIONS = "NFE"


@dataclass(frozen=True)
class Table:
    """One table of the paper."""

    title: str
    columns: tuple[str, ...]
    rows: Mapping[str, Sequence[Cell]]

    def decimals(self, column: str) -> int:
        """With how many the paper has a column."""
        cells = [row[self.columns.index(column)] for row in self.rows.values()]
        return max((len(str(cell).partition(".")[2]) for cell in cells if isinstance(cell, float)), default=0)


@dataclass(frozen=True)
class Beside:
    """A measurement made here in the columns of a table: comparable values, and words on the others."""

    cells: tuple[float | None, ...]
    differences: tuple[str, ...]


def source() -> str:
    """Where the numbers are from, and how they were measured."""
    data = _data()
    return f"{data['source']}. {data['protocol']}"


def tables() -> list[Table]:
    """All of them: results, cost, ablations."""
    data = _data()
    return [_table(item) for item in (*data["sets"].values(), data["cost"], *data["ablations"].values())]


def table(preset: str) -> Table | None:
    """The results on one test set; None for a set that the paper did not use."""
    item = _data()["sets"].get(preset)
    return None if item is None else _table(item)


def beside(evaluation: Evaluation, preset: str, paper: Table) -> Beside:
    """The evaluation in the columns of the paper's table for the same test set, and in what it differs."""
    expected = PRESETS[preset]
    general = _of_all(evaluation, expected)
    cells: list[float | None] = []
    words = list(general)
    for column in paper.columns:
        own = _own(evaluation, column, expected)
        cells.append(evaluation.mean(COLUMNS[column]) if column in COLUMNS and not own and not general else None)
        words += own
    return Beside(tuple(cells), (*words, *_notes(evaluation, expected)))


def _of_all(evaluation: Evaluation, expected: Preset) -> list[str]:
    """What keeps every number from being compared."""
    words = []
    if len(evaluation.rows) != expected.count:
        words.append(f"no column compares: {len(evaluation.rows)} images here, {expected.count} there")
    if evaluation.own_sources:
        words.append("no column compares: the LR images are those of --lr here, those of the set there")
    if evaluation.protocol.border != expected.protocol.border:
        words.append(f"no column compares: {evaluation.protocol.border} pixels cut off at the borders here, none there")
    if evaluation.protocol.resize != expected.protocol.resize:
        words.append(
            f"no column compares: results may have been resized ({evaluation.protocol.resize}) here, not there"
        )
    return words


def _own(evaluation: Evaluation, column: str, expected: Preset) -> list[str]:
    """What keeps one column from being compared."""
    if column == _NO_EVALUATIONS:
        return []
    metric = COLUMNS[column]
    if metric in evaluation.metrics:
        words, there = (protocol.words([metric])[metric] for protocol in (evaluation.protocol, expected.protocol))
        return [] if words == there else [f"{column} does not compare: {words} here, {there} there"]
    near, reason = _NEAR.get(column, ("", ""))
    if near in evaluation.metrics and (value := evaluation.mean(near)) is not None:
        return [f"{column} does not compare: {near} {value:.4f} {reason}; --metrics {metric} measures the paper's"]
    return [f"{column} was not measured; --metrics {metric} does"]


def _notes(evaluation: Evaluation, expected: Preset) -> list[str]:
    """What does not forbid a comparison, and should be known."""
    notes = [f"chop: {evaluation.chop} here; {expected.notes}"]
    if any(CATALOGUE[metric].pyiqa for metric in evaluation.metrics if metric not in METRICS):
        notes.append("pyiqa: its version is not stated there, and its models have changed between versions")
    return notes


def _table(item: Mapping[str, Any]) -> Table:
    return Table(item["title"], tuple(item["columns"]), item["rows"])


@functools.lru_cache(maxsize=1)
def _data() -> dict[str, Any]:
    text = (resources.files("rsd_edge.evaluate") / "published.json").read_text(encoding="utf-8")
    data: dict[str, Any] = json.loads(text)
    return data
