"""What `rsd-edge eval` prints: scores, intervals, differences, and the paper's tables beside them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from rsd_edge.evaluate import published
from rsd_edge.evaluate.bootstrap import Interval
from rsd_edge.evaluate.catalogue import CATALOGUE
from rsd_edge.evaluate.report import Evaluation, cut_warning, differences, interval_warning

_CURES = {
    "lattice_spread": "lattice not measured: give the upscaled images' sources with --lr",
    "niqe": "NIQE not measured: it needs images of two 96x96 patches or more that are not flat",
    "spectrum_db": "spectrum not measured: it needs sides of at least 64 pixels",
}
"""What to say of a metric that no image has."""
_PIPE_WIDTH = 140
"""Holds all metrics beside stems of about 30 characters where there is no terminal to ask."""
_MOST_ROWS = 40
"""Beyond this the table has means only; --csv has every image."""


def console_for_tables(*, stderr: bool = False) -> Console:
    """Of stdout or stderr; names are shown as they are."""
    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    width = None if terminal else _PIPE_WIDTH
    return Console(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)


def print_evaluations(console: Console, evaluations: Sequence[Evaluation]) -> None:
    """Each method's scores, then how the others differ from the first."""
    for evaluation in evaluations:
        if len(evaluations) > 1:
            console.print(f"\n{evaluation.name}")
        _print_scores(console, evaluation)
    for other in evaluations[1:]:
        console.print(f"\n{other.name} minus {evaluations[0].name}, image by image")
        _print_differences(console, other, evaluations[0])
    for warning in filter(None, (interval_warning(evaluations), cut_warning(evaluations))):
        console.print(f"\nwarning: {warning}", soft_wrap=True)


def print_published(console: Console, evaluations: Sequence[Evaluation], preset: str | None) -> None:
    """The paper's table of the preset, then the evaluations; without any, all tables."""
    console.print(f"\n{published.source()}")
    if not evaluations:
        chosen = published.table(preset) if preset is not None else None
        for item in [chosen] if chosen is not None else published.tables():
            _print_table(console, item)
        return
    paper = published.table(preset) if preset is not None else None
    if preset is None or paper is None:
        why = "choose a test set with --preset" if preset is None else f"it has no table of {preset}"
        console.print(f"No table of the paper stands beside this: {why}")
        return
    _print_table(console, paper, [(item.name, published.beside(item, preset, paper)) for item in evaluations])


def _print_scores(console: Console, evaluation: Evaluation) -> None:
    measured = [metric for metric in evaluation.metrics if evaluation.mean(metric) is not None]
    table = _table("image", measured)
    if len(evaluation.rows) <= _MOST_ROWS:
        for row in evaluation.rows:
            table.add_row(row.stem, *(_format(metric, row.scores.get(metric)) for metric in measured))
        table.add_section()
    means = (_format(metric, evaluation.mean(metric)) for metric in measured)
    table.add_row(f"mean of {len(evaluation.rows)}", *means)
    _add_interval(table, measured, [evaluation.interval(metric) for metric in measured])
    console.print(table)
    for metric, cure in _CURES.items():
        if metric in evaluation.metrics and metric not in measured:
            console.print(cure)


def _print_differences(console: Console, other: Evaluation, first: Evaluation) -> None:
    found = differences(other, first)
    table = _table("", found)
    table.add_row("mean", *(_format(metric, item.mean, sign="+") for metric, item in found.items()))
    _add_interval(table, list(found), [item.interval for item in found.values()], sign="+")
    console.print(table)


def _print_table(
    console: Console, paper: published.Table, evaluations: Iterable[tuple[str, published.Beside]] = ()
) -> None:
    console.print(f"\n{paper.title}")
    table = _table("method", paper.columns)
    for method, cells in paper.rows.items():
        table.add_row(method, *(_published(paper, *pair) for pair in zip(paper.columns, cells, strict=True)))
    table.add_section()
    words = []
    for name, beside in evaluations:
        pairs = zip(paper.columns, beside.cells, strict=True)
        table.add_row(f"here: {name}", *(_published(paper, *pair) for pair in pairs))
        words += [f"{name}: {text}" for text in beside.differences]
    console.print(table)
    for text in words:
        console.print(text, soft_wrap=True)


def _add_interval(table: Table, metrics: Sequence[str], intervals: Sequence[Interval | None], sign: str = "") -> None:
    """Two rows, unless no metric has an interval."""
    if not any(intervals):
        return
    for end, title in enumerate(("95 % from", "95 % to")):
        cells = (
            "" if interval is None else _format(metric, interval[end], sign)
            for metric, interval in zip(metrics, intervals, strict=True)
        )
        table.add_row(title, *cells)


def _table(first: str, columns: Iterable[str]) -> Table:
    table = Table(first, *columns, box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _published(paper: published.Table, column: str, cell: published.Cell) -> str:
    """In the paper's decimals."""
    return f"{cell:.{paper.decimals(column)}f}" if isinstance(cell, float) else str(cell or "")


def _format(metric: str, value: float | None, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign}.{CATALOGUE[metric].decimals}f}"
