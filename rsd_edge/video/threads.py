"""Two bounded queues with a thread each: frames are decoded ahead of the engine and encoded behind it.

No wait here is for ever: Ctrl-C may strike inside a queue and take with it the call that wakes the other side.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
_TICK = 0.1
"""Seconds after which a waiting thread looks whether the other side is still there."""


class Prefetch(Generic[T]):
    """Iterates over what another thread takes out of a generator; an exception there is raised here."""

    def __init__(self, items: Generator[T, None, None], ahead: int) -> None:
        """ahead: items waiting at most; one more is in the works."""
        self._items = items
        self._queue: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(ahead)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="rsd-edge-decode", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        while True:
            try:
                item, error = self._queue.get(timeout=_TICK)
            except queue.Empty:
                continue
            if error is not None:
                raise error
            if item is None:
                return
            yield item

    def close(self) -> None:
        """End the thread after the item that it works on."""
        self._stopped.set()
        self._thread.join()

    def _work(self) -> None:
        try:
            for item in self._items:
                if not self._put((item, None)):
                    return
            self._put((None, None))
        except BaseException as error:  # whatever it is, it belongs to the thread that waits
            self._put((None, error))
        finally:
            self._items.close()  # with the file that it reads

    def _put(self, entry: tuple[T | None, BaseException | None]) -> bool:
        while not self._stopped.is_set():
            try:
                self._queue.put(entry, timeout=_TICK)
            except queue.Full:
                continue
            return True
        return False


class Sink(Generic[T]):
    """Hands items to a function in another thread; an exception there is raised at the next call here."""

    def __init__(self, handle: Callable[[T], None], behind: int) -> None:
        """behind: items waiting at most; one more is in the works."""
        self._handle = handle
        self._queue: queue.Queue[T] = queue.Queue(behind)
        self._finished = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="rsd-edge-encode", daemon=True)
        self._thread.start()

    def put(self, item: T) -> None:
        """Wait for room, then leave the item there."""
        while True:
            self.check()
            try:
                self._queue.put(item, timeout=_TICK)
            except queue.Full:
                continue
            return

    def finish(self) -> None:
        """Wait until everything is handled."""
        self._finished.set()
        self._thread.join()
        self.check()

    def check(self) -> None:
        """Raise what went wrong in the thread, if anything did."""
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while True:
            ending = self._finished.is_set()  # before the look into the queue: what is put last comes before it
            try:
                item = self._queue.get(timeout=_TICK)
            except queue.Empty:
                if ending:
                    return
                continue
            try:
                self._handle(item)
            except BaseException as error:  # whatever it is, it belongs to the thread that waits
                self._error = error
                return
