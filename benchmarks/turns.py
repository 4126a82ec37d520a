"""Rows of a suite take turns in a process of their own; pytest-benchmark is then told what they took.

By itself pytest-benchmark finishes one benchmark before it begins the next, and a machine whose speed wanders makes one
of two equals the faster. So the rows of a group are measured together, by `rsd_edge.bench.timing.take_turns`, when the
first of them is due. What they took is then played to pytest-benchmark, second by second, through REPLAYED: a clock
that moves by nothing else. Its statistics, files and comparisons are those of the very seconds measured, and each
benchmark in its files names that clock as its timer.

The process is a new one for each group: peak memory is that of the rows, and OpenVINO, which has crashed beside torch,
never meets it. What a process needs must be importable there, hence the modules *_runs.py beside the suites.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsd_edge.bench.memory import in_own_process, peak_megabytes
from rsd_edge.bench.timing import Effort, Run, Times, take_turns

COLUMNS = ("p50_ms", "p90_ms", "p99_ms", "runs", "frames_per_s", "gflop_per_s", "gb_per_s", "of_peak", "peak_mb")
"""Of a row, in the terminal's table. gflop counts operations of INT8, too."""


@dataclass(frozen=True)
class Job:
    """Something to run, and what one run of it is."""

    run: Run
    operations: float | None = None
    moved: float | None = None
    """Bytes read or written, each once; of what computes next to nothing, and then without operations."""
    peak: str | None = None
    """What the machine does at best of that kind, by its name in `rsd_edge.bench.peaks`."""
    threads: int = 1
    """Of the peak."""
    frames: int = 0
    """0 for what makes none."""


@dataclass(frozen=True)
class Row:
    """How to open a job; `make` and its arguments go to another process."""

    make: Callable[..., Job]
    arguments: tuple[Any, ...] = ()
    needs: str = ""
    """A package that may be missing."""
    memory: bool = True
    """Its memory is that of the process that runs it, and can be asked for."""


@dataclass(frozen=True)
class Group:
    """Rows that are compared with each other."""

    rows: Mapping[str, Row]
    burst: int = 1
    """Runs in a turn, after as many that do not count: several of what is over before sleeping threads are back."""
    once: bool = False
    """One run of each, without a warm-up: for what takes long."""


@dataclass(frozen=True)
class Measured:
    """What came out for one row."""

    job: Job
    times: Times
    best: float | None
    """Billions a second of the peak that it is held against, measured in the same turns."""
    warm_up: int
    """Runs that do not count, in each turn; in the first alone where one takes more than a second."""

    def fields(self) -> dict[str, Any]:
        """For the report, as far as they mean something: rates are those of the median run."""
        summary, job = self.times.summary(), self.job
        found: dict[str, Any] = {"p50_ms": summary["median"], "p90_ms": summary["p90"], "p99_ms": summary["p99"]}
        found |= {"runs": len(self.times.seconds), "warm_up_runs": self.warm_up}
        if job.frames:
            found["frames_per_s"] = job.frames / self.times.median
        for name, amount in (("gflop", job.operations), ("gb", job.moved)):
            if amount is not None:
                found |= {name: amount / 1e9, f"{name}_per_s": (rate := amount / 1e9 / self.times.median)}
                if self.best is not None:
                    found |= {"peak": job.peak, "peak_per_s": self.best, "of_peak": rate / self.best}
        return found


def measure(rows: Mapping[str, Row], effort: Effort, *, warm_up: int = 1, runs: int = 1) -> dict[str, Measured]:
    """All rows in turns, in a new process. warm_up, runs: of each turn, see `take_turns`.

    Raises what opening or running one of them raises, and ProcessLostError if the process is killed.
    """
    with tempfile.TemporaryDirectory() as folder:
        return in_own_process(_measure, dict(rows), effort, warm_up, runs, folder)


def peak_memory(row: Row) -> int | None:
    """See `peak_megabytes`."""
    with tempfile.TemporaryDirectory() as folder:
        return peak_megabytes(_run_of, row, folder)


def _open(row: Row, folder: str) -> Job:
    tempfile.tempdir = folder  # emptied by the other process: this one is ended without further ado
    return row.make(*row.arguments)


def _run_of(row: Row, folder: str) -> Run:
    return _open(row, folder).run


def _measure(rows: dict[str, Row], effort: Effort, warm_up: int, runs: int, folder: str) -> dict[str, Measured]:
    from rsd_edge.bench.peaks import peaks  # the kernels' suite shares this module, and runs without ONNX Runtime

    jobs = {label: _open(row, folder) for label, row in rows.items()}
    wanted = {(job.peak, job.threads) for job in jobs.values() if job.peak is not None}
    at_best = {threads: peaks(threads) for threads in {threads for _, threads in wanted}}
    beside = {(name, threads): at_best[threads][name] for name, threads in wanted}
    subjects: dict[str | tuple[str, int], Run] = {label: job.run for label, job in jobs.items()}
    subjects |= {key: peak.run for key, peak in beside.items()}
    times = take_turns(subjects, effort, warm_up=warm_up, runs=runs)
    # The fastest run: nothing can make a peak look better than it is.
    best: dict[Any, float] = {key: peak.rate(min(times[key].seconds)) for key, peak in beside.items()}
    return {
        label: Measured(_without_run(job), times[label], best.get((job.peak, job.threads)), warm_up)
        for label, job in jobs.items()
    }


def _without_run(job: Job) -> Job:
    """Runs hold engines, which do not travel."""
    return Job(_nothing, job.operations, job.moved, job.peak, job.threads, job.frames)


def _nothing() -> None: ...


class Replay:
    """A clock that moves only by seconds that were measured before."""

    __name__ = "replayed"

    def __init__(self) -> None:
        self._now = 0.0

    def __call__(self) -> float:
        return self._now

    def play(self, benchmark: Any, seconds: tuple[float, ...]) -> None:
        """Let pytest-benchmark take one round for each of them."""
        left: Iterator[float] = iter(seconds)

        def turn_back() -> None:
            self._now = 0.0  # so that no second is rounded by those before it

        def pass_time() -> None:
            self._now += next(left)

        benchmark.pedantic(pass_time, setup=turn_back, rounds=len(seconds))


REPLAYED = Replay()


def table(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines of the terminal's table, by the names of benchmarks."""
    width = max(map(len, rows))
    lines = [" ".join([f"{'name':{width}}", *(f"{column:>12}" for column in COLUMNS), " peak"])]
    for name, info in rows.items():
        cells = ("-" if info.get(column) is None else f"{info[column]:.4g}" for column in COLUMNS)
        lines.append(" ".join([f"{name:{width}}", *(f"{cell:>12}" for cell in cells), f" {info.get('peak', '-')}"]))
    return lines


def scratch() -> Path:
    """A new folder, removed after the measuring."""
    return Path(tempfile.mkdtemp())
