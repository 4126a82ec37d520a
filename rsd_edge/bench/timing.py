"""Times of several things, taken in turns, so that all of them see the same machine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

Run = Callable[[], object]
NameT = TypeVar("NameT", bound=Hashable)

PAUSE_SECONDS = 0.03
"""Between two subjects: threads of the one before may look for work that long before they sleep."""
WARM_UP = 1
"""Runs at the beginning of a turn that do not count: what ran before has taken the caches."""
LEAST_ROUNDS = 3
"""However long they take."""
_WARM_UP_LIMIT = 1.0
"""Seconds: what takes longer gains nothing from warm caches, and a second run of it would only cost time."""


@dataclass(frozen=True)
class Times:
    """Seconds of single runs, in the order taken."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Half of the runs took longer."""
        return float(np.median(self.seconds))

    def summary(self) -> dict[str, float]:
        """Milliseconds: median, percentiles, fastest; and the number of runs.

        Percentiles are interpolated between runs: with fewer than 100 runs p99 is little else than the slowest.
        """
        low, middle, high, highest = np.percentile(self.seconds, [10, 50, 90, 99])
        named = {"median": middle, "p10": low, "p90": high, "p99": highest, "fastest": min(self.seconds)}
        return {name: round(1e3 * float(value), 3) for name, value in named.items()} | {"runs": len(self.seconds)}


@dataclass(frozen=True)
class Effort:
    """How long to measure."""

    rounds: int = 15
    """At most."""
    seconds: float = math.inf
    """After which no further round begins; LEAST_ROUNDS are always run."""
    patience: float = math.inf
    """Seconds that one subject may take in all, warm-up included; after LEAST_ROUNDS it sits out the rest."""


def take_turns(
    subjects: Mapping[NameT, Run],
    effort: Effort,
    *,
    runs: int = 1,
    warm_up: int = WARM_UP,
    progress: Callable[[int], Any] = lambda turns: None,
) -> dict[NameT, Times]:
    """In every round, each subject in its turn: a pause, `warm_up` runs that do not count, then `runs` that do.

    A subject of more than a second is warmed up in the first round alone. progress: called with the turns done.
    """
    taken: dict[NameT, list[float]] = {name: [] for name in subjects}
    spent = dict.fromkeys(subjects, 0.0)
    began = time.perf_counter()
    turns = 0
    for turn in range(effort.rounds):
        if turn >= LEAST_ROUNDS and time.perf_counter() - began > effort.seconds:
            break
        for name, run in subjects.items():
            if turn < LEAST_ROUNDS or spent[name] <= effort.patience:
                time.sleep(PAUSE_SECONDS)
                warm = warm_up if max(taken[name][-1:], default=0.0) < _WARM_UP_LIMIT else 0
                seconds = time_runs(run, warm + runs)
                spent[name] += sum(seconds)
                taken[name] += seconds[warm:]
            turns += 1
            progress(turns)
    return {name: Times(tuple(seconds)) for name, seconds in taken.items()}


def time_runs(run: Run, runs: int) -> Sequence[float]:
    """Seconds of each of several runs, one after the other."""
    taken = []
    for _ in range(runs):
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    return taken
