"""What `rsd-edge run` offers for cameras, and its run over one."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from rsd_edge.cli.reports import check_report, write_report
from rsd_edge.cli.streams import one_line
from rsd_edge.cli.video_options import given_options
from rsd_edge.errors import InputError, OutputError, RsdEdgeError
from rsd_edge.resolver import CHECKPOINT_SUFFIX
from rsd_edge.signals import noted_signals
from rsd_edge.specs import Backend, FramePathKind

if TYPE_CHECKING:
    from rsd_edge.backends.base import TileEngine
    from rsd_edge.live.clock import Clock
    from rsd_edge.live.runner import RunLimits, Sink
    from rsd_edge.live.settings import StreamSettings
    from rsd_edge.live.statistics import Statistics
    from rsd_edge.resolver import SuperResolver
    from rsd_edge.stream.batch import RunSettings

CommandT = TypeVar("CommandT", bound=Callable[..., Any])

_RATES = (0.001, 1000.0)
"""Frames per second that encoders can plan for."""
_WINDOW_TICK = 1 / 120
_TICK = 0.1
_SHOWN_EVERY = 0.5

_OPTIONS = (
    click.option("--camera", metavar="SOURCE", help="0, /dev/video0, csi://0, rtsp://, http://, gst:\"...\", test."),
    click.option("--capture", metavar="[WxH][@FPS]", help="What to ask the camera for; of streams, @FPS alone."),
    click.option(
        "--drop", default="newest", show_default=True, type=click.Choice(["newest", "none"]), help="Of camera frames."
    ),
    click.option(
        "--max-outage", default=30.0, show_default=True, metavar="SECONDS", help="Of a camera, then end; inf: never."
    ),
    click.option("--no-reuse", is_flag=True, help="Compute unchanged tiles, too."),
    click.option(
        "--reuse-threshold", default=0.0, show_default=True, metavar="LEVELS", help="Change below which a tile rests."
    ),
    click.option("--reuse-refresh", default=60, show_default=True, metavar="FRAMES", help="Longest rest of a tile."),
    click.option("--window", is_flag=True, help="Show camera results on the screen."),
    click.option("--virtual-camera", is_flag=False, flag_value="auto", metavar="[DEVICE]", help="Of v4l2loopback."),
    click.option("--serve", metavar="[HOST:]PORT", help="Show camera results to browsers."),
    click.option("--serve-token", metavar="TOKEN", help="What browsers elsewhere have to give; made up if not given."),
)  # fmt: skip
LIVE_OPTIONS = (
    "camera", "capture", "drop", "max_outage", "no_reuse", "reuse_threshold", "reuse_refresh", "window",
    "virtual_camera", "serve", "serve_token",
)  # fmt: skip
_FOR_SINKS = ("codec", "crf", "preset")
_NOT_FOR_CAMERAS = (
    "size", "max_side", "suffix", "recursive", "skip_existing", "strip", "start", "duration", "hdr", "video_io",
)  # fmt: skip


def live_options(command: CommandT) -> CommandT:
    """Add the options to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def check_live_options(context: click.Context, output: Path | None) -> None:
    """Raises InputError for options that a run over a camera would not obey."""
    from rsd_edge.video.formats import is_video

    if given := given_options(context, _NOT_FOR_CAMERAS):
        raise InputError(f"{given}: not for cameras; leave it out")
    if (given := given_options(context, _FOR_SINKS)) and (output is None or not is_video(output)):
        raise InputError(f"{given}: for videos; end -o in .mkv or .mp4, or leave it out")
    if (given := given_options(context, ("serve_token",))) and context.params["serve"] is None:
        raise InputError(f"{given} needs --serve; add it, or leave the token out")
    if (given := given_options(context, ("reuse_refresh",))) and not context.params["reuse_threshold"]:
        raise InputError(f"{given} needs --reuse-threshold, such as 3; add it, or leave the refresh out")
    if context.params["frame_path"] not in (None, FramePathKind.NUMPY.value):
        path = context.params["frame_path"]
        raise InputError(f"--frame-path {path}: frames of cameras are cut and merged by numpy; leave it out")


def over_numpy(settings: RunSettings) -> RunSettings:
    """The settings with the frame path of cameras, where there is a choice: for checkpoints on torch."""
    on_torch = settings.engine.endswith(CHECKPOINT_SUFFIX) and settings.backend in (None, Backend.TORCH.value)
    return replace(settings, frame_path=FramePathKind.NUMPY.value) if on_torch else settings


def _check_batch(batch: int, engine: TileEngine) -> None:
    """Only an engine that is made for batches gets any."""
    if batch > 1 and not engine.tile.fixed:
        raise InputError(f"--batch {batch}: cameras give {engine.spec.model.name} tiles one by one; leave it out")


def take_live_options(options: dict[str, Any]) -> dict[str, Any]:
    """Remove the options of cameras from those of a command and return them."""
    return {name: options.pop(name) for name in LIVE_OPTIONS}


