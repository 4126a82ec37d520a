"""Ctrl-C and termination as a request that the loop answers between two iterations."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def withheld_from_children() -> Iterator[None]:
    """Processes that are started within the block are not told of SIGINT and SIGTERM, from their first moment on.

    A terminal and a service manager tell a whole group at once, and a run that is to save what is done still needs its
    workers. They have to call `obey_only_the_parent`.
    """
    resource_tracker.ensure_running()  # or it is started with the first of them, and lets the signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def obey_only_the_parent() -> None:
    """In a process to which signals are withheld: end at the parent's SIGTERM, and at nobody else's."""

    def wait() -> None:
        while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


class StopSignal:
    """Within the block, the first SIGINT or SIGTERM sets `asked`; the next one acts as it did before.

    Outside of the main thread, which alone is sent signals, it does nothing.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
