"""Other programs on the processors that something is measured on: how busy they were, and what to say of it.

The system's load average cannot tell: it lags by a minute, and counts the very programs that measure.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rsd_edge.bench import environment
from rsd_edge.machine import usable_cores

MOST_BUSY = 0.25
"""Processors that others may take of those measured on. One busy program beside two threads on two cores took 0.9 of
one, which halved the rates; at rest 0.02 was taken there."""
GLANCE_SECONDS = 0.5
"""The system counts in hundredths of a second."""
_STAT = Path("/proc/stat")
_IDLE = (3, 4)
"""Places of the times spent idle and waiting for disks, among those of a processor up to `steal`."""
_TIMES = 8


class Watch:
    """What others take of the processors that this process may run on, from now on."""

    def __init__(self) -> None:
        self._began, self._own, self._busy = time.perf_counter(), time.process_time(), _busy_seconds()

    def others(self) -> float | None:
        """Processors that others kept busy on average, neighbours of a virtual machine included; None if not told."""
        busy, own = _busy_seconds(), time.process_time() - self._own
        seconds = time.perf_counter() - self._began
        if busy is None or self._busy is None or seconds <= 0:
            return None
        return round(max(busy - self._busy - own, 0.0) / seconds, 2)


def disturbance(load: Mapping[str, Any], threads: int) -> str | None:
    """Who else was at work while so many threads were timed, in words; None if nobody, as far as is known.

    load: `others` of `Watch`; where that is None, the load average `before` decides.
    """
    cores, others, average = usable_cores(), load.get("others"), load.get("before")
    told = "" if average is None else f" (load average {average:g})"
    if others is not None:
        if others - max(cores - threads, 0) <= MOST_BUSY:
            return None
        return f"other programs kept {others:.1f} of {cores} processor{'s' if cores > 1 else ''} busy{told}"
    return None if average is None or average <= cores else f"the load average was {average:g} on {cores} processors"


def glance() -> dict[str, float | None]:
    """What others do at the moment, for `disturbance`; takes GLANCE_SECONDS."""
    watch = Watch()
    time.sleep(GLANCE_SECONDS)
    return {"before": environment.load(), "others": watch.others()}


def load(before: float | None, watch: Watch) -> dict[str, float | None]:
    """For reports."""
    return {"before": before, "after": environment.load(), "others": watch.others()}


def _busy_seconds() -> float | None:
    """Of all processors that this process may run on, since the start of the system."""
    try:
        lines = _STAT.read_text(encoding="ascii").splitlines()
        mine = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        ticks = [
            list(map(int, words[1:][:_TIMES])) for line in lines if (words := line.split())[:1] and words[0] in mine
        ]
        return sum(sum(times) - sum(times[place] for place in _IDLE) for times in ticks) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return None