def run_live(
    options: Mapping[str, Any],
    output: Path | None,
    settings: RunSettings,
    for_videos: Mapping[str, Any],
    load: Callable[[RunSettings], SuperResolver],
    report_path: Path | None,
) -> int:
    """Enlarge a camera's frames until it ends; the exit code: 0, or 128 and the number of the signal that ended it."""
    from rsd_edge.live.clock import SystemClock
    from rsd_edge.live.path import LivePath
    from rsd_edge.live.receiver import Reconnection
    from rsd_edge.live.runner import LiveRunner, RunLimits
    from rsd_edge.live.sinks import WindowSink
    from rsd_edge.live.sources import CaptureRequest, open_source
    from rsd_edge.live.statistics import Statistics

    stream = _stream_settings(options, settings, for_videos["temporal"])
    limits = RunLimits(
        options["drop"], for_videos["max_frames"], settings.max_pixels, Reconnection(max_outage=options["max_outage"])
    )
    size, rate = _parse_capture(options["capture"])
    clock = SystemClock()
    source = open_source(options["camera"], clock, CaptureRequest(size, rate))
    statistics = Statistics(clock.now)
    if report_path is not None:
        check_report(report_path, [] if output is None else [output])
    with load(settings) as resolver, noted_signals() as ended:
        _check_batch(settings.batch, resolver.engine)
        sinks = _sinks(options, output, for_videos, source.name, rate or 25.0, clock, statistics)
        runner = LiveRunner(source, LivePath(resolver.engine, stream), sinks, clock, statistics, limits)
        with _Display(statistics) as display:
            window = next((sink for sink in sinks if isinstance(sink, WindowSink)), None)

            def watch() -> bool:
                display.update()
                return (window is None or window.show()) and not ended

            def account(failure: BaseException | None) -> None:
                if report_path is not None:
                    end = _end(failure, ended, limits, statistics)
                    found = _report(source.name, sinks, stream, limits, resolver.record(), statistics)
                    write_report(report_path, {**found, **end})

            try:
                runner.run(watch, _TICK if window is None else _WINDOW_TICK)
            except BaseException as failure:  # a run that fails has an account as well
                with _told_after(failure):
                    account(failure)
                raise
        click.echo(_summary(source.name, sinks, statistics), err=True)
        account(None)
    return 128 + ended[0] if ended else 0


def _stream_settings(options: Mapping[str, Any], settings: RunSettings, temporal: str | None) -> StreamSettings:
    from rsd_edge.live.settings import StreamSettings

    return StreamSettings(
        seed=settings.seed,
        strength=settings.strength,
        scale=settings.scale,
        temporal=temporal or "fixed",
        reuse=not options["no_reuse"],
        reuse_threshold=options["reuse_threshold"],
        refresh=options["reuse_refresh"],
    )


def _sinks(
    options: Mapping[str, Any],
    output: Path | None,
    for_videos: Mapping[str, Any],
    source: str,
    rate: float,
    clock: Clock,
    statistics: Statistics,
) -> list[Sink]:
    """All that were asked for. Raises InputError if none was, and what each raises."""
    from rsd_edge.live.recording import VideoSink
    from rsd_edge.live.sinks import ImageSequenceSink, NullSink, VirtualCameraSink, WindowSink
    from rsd_edge.video.formats import is_video
    from rsd_edge.video.settings import VideoSettings

    sinks: list[Sink] = []
    if output is not None and str(output) == "null":
        sinks.append(NullSink())
    elif output is not None and is_video(output):
        encoding = VideoSettings(**{name: for_videos[name] for name in _FOR_SINKS})
        sinks.append(VideoSink(output, encoding, source, rate))
    elif output is not None:
        sinks.append(ImageSequenceSink(output))
    if options["virtual_camera"]:
        device = options["virtual_camera"]
        sinks.append(VirtualCameraSink(None if device == "auto" else device, rate))
    if options["window"]:
        sinks.append(WindowSink(clock))
    if options["serve"]:
        from rsd_edge.live.address import Address
        from rsd_edge.live.server import PageSink

        address = Address.parse(options["serve"], options["serve_token"])
        page = PageSink(address, source, statistics)
        elsewhere = " (from elsewhere: this machine's address instead of 127.0.0.1)" if address.everywhere else ""
        click.echo(f"watch at {page.url}{elsewhere}", err=True)
        sinks.append(page)
    if not sinks:
        raise InputError("nowhere to put the frames; give -o FILE, -o FOLDER, -o null, --window or --serve 8080")
    return sinks


