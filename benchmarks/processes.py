"""Runtimes in processes of their own, which take turns at work: OpenVINO and torch do not share one."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from rsd_edge.bench.timing import Run, time_runs

Runs = dict[str, Run]

PAUSE_SECONDS = 0.3
"""Longer than the threads of any runtime look out for more work."""


@dataclass(frozen=True)
class Subject:
    """What runs in a process of its own."""

    make: Callable[..., Runs]
    """A function of a module, called in that process with the arguments of all subjects and these options."""
    options: Mapping[str, Any] = field(default_factory=dict)


class Workers:
    """The processes of all subjects, one at work at a time."""

    def __init__(self, subjects: Mapping[str, Subject], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: dict[str, Any] = {}
        self.runs: dict[str, list[str]] = {}
        """Of each subject, by name."""
        for name, subject in subjects.items():
            self._pipes[name], theirs = context.Pipe()
            context.Process(target=_serve, args=(subject, arguments, theirs), daemon=True).start()
            theirs.close()  # or the end of a process that fails would not be noticed
            self.runs[name] = self._answer(name)

    def seconds(self, subject: str, run: str, *, warm_up: int = 0, runs: int = 1) -> list[float]:
        """Of each of `runs` runs, one after the other, after a pause and `warm_up` runs that do not count."""
        time.sleep(PAUSE_SECONDS)
        self._pipes[subject].send((run, warm_up, runs))
        return list(self._answer(subject))

    def _answer(self, subject: str) -> Any:
        try:
            return self._pipes[subject].recv()
        except EOFError:
            raise RuntimeError(f"the process of '{subject}' ended; its error was printed there") from None


def _serve(subject: Subject, arguments: tuple[Any, ...], pipe: Connection) -> None:
    runs = subject.make(*arguments, **subject.options)
    pipe.send(list(runs))
    with suppress(EOFError):  # nobody asks any more
        while True:
            name, warm_up, counted = pipe.recv()
            pipe.send(time_runs(runs[name], warm_up + counted)[warm_up:])
