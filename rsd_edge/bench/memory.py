"""Peak memory of a piece of work, in a process of its own."""

from __future__ import annotations

import gc
import multiprocessing
import re
import signal
import threading
from collections.abc import Callable
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

from rsd_edge.bench.timing import Run

METHOD = "peak resident memory of a process that holds nothing else, over two runs after loading; Linux alone tells"

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


def peak_megabytes(make: Callable[..., Run], *arguments: Any) -> int | None:
    """Of two runs of what make(*arguments) returns, in MiB; None where the system does not tell.

    A new process makes and runs it, so `make` and its arguments must be importable there.
    """
    if not (_STATUS.exists() and _RESET.exists()):
        return None
    with one_process() as pool:
        return pool.apply(_peak, (make, *arguments))


def one_process() -> Pool:
    """A pool of one that leaves Ctrl-C to this process: a terminal tells both, and the other would print a trace."""
    here = threading.current_thread() is threading.main_thread()  # no other thread may change what a signal does
    kept = signal.signal(signal.SIGINT, signal.SIG_IGN) if here else None
    try:
        return multiprocessing.get_context("spawn").Pool(1)
    finally:
        if kept is not None:
            signal.signal(signal.SIGINT, kept)


def _peak(make: Callable[..., Run], *arguments: Any) -> int | None:
    run = make(*arguments)
    gc.collect()
    try:
        _RESET.write_text("5")  # sets the peak back to what is there now
    except OSError:
        return None
    for _ in range(2):
        run()
    found = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())
    return None if found is None else round(int(found[1]) / 1024)