def _parse_capture(text: str | None) -> tuple[tuple[int, int] | None, float | None]:
    """Size and rate of [WxH][@FPS]."""
    if text is None:
        return None, None
    size, _, rate = text.lower().partition("@")
    width, _, height = size.partition("x")
    try:
        wanted = (int(width), int(height)) if size or not rate else None
        frames = float(rate) if rate else None
    except ValueError:
        raise InputError(f"capture is '{text}'; give WxH, WxH@FPS or @FPS, such as 1280x720@30") from None
    if min(wanted or (1,)) < 1 or not (frames is None or _RATES[0] <= frames <= _RATES[1]):
        raise InputError(f"capture is '{text}'; sizes are 1 or more, rates {_RATES[0]:g} to {_RATES[1]:g}")
    return wanted, frames


def _report(
    source: str,
    sinks: Sequence[Sink],
    stream: StreamSettings,
    limits: RunLimits,
    engine: Mapping[str, Any],
    statistics: Statistics,
) -> dict[str, Any]:
    from rsd_edge import __version__
    from rsd_edge.live.recording import VideoSink
    from rsd_edge.machine import cpu_name, usable_cores

    bounds = asdict(limits)
    outage = bounds.pop("reconnection")["max_outage"]
    return {
        "rsd_edge": __version__,
        "camera": source,
        "sinks": [sink.name for sink in sinks],
        "recorded": next((sink.frames for sink in sinks if isinstance(sink, VideoSink)), None),
        "machine": cpu_name(),
        "cores": usable_cores(),
        "engine": dict(engine),
        "settings": {**asdict(stream), **bounds, "max_outage": outage if math.isfinite(outage) else None},
        "run": statistics.report(),
    }


def _end(
    failure: BaseException | None, signals: Sequence[int], limits: RunLimits, statistics: Statistics
) -> dict[str, str | None]:
    """What ended a run, for its report."""
    if isinstance(failure, Exception):
        return {"ended_by": "error", "error": str(failure)}
    if signals:
        return {"ended_by": signal.Signals(signals[0]).name, "error": None}
    whole = statistics.results.count == limits.max_frames
    return {"ended_by": "max_frames" if whole else "window", "error": None}


@contextmanager
def _told_after(failure: BaseException) -> Iterator[None]:
    """An OutputError within the block does not take the place of the failure: both are told, the failure first."""
    try:
        yield
    except OutputError as error:
        if isinstance(failure, RsdEdgeError):
            raise OutputError(f"{failure}; and {error}") from failure
        click.echo(f"error: {one_line(str(error))}", err=True)


def _summary(source: str, sinks: Sequence[Sink], statistics: Statistics) -> str:
    run = statistics.report()
    latency = run["latency_ms"]
    times = "" if latency is None else f", latency p50 {latency['p50']:.0f} ms, p99 {latency['p99']:.0f} ms"
    fps = "" if run["sr_fps"] is None else f" at {run['sr_fps']:.1f} fps"
    lost = f"{run['dropped']} dropped" + (f", {run['damaged']} damaged" if run["damaged"] else "")
    away = f", {run['reconnects']} reconnections" if run["reconnects"] else ""
    to = ", ".join(sink.name for sink in sinks)
    return f"{source}: {run['delivered']} of {run['captured']} frames{fps}, {lost}{times}{away}; to {to}"


class _Display:
    """On a terminal, a table that is drawn anew twice a second."""

    def __init__(self, statistics: Statistics) -> None:
        from rich.console import Console
        from rich.live import Live

        self._statistics = statistics
        # Not left to rich: it also takes a pipe for a terminal where an environment variable says so.
        self._shown = sys.stderr.isatty()
        console = Console(stderr=True, force_terminal=self._shown)
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._next = 0.0

    def __enter__(self) -> _Display:
        if self._shown:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._live.stop()

    def update(self) -> None:
        """Draw, if it is time."""
        now = time.monotonic()
        if self._shown and now >= self._next:
            self._next = now + _SHOWN_EVERY
            self._live.update(table(self._statistics.now()), refresh=True)


def table(found: Mapping[str, Any]) -> Any:
    """What a terminal shows of `Statistics.now`."""
    from rich.console import Group
    from rich.table import Table

    def times(entry: Mapping[str, float] | None) -> list[str]:
        return ["", "", ""] if entry is None else [f"{entry[name]:.1f}" for name in ("p50", "p95", "p99")]

    state = "[green]live[/]" if found["signal"] == "live" else "[bold red]no signal[/]"
    sizes = [f"{size[0]}x{size[1]}" if size else "?" for size in (found["source"], found["result"])]
    title = f"{state}  {' to '.join(sizes)}  in {found['capture_fps']:.1f} fps, out {found['sr_fps']:.1f} fps"
    note = (
        f"{found['delivered']} frames, {found['dropped']} dropped, {found['reconnects']} reconnections, "
        f"{found['tiles_reused']:.0%} of tiles reused"
    )
    shown = Table()
    for heading in ("ms", "p50", "p95", "p99"):
        shown.add_column(heading, justify="left" if heading == "ms" else "right")
    shown.add_row("[bold]latency", *times(found["latency_ms"]))
    for name, entry in found["stages_ms"].items():
        shown.add_row(name, *times(entry))
    return Group(title, shown, note)
