"""`rsd-edge run`: image files and folders in, upscaled files out."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from rsd_edge.cli import FAILED
from rsd_edge.errors import InputError
from rsd_edge.pipeline import SuperResolver
from rsd_edge.specs import Backend
from rsd_edge.stream.atomic import make_folder, write_json
from rsd_edge.stream.batch import FileResult, Observer, RunSettings, Status, count, report, run_jobs
from rsd_edge.stream.discovery import Job, plan_jobs
from rsd_edge.stream.images import MAX_PIXELS

_FORMATS = ("png", "jpg", "webp", "bmp", "tif")
_SPELLINGS = {".jpeg": ".jpg", ".tiff": ".tif"}
_DEFAULTS = RunSettings()


@click.command("run")
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, metavar="OUT", type=click.Path(path_type=Path), help="File or folder.")
@click.option(
    "--engine",
    "--model",
    default=_DEFAULTS.engine,
    show_default=True,
    metavar="NAME|BUNDLE|FILE",
    help="Model to run; a checkpoint (.safetensors) runs on torch.",
)
@click.option("--steps", type=int, help="Generator steps of a checkpoint; those that it was made for if not given.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16", "int8"]),
    help="Arithmetic; the fastest if not given, timed once.",
)
@click.option(
    "--backend",
    type=click.Choice([backend.value for backend in Backend]),
    help="Runtime; if neither it nor the precision is given, the fastest of those installed.",
)
@click.option(
    "--scale", default=_DEFAULTS.scale, show_default=True, type=float, help="1 to 4; below 4 by area averaging."
)
@click.option(
    "--strength", default=_DEFAULTS.strength, show_default=True, type=float, help="0 = bicubic, 1 = all detail."
)
@click.option("--seed", default=_DEFAULTS.seed, show_default=True, type=int, help="Another seed, another texture.")
@click.option(
    "--format", "suffix", default="png", show_default=True, type=click.Choice(_FORMATS), help="Of results in a folder."
)
@click.option("-r", "--recursive", is_flag=True, help="Sub-folders too; OUT mirrors the tree.")
@click.option("--skip-existing", is_flag=True, help="Leave results that exist as they are.")
@click.option("--tile", type=int, help="Side of a tile in input pixels; smaller needs less memory.")
@click.option("--batch", default=_DEFAULTS.batch, show_default=True, type=int, help="Tiles at once.")
@click.option("--threads", type=int, help="CPU threads; all cores if not given.")
@click.option("--max-pixels", default=MAX_PIXELS, show_default=True, type=int, help="Refuse larger inputs.")
@click.option(
    "--report", "report_path", metavar="JSON", type=click.Path(path_type=Path), help="Settings, versions and results."
)
@click.pass_context
def command(
    context: click.Context,
    /,
    inputs: tuple[Path, ...],
    output: Path,
    suffix: str,
    recursive: bool,
    report_path: Path | None,
    **options: Any,
) -> int:
    """Upscale images. INPUT is any number of files and folders: PNG, JPEG, WebP, BMP, TIFF.

    OUT is a file if it ends in an image suffix, otherwise a folder. Files that fail are reported, the others go on, and
    the exit code is then 2.
    """
    logging.basicConfig(level=logging.WARNING, format="warning: %(message)s")
    settings = RunSettings(**options)
    jobs = plan_jobs(inputs, output, recursive=recursive, suffix=f".{suffix}")
    if context.get_parameter_source("suffix") is not ParameterSource.DEFAULT:
        _check_format(jobs, suffix)
    if report_path is not None:
        make_folder(report_path.parent)
    with SuperResolver.load(
        settings.engine,
        precision=settings.precision,
        backend=settings.backend,
        threads=settings.threads,
        tile=settings.tile,
        batch=settings.batch,
        steps=settings.steps,
    ) as resolver:
        engine = resolver.choice.record() if resolver.choice else {}
        if resolver.choice and resolver.choice.times_ms and (sys.stderr.isatty() or not resolver.choice.remembered):
            click.echo(f"{settings.engine}: {resolver.choice}", err=True)
        results: list[FileResult] = []
        try:
            with _Display(len(jobs)) as display:
                for result in run_jobs(jobs, resolver, settings, display):
                    results.append(result)
                    display.show(result)
        finally:  # an interrupted run has an account as well
            if report_path is not None:
                write_json(report_path, report(results, settings, engine))
    failed = len(results) - count(results, Status.DONE) - count(results, Status.SKIPPED)
    if sys.stderr.isatty() or (failed and len(jobs) > 1):
        click.echo(_summary(results, output), err=True)
    return FAILED if failed else 0


def _check_format(jobs: Sequence[Job], suffix: str) -> None:
    """Only the name of a single output file can contradict the format; results in a folder are named by it."""
    for job in jobs:
        given = job.target.suffix.lower()
        if _SPELLINGS.get(given, given) != f".{suffix}":
            raise InputError(
                f"{job.target} ends in '{given}' but --format is {suffix}; drop --format, or end the name in .{suffix}"
            )


class _Display(Observer):
    """Errors and warnings on stderr, and on a terminal a progress bar with rate and time left."""

    def __init__(self, files: int) -> None:
        # Not left to rich: it also takes a pipe for a terminal where an environment variable says so.
        terminal = sys.stderr.isatty()
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        console = Console(stderr=True, force_terminal=terminal)
        self._progress = Progress(*columns, console=console, disable=not terminal, transient=True)
        self._task = self._progress.add_task("", total=files, rate="")
        self._index = 0
        self._finished = self._current = 0.0  # output megapixels
        self._begin = time.perf_counter()

    def __enter__(self) -> _Display:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def start(self, index: int, job: Job) -> None:
        """See Observer."""
        self._index, self._current = index, 0.0
        self._progress.update(self._task, description=job.source.name, completed=index)

    def load(self, output_pixels: int) -> None:
        """See Observer."""
        self._current = output_pixels / 1e6

    def advance(self, done: int, total: int) -> None:
        """See Observer."""
        rate = (self._finished + self._current * done / total) / (time.perf_counter() - self._begin)
        self._progress.update(self._task, completed=self._index + done / total, rate=f"{rate:.2f} Mpx/s")

    def show(self, result: FileResult) -> None:
        """Report one finished file."""
        if result.status is Status.DONE:
            self._finished += self._current
        self._progress.update(self._task, completed=self._index + 1)
        if result.status is Status.FAILED:
            self._line(f"error: {result.error}")
        for note in result.notes:
            self._line(f"warning: {result.job.source}: {note}")

    def _line(self, text: str) -> None:
        self._progress.console.print(" ".join(text.split()), markup=False, highlight=False, soft_wrap=True)


def _summary(results: Sequence[FileResult], output: Path) -> str:
    counts = [f"{count(results, status)} {status.value}" for status in Status if count(results, status)]
    seconds = sum(result.seconds for result in results)
    sizes = [result.output_size for result in results if result.output_size is not None]
    megapixels = sum(width * height for width, height in sizes) / 1e6
    rate = f", {megapixels / seconds:.2f} Mpx/s" if megapixels else ""
    return f"{', '.join(counts)} in {seconds:.1f} s{rate}: {output}"
