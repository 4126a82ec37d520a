"""Ctrl-C, SIGTERM and SIGHUP as a request that the loop answers between two iterations."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType, TracebackType
from typing import Any, NoReturn

from rsd_edge.signals import endings


@contextmanager
def withheld_from_children() -> Iterator[None]:
    """Processes that are started within the block are not told of SIGINT, SIGTERM and SIGHUP, from their first moment.

    A terminal and a service manager tell a whole group at once, and a run that is to save what is done still needs its
    workers. They have to call `obey_only_the_parent`.
    """
    withheld = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, withheld)
    try:
        # It would be started with the first of them. By itself it ignores all but SIGHUP, and lets them through here.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, withheld)
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
    """Within the block, the first SIGINT, SIGTERM or SIGHUP sets `asked`; a SIGINT after it acts as it did before.

    Further ones of the others do nothing: `timeout`, shells and terminals send them twice.
    Outside of the main thread, which alone is sent signals, it does nothing.
    """

    def __init__(self) -> None:
        self._came: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, *endings())}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    @property
    def asked(self) -> bool:
        """Whether one has come."""
        return self._came is not None

    def end(self) -> NoReturn:
        """Raise KeyboardInterrupt, by what handled the signal before if it can: it may keep which one it was."""
        handler = None if self._came is None else self._before[self._came]
        self._restore()  # or what the handler settles for further signals would be undone
        if callable(handler):
            handler(self._came, None)
        raise KeyboardInterrupt

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._came is None:
            self._came = number
            signal.signal(signal.SIGINT, self._before[signal.SIGINT])

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
