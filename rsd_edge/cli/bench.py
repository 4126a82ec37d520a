"""`rsd-edge bench`: how fast engines are here, beside what the machine could do, for people and for programs."""

from __future__ import annotations

import math
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rsd_edge.bench.compare import LEAST_RUNS, Comparison, check_comparable, compare
from rsd_edge.bench.kept import keep_report
from rsd_edge.bench.opening import BenchSettings
from rsd_edge.bench.page import missing_for_html, to_html
from rsd_edge.bench.peer import peers_of
from rsd_edge.bench.reading import read_report
from rsd_edge.bench.report import to_markdown
from rsd_edge.bench.session import disturbed, measure, notes
from rsd_edge.bench.subjects import Wish
from rsd_edge.bench.timing import LEAST_ROUNDS, Effort
from rsd_edge.cli import SLOWER
from rsd_edge.cli.paths import GivenPath
from rsd_edge.cli.reports import check_report, write_report
from rsd_edge.errors import InputError, RsdEdgeError
from rsd_edge.machine import usable_cores
from rsd_edge.specs import Backend, Precision
from rsd_edge.stream.atomic import atomic_file, check_writable, make_folder, write_json
from rsd_edge.stream.images import MAX_PIXELS

_DEFAULT_ROUNDS = 15
_MOST_ROUNDS = 10_000
_PATIENCE_SECONDS = 60.0


def _parse_sizes(_context: click.Context, _option: click.Parameter, text: str) -> tuple[tuple[int, int], ...]:
    found = [re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", part.strip().lower()) for part in text.split(",")]
    if not all(found):
        raise click.BadParameter(f"'{text}' is not a list of WxH, such as 160x90,320x180.")
    sizes = tuple(dict.fromkeys((int(match[1]), int(match[2])) for match in found if match))
    for width, height in sizes:
        if width * height > MAX_PIXELS:
            raise click.BadParameter(f"{width}x{height} has more than {MAX_PIXELS} pixels; give smaller frames.")
    return sizes


def _parse_threads(_context: click.Context, _option: click.Parameter, text: str | None) -> tuple[int, ...]:
    """Each number once; one and all cores if none is given."""
    if text is None:
        return tuple(dict.fromkeys((1, usable_cores())))
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"[1-9]\d{0,2}", part) for part in parts):
        raise click.BadParameter(f"'{text}' is not a list of numbers of threads, such as 1,2,4.")
    return tuple(dict.fromkeys(map(int, parts)))


