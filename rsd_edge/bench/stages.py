"""Where the time of a frame goes: the engine, and each stage around it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from rsd_edge.backends.base import TileEngine
from rsd_edge.bench.timing import Run
from rsd_edge.frames import ParallelCompositor
from rsd_edge.pipeline import TileNoise
from rsd_edge.tiling import TileMerger, TileReader

ENGINE = "engine"
REST = "rest"
"""Calls between the stages; on a device that does whole frames by itself, all of it."""

Clock = defaultdict[str, float]

AROUND = {
    "gather": ((TileReader, "load"), (TileReader, "read")),
    "noise": ((TileNoise, "batch"),),
    "merge": ((TileMerger, "merge"),),
    "bicubic and add": ((ParallelCompositor, "add"),),
}
"""Stages of the frame path around the engine, and the methods that do their work."""


@contextmanager
def stage_clock(engine: TileEngine) -> Iterator[Clock]:
    """Seconds spent in each stage, by its name, while this is open. For one thread: classes are changed meanwhile."""
    clock: Clock = defaultdict(float)
    stages = {ENGINE: ((type(engine), "submit"), (type(engine), "collect")), **AROUND}
    with ExitStack() as stack:
        for stage, methods in stages.items():
            for owner, name in methods:
                kept = getattr(owner, name)
                setattr(owner, name, _timed(kept, clock, stage))
                stack.callback(setattr, owner, name, kept)
        yield clock


def _timed(method: Callable[..., Any], clock: Clock, stage: str) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        began = time.perf_counter()
        try:
            return method(*arguments)
        finally:
            clock[stage] += time.perf_counter() - began

    return call


def breakdowns(frames: Mapping[str, tuple[TileEngine, Run]], rounds: int) -> dict[str, dict[str, float]]:
    """Median milliseconds of each stage of several frames, which take turns; REST is what no stage accounts for.

    frames: by name, an engine and what enlarges a frame with it. The first run of each turn does not count.
    """
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in frames}
    for _ in range(rounds):
        for name, (engine, run) in frames.items():
            run()
            with stage_clock(engine) as clock:
                began = time.perf_counter()
                run()
                whole = time.perf_counter() - began
            stages = {stage: clock[stage] for stage in (ENGINE, *AROUND)}
            taken[name].append({**stages, REST: max(0.0, whole - sum(stages.values()))})
    return {
        name: {stage: round(1e3 * float(np.median([run[stage] for run in runs])), 3) for stage in runs[0]}
        for name, runs in taken.items()
    }
