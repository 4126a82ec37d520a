"""`rsd-edge run`: image files, videos and folders in, upscaled files out."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from rsd_edge.cli import FAILED
from rsd_edge.cli.auto_build import with_engine
from rsd_edge.cli.kept_engine import kept_engine
from rsd_edge.cli.live_options import (
    LIVE_OPTIONS,
    check_live_options,
    live_options,
    over_numpy,
    run_live,
    take_live_options,
)
from rsd_edge.cli.paths import GivenPath
from rsd_edge.cli.reports import STDOUT, check_report, write_report
from rsd_edge.cli.streams import OneLine, one_line
from rsd_edge.cli.video_options import (
    VIDEO_OPTIONS,
    given_options,
    live_job,
    run_videos,
    take_video_options,
    video_options,
    video_settings,
)
from rsd_edge.errors import InputError
from rsd_edge.resolver import CHECKPOINT_SUFFIX, SuperResolver
from rsd_edge.specs import Backend, FramePathKind
from rsd_edge.stream.atomic import folder_for
from rsd_edge.stream.batch import FileResult, Observer, RunSettings, Status, count, report, run_jobs
from rsd_edge.stream.discovery import Job, plan_jobs
from rsd_edge.stream.images import MAX_PIXELS
from rsd_edge.stream.passwords import without_password
from rsd_edge.stream.results import usual_suffix
from rsd_edge.video.formats import is_live, is_video
from rsd_edge.video.settings import VideoSettings

_FORMATS = ("png", "jpg", "webp", "bmp", "tif")
_DEFAULTS = RunSettings()
_SIZES = ("scale", "size", "max_side")
_DRAWN_EVERY = 0.1
"""Seconds between two drawings of a terminal."""


def _parse_size(_context: click.Context, _option: click.Parameter, text: str | None) -> tuple[int, int] | None:
    """(width, height) of WxH."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,9})x(\d{1,9})", text.lower())
    if match is None:
        raise click.BadParameter(f"'{text}' is not WxH, such as 1920x1080.")
    return int(match[1]), int(match[2])


