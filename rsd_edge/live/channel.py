"""What lies between two threads: a bounded queue that either waits for room or keeps the newest."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

from rsd_edge.live.clock import Clock

T = TypeVar("T")


class Channel(Generic[T]):
    """Items in order from one thread to another.

    With `newest`, a full channel gives up its oldest item for a new one; with room for one it is a mailbox that holds
    nothing but the latest.
    """

    def __init__(self, clock: Clock, room: int = 1, *, newest: bool = False) -> None:
        self._clock, self._room, self._newest = clock, room, newest
        self._items: deque[T] = deque()
        self._finished = self._closed = False
        self.dropped = 0
        """Items that made room for newer ones."""

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> bool:
        """Leave an item, after waiting for room unless the newest counts; False if nobody takes any more."""
        with self._clock.changing():
            if not self._newest:
                self._clock.wait(lambda: self._closed or len(self._items) < self._room)
            if self._closed or self._finished:
                return False
            if len(self._items) == self._room:
                self._items.popleft()
                self.dropped += 1
            self._items.append(item)
        return True

    def get(self) -> T | None:
        """Take the next item, after waiting for it; None if there will be none."""
        with self._clock.changing():
            self._clock.wait(lambda: bool(self._items) or self._finished or self._closed)
            return self._items.popleft() if self._items else None

    def finish(self) -> None:
        """Nothing more will be put; what is there is still to be had."""
        with self._clock.changing():
            self._finished = True

    def close(self) -> None:
        """Throw away what is there; nobody waits any longer."""
        with self._clock.changing():
            self._closed = True
            self._items.clear()
