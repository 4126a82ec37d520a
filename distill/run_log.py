"""What a stage writes about itself while it trains: JSON lines, the same numbers for TensorBoard, and image strips."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from rsd_edge.distill.stage import Validation
from rsd_edge.stream.atomic import atomic_file, make_folder, output_error
from rsd_edge.stream.images import write_image

LOG_FILE = "log.jsonl"
BOARD_FOLDER = "tensorboard"
STRIP_FOLDER = "strips"
STRIP_ROWS = 4

log = logging.getLogger(__name__)


class RunLog:
    """Means of the scalars since the last row, and validation figures, under a stage's folder.

    Use it as a context manager: TensorBoard's last rows reach the disk when it closes. Every method that writes raises
    OutputError if the disk is full or the folder does not take files.
    """

    def __init__(self, folder: Path | None, stage: str, start: int) -> None:
        """`start` is the iteration resumed from: rows of later ones, about to be repeated, are dropped, and from 0 all.

        Without a folder, as in all processes but the first, nothing is written.
        """
        self.folder, self.stage = folder, stage
        self._scalars: dict[str, list[Tensor]] = {}
        self._board: SummaryWriter | None = None
        if folder is not None:
            _drop_after(folder / LOG_FILE, start)
            self._board = SummaryWriter(str(folder / BOARD_FOLDER), purge_step=start + 1 if start else 0)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):  # a full disk, which the JSON lines meet and report as well
            if self._board is not None:
                self._board.close()

    def add(self, scalars: Mapping[str, Tensor]) -> None:
        """Take the scalars of one iteration; they are read when they are written, since a GPU is waited for then."""
        for name, value in scalars.items():
            self._scalars.setdefault(name, []).append(value.detach())

    def flush(self, iteration: int, seconds: float) -> dict[str, float]:
        """Write the means since the last flush, and return them. Steps of fp16 that overflowed, and were skipped, are
        counted instead."""
        means: dict[str, float] = {}
        for name, values in self._scalars.items():
            every = torch.stack(values)
            finite = every[every.isfinite()]
            if len(finite):
                means[name] = round(float(finite.mean()), 5)
            if len(finite) < len(every):
                means[f"{name}_overflows"] = len(every) - len(finite)
        self._scalars.clear()
        self._write({"iteration": iteration, "seconds": round(seconds, 1), **means}, "train", means)
        return means

    def validation(self, iteration: int, validation: Validation) -> dict[str, float]:
        """Write the figures of a validation and a strip of its images; returns the figures."""
        figures = validation.figures
        self._write({"iteration": iteration, "validation": dict(figures)}, "validation", figures)
        if validation.images and self.folder is not None:
            make_folder(self.folder / STRIP_FOLDER)
            write_image(self.folder / STRIP_FOLDER / f"{iteration:06d}.png", strip(validation.images))
        return figures

    def _write(self, row: Mapping[str, Any], group: str, scalars: Mapping[str, float]) -> None:
        if self.folder is None or self._board is None:
            return
        line = json.dumps({"stage": self.stage, **row}, allow_nan=False)
        log.info("%s", line)
        path = self.folder / LOG_FILE
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
            for name, value in scalars.items():
                self._board.add_scalar(f"{group}/{name}", value, row["iteration"])
        except OSError as error:
            raise output_error(path, error) from error


def strip(images: Sequence[Tensor]) -> NDArray[np.uint8]:
    """The first samples of some batches (n, 3, h, w), RGB in [-1, 1], a row each, as one uint8 BGR picture."""
    columns = [image[:STRIP_ROWS].float().clamp(-1, 1).cpu() for image in images]
    rows = torch.cat([torch.cat(list(column), dim=1) for column in columns], dim=2)
    pixels = (rows + 1).mul(127.5).round().byte()
    return np.ascontiguousarray(pixels.flip(0).permute(1, 2, 0).numpy())


def _drop_after(path: Path, start: int) -> None:
    if not path.is_file():
        return
    rows = path.read_text(encoding="utf-8").splitlines()
    kept = [row for row in rows if start and _iteration(row) <= start]
    if len(kept) < len(rows):
        with atomic_file(path) as file:
            file.write("".join(f"{row}\n" for row in kept).encode())


def _iteration(row: str) -> float:
    """The iteration of a row; infinity if the row was cut short."""
    try:
        return int(json.loads(row)["iteration"])
    except ValueError:
        return float("inf")