@click.command("run")
@click.argument("inputs", nargs=-1, metavar="INPUT...", type=GivenPath(readable=False))
@click.option("-o", "--output", metavar="OUT", type=GivenPath(path_type=Path), help="File or folder.")
@click.option(
    "--engine",
    "--model",
    default=_DEFAULTS.engine,
    show_default=True,
    metavar="NAME|BUNDLE|FILE",
    help="Model to run; a checkpoint (.safetensors) runs on torch, or as an engine that is built and kept.",
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
    help="Runtime; if neither it nor the precision is given, the faster of ONNX Runtime and OpenVINO. The others only "
    "where they are named, or --engine is theirs.",
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Of a checkpoint on torch; cpu if not given.")
@click.option(
    "--frame-path",
    type=click.Choice([kind.value for kind in FramePathKind]),
    help="What cuts and merges frames for a checkpoint on torch: on the device by kernels (triton, for edge models on "
    "cuda if not given) or by plain torch, or numpy.",
)
@click.option(
    "--scale",
    default=_DEFAULTS.scale,
    show_default=True,
    type=float,
    help="1 to 4; below 4, as with the next two, the x4 result is reduced by area averaging.",
)
@click.option(
    "--size", metavar="WxH", callback=_parse_size, help="Of every result, 1 to 4 times its input; instead of --scale."
)
@click.option("--max-side", type=int, metavar="N", help="x4, but no side longer than this; instead of --scale.")
@click.option(
    "--strength", default=_DEFAULTS.strength, show_default=True, type=float, help="0 = bicubic, 1 = all detail."
)
@click.option("--seed", default=_DEFAULTS.seed, show_default=True, type=int, help="Another seed, another texture.")
@click.option(
    "--format", "suffix", default="png", show_default=True, type=click.Choice(_FORMATS), help="Of results in a folder."
)
@click.option("-r", "--recursive", is_flag=True, help="Sub-folders too; OUT mirrors the tree.")
@click.option("--skip-existing", is_flag=True, help="Leave results that exist as they are.")
@click.option("--strip", is_flag=True, help="Leave EXIF, XMP, colour profiles and tags out of the results.")
@click.option(
    "--auto-build", is_flag=True, help="Run on TensorRT, with an engine that is built for this GPU first if need be."
)
@click.option("--tile", type=int, help="Side of a tile in input pixels; smaller needs less memory.")
@click.option("--batch", default=_DEFAULTS.batch, show_default=True, type=int, help="Tiles at once.")
@click.option("--threads", type=int, help="CPU threads; all cores if not given.")
@click.option("--max-pixels", default=MAX_PIXELS, show_default=True, type=int, help="Refuse larger inputs.")
@click.option(
    "--report",
    "report_path",
    metavar="JSON",
    type=GivenPath(path_type=Path),
    help="Settings, versions and results; - for stdout.",
)
@video_options
@live_options
@click.pass_context
def command(
    context: click.Context,
    /,
    inputs: tuple[str, ...],
    output: Path | None,
    suffix: str,
    recursive: bool,
    report_path: Path | None,
    auto_build: bool,
    **options: Any,
) -> int:
    """Upscale images and videos. INPUT is any number of files and folders: PNG, JPEG, WebP, BMP, TIFF, MP4, MKV...

    Gray stays gray, transparency is kept, 16 bits stay 16 where the result is PNG or TIFF, and EXIF, XMP and colour
    profile go along; a warning says what a format cannot hold. PNG, TIFF and BMP are written while they are made, so
    that memory does not grow with them.

    OUT is a file if it ends in an image or video suffix, otherwise a folder. Files that fail are reported, the others
    go on, and the exit code is then 2.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine("warning: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    if sum(context.get_parameter_source(name) is not ParameterSource.DEFAULT for name in _SIZES) > 1:
        raise InputError("--scale, --size and --max-side exclude each other; give one of them")
    if output == STDOUT:
        raise InputError("-o -: results do not go to stdout; give a file or a folder")
    for_videos, for_cameras = take_video_options(options), take_live_options(options)
    settings = RunSettings(**options)

    def load(settings: RunSettings) -> SuperResolver:
        found = with_engine(settings) if auto_build else settings
        return load_resolver(found if for_cameras["camera"] is None else over_numpy(found))

    if for_cameras["camera"] is not None:
        if inputs:
            raise InputError(f"--camera and {without_password(inputs[0])} exclude each other; give one of them")
        check_live_options(context, output)
        return run_live(for_cameras, output, settings, for_videos, load, report_path)
    if not inputs or output is None:
        raise click.UsageError("Missing argument 'INPUT...'." if not inputs else "Missing option '-o' / '--output'.")
    if given := given_options(context, LIVE_OPTIONS):
        raise InputError(f"{given}: for cameras; add --camera, or leave it out")
    film_settings = video_settings(settings, for_videos)
    if any(map(is_live, inputs)):
        jobs = [live_job(inputs, output, film_settings)]
    else:
        jobs = plan_jobs([Path(name) for name in inputs], output, recursive=recursive, suffix=f".{suffix}")
    images, videos = [[job for job in jobs if is_video(job.target) is wanted] for wanted in (False, True)]
    _check_options(context, images, videos, suffix)
    with ExitStack() as stack:
        if report_path is not None:
            stack.enter_context(folder_for(report_path))
            check_report(report_path, [path for job in jobs for path in (job.source, job.target)])
        resolver = stack.enter_context(load(settings))
        return _run(images, videos, resolver, settings, film_settings, output, report_path)


def load_resolver(settings: RunSettings) -> SuperResolver:
    """The engine that the settings ask for, for other commands too; how it was chosen is told."""
    if settings.engine.endswith(CHECKPOINT_SUFFIX) and settings.backend == Backend.TENSORRT.value:
        settings = with_engine(settings)  # there is no engine of a checkpoint until one is built
    engine, backend = settings.engine, settings.backend
    if engine.endswith(CHECKPOINT_SUFFIX) and backend not in (None, Backend.TORCH.value):
        engine, backend = str(kept_engine(Path(engine), Backend(backend), settings)), None
    resolver = SuperResolver.load(
        engine,
        precision=settings.precision,
        backend=backend,
        threads=settings.threads,
        tile=settings.tile,
        batch=settings.batch,
        steps=settings.steps,
        device=settings.device,
        frame_path=settings.frame_path,
    )
    if resolver.choice and resolver.choice.times_ms and (sys.stderr.isatty() or not resolver.choice.remembered):
        click.echo(f"{settings.engine}: {resolver.choice}", err=True)
    return resolver


def _check_options(context: click.Context, images: Sequence[Job], videos: Sequence[Job], suffix: str) -> None:
    """Raises InputError for options that nothing among the inputs would obey."""
    if not videos and (given := given_options(context, VIDEO_OPTIONS)):
        raise InputError(f"{given}: for videos, and there is none among the inputs; leave it out")
    if not images and (given := given_options(context, ("suffix",))):
        raise InputError(f"{given}: for images, and there is none among the inputs; leave it out")
    if videos and given_options(context, ("size", "max_side")):
        raise InputError("--size and --max-side are for images; give videos a --scale, or run them apart")
    if given_options(context, ("suffix",)):
        _check_format(images, suffix)


def _run(
    images: Sequence[Job],
    videos: Sequence[Job],
    resolver: SuperResolver,
    settings: RunSettings,
    film_settings: VideoSettings,
    output: Path,
    report_path: Path | None,
) -> int:
    """Run the jobs, images first, with a display, sum them up and report on them; the exit code."""
    engine = resolver.record()
    results: list[FileResult] = []
    try:
        with _Display(len(images)) as display:
            for result in run_jobs(images, resolver, settings, display):
                results.append(result)
                display.show(result)
        full = any(result.disk_full for result in results)
        for result in run_videos(videos, resolver, film_settings, skip_existing=settings.skip_existing, stopped=full):
            results.append(result)
        failed = len(results) - count(results, Status.DONE) - count(results, Status.SKIPPED)
        # Before the report, for which there may be no room either.
        if sys.stderr.isatty() or (failed and len(results) > 1):
            click.echo(_summary(results, output), err=True)
        return FAILED if failed else 0
    except KeyboardInterrupt as interruption:
        results += _interrupted([*images, *videos][len(results) :], str(interruption))
        raise
    finally:  # an interrupted run has an account as well
        if report_path is not None:
            write_report(report_path, report(results, settings, engine, film_settings if videos else None))


def _interrupted(left: Sequence[Job], message: str) -> list[FileResult]:
    """What to report of the job that Ctrl-C met, and of those behind it."""
    met = [FileResult(job, Status.INTERRUPTED, error=message or "interrupted") for job in left[:1]]
    return met + [FileResult(job, Status.NOT_STARTED, error="not started: interrupted before") for job in left[1:]]


def _check_format(jobs: Sequence[Job], suffix: str) -> None:
    """Only the name of a single output file can contradict the format; results in a folder are named by it."""
    for job in jobs:
        if usual_suffix(job.target) != f".{suffix}":
            given = job.target.suffix.lower()
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
        console = Console(stderr=True, force_terminal=terminal, highlight=False, markup=False, emoji=False)
        # No thread of its own may draw: while a file is decoded, what is written to stderr waits for its end.
        self._progress = Progress(*columns, console=console, auto_refresh=False, disable=not terminal, transient=True)
        self._task = self._progress.add_task("", total=files, rate="")
        self._index = 0
        self._finished = self._current = 0.0  # output megapixels
        self._begin = time.perf_counter()
        self._next = 0.0

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
        self._update(description=one_line(job.source.name), completed=index)

    def load(self, output_pixels: int) -> None:
        """See Observer."""
        self._current = output_pixels / 1e6
        self._update()

    def advance(self, done: int, total: int) -> None:
        """See Observer."""
        rate = (self._finished + self._current * done / total) / (time.perf_counter() - self._begin)
        self._update(completed=self._index + done / total, rate=f"{rate:.2f} Mpx/s")

    def show(self, result: FileResult) -> None:
        """Report one finished file."""
        if result.status is Status.DONE:
            self._finished += self._current
        self._update(completed=self._index + 1)
        if result.status is Status.FAILED:
            self._line(f"error: {result.error}")
        for note in result.notes:
            self._line(f"warning: {result.job.source}: {note}")

    def _update(self, **changes: Any) -> None:
        """Change the bar, and draw it if it is time."""
        now = time.perf_counter()
        due = now >= self._next
        if due:
            self._next = now + _DRAWN_EVERY
        self._progress.update(self._task, refresh=due, **changes)

    def _line(self, text: str) -> None:
        self._progress.console.print(one_line(text), soft_wrap=True)


def _summary(results: Sequence[FileResult], output: Path) -> str:
    counts = [f"{count(results, status)} {status.value}" for status in Status if count(results, status)]
    seconds = sum(result.seconds for result in results)
    sizes = [(*result.output_size, result.frames) for result in results if result.output_size is not None]
    megapixels = sum(width * height * frames for width, height, frames in sizes) / 1e6
    rate = f", {megapixels / seconds:.2f} Mpx/s" if megapixels else ""
    return f"{', '.join(counts)} in {seconds:.1f} s{rate}: {output}"
