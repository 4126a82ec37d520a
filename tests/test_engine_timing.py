"""How engines are timed against each other, on a clock that only engines move."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rsd_edge import selection
from rsd_edge.selection import median_seconds
from rsd_edge.specs import EngineSpec, ModelSpec


class ClockedEngine:
    """Takes the seconds it is told to, on a clock that only engines move; writes its name into a common log."""

    spec = EngineSpec(ModelSpec(name="edge-t"))

    def __init__(self, name: str, clock: list[float], log: list[str], seconds: Sequence[float]) -> None:
        self._name, self._clock, self._log, self._seconds = name, clock, log, iter(seconds)

    def prepare(self, n: int, h: int, w: int) -> None:
        assert (n, h, w) == (1, 64, 64)
        self._log.append(f"prepare {self._name}")

    def submit(self, lq: np.ndarray, noise: np.ndarray, detail: np.ndarray) -> str:
        assert (lq.shape, noise.shape, detail.shape) == ((1, 3, 64, 64), (1, 5, 64, 64), (1, 256, 256, 3))
        assert {lq.dtype, noise.dtype, detail.dtype} == {np.dtype(np.float32)}
        assert lq.std() > 0.5  # flat tiles would be kinder to some runtimes than to others
        return self._name

    def collect(self, ticket: str) -> None:
        assert ticket == self._name  # each collects its own
        self._log.append(self._name)
        self._clock[0] += next(self._seconds)


def timed(monkeypatch: pytest.MonkeyPatch, *budget: float, **seconds: Sequence[float]) -> tuple[list[float], list[str]]:
    """What median_seconds gives for engines that take these seconds, and the order in which they ran."""
    clock, order = [100.0], list[str]()
    monkeypatch.setattr(selection, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    engines: list[Any] = [ClockedEngine(name, clock, order, given) for name, given in seconds.items()]
    return median_seconds(engines, *budget), order


def test_engines_are_timed_in_turns_each_after_a_run_that_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    medians, order = timed(monkeypatch, 0.5, a=[50, 3, 50, 1, 50, 2], b=[70, 9, 70, 8, 70, 7])
    assert medians == [2, 8]
    assert order == ["prepare a", "prepare b", *["a", "a", "b", "b"] * 3]


def test_slow_machines_take_three_turns_and_fast_ones_fill_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    _, order = timed(monkeypatch, 0.5, a=[1.0] * 100)
    assert order.count("a") == 2 * 3
    _, order = timed(monkeypatch, 9.5, a=[1.0] * 100)
    assert order.count("a") == 2 * 5  # the fifth turn ends at 10 seconds
    _, order = timed(monkeypatch, 0.5, a=[0.001] * 100)
    assert order.count("a") == 2 * 16


def test_half_a_second_is_the_usual_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    for seconds, turns in ((0.0624, 5), (0.0626, 4)):  # the fourth turn ends at 0.4992 seconds, or at 0.5008
        _, order = timed(monkeypatch, a=[seconds] * 100)
        assert order.count("a") == 2 * turns
