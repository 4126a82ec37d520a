"""`rsd-edge eval`: upscaled images against their references."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from rsd_edge.errors import InputError
from rsd_edge.evaluate.folder import METRICS, Evaluation, evaluate_folders
from rsd_edge.stream.atomic import make_folder, write_json

_FOLDER = click.Path(path_type=Path)
_DECIMALS = {"psnr_y": 3}
_DEFAULT_DECIMALS = 4
_CURES = {
    "lattice_spread": "lattice not measured: give the upscaled images' sources with --lr",
    "niqe": "NIQE not measured: it needs images of two 96x96 patches or more that are not flat",
    "spectrum_db": "spectrum not measured: it needs sides of at least 64 pixels",
}
"""What to say of a metric that no image has."""
_PIPE_WIDTH = 140
"""Holds all metrics beside stems of about 30 characters where there is no terminal to ask."""


@click.command("eval")
@click.option("--pred", required=True, metavar="DIR", type=_FOLDER, help="Upscaled images.")
@click.option("--ref", required=True, metavar="DIR", type=_FOLDER, help="References of the same stems and sizes.")
@click.option("--lr", metavar="DIR", type=_FOLDER, help="Images that were upscaled; needed for the lattice metric.")
@click.option("--json", "json_path", metavar="FILE", type=click.Path(path_type=Path), help="Write all scores here.")
@click.option("--threads", type=int, help="CPU threads; all cores if not given.")
def command(pred: Path, ref: Path, lr: Path | None, json_path: Path | None, threads: int | None) -> None:
    """Score upscaled images: PSNR-Y, SSIM-Y, LPIPS-squeeze, NIQE, power spectrum, and with --lr the lattice metric.

    Files are matched by stem. The JSON file states the protocol: luma, borders, windows, versions.
    """
    if threads is not None and threads < 1:
        raise InputError(f"threads is {threads}; it must be at least 1")
    if json_path is not None:
        make_folder(json_path.parent)
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task("scoring", total=None)

        def advance(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        evaluation = evaluate_folders(pred, ref, lq=lr, threads=threads, progress=advance)
    if json_path is not None:
        write_json(json_path, evaluation.to_json())
    _print(evaluation)


def _print(evaluation: Evaluation) -> None:
    measured = [metric for metric in METRICS if evaluation.mean(metric) is not None]
    table = Table("image", *measured, box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in evaluation.rows:
        table.add_row(row.stem, *(_format(metric, getattr(row, metric)) for metric in measured))
    table.add_section()
    means = (_format(metric, evaluation.mean(metric)) for metric in measured)
    table.add_row(f"mean of {len(evaluation.rows)}", *means)
    console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False)
    console.print(table)
    for metric, cure in _CURES.items():
        if metric not in measured:
            console.print(cure)


def _format(metric: str, value: float | None) -> str:
    return "" if value is None else f"{value:.{_DECIMALS.get(metric, _DEFAULT_DECIMALS)}f}"
