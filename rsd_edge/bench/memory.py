"""Peak memory of a piece of work, and any other work in a process of its own."""

from __future__ import annotations

import gc
import multiprocessing
import re
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from rsd_edge.bench.timing import Run
from rsd_edge.errors import RsdEdgeError

METHOD = "peak resident memory of a process that holds nothing else, over two runs after loading; Linux alone tells"

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")

T = TypeVar("T")


class ProcessLostError(RsdEdgeError):
    """A process for a piece of work ended before the work did."""


def peak_megabytes(make: Callable[..., Run], *arguments: Any) -> int | None:
    """Of two runs of what make(*arguments) returns, in MiB; None where the system does not tell.

    A new process makes and runs it, see `in_own_process`, which tells what is raised.
    """
    if not (_STATUS.exists() and _RESET.exists()):
        return None
    return in_own_process(_peak, make, *arguments)


def in_own_process(work: Callable[..., T], *arguments: Any) -> T:
    """What work(*arguments) returns in a new process, which must be able to import both.

    Raises what `work` raises, and ProcessLostError if the process ends before, as where the system is out of memory.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_tell, args=(sender, work, arguments), daemon=True)
    _start_without_ctrl_c(process)
    sender.close()  # what the other process holds is then the last, and its end is the end of the pipe
    try:
        returned, found = receiver.recv()
    except EOFError:
        process.join()
        raise ProcessLostError(
            f"a process of its own ended in the middle of its work (exit code {process.exitcode}; -9 where memory ran "
            "out); give it less to do, or end what else runs here"
        ) from None
    finally:
        process.kill()
        process.join()
        receiver.close()
    if not returned:
        raise found
    result: T = found
    return result


def _start_without_ctrl_c(process: multiprocessing.process.BaseProcess) -> None:
    """Ctrl-C is left to this process: a terminal tells both, and the other would print a trace."""
    here = threading.current_thread() is threading.main_thread()  # no other thread may change what a signal does
    kept = signal.signal(signal.SIGINT, signal.SIG_IGN) if here else None
    try:
        process.start()
    finally:
        if kept is not None:
            signal.signal(signal.SIGINT, kept)


def _tell(sender: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        told = (True, work(*arguments))
    except Exception as error:
        told = (False, error)
    sender.send(told)


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
