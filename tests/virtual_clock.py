"""A clock whose time passes only while everybody waits: threads take turns, one at a time, always in the same order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(eq=False)
class _Party:
    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    ready: Callable[[], bool] = lambda: True
    deadline: float | None = None
    ended: bool = False


class VirtualTask:
    def __init__(self, clock: VirtualClock, party: _Party) -> None:
        self._clock, self._party = clock, party

    def join(self, timeout: float | None = None) -> None:
        self._clock.wait(lambda: self._party.ended, timeout)

    def is_alive(self) -> bool:
        return not self._party.ended


class VirtualClock:
    """Belongs to the thread that makes it; others join in through `start`."""

    def __init__(self) -> None:
        self.time = 0.0
        self._parties = {threading.get_ident(): _Party()}
        self._waiting: list[_Party] = []

    def now(self) -> float:
        return self.time

    @contextmanager
    def changing(self) -> Iterator[None]:
        yield  # nobody else runs

    def wait(self, ready: Callable[[], bool], timeout: float | None = None) -> bool:
        if ready():
            return True
        me = self._parties[threading.get_ident()]
        me.ready, me.deadline = ready, None if timeout is None else self.time + timeout
        self._waiting.append(me)
        self._hand_on(me)
        return ready()

    def start(self, work: Callable[[], None], name: str) -> VirtualTask:
        party = _Party()

        def take_part() -> None:
            party.turn.acquire()
            self._parties[threading.get_ident()] = party
            work()
            party.ended = True
            self._hand_on(None)

        self._waiting.append(party)
        threading.Thread(target=take_part, name=name, daemon=True).start()
        return VirtualTask(self, party)

    def spend(self, seconds: float) -> None:
        """Work for so long."""
        self.wait(lambda: False, seconds)

    def _hand_on(self, me: _Party | None) -> None:
        chosen = self._choose()
        self._waiting.remove(chosen)
        if chosen is not me:
            chosen.turn.release()
            if me is not None:
                me.turn.acquire()

    def _choose(self) -> _Party:
        for party in self._waiting:
            if party.ready():
                return party
        timed = [party for party in self._waiting if party.deadline is not None]
        assert timed, "everybody waits, and nobody for a time"
        chosen = min(timed, key=lambda party: party.deadline or 0.0)
        self.time = max(self.time, chosen.deadline or 0.0)
        return chosen
