"""What a frame costs on this machine, as a function of its size, its tiles with their halo, and the threads.

    seconds = start + tiles * per_tile + tile_pixels * per_tile_pixel + pixels * per_pixel

with tile_pixels the LR pixels of all tiles, halo included, and pixels those of the frame. `start` is what a frame costs
however small, `per_tile` a tile however small, `per_tile_pixel` the engine, `per_pixel` merging and the bicubic base.
Every number of threads has coefficients of its own; nothing is said of numbers that were not measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from rsd_edge.bench.timing import Times
from rsd_edge.errors import InputError
from rsd_edge.specs import TileSpec
from rsd_edge.tiling import plan_tiles

TERMS = ("start", "per_tile", "per_tile_pixel", "per_pixel")
FEW_TERMS = ("per_tile", "per_tile_pixel")
"""For a handful of measurements."""


@dataclass(frozen=True)
class Measured:
    """Times of frames of one size, cut one way, on so many threads."""

    width: int
    height: int
    tile: TileSpec
    threads: int
    times: Times

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.width}x{self.height} in tiles up to {self.tile.size}, {self.threads} threads"


@dataclass(frozen=True)
class HeldOut:
    """A measurement that the fit never saw."""

    name: str
    threads: int
    measured_ms: float
    predicted_ms: float
    error: float
    """Share of the measured median by which the prediction is off."""
    error_of_runs: float
    """The larger share by which the run at the tenth and the one at the ninetieth percentile are off."""


@dataclass(frozen=True)
class LatencyModel:
    """Seconds by number of threads and term, and how far off they were where it was not fitted."""

    seconds: Mapping[int, Mapping[str, float]]
    fitted_to: int
    """Measurements."""
    held_out: tuple[HeldOut, ...] = ()

    @property
    def error(self) -> float | None:
        """The largest share by which a median of the held-out sizes was off; None without any."""
        return max((row.error for row in self.held_out), default=None)

    @property
    def error_of_runs(self) -> float | None:
        """The same for runs, of which four in five lie within it."""
        return max((row.error_of_runs for row in self.held_out), default=None)

    def predict(self, width: int, height: int, tile: TileSpec, threads: int) -> float:
        """Seconds for a frame. Raises InputError for a number of threads that was not measured."""
        if threads not in self.seconds:
            known = ", ".join(map(str, self.seconds))
            raise InputError(f"threads is {threads}, but the latency was measured with {known}; measure with {threads}")
        of_frame = features(width, height, tile)
        return sum(seconds * of_frame[term] for term, seconds in self.seconds[threads].items())

    def checked(self, rows: Sequence[Measured]) -> LatencyModel:
        """The same model, with its errors on measurements that it was not fitted to."""
        held = tuple(_held_out(self.predict(row.width, row.height, row.tile, row.threads), row) for row in rows)
        return LatencyModel(self.seconds, self.fitted_to, held)

    def on(self, threads: int) -> LatencyModel:
        """What it says of one number of threads."""
        held = tuple(row for row in self.held_out if row.threads == threads)
        return LatencyModel({threads: self.seconds[threads]}, self.fitted_to, held)

    def to_json(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "seconds": {str(threads): dict(terms) for threads, terms in self.seconds.items()},
            "fitted_to": self.fitted_to,
            "held_out": [asdict(row) for row in self.held_out],
            "error": self.error,
            "error_of_runs": self.error_of_runs,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LatencyModel:
        """From `to_json`. Raises KeyError, TypeError or ValueError for anything else."""
        seconds = {
            int(threads): {term: float(terms[term]) for term in TERMS if term in terms}
            for threads, terms in data["seconds"].items()
        }
        return cls(seconds, int(data["fitted_to"]), tuple(HeldOut(**row) for row in data["held_out"]))


def features(width: int, height: int, tile: TileSpec) -> dict[str, float]:
    """How often a frame pays each term."""
    plan = plan_tiles(height, width, tile)
    counts = (1, plan.count, plan.count * plan.tile_h * plan.tile_w, width * height)
    return {term: float(count) for term, count in zip(TERMS, counts, strict=True)}


def fit(rows: Sequence[Measured], terms: Sequence[str] = TERMS, quantile: float = 0.5) -> LatencyModel:
    """Least squares on medians, each weighed by its inverse so that relative errors count; no cost is negative.

    quantile: of the runs, in the place of the median.
    """
    seconds = {}
    for threads in sorted({row.threads for row in rows}):
        group = [row for row in rows if row.threads == threads]
        weights = np.array([1 / np.quantile(row.times.seconds, quantile) for row in group])
        counts = np.array([[features(row.width, row.height, row.tile)[term] for term in terms] for row in group])
        solved = _least_squares(counts * weights[:, None], np.ones(len(group)))
        seconds[threads] = dict(zip(terms, map(float, solved), strict=True))
    return LatencyModel(seconds, len(rows))


def _least_squares(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """x >= 0 that minimises |ax - b|: with so few columns, the best of all subsets that need no constraint."""
    scale = np.linalg.norm(a, axis=0)
    scale[scale == 0] = 1
    best, least = np.zeros(a.shape[1]), float(np.linalg.norm(b))
    for size in range(1, a.shape[1] + 1):
        for columns in map(list, combinations(range(a.shape[1]), size)):
            part = np.linalg.lstsq(a[:, columns] / scale[columns], b, rcond=None)[0] / scale[columns]
            residual = float(np.linalg.norm(a[:, columns] @ part - b))
            if part.min() >= 0 and residual < least * (1 - 1e-9):  # fewer terms where more add nothing
                best, least = np.zeros(a.shape[1]), residual
                best[columns] = part
    return best


def _held_out(predicted: float, row: Measured) -> HeldOut:
    low, high = np.percentile(row.times.seconds, [10, 90])
    median = row.times.median
    of_runs = max(abs(predicted - low) / low, abs(predicted - high) / high)
    return HeldOut(
        row.name, row.threads, 1e3 * median, 1e3 * predicted, abs(predicted - median) / median, float(of_runs)
    )
