"""What TensorRT is doing, on a terminal; see BuildProgress in export/tensorrt_network.py."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class TerminalProgress:
    """A bar for each phase, the inner ones indented; nothing where stderr is no terminal."""

    def __init__(self) -> None:
        terminal = sys.stderr.isatty()
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
        console = Console(stderr=True, force_terminal=terminal)
        self._bars = Progress(*columns, console=console, disable=not terminal, transient=True)
        self._phases: dict[str, tuple[TaskID, int]] = {}

    def __enter__(self) -> TerminalProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def begin(self, phase: str, parent: str | None, steps: int) -> None:
        """See BuildProgress."""
        depth = self._phases[parent][1] + 1 if parent in self._phases else 0
        self._phases[phase] = self._bars.add_task(f"{'  ' * depth}{phase}", total=steps), depth

    def step(self, phase: str, step: int) -> None:
        """See BuildProgress."""
        if phase in self._phases:
            self._bars.update(self._phases[phase][0], completed=step + 1)

    def end(self, phase: str) -> None:
        """See BuildProgress."""
        if phase in self._phases:
            self._bars.remove_task(self._phases.pop(phase)[0])
