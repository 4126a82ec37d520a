"""One run of `rsd-edge bench`: everything measured in turns, and put into one document."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rsd_edge.bench import environment
from rsd_edge.bench.latency import LatencyModel, Measured, fit
from rsd_edge.bench.memory import METHOD, ProcessLostError, peak_megabytes
from rsd_edge.bench.opening import (
    FRAME,
    PEAK,
    PEER,
    POINT,
    TILE,
    BenchSettings,
    Opened,
    Progress,
    can_count,
    open_all,
    settle,
    tile_of,
)
from rsd_edge.bench.others import Watch, disturbance, load
from rsd_edge.bench.peer import GENERAL, open_peer, scores_of_peer
from rsd_edge.bench.quality import SET, scores_of
from rsd_edge.bench.reading import FORMAT, MADE_BY
from rsd_edge.bench.stages import breakdowns
from rsd_edge.bench.subjects import Subject, load_and_run
from rsd_edge.bench.timing import PAUSE_SECONDS, WARM_UP, Times, take_turns
from rsd_edge.machine import usable_cores

_BREAKDOWN_ROUNDS = 7

Row = dict[str, Any]


def measure(
    settings: BenchSettings,
    command: str,
    progress: Progress = lambda *_: None,
    accept: Callable[[Mapping[str, Any]], Any] = lambda known: None,
) -> dict[str, Any]:
    """The document of a run, ready for JSON.

    command: how to do it again. accept: called with the parts of the document that are known before the measuring,
    machine and engines; what it raises ends the run.
    Raises what loading an engine or a peer raises, and InputError for engines that cannot be told apart.
    """
    began, average = datetime.now(timezone.utc), environment.load()
    subjects = settle(settings)
    known = {
        "machine": environment.machine(),
        "engines": {subject.label: subject.record for subject in subjects},
    }
    accept(known)
    with ExitStack() as stack:
        opened = open_all(settings, subjects, stack, progress)
        by_rounds = math.isinf(settings.effort.seconds)
        total = settings.effort.rounds * len(opened.turns) if by_rounds else 0
        runs = {name: turn.run for name, turn in opened.turns.items()}
        watch = Watch()
        times = take_turns(runs, settings.effort, progress=lambda turns: progress("measuring", turns, total))
        found_load = load(average, watch)
        rows = {kind: _rows(opened, times, kind) for kind in (FRAME, TILE, PEER, PEAK, POINT)}
        latency = {subject.label: _latency(opened, times, subject) for subject in subjects if subject.is_graph}
        progress("stages of a frame", 0, 0)
        stages = _stages(opened, settings)
    _rate(rows, opened, times, subjects)
    frames = rows[FRAME] + rows[PEER]
    lost = _add_memory(frames, subjects, settings.peers, progress) if settings.memory else []
    return {
        "format": FORMAT,
        "made_by": MADE_BY,
        "date": began.isoformat(timespec="seconds"),
        "command": command,
        **known,
        "load": found_load,
        "versions": environment.versions(),
        "effort": {
            "rounds": settings.effort.rounds,
            "seconds": None if by_rounds else settings.effort.seconds,
            "warm_up_runs": WARM_UP,
            "pause_ms": 1e3 * PAUSE_SECONDS,
        },
        "memory_method": METHOD if settings.memory else None,
        "frames": frames,
        "tiles": rows[TILE],
        "peaks": rows[PEAK],
        "points": rows[POINT],
        "stages": stages,
        "quality": _quality(subjects, settings.peers),
        "latency": {label: model.to_json() for label, model in latency.items()},
        "notes": [*notes(settings), *disturbed(found_load, max(settings.threads)), *lost],
    }


def _rows(opened: Opened, times: Mapping[str, Times], kind: str) -> list[Row]:
    """What was timed, with every run, so that a later report can be compared with this one."""
    return [
        {"name": name, **turn.row, "ms": times[name].summary(), "seconds": list(times[name].seconds)}
        for name, turn in opened.of_kind(kind).items()
    ]


def _rate(
    rows: Mapping[str, list[Row]], opened: Opened, times: Mapping[str, Times], subjects: Sequence[Subject]
) -> None:
    """Frames and operations a second, and the share of the peak that the machine had on as many threads."""
    best: dict[tuple[str, int], float] = {}
    for row in rows[PEAK]:
        # The fastest run: a peak is what the machine can do, and nothing can make it look better than it is.
        row["rate"] = round(opened.peaks[row["name"]].rate(min(times[row["name"]].seconds)), 2)
        best[row["peak"], row["threads"]] = row["rate"]
    held_against = {subject.label: subject.peak for subject in subjects}
    for row in (*rows[FRAME], *rows[TILE], *rows[PEER]):
        seconds = times[row["name"]].median
        row["per_second"] = round(1 / seconds, 3)
        if (operations := row.pop("operations", None)) is not None:
            row |= {"gflop": round(operations / 1e9, 4), "gflop_per_s": round(operations / 1e9 / seconds, 2)}
            peak = best.get((held_against[row["engine"]] or "", row["threads"]))
            row["share_of_peak"] = None if peak is None else round(row["gflop_per_s"] / peak, 4)


def _latency(opened: Opened, times: Mapping[str, Times], subject: Subject) -> LatencyModel:
    """Fitted to the points, and held against the frames that were asked for, which it never saw."""
    measured: dict[str, list[Measured]] = {FRAME: [], POINT: []}
    for kind, found in measured.items():
        for name, turn in opened.of_kind(kind).items():
            row = turn.row
            if row["engine"] == subject.label:
                found.append(Measured(row["width"], row["height"], tile_of(turn), row["threads"], times[name]))
    return fit(measured[POINT]).checked(measured[FRAME])


def _stages(opened: Opened, settings: BenchSettings) -> dict[str, dict[str, float]]:
    """Of frames on the largest number of threads; those of checkpoints take too long to be run again."""
    frames = {
        name: (turn.resolver.engine, turn.run)
        for name, turn in opened.of_kind(FRAME).items()
        if turn.resolver is not None and turn.row["threads"] == max(settings.threads) and turn.resolver.choice
    }
    return breakdowns(frames, min(settings.effort.rounds, _BREAKDOWN_ROUNDS))


def _add_memory(
    frames: Sequence[Row], subjects: Sequence[Subject], peers: Mapping[str, Path | None], progress: Progress
) -> list[str]:
    """What is to be said of rows that have none."""
    wishes = {subject.label: subject.wish for subject in subjects}
    lost = []
    for done, row in enumerate(frames):
        progress("memory", done, len(frames))
        size = (row["width"], row["height"], row["threads"])
        make, what = (open_peer, peers) if row.get("peer") else (load_and_run, wishes)
        try:
            row["peak_mb"] = peak_megabytes(make, what[row["engine"]], *size)
        except ProcessLostError as error:
            row["peak_mb"] = None
            lost.append(f"the memory of {row['name']} is not known: {error}")
    return lost


def _quality(subjects: Sequence[Subject], peers: Mapping[str, Path | None]) -> dict[str, Any]:
    scores = {subject.label: scores_of(subject.bundle) for subject in subjects if subject.bundle is not None}
    scores |= {name: scores_of_peer(path) for name, path in peers.items()}
    return {"set": SET, "scores": {name: found for name, found in scores.items() if found is not None}}


def disturbed(found_load: Mapping[str, Any], threads: int) -> Iterator[str]:
    """What to say of other programs that were at work meanwhile. threads: the most that were measured."""
    if (busy := disturbance(found_load, threads)) is not None:
        yield (
            f"{busy} while this was measured: times are longer than on a machine at rest, and will differ next time; "
            "end what else runs here, then measure again"
        )


def notes(settings: BenchSettings) -> Iterator[str]:
    """What is left out or says little, and the cure."""
    if (most := max(settings.threads)) > (cores := usable_cores()):
        yield (
            f"{most} threads share {cores} cores: they wait for each other, and times are of no use; give --threads "
            f"{cores} at most"
        )
    if not can_count():
        yield (
            "operations are not counted and the processor's peaks not measured, because 'onnx' is missing; run: "
            "pip install 'rsd-edge[bench]'"
        )
    if settings.peers and GENERAL not in settings.peers:
        yield f"{GENERAL} is not measured: give its ncnn files with --peer-file {GENERAL}.param"
