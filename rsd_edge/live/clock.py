"""Time, threads and waiting in one place, so that tests can put a clock of their own under all of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Task(Protocol):
    """A thread that was started."""

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended, for `timeout` seconds at most."""

    def is_alive(self) -> bool:
        """True until it has ended."""


class Clock(Protocol):
    """What a live run knows of time. One lock serves all that share a clock: what they hold it for is short."""

    def now(self) -> float:
        """Seconds since some beginning; never goes back."""

    def changing(self) -> AbstractContextManager[None]:
        """Hold the lock; whoever waits looks again when this ends."""

    def wait(self, ready: Callable[[], bool], timeout: float | None = None) -> bool:
        """Within `changing`: let others in until ready() is true; False if it is not after `timeout` seconds."""

    def start(self, work: Callable[[], None], name: str) -> Task:
        """Run `work` in a thread of its own."""


def sleep(clock: Clock, seconds: float, stopped: Callable[[], bool]) -> bool:
    """Wait until that much time has passed; False if `stopped` was true before."""
    with clock.changing():
        return not clock.wait(stopped, seconds)


class SystemClock:
    """The machine's."""

    def __init__(self) -> None:
        self._condition = threading.Condition()

    def now(self) -> float:
        """See Clock."""
        return time.monotonic()

    @contextmanager
    def changing(self) -> Iterator[None]:
        """See Clock."""
        with self._condition:
            try:
                yield
            finally:
                self._condition.notify_all()

    def wait(self, ready: Callable[[], bool], timeout: float | None = None) -> bool:
        """See Clock."""
        return self._condition.wait_for(ready, timeout)

    def start(self, work: Callable[[], None], name: str) -> Task:
        """See Clock. A daemon: a driver that never returns from a read must not keep the process."""
        thread = threading.Thread(target=work, name=f"rsd-edge-{name}", daemon=True)
        thread.start()
        return thread
