"""Times of several things, taken in turns, so that all of them see the same machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

PAUSE_SECONDS = 0.03
"""Between two subjects: threads of the one before may look for work that long before they sleep."""


@dataclass(frozen=True)
class Times:
    """Seconds of single runs, in the order taken."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Half of the runs took longer."""
        return float(np.median(self.seconds))

    def summary(self) -> dict[str, float]:
        """Milliseconds: median, tenth and ninetieth percentile, fastest; and the number of runs."""
        low, middle, high = np.percentile(self.seconds, [10, 50, 90])
        named = {"median": middle, "p10": low, "p90": high, "fastest": min(self.seconds)}
        return {name: round(1e3 * float(value), 3) for name, value in named.items()} | {"runs": len(self.seconds)}


def take_turns(
    subjects: Mapping[str, Callable[[], object]], *, rounds: int, runs: int = 1, warm_up: int = 1
) -> dict[str, Times]:
    """In every round, each subject in its turn: a pause, `warm_up` runs that do not count, then `runs` that do."""
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(rounds):
        for name, run in subjects.items():
            time.sleep(PAUSE_SECONDS)
            for _ in range(warm_up):
                run()
            seconds[name] += _time(run, runs)
    return {name: Times(tuple(taken)) for name, taken in seconds.items()}


def _time(run: Callable[[], object], runs: int) -> Sequence[float]:
    taken = []
    for _ in range(runs):
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    return taken