class _Finite(click.FloatRange):
    """Neither nan nor inf, which click takes for numbers within a range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


@click.command("bench")
@click.option(
    "--model",
    "--engine",
    "models",
    multiple=True,
    default=("edge-s",),
    show_default=True,
    metavar="NAME|BUNDLE|FILE",
    help="Shipped model, bundle or checkpoint; may be repeated.",
)
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice([precision.value for precision in Precision]),
    help="May be repeated; what `run` would choose if not given.",
)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    type=click.Choice([backend.value for backend in Backend]),
    help="May be repeated; what `run` would choose if not given.",
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Of a checkpoint on torch; cpu if not given.")
@click.option(
    "--sizes",
    default="160x90,320x180,640x360",
    show_default=True,
    metavar="WxH,...",
    callback=_parse_sizes,
    help="Of input frames.",
)
@click.option("--tile", type=int, help="Side of a tile in input pixels, halo included.")
@click.option("--threads", metavar="N,...", callback=_parse_threads, help="CPU threads; 1 and all cores if not given.")
@click.option(
    "--rounds",
    type=click.IntRange(LEAST_ROUNDS),
    help=f"Turns of everything; {_DEFAULT_ROUNDS} if not given, {LEAST_RUNS} or more for --compare.",
)
@click.option("--seconds", type=_Finite(0, min_open=True), help="Rounds for so long, instead of --rounds.")
@click.option("--peers", is_flag=True, help="Bicubic, and the models of --peer-file, in the same turns.")
@click.option(
    "--peer-file",
    "peer_files",
    multiple=True,
    type=GivenPath(path_type=Path),
    metavar="FILE",
    help="A .param of ncnn with its .bin beside it, such as realesr-general-x4v3.param, or a .safetensors of "
    "import-weights; may be repeated; implies --peers.",
)
@click.option("--no-memory", is_flag=True, help="Leave out peak memory, which loads everything once more.")
@click.option("-o", "--output", metavar="DIR", type=GivenPath(path_type=Path), help="For report.json, .md and .html.")
@click.option(
    "--html/--no-html", "html", default=None, help="Fail without the packages that report.html needs; or leave it out."
)
@click.option(
    "--json", "json_path", metavar="FILE", type=GivenPath(path_type=Path), help="The report as JSON; - for stdout."
)
@click.option(
    "--compare", "old_path", metavar="OLD.json", type=GivenPath(path_type=Path), help="Exit with 3 if a row is slower."
)
@click.option(
    "--threshold",
    default=5.0,
    show_default=True,
    type=_Finite(0),
    metavar="PERCENT",
    help="By which a row may be slower.",
)
@click.option("--force", is_flag=True, help="Compare reports of different machines, models or precisions.")
@click.option(
    "--from",
    "from_path",
    metavar="REPORT.json",
    type=GivenPath(path_type=Path),
    help="Report on this run instead of measuring.",
)
@click.pass_context
def command(
    context: click.Context,
    /,
    output: Path | None,
    html: bool | None,
    json_path: Path | None,
    old_path: Path | None,
    threshold: float,
    force: bool,
    from_path: Path | None,
    **options: Any,
) -> int:
    """Measure engines on this machine: latency by size, stages, threads, memory, and the share of the machine's peak.

    Everything takes its turn in every round, so that all of it sees the same machine. Without -o and --json the report
    goes to stdout, as Markdown. With --compare, the exit code is 3 if a row is slower than --threshold allows with all
    of its confidence interval.
    """
    _check_idle(context, options, measures=from_path is None, compares=old_path is not None)
    old = None if old_path is None else read_report(old_path)
    _check_output(output, html, json_path)
    if from_path is None:
        settings = _settings(**options)
        if old is not None and settings.effort.rounds < LEAST_RUNS:
            raise InputError(f"--compare judges rows of {LEAST_RUNS} runs or more; give --rounds {LEAST_RUNS} at least")
        _tell(notes(settings))

        def accept(known: Mapping[str, Any]) -> None:
            if old is not None:
                with _from_files(old_path):
                    check_comparable(old, known, force=force)

        with _Display() as display:
            document = measure(settings, shlex.join(["rsd-edge", *(context.obj or [])]), display.show, accept)
        _tell(disturbed(document["load"], max(settings.threads)))
        _tell(keep_report(document))
    else:
        document = read_report(from_path)
        document.pop("comparison", None)  # with what it was compared with then, by the rules of then
    with _from_files(old_path, from_path):
        comparison = None if old is None else compare(old, document, threshold / 100, force=force)
        _write(document, comparison, output, html, json_path)
    if comparison and not any(change.judged for change in comparison.changes):
        raise InputError(
            f"nothing could be judged: no engine's row is in both reports with {LEAST_RUNS} runs or more; measure the "
            "same sizes and threads again, with more --rounds"
        )
    for change in comparison.slower if comparison else ():
        click.echo(
            f"slower: {change.name}: {change.ratio:.3f} times as long ({change.low:.3f} to {change.high:.3f})", err=True
        )
    return SLOWER if comparison and comparison.slower else 0


def _check_idle(context: click.Context, measuring: Iterable[str], *, measures: bool, compares: bool) -> None:
    """Raises InputError for options on the command line that would do nothing. measuring: those of `_settings`."""
    flags = {option.name: option.opts[0] for option in context.command.params}
    given = {name for name in flags if context.get_parameter_source(name or "") is ParameterSource.COMMANDLINE}
    if not measures and (idle := [flags[name] for name in measuring if name in given]):
        raise InputError(f"--from measures nothing, and {', '.join(idle)} would; leave one or the other out")
    if not compares and (idle := [flags[name] for name in ("threshold", "force") if name in given]):
        raise InputError(f"{', '.join(idle)}: for --compare, which is not given; leave it out")


def _tell(notes: Iterable[str]) -> None:
    for note in notes:
        click.echo(f"note: {note}", err=True)


@contextmanager
def _from_files(*paths: Path | None) -> Iterator[None]:
    """What a report of ours always has may be missing from one that was edited."""
    given = [str(path) for path in paths if path is not None]
    try:
        yield
    except RsdEdgeError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if not given:
            raise
        why = f"{type(error).__name__}: {error}"
        raise InputError(f"report {' or '.join(given)} is damaged ({why}); measure again") from error


def _settings(
    models: tuple[str, ...],
    precisions: tuple[str, ...],
    backends: tuple[str, ...],
    device: str | None,
    sizes: tuple[tuple[int, int], ...],
    tile: int | None,
    threads: tuple[int, ...],
    rounds: int | None,
    seconds: float | None,
    peers: bool,
    peer_files: tuple[Path, ...],
    no_memory: bool,
) -> BenchSettings:
    if rounds is not None and seconds is not None:
        raise InputError("--rounds and --seconds exclude each other; give one of them")
    wishes = tuple(
        Wish(model, precision, backend, device, tile)
        for model in models
        for precision in precisions or (None,)
        for backend in backends or (None,)
    )
    if seconds is None:
        effort = Effort(rounds or _DEFAULT_ROUNDS, patience=_PATIENCE_SECONDS)
    else:
        effort = Effort(_MOST_ROUNDS, seconds, _PATIENCE_SECONDS)
    beside = peers_of(peer_files) if peers or peer_files else {}
    return BenchSettings(wishes, sizes, threads, effort, beside, not no_memory)


def _check_output(output: Path | None, html: bool | None, json_path: Path | None) -> None:
    """What would fail after minutes of measuring fails now."""
    if html and output is None:
        raise InputError("--html has nowhere to go; add -o DIR")
    if output is not None and html is not False and (missing := missing_for_html()) is not None:
        if html:
            raise missing
        click.echo(f"no report.html: {missing}", err=True)
    if output is not None:
        check_writable(output)
    if json_path is not None:
        check_report(json_path)


def _write(
    document: dict[str, Any],
    comparison: Comparison | None,
    output: Path | None,
    html: bool | None,
    json_path: Path | None,
) -> None:
    full = {**document, **({"comparison": comparison.to_json()} if comparison else {})}
    markdown = to_markdown(document, comparison)
    if output is not None:
        # All of it is made before any of it is written.
        page = to_html(document, comparison) if html is not False and missing_for_html() is None else None
        make_folder(output)
        write_json(output / "report.json", full)
        _write_text(output / "report.md", markdown)
        if page is not None:
            _write_text(output / "report.html", page)
    if json_path is not None:
        write_report(json_path, full)
    elif output is None:
        click.echo(markdown, nl=False)
    else:
        click.echo(str(output))


def _write_text(path: Path, text: str) -> None:
    with atomic_file(path) as file:
        file.write(text.encode())


class _Display:
    """On a terminal, a bar with what is going on."""

    def __init__(self) -> None:
        terminal = sys.stderr.isatty()
        columns = (
            TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        )  # fmt: skip
        console = Console(stderr=True, force_terminal=terminal)
        self._bar = Progress(*columns, console=console, disable=not terminal, transient=True)
        self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> _Display:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, what: str, done: int, total: int) -> None:
        """See Progress in rsd_edge.bench.opening."""
        self._bar.update(self._task, description=what, completed=done, total=total or None)
