"""The queues between decoder, engine and encoder, where a wake-up is lost."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Generator, Iterator
from types import SimpleNamespace

import pytest

from rsd_edge.video import threads
from rsd_edge.video.threads import Prefetch, Sink

LIMIT = 20  # seconds; a wait for ever would be a failure, and a busy machine is none


def within_limit(task: threading.Thread) -> bool:
    task.start()
    task.join(LIMIT)
    return not task.is_alive()


def test_a_sink_ends_although_nobody_wakes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C inside the queue can swallow the call that wakes the thread at the other end."""
    handled: list[int] = []
    sink: Sink[int] = Sink(handled.append, 2)
    monkeypatch.setattr(sink._queue.not_empty, "notify", lambda n=1: None)
    monkeypatch.setattr(sink._queue.not_full, "notify", lambda n=1: None)

    def use() -> None:
        for item in range(5):
            sink.put(item)
        sink.finish()

    assert within_limit(threading.Thread(target=use, daemon=True))
    assert handled == [0, 1, 2, 3, 4]


def test_what_is_prefetched_arrives_although_nobody_wakes_the_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()

    def items() -> Iterator[int]:
        go.wait(LIMIT)
        yield from range(5)

    source = Prefetch((item for item in items()), 2)
    monkeypatch.setattr(source._queue.not_empty, "notify", lambda n=1: None)
    monkeypatch.setattr(source._queue.not_full, "notify", lambda n=1: None)
    seen: list[int] = []
    reader = threading.Thread(target=lambda: seen.extend(source), daemon=True)
    reader.start()
    go.set()
    reader.join(LIMIT)
    assert seen == [0, 1, 2, 3, 4]
    source.close()


def test_an_error_in_the_sink_is_raised_by_the_next_call() -> None:
    def fail(_: int) -> None:
        raise ValueError("full")

    sink: Sink[int] = Sink(fail, 1)

    def put_all() -> None:
        for item in range(100):
            sink.put(item)

    with pytest.raises(ValueError, match="full"):
        put_all()
    with pytest.raises(ValueError, match="full"):
        sink.finish()


def test_what_is_put_just_before_the_end_is_handled(monkeypatch: pytest.MonkeyPatch) -> None:
    looked, go = threading.Event(), threading.Event()

    class Late(queue.Queue[int]):
        """Finds nothing the first time, and says so late."""

        def get(self, block: bool = True, timeout: float | None = None) -> int:
            if looked.is_set():
                return super().get(block, timeout)
            looked.set()
            go.wait(LIMIT)
            raise queue.Empty

    monkeypatch.setattr(threads, "queue", SimpleNamespace(Queue=Late, Empty=queue.Empty, Full=queue.Full))
    handled: list[int] = []
    sink: Sink[int] = Sink(handled.append, 2)
    assert looked.wait(LIMIT)
    sink.put(1)
    ending = threading.Thread(target=sink.finish, daemon=True)
    ending.start()
    assert sink._finished.wait(LIMIT)
    go.set()
    ending.join(LIMIT)
    assert handled == [1]


def test_no_more_than_a_few_are_fetched_ahead_and_errors_are_passed_on() -> None:
    taken = []

    def numbers() -> Generator[int, None, None]:
        for number in range(100):
            taken.append(number)
            yield number

    ahead = Prefetch(numbers(), 2)
    time.sleep(0.2)  # enough for many more; on a busy machine this only sees less
    assert len(taken) <= 4
    assert next(iter(ahead)) == 0
    ahead.close()
    assert len(taken) < 8

    def broken() -> Generator[int, None, None]:
        yield 1
        raise OSError("unplugged")

    with pytest.raises(OSError, match="unplugged"):
        list(Prefetch(broken(), 2))
