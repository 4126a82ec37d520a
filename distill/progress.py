"""A progress bar with iterations per second and the time that is left, on a terminal; nothing elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

_SHOWN = ("loss", "distill", "fake", "lpips")


class _Speed(ProgressColumn):
    """it/s, or s/it where an iteration takes longer than a second."""

    def render(self, task: Task) -> Text:
        speed = task.speed
        if not speed:
            return Text("")
        return Text(f"{speed:.2f} it/s" if speed >= 1 else f"{1 / speed:.1f} s/it")


class Progress:
    """The bar of one stage; a context manager."""

    def __init__(self, stage: str, start: int, iterations: int, *, shown: bool) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Speed())
        last = (TimeRemainingColumn(), TextColumn("{task.fields[scalars]}"))
        # Over a minute, since iterations with a validation take long.
        visible = shown and console.is_terminal
        self._bar = Bar(*columns, *last, console=console, speed_estimate_period=60, disable=not visible)
        self._task = self._bar.add_task(stage, total=iterations, completed=start, scalars="")

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self) -> None:
        """One iteration is done."""
        self._bar.advance(self._task)

    def show(self, scalars: Mapping[str, float]) -> None:
        """Put the main losses beside the bar."""
        text = " ".join(f"{name} {scalars[name]:.4g}" for name in _SHOWN if name in scalars)
        self._bar.update(self._task, scalars=text)
