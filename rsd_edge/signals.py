"""What the signals do that end a process: a service manager sends SIGTERM, and a terminal that goes away SIGHUP."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 and the number of its signal."""

_ONE_REQUEST = 0.5
"""Seconds: `timeout` and shells send a signal twice within milliseconds, and a person that insists takes longer."""


@contextmanager
def ended_as_by_ctrl_c() -> Iterator[None]:
    """Within the block the first SIGTERM or SIGHUP is a KeyboardInterrupt, and the exit code is that of the signal.

    Further ones do nothing, since none may cut the saving short; Ctrl-C can.
    Outside of the main thread, which alone is sent signals, all of them do what they did.
    """
    came: list[int] = []

    def interrupt(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        for kind in before:
            signal.signal(kind, signal.SIG_IGN)
        raise KeyboardInterrupt

    here = threading.current_thread() is threading.main_thread()
    before = {kind: signal.signal(kind, interrupt) for kind in endings()} if here else {}
    try:
        yield
    except SystemExit as end:
        if came and end.code == INTERRUPTED:
            raise SystemExit(128 + came[0]) from None
        raise
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """The signals that came, for a run that has no end of its own: the first of SIGINT, SIGTERM and SIGHUP is only
    noted, a second SIGINT, or SIGTERM after a moment, ends the waiting for what is under way, and a further SIGTERM
    everything.

    SIGHUP is never a second one: a terminal that goes away sends it, and so does its shell.
    """
    came: list[int] = []
    first = 0.0

    def note(number: int, _frame: FrameType | None) -> None:
        nonlocal first
        first = time.monotonic()
        came.append(number)
        signal.signal(signal.SIGINT, before[signal.SIGINT])
        signal.signal(signal.SIGTERM, leave)

    def leave(number: int, _frame: FrameType | None) -> None:
        if time.monotonic() - first < _ONE_REQUEST:
            return
        signal.signal(number, signal.SIG_DFL)
        raise SystemExit(128 + number)

    before = {kind: signal.signal(kind, note) for kind in (signal.SIGINT, *endings())}
    try:
        yield came
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def endings() -> list[signal.Signals]:
    """SIGTERM, and SIGHUP where there is one and nobody has it ignored, as nohup has."""
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is None or signal.getsignal(hangup) is signal.SIG_IGN:
        return [signal.SIGTERM]
    return [signal.SIGTERM, hangup]
