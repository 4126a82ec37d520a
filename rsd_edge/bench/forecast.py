"""How many frames a second to expect on this machine: from the last report of `rsd-edge bench`, or measured quickly.

Nothing is said without a measurement made here, with the engine and the versions that would run now.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from rsd_edge.bench import environment
from rsd_edge.bench.calibration import Point, grid
from rsd_edge.bench.latency import FEW_TERMS, LatencyModel, Measured, features, fit
from rsd_edge.bench.reading import read_report
from rsd_edge.bench.subjects import Subject, Wish, frame_run
from rsd_edge.bench.timing import LEAST_ROUNDS, Effort, Run, take_turns, time_runs
from rsd_edge.errors import InputError, OutputError
from rsd_edge.machine import cache_folder, usable_cores
from rsd_edge.resolver import SuperResolver
from rsd_edge.specs import TileSpec
from rsd_edge.stream.atomic import make_folder, write_json

log = logging.getLogger(__name__)

USUAL_SIZES = ((160, 90), (320, 180), (480, 270), (640, 360), (960, 540))
BUDGET_SECONDS = 2.0
"""Of a quick calibration, besides loading."""
_PLANS = (((2, 3, 5), 8), ((2, 3), 4), ((1, 2), 3))
"""Points of `grid` to fit to, and one to hold out, from the dearest plan to the cheapest."""
_FIXED_PLAN = ((0, 2), 1)
"""Of a fixed tile, whose frames cost what their number of tiles costs."""
_FIRST = 2
"""The point that tells how quick the machine is."""


def keep_report(document: Mapping[str, Any]) -> None:
    """Remember a report for `forecast`; without a home or room to write, the next one measures instead."""
    try:
        for label in document["latency"]:
            path = _kept(document["engines"][label])
            make_folder(path.parent)
            write_json(path, document)
    except (RuntimeError, OutputError) as error:
        log.info("the report cannot be kept for the forecast of 'rsd-edge doctor' (%s)", error)


def forecast(model: str = "edge-s", threads: int | None = None) -> dict[str, Any]:
    """Frames a second at USUAL_SIZES with what `rsd-edge run` would choose, ready for JSON.

    `source` says where the numbers come from and `error` by what share runs were off that the fit never saw.
    Raises what loading the engine raises.
    """
    count = threads or usable_cores()
    subject = Subject.of(Wish(model), count)
    source, fitted = _from_report(subject, count)
    if fitted is None:
        began = time.perf_counter()
        fitted = calibrate(subject, count)
        source = f"measured just now in {time.perf_counter() - began:.1f} s{source}"
    return {
        "engine": subject.label,
        "threads": count,
        "source": source,
        "error": fitted.error_of_runs,
        "held_out": [row.name for row in fitted.held_out],
        "load": environment.load(),
        "fps": {f"{w}x{h}": float(f"{1 / fitted.predict(w, h, subject.tile, count):.3g}") for w, h in USUAL_SIZES},
    }


def calibrate(subject: Subject, threads: int) -> LatencyModel:
    """A few small frames, as many as the budget allows on this machine, and one more to tell the error by."""
    points = grid(subject.tile)
    with ExitStack() as stack:
        resolvers: dict[Point, SuperResolver] = {}

        def run_of(point: Point) -> Run:
            resolvers[point] = stack.enter_context(replace(subject.wish, tile=point.tile).load(threads))
            return frame_run(resolvers[point], point.width, point.height)

        first = run_of(points[_FIRST])
        places, held = choose_plan(subject.tile, min(time_runs(first, 3)))
        chosen = [points[place] for place in (*places, held)]
        runs = {point: first if point == points[_FIRST] else run_of(point) for point in chosen}
        effort = Effort(seconds=BUDGET_SECONDS / 2)
        times = take_turns({str(point): run for point, run in runs.items()}, effort)
        rows = [Measured(p.width, p.height, resolvers[p].engine.tile, threads, times[str(p)]) for p in chosen]
    return fit(rows[:-1], FEW_TERMS).checked(rows[-1:])


def choose_plan(tile: TileSpec, seconds: float) -> tuple[tuple[int, ...], int]:
    """The richest plan that fits into the budget, or the poorest. seconds: that the point _FIRST takes."""
    if tile.fixed:
        return _FIXED_PLAN
    points = grid(tile)

    def cost(plan: tuple[tuple[int, ...], int]) -> float:
        pixels = [_pixels(points[place], tile) for place in (*plan[0], plan[1])]
        return seconds * sum(pixels) / _pixels(points[_FIRST], tile) * (1 + 2 * LEAST_ROUNDS)

    return next((plan for plan in _PLANS if cost(plan) <= BUDGET_SECONDS), _PLANS[-1])


def _pixels(point: Point, tile: TileSpec) -> float:
    cut = TileSpec(point.tile, tile.halo, tile.feather, tile.multiple_of)
    return features(point.width, point.height, cut)["per_tile_pixel"]


def _from_report(subject: Subject, threads: int) -> tuple[str, LatencyModel | None]:
    """What the last report says of this engine here; or none, and why not if there is one."""
    try:
        path = _kept(subject.record)
        if not path.is_file():
            return "", None
        kept = read_report(path)
        fitted = LatencyModel.from_json(kept["latency"][subject.label])
        reason = _outdated(kept, subject, threads, fitted)
    except (InputError, RuntimeError, KeyError, TypeError, ValueError):
        return "; the last report of 'rsd-edge bench' cannot be read", None
    if reason:
        return f"; the last report of 'rsd-edge bench' is not used: {reason}", None
    return f"report of 'rsd-edge bench' of {kept['date']}", fitted


def _outdated(kept: Mapping[str, Any], subject: Subject, threads: int, fitted: LatencyModel) -> str:
    here = environment.machine()
    changed = [name for name in environment.SAME if kept["machine"].get(name) != here[name]]
    if changed:
        return f"{', '.join(changed)} changed"
    if kept["engines"][subject.label]["tile"] != subject.tile.size:
        return "it was made with other tiles"
    if kept["versions"] != environment.versions():
        return "versions changed"
    if fitted.error is None or threads not in fitted.seconds:
        return f"it has nothing on {threads} threads"
    return ""


def _kept(record: Mapping[str, Any]) -> Path:
    """The last report that has an engine, by its record."""
    return cache_folder() / f"bench-{record['digest'][:16]}-{record['backend']}.json"
