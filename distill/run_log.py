"""What a stage writes about itself while it trains: a JSON object a line, and the same numbers for TensorBoard."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from rsd_edge.stream.atomic import atomic_file, output_error

LOG_FILE = "log.jsonl"
BOARD_FOLDER = "tensorboard"

log = logging.getLogger(__name__)


class RunLog:
    """Means of the scalars since the last row, and validation figures, under a stage's folder.

    Use it as a context manager: TensorBoard's last rows reach the disk when it closes. Every method that writes raises
    OutputError if the disk is full or the folder does not take files.
    """

    def __init__(self, folder: Path, stage: str, start: int) -> None:
        """`start` is the iteration resumed from: rows of later ones, about to be repeated, are dropped."""
        self.path = folder / LOG_FILE
        _drop_after(self.path, start)
        self.stage = stage
        self._scalars: dict[str, list[float]] = {}
        self._board = SummaryWriter(str(folder / BOARD_FOLDER), purge_step=start + 1)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):  # a full disk, which the JSON lines meet and report as well
            self._board.close()

    def add(self, scalars: Mapping[str, Tensor]) -> None:
        """Take the scalars of one iteration."""
        for name, value in scalars.items():
            self._scalars.setdefault(name, []).append(float(value.detach()))

    def flush(self, iteration: int, seconds: float) -> None:
        """Write the means since the last flush."""
        means = {name: round(sum(values) / len(values), 5) for name, values in self._scalars.items()}
        self._scalars.clear()
        self._write({"iteration": iteration, "seconds": round(seconds, 1), **means}, "train", means)

    def validation(self, iteration: int, figures: Mapping[str, float]) -> None:
        """Write the figures of a validation."""
        self._write({"iteration": iteration, "validation": dict(figures)}, "validation", figures)

    def _write(self, row: Mapping[str, Any], group: str, scalars: Mapping[str, float]) -> None:
        line = json.dumps({"stage": self.stage, **row})
        log.info("%s", line)
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
            for name, value in scalars.items():
                self._board.add_scalar(f"{group}/{name}", value, row["iteration"])
        except OSError as error:
            raise output_error(self.path, error) from error


def _drop_after(path: Path, start: int) -> None:
    if not path.is_file():
        return
    rows = path.read_text(encoding="utf-8").splitlines()
    kept = [row for row in rows if _iteration(row) <= start]
    if len(kept) < len(rows):
        with atomic_file(path) as file:
            file.write("".join(f"{row}\n" for row in kept).encode())


def _iteration(row: str) -> float:
    """The iteration of a row; infinity if the row was cut short."""
    try:
        return int(json.loads(row)["iteration"])
    except ValueError:
        return float("inf")
