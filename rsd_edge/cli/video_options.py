"""What `rsd-edge run` offers for videos, and its loop over them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from rsd_edge.cli.streams import one_line
from rsd_edge.errors import InputError, OutputError, RsdEdgeError, VideoInterrupted
from rsd_edge.stream.atomic import is_disk_full
from rsd_edge.stream.batch import FileResult, RunSettings, Status
from rsd_edge.stream.discovery import Job
from rsd_edge.stream.passwords import without_password
from rsd_edge.video.formats import CONTAINERS, is_live
from rsd_edge.video.settings import Forecast, FrameResolver, VideoResult, VideoSettings

if TYPE_CHECKING:
    from rsd_edge.video.upscaler import VideoUpscaler

_REFRESH = 10.0
"""Times a second that a terminal is redrawn."""

CommandT = TypeVar("CommandT", bound=Callable[..., Any])

VIDEO_OPTIONS = ("codec", "crf", "preset", "start", "duration", "max_frames", "temporal", "hdr", "video_io")

_SPELLINGS = {"suffix": "format"}

_OPTIONS = (
    click.option("--codec", metavar="NAME", help="Of videos: h264, hevc, av1, vp9, mpeg4, or an FFmpeg encoder."),
    click.option("--crf", type=float, help="Quality of videos, lower is better and larger; 21 for H.264 if not given."),
    click.option("--preset", metavar="NAME", help="Speed of the video encoder, in its own words."),
    click.option("--start", default=0.0, type=float, metavar="SECONDS", help="Where to begin in videos."),
    click.option("--duration", type=float, metavar="SECONDS", help="How much of videos to take."),
    click.option("--max-frames", type=int, help="Frames of videos at most."),
    click.option(
        "--temporal",
        type=click.Choice(["blend", "fixed", "flow"]),
        help="blend: detail averaged along what moves, for files if not given. fixed: each frame by itself, for "
        "cameras if not given. flow, cameras only: noise that moves along.",
    ),
    click.option(
        "--hdr", default="refuse", show_default=True, type=click.Choice(["refuse", "pass"]), help="PQ and HLG videos."
    ),
    click.option(
        "--video-io",
        default="av",
        show_default=True,
        type=click.Choice(["av", "opencv"]),
        help="opencv reads odd sources, without sound.",
    ),
)


def video_options(command: CommandT) -> CommandT:
    """Add the options to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def given_options(context: click.Context, names: Sequence[str]) -> str:
    """Those of the options that the user gave, as they are written; '' for none."""
    given = [name for name in names if context.get_parameter_source(name) is not ParameterSource.DEFAULT]
    return ", ".join(f"--{_SPELLINGS.get(name, name).replace('_', '-')}" for name in given)


def take_video_options(options: dict[str, Any]) -> dict[str, Any]:
    """Remove the options of videos from those of a command and return them."""
    taken = {name: options.pop(name) for name in VIDEO_OPTIONS}
    taken["io"] = taken.pop("video_io")
    return taken


def video_settings(settings: RunSettings, options: Mapping[str, Any]) -> VideoSettings:
    """All that decides what videos become. Raises InputError for bad values."""
    shared = {name: getattr(settings, name) for name in ("seed", "strength", "scale", "max_pixels", "strip")}
    given = {name: value for name, value in options.items() if name != "temporal" or value is not None}
    if given.get("temporal") == "flow":
        raise InputError("--temporal flow is for cameras; videos take blend or fixed")
    return VideoSettings(**shared, **given)


def live_job(inputs: Sequence[str], output: Path, settings: VideoSettings) -> Job:
    """The job for a camera or a stream. Raises InputError if it is not alone or not for OpenCV, OutputError."""
    live = next(name for name in inputs if is_live(name))
    shown = without_password(live)
    if len(inputs) > 1:
        raise InputError(f"{shown} is a device or a stream, which goes alone; give it a command of its own")
    if settings.io != "opencv":
        raise InputError(f"{shown} is a device or a stream; add --video-io opencv")
    if output.suffix.lower() not in CONTAINERS:
        raise OutputError(f"{shown} becomes a video, and {output} is none; end -o in {', '.join(CONTAINERS)}")
    return Job(Path(shown), output, address=live)


