"""A subject for benchmarks that do nothing, in a module that a new process can import."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path


def sleeping(threads: int, folder: Path, *, seconds: float) -> dict[str, Callable[[], None]]:
    """Two runs that take at least this long; each writes down that it ran."""

    def run_of(name: str) -> Callable[[], None]:
        def run() -> None:
            time.sleep(seconds)
            with (folder / f"{name}-{seconds}").open("a") as file:
                file.write("x")

        return run

    return {name: run_of(name) for name in ("tile", "frame")}
