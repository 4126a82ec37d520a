"""How many frames a second to expect on this machine: from the last report of `rsd-edge bench`, or measured quickly.

Nothing is said without a measurement made here, with the engine and the versions that would run now.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from rsd_edge.bench import environment
from rsd_edge.bench.calibration import Point, grid
from rsd_edge.bench.kept import Kept, kept_path, outdated, read_kept
from rsd_edge.bench.latency import FEW_TERMS, LatencyModel, Measured, features, fit
from rsd_edge.bench.others import Watch, disturbance, glance
from rsd_edge.bench.subjects import Subject, Wish, frame_run
from rsd_edge.bench.timing import LEAST_ROUNDS, WARM_UP, Effort, Run, take_turns, time_runs
from rsd_edge.errors import InputError
from rsd_edge.machine import usable_cores
from rsd_edge.resolver import SuperResolver
from rsd_edge.specs import TileSpec

USUAL_SIZES = ((160, 90), (320, 180), (480, 270), (640, 360), (960, 540))
BUDGET_SECONDS = 4.0
"""Of a quick calibration, besides loading."""
_PLANS = (((2, 3, 5), 8), ((2, 5), 6), ((0, 3), 6))
"""Points of `grid` to fit to, and one to hold out, from the dearest plan to the cheapest. The largest tile of each has
nine times the pixels of its smallest, or so: between tiles of nearly one size, noise decides whether pixels cost
anything, and where they seem to cost nothing, the forecast is several times too good. The largest tile of all takes
part where there is time, because a pixel of it, beyond the caches, costs more."""
_FIXED_PLAN = ((0, 2), 1)
"""Of a fixed tile, whose frames cost what their number of tiles costs."""
_RUNS = 2
"""Of each point in a turn, after one that does not count."""
_QUANTILE = 0.25
"""Of the runs, for the fit. Other programs only ever add time, and with a handful of runs they move the median: the
lower quartile moves less. The very fastest run would move least, but on a machine at rest it promised a tenth more
frames than came."""
_FIRST = 2
"""The point that tells how quick the machine is."""


def forecast(model: str = "edge-s", threads: int | None = None) -> dict[str, Any]:
    """Frames a second at USUAL_SIZES with what `rsd-edge run` would choose, ready for JSON.

    `source` says where the numbers come from; `error` by what share of the measured time the computed one was off, on
    frames that the fit never saw (`held_out`); `warning` what other programs did to all that.
    Raises what loading the engine raises.
    """
    count = threads or usable_cores()
    subject = Subject.of(Wish(model), count)
    source, kept = _from_report(subject, count)
    if kept is not None:
        fitted = LatencyModel.from_json(kept["latency"])
        found_load = glance()
        warning = _warning_of_report(kept, found_load, count)
    else:
        average, watch, began = environment.load(), Watch(), time.perf_counter()
        fitted = calibrate(subject, count)
        source = f"measured just now in {time.perf_counter() - began:.1f} s{source}"
        found_load = {"before": average, "others": watch.others()}
        warning = _warning_of_now(found_load, count)
    return {
        "engine": subject.label,
        "threads": count,
        "source": source,
        "error": fitted.error_of_runs,
        "held_out": [row.name for row in fitted.held_out],
        "load": found_load,
        "warning": warning,
        "fps": {f"{w}x{h}": float(f"{1 / fitted.predict(w, h, subject.tile, count):.3g}") for w, h in USUAL_SIZES},
    }


def _warning_of_now(load: Mapping[str, Any], threads: int) -> str | None:
    busy = disturbance(load, threads)
    return busy and (
        f"{busy} while this was measured: the rates are too low, maybe several times, and will differ next time; end "
        "what else runs here, then call this again"
    )


def _warning_of_report(kept: Kept, now: Mapping[str, Any], threads: int) -> str | None:
    if (busy := disturbance(kept["load"], threads)) is not None:
        return (
            f"{busy} while the report was measured: its rates are too low; end what else runs here, then measure again "
            "with 'rsd-edge bench'"
        )
    busy = disturbance(now, threads)
    return busy and f"{busy} just now: frames will be slower than this until other programs have ended"


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
        times = take_turns({str(point): run for point, run in runs.items()}, effort, runs=_RUNS)
        rows = [Measured(p.width, p.height, resolvers[p].engine.tile, threads, times[str(p)]) for p in chosen]
    return _fit(rows[:-1], subject.tile).checked(rows[-1:])


def _fit(rows: Sequence[Measured], tile: TileSpec) -> LatencyModel:
    found = fit(rows, FEW_TERMS, _QUANTILE)
    if tile.fixed or all(terms["per_tile_pixel"] for terms in found.seconds.values()):
        return found
    # Large tiles seemed to take no longer than tiny ones, which only a disturbance does; so pixels bear all the cost.
    return fit(rows, ("per_tile_pixel",), _QUANTILE)


def choose_plan(tile: TileSpec, seconds: float) -> tuple[tuple[int, ...], int]:
    """The richest plan that fits into the budget, or the poorest. seconds: that the point _FIRST takes."""
    if tile.fixed:
        return _FIXED_PLAN
    points = grid(tile)

    def cost(plan: tuple[tuple[int, ...], int]) -> float:
        pixels = [_pixels(points[place], tile) for place in (*plan[0], plan[1])]
        return seconds * sum(pixels) / _pixels(points[_FIRST], tile) * (1 + (WARM_UP + _RUNS) * LEAST_ROUNDS)

    return next((plan for plan in _PLANS if cost(plan) <= BUDGET_SECONDS), _PLANS[-1])


def _pixels(point: Point, tile: TileSpec) -> float:
    cut = TileSpec(point.tile, tile.halo, tile.feather, tile.multiple_of)
    return features(point.width, point.height, cut)["per_tile_pixel"]


def _from_report(subject: Subject, threads: int) -> tuple[str, Kept | None]:
    """What the kept report says of this engine here; or none, and why not if there is one."""
    try:
        path = kept_path(subject.record, threads)
        if not path.is_file():
            return "", None
        kept = read_kept(path)
    except (InputError, RuntimeError):
        return "; the last report of 'rsd-edge bench' cannot be read", None
    if reason := outdated(kept):
        return f"; the last report of 'rsd-edge bench' is not used: {reason}", None
    return f"report of 'rsd-edge bench' of {kept['date']}", kept
