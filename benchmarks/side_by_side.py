"""The published networks, the edge models and what people use today: one tile and one frame of each, in one run.

    python benchmarks/side_by_side.py --peer realesr-general-x4v3.ncnn.param \\
        --json benchmarks/reports/side-by-side.json

Everything runs in a process of its own and takes its turn in every round, the published networks in the first
`--slow-rounds` of them, since a frame of theirs takes minutes. Their weights are random. A tile is an engine alone; a
frame goes through the whole path of `rsd-edge run` but for files. The peer's tile is its network, its frame whole.

A turn is a burst: runs that warm up what rested while others had their turns, then runs that count (BURSTS). The median
of those is the turn's time, and the figures are those of the turns; the file has the seconds of every run that counted.
On two cores all of it takes about 24 minutes, 17 of which are frames of the published networks.

- `as published`: torch as the published code does it: attention masks made on every call, scores formed, plain layout.
- `torch`, `torch bf16`: `rsd-edge run --model`. `openvino bf16`: the graphs of `rsd-edge build-engine` in OpenVINO.

Quality is no part of it: other weights of the same graphs change no time. `tables.py` adds it from `score_engine.py`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import click
from origin import origin
from processes import Subject, Workers
from published_networks import WHOLE, make_graphs
from side_by_side_runs import (
    FRAME,
    SIDE,
    SIZE,
    TILE,
    bicubic_runs,
    checkpoint_runs,
    edge_runs,
    ncnn_runs,
    openvino_runs,
    peak_runs,
)  # fmt: skip

from rsd_edge.bench import environment
from rsd_edge.bench.cost import convolution_flops
from rsd_edge.bench.peaks import convolution_peak
from rsd_edge.bench.peer import peer_name
from rsd_edge.bench.quality import BICUBIC
from rsd_edge.bench.subjects import Wish
from rsd_edge.bench.timing import Times
from rsd_edge.bundle import resolve_engine, shipped_engines, shipped_precisions
from rsd_edge.specs import Backend, Precision
from rsd_edge.stream.atomic import check_target, make_folder, write_json

PEAK = "peak"
PUBLISHED = "full network as published"
FULL = "full network"


@dataclass(frozen=True)
class Method:
    """Something to compare."""

    subject: Subject
    gflop: float | None = None
    """Of a 64x64 tile."""
    precision: str | None = None
    """Whose peak it is held against."""
    slow: bool = False


def methods(gflop: float, peer: Path | None) -> Iterator[tuple[str, Method]]:
    """All of them by name. gflop: of the full networks."""
    for name, options in (
        (PUBLISHED, {"published": True}),
        (f"{FULL}, torch", {}),
        (f"{FULL}, torch bf16", {"precision": Precision.BF16}),
    ):
        yield name, Method(Subject(checkpoint_runs, options), gflop, "fp32", slow=True)
    yield f"{FULL}, openvino bf16", Method(Subject(openvino_runs), gflop, "fp32", slow=True)
    for model in shipped_engines():
        for precision in shipped_precisions(model):
            bundle = resolve_engine(model, precision)
            work = convolution_flops(bundle.graph_path, 1, SIDE, SIDE) / 1e9
            for backend in (Backend.ONNXRUNTIME, Backend.OPENVINO):
                subject = Subject(edge_runs, {"wish": Wish(model, precision.value, backend.value)})
                label = f"{model} {precision.value} {backend.value}"
                yield label, Method(subject, work, precision.value)
    if peer is not None:
        yield f"{peer_name(peer)} ncnn", Method(Subject(ncnn_runs, {"param": peer}))
    yield BICUBIC, Method(Subject(bicubic_runs))


@dataclass(frozen=True)
class Goal:
    """What was wanted, and what came out."""

    name: str
    wanted: float
    measured: float
    by: str
    """The row that was measured, of several the best."""

    @property
    def met(self) -> bool:
        """At least what was wanted."""
        return self.measured >= self.wanted


def goals(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[Goal]:
    """Of the faster runtime of each engine."""

    def fastest(start: str, part: str) -> tuple[str, float]:
        medians = {name: row[part]["median"] for name, row in rows.items() if name.startswith(start)}
        return min(medians.items(), key=lambda found: found[1])

    for part in (TILE, FRAME):
        by, edge = fastest("edge-s int8", part)
        as_they_were = rows[PUBLISHED][part]["median"]
        yield Goal(f"edge-s int8 against the full network as published, {part}", 300, as_they_were / edge, by)
        optimised = fastest(f"{FULL},", part)[1]
        yield Goal(f"edge-s int8 against the full network at its fastest, {part}", 100, optimised / edge, by)
    for model in shipped_engines():
        for precision, wanted in (("fp32", 0.8), ("int8", 0.6)):
            by, _ = fastest(f"{model} {precision}", TILE)
            share = rows[by]["share_of_peak"]
            yield Goal(f"{model} {precision}, share of the convolutions' peak, tile", wanted, share, by)


@dataclass(frozen=True)
class Burst:
    """Runs of one thing in one turn."""

    warm_up: int
    """That do not count."""
    runs: int
    """That do."""


BURSTS = {
    (TILE, False): Burst(5, 5),  # a few milliseconds each, so that threads that slept are hardly awake after the first
    (FRAME, False): Burst(1, 3),
    (TILE, True): Burst(1, 3),  # seconds each: the first brings back what other processes pushed out of memory
    (FRAME, True): Burst(0, 1),  # minutes: its first tile of 24 warms up what its tile has not
}
"""By what is run and whether it is slow."""

Turns = list[list[float]]
"""Seconds of the runs of each turn."""


def take_turns(
    compared: Mapping[str, Method], workers: Workers, rounds: int, slow_rounds: int
) -> dict[tuple[str, str], Turns]:
    """By subject and what was run."""
    taken: dict[tuple[str, str], Turns] = {}
    for turn in range(rounds):
        for subject, runs in workers.runs.items():
            slow = subject != PEAK and compared[subject].slow
            if slow and turn >= slow_rounds:
                continue
            for run in runs:
                burst = burst_of(subject, run, slow=slow)
                seconds = workers.seconds(subject, run, warm_up=burst.warm_up, runs=burst.runs)
                taken.setdefault((subject, run), []).append(seconds)
                click.echo(f"round {turn + 1}: {subject}, {run}: {1e3 * Times(tuple(seconds)).median:.2f} ms")
    return taken


def burst_of(subject: str, run: str, *, slow: bool) -> Burst:
    """A peak is as short as a tile."""
    return BURSTS[TILE if subject == PEAK else run, slow]


def summary(turns: Turns, burst: Burst) -> dict[str, Any]:
    """Milliseconds as in `Times.summary`, of all runs that count; and all that they come from."""
    figures: dict[str, Any] = {**Times(tuple(chain.from_iterable(turns))).summary()}
    return figures | {"rounds": len(turns), "warm_up_runs": burst.warm_up, "seconds": turns}


def measure(
    compared: Mapping[str, Method], threads: int, rounds: int, slow_rounds: int, folder: Path
) -> dict[str, Any]:
    """Rows by method, the peaks and the goals."""
    subjects = {name: method.subject for name, method in compared.items()} | {PEAK: Subject(peak_runs)}
    workers = Workers(subjects, threads, folder)
    taken = take_turns(compared, workers, rounds, slow_rounds)
    of_peaks = {name: taken[PEAK, name] for name in workers.runs[PEAK]}
    peaks = {
        # The fastest run: nothing can make a peak look better than it is.
        name: convolution_peak(threads, integer=name == "int8")[1] / min(map(min, turns)) / 1e9
        for name, turns in of_peaks.items()
    }
    rows = {}
    for name, method in compared.items():
        row: dict[str, Any] = {
            run: summary(taken[name, run], burst_of(name, run, slow=method.slow)) for run in (TILE, FRAME)
        }
        if method.gflop is not None and method.precision is not None:
            rate = 1e3 * method.gflop / row[TILE]["median"]
            row |= {"gflop": method.gflop, "gflop_per_s": rate, "share_of_peak": rate / peaks[method.precision]}
        rows[name] = row
    return {
        "peaks": peaks,
        "peak_seconds": of_peaks,
        "rows": rows,
        "goals": [{**asdict(goal), "met": goal.met} for goal in goals(rows)],
    }


@click.command()
@click.option("--peer", type=click.Path(path_type=Path, exists=True), help="A .param of ncnn with its .bin beside it.")
@click.option("--threads", default=2, show_default=True)
@click.option("--rounds", default=10, show_default=True)
@click.option("--slow-rounds", default=2, show_default=True, help="Of the published networks.")
@click.option("--json", "json_path", required=True, type=click.Path(path_type=Path))
def main(peer: Path | None, threads: int, rounds: int, slow_rounds: int, json_path: Path) -> None:
    """Measure, print and store."""
    make_folder(json_path.parent)
    check_target(json_path)
    about = {**origin(), "load": {"before": environment.load()}}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        compared = dict(methods(make_graphs(threads, folder)[WHOLE], peer))
        document = {
            **about,
            "threads": threads,
            "tile": f"{SIDE}x{SIDE}",
            "frame": "x".join(map(str, SIZE)),
            **measure(compared, threads, rounds, slow_rounds, folder),
        }
    for goal in document["goals"]:
        click.echo(f"{'met' if goal['met'] else 'MISSED'}: {goal['name']}: {goal['measured']:.3g}, {goal['wanted']:g}")
    write_json(json_path, document)


if __name__ == "__main__":
    main()
