"""What the GPU kernels are meant to reach on an H200, and whether the numbers of bench_kernels.py reach it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

OF_COPY, TIMES_EAGER, SHARE_OF_FRAME = 0.9, 3.0, 0.02
STREAMING = ("bench_training", "bench_norm", "bench_large_frame")
"""Benchmarks whose tensors do not fit into the L2 cache; under a graph, small tiles are bound by the launch."""
FASTER = ("forward_noise", "posterior_step")


@dataclass(frozen=True)
class Goal:
    """One number of one benchmark. measured: None where it was not measured."""

    benchmark: str
    goal: str
    wanted: float
    measured: float | None
    verdict: str
    """met, missed, or not run."""


def judge(results: Iterable[tuple[str, Mapping[str, Any]]]) -> list[Goal]:
    """All goals of the benchmarks, by name and extra_info. Those that ran without a GPU have no `device`, and no goal.

    A kernel whose bytes fit into the L2 cache is judged as not run: it would be compared with the wrong memory.
    """
    goals: list[Goal] = []
    for name, info in results:
        if "device" not in info:
            continue
        bench, _, arguments = name.partition("[")
        if bench in STREAMING:
            goals.append(_goal(name, "of the bandwidth of a copy, at least", OF_COPY, _if_streaming(info, "of_copy")))
        if bench == "bench_training" and any(kernel in arguments for kernel in FASTER):
            goals.append(_goal(name, "times as fast as eager, at least", TIMES_EAGER, info.get("times_eager")))
        if bench == "bench_frame":
            share = info.get("share_of_frame")
            goals.append(_goal(name, "of a frame's time, at most", SHARE_OF_FRAME, share, most=True))
    return goals


def _if_streaming(info: Mapping[str, Any], column: str) -> float | None:
    return info.get(column) if info.get("minimum_mb", 0) > info.get("l2_mb", 0) else None


def _goal(benchmark: str, goal: str, wanted: float, measured: float | None, *, most: bool = False) -> Goal:
    if measured is None:
        return Goal(benchmark, goal, wanted, None, "not run")
    met = measured <= wanted if most else measured >= wanted
    return Goal(benchmark, goal, wanted, measured, "met" if met else "missed")