def run_videos(
    jobs: Sequence[Job], resolver: FrameResolver, settings: VideoSettings, *, skip_existing: bool, stopped: bool
) -> Iterator[FileResult]:
    """Enlarge videos one after the other and yield what became of each; failures, notes and results go to stderr.

    A file that fails does not stop the others; a full disk does. stopped: it did before the first of them. After Ctrl-C
    what is playable is told.
    """
    if not jobs:
        return
    from rsd_edge.video.upscaler import VideoUpscaler  # FFmpeg's libraries, which images do not need

    upscaler = VideoUpscaler(resolver, settings)
    for job in jobs:
        if stopped:
            yield FileResult(job, Status.NOT_STARTED, error="not started because the disk is full")
            continue
        if skip_existing and job.target.exists():
            yield FileResult(job, Status.SKIPPED)
            continue
        result = _run_job(job, upscaler)
        stopped = result.disk_full
        yield result


def _run_job(job: Job, upscaler: VideoUpscaler) -> FileResult:
    began = time.perf_counter()
    try:
        with _Display(job) as display:
            made = upscaler(job.address or job.source, job.target, progress=display.show, forecast=display.announce)
    except VideoInterrupted as interruption:
        _line(str(interruption))
        raise
    except (RsdEdgeError, MemoryError) as error:
        message = str(error)
        if isinstance(error, MemoryError):
            message = f"not enough memory for {job.name}; close other programs or give --temporal fixed"
        _line(f"error: {message}")
        seconds = time.perf_counter() - began
        return FileResult(job, Status.FAILED, seconds=seconds, error=message, disk_full=is_disk_full(error))
    notes = (*made.notes, *([job.note] if job.note else []))
    for note in notes:
        _line(f"warning: {job.name}: {note}")
    _line(_summary(made))
    return _file_result(job, made, notes, display.forecast)


def _file_result(job: Job, made: VideoResult, notes: tuple[str, ...], forecast: Forecast | None) -> FileResult:
    rate = made.frames_per_second
    details = {
        "frames": made.frames,
        "new_frames": made.new_frames,
        "frames_per_second": None if rate is None else round(rate, 3),
        "duration": round(made.duration, 6),
        "encoder": made.encoder,
        "encoder_options": dict(made.encoder_options),
        "bytes": made.bytes,
        "bytes_predicted": None if forecast is None else forecast.bytes,
    }
    return FileResult(
        job,
        Status.DONE,
        made.input_size,
        made.output_size,
        made.seconds,
        notes=notes,
        frames=made.new_frames,
        details=details,
    )


def _summary(made: VideoResult) -> str:
    (width, height), (large_width, large_height) = made.input_size, made.output_size
    rate = made.frames_per_second
    speed = "" if rate is None else f", {rate:.2f} fps"
    return (
        f"{made.target}: {made.frames} frames, {width}x{height} to {large_width}x{large_height}, {made.encoder}, "
        f"{made.bytes / 1e6:.1f} MB in {made.seconds:.1f} s{speed}"
    )


def _line(text: str) -> None:
    click.echo(one_line(text), err=True)


class _Display:
    """On a terminal, a bar with frames, rate and time left for one video."""

    def __init__(self, job: Job) -> None:
        # Not left to rich: it also takes a pipe for a terminal where an environment variable says so.
        terminal = sys.stderr.isatty()
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[frames]}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        console = Console(stderr=True, force_terminal=terminal, highlight=False, markup=False, emoji=False)
        self._progress = Progress(
            *columns, console=console, disable=not terminal, transient=True, refresh_per_second=_REFRESH
        )
        self._task = self._progress.add_task(one_line(Path(job.name).name), total=None, frames="", rate="")
        self._source = job.name
        self._first: tuple[int, float] | None = None
        self.forecast: Forecast | None = None

    def __enter__(self) -> _Display:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def announce(self, forecast: Forecast) -> None:
        """Tell what is to come."""
        self.forecast = forecast
        size = "" if forecast.bytes is None else f", very roughly {forecast.bytes / 1e6:.1f} MB"
        width, height = forecast.size
        text = f"{self._source}: {forecast.frames or '?'} frames of {width}x{height} with {forecast.encoder}{size}"
        self._progress.console.print(one_line(text), soft_wrap=True)

    def show(self, done: int, expected: int | None, seconds: float) -> None:
        """See Progress of VideoUpscaler."""
        # The frames of an earlier run and the time before the first one say nothing about the speed.
        first_done, first_seconds = self._first = self._first or (done, seconds)
        passed = seconds - first_seconds
        rate = f"{(done - first_done) / passed:.2f} fps" if passed > 0 else ""
        frames = f"{done}/{'?' if expected is None else expected}"
        self._progress.update(self._task, completed=done, total=expected, frames=frames, rate=rate)
