"""Cutting a frame into tiles and joining their detail without seams.

Lengths are LR pixels unless a name says otherwise. A tile is a core, which is its share of the frame, and a halo of
real neighbours around it that gives the network its surroundings. Neighbouring tiles are cross-faded over `feather`
pixels on either side of the border between their cores; everywhere else exactly one tile decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from rsd_edge.errors import InputError
from rsd_edge.frames import SCALE, Region, to_model
from rsd_edge.specs import TileSpec

_RAMP_STEPS = 1 << 12


@dataclass(frozen=True)
class AxisPlan:
    """How one side of the frame is cut: `count` cores of `stride` pixels, the last of which may run past `length`."""

    length: int
    stride: int
    halo: int
    feather: int

    @property
    def count(self) -> int:
        """Number of tiles along this axis."""
        return -(-self.length // self.stride)

    @property
    def side(self) -> int:
        """Length of each tile, halo included."""
        return self.stride + 2 * self.halo

    def origin(self, i: int) -> int:
        """Frame coordinate of the tile's first pixel: negative for the first tile, whose halo lies outside."""
        return i * self.stride - self.halo

    def finished(self, i: int) -> tuple[int, int]:
        """Frame pixels that tile i completes: no later tile changes them. These ranges partition the frame."""
        start = i * self.stride - self.feather if i else 0
        stop = (i + 1) * self.stride - self.feather if i + 1 < self.count else self.length
        return start, stop

    def seam(self, i: int) -> int:
        """Pixels shared with tile i + 1 (0 after the last tile): 2 * feather, less where the frame ends sooner."""
        if i + 1 == self.count:
            return 0
        return min(2 * self.feather, self.length - self.finished(i)[1])

    @cached_property
    def sources(self) -> tuple[NDArray[np.intp], ...]:
        """For each tile, the frame coordinate that each of its pixels is read from."""
        return tuple(reflected(self.origin(i), self.side, self.length) for i in range(self.count))


@dataclass(frozen=True)
class TilePlan:
    """All tiles of a frame in raster order; they share one shape, `tile_h` x `tile_w`."""

    y: AxisPlan
    x: AxisPlan

    @property
    def count(self) -> int:
        """Number of tiles."""
        return self.y.count * self.x.count

    @property
    def tile_h(self) -> int:
        """Height of each tile, halo included."""
        return self.y.side

    @property
    def tile_w(self) -> int:
        """Width of each tile, halo included."""
        return self.x.side

    def origin(self, index: int) -> tuple[int, int]:
        """Frame coordinates (y, x) of the tile's first pixel, halo included; may be negative."""
        row, column = divmod(index, self.x.count)
        return self.y.origin(row), self.x.origin(column)

    def finished(self, index: int) -> Region:
        """The part of the frame that is final once this tile is merged. These parts cover the frame exactly once."""
        row, column = divmod(index, self.x.count)
        return Region(*self.y.finished(row), *self.x.finished(column))

    def largest_region(self) -> tuple[int, int]:
        """Height and width that no finished region exceeds."""
        return self.y.stride + self.y.feather, self.x.stride + self.x.feather


@lru_cache(maxsize=32)
def plan_tiles(height: int, width: int, spec: TileSpec) -> TilePlan:
    """The tiles of a height x width frame.

    A `fixed` spec gives tiles of exactly size x size. Otherwise the smallest number of tiles that `size` allows is kept
    and the tiles shrink to share the frame evenly, each axis on its own.
    """
    return TilePlan(_plan_axis(height, spec), _plan_axis(width, spec))


def _plan_axis(length: int, spec: TileSpec) -> AxisPlan:
    if length < 1:
        raise InputError(f"a frame side of {length} pixels cannot be tiled; it must be at least 1")
    stride = spec.size - 2 * spec.halo
    if not spec.fixed:
        even = -(-length // -(-length // stride))
        # Two cross-fades must not overlap, so a core is never shorter than one of them.
        stride = _round_up(max(even, 2 * spec.feather), spec.multiple_of)
    return AxisPlan(length, stride, spec.halo, spec.feather)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def reflected(start: int, count: int, length: int) -> NDArray[np.intp]:
    """Coordinates start .. start + count - 1 folded into 0 .. length - 1 by mirrors at the end pixels.

    The end pixel is not repeated (2 1 0 1 2) and the mirrors repeat for ever, so any side works, 1 included.
    """
    period = max(2 * (length - 1), 1)
    folded = np.arange(start, start + count, dtype=np.intp) % period
    return np.minimum(folded, period - folded) if length > 1 else np.zeros(count, np.intp)


def gather_tiles(frame: NDArray[np.uint8], plan: TilePlan, indices: Sequence[int], out: NDArray[np.float32]) -> None:
    """Read tiles with their halo: frame uint8 BGR (h, w, 3) to out float32 RGB (n, 3, tile_h, tile_w) in [-1, 1].

    Pixels outside the frame are reflections. Entries of `out` beyond len(indices) are left as they are.
    """
    for slot, index in enumerate(indices):
        to_model(_read_tile(frame, plan, index), out[slot])


def _read_tile(frame: NDArray[np.uint8], plan: TilePlan, index: int) -> NDArray[np.uint8]:
    row, column = divmod(index, plan.x.count)
    y, x = plan.origin(index)
    if 0 <= y <= plan.y.length - plan.tile_h and 0 <= x <= plan.x.length - plan.tile_w:
        return frame[y : y + plan.tile_h, x : x + plan.tile_w]
    rows, columns = plan.y.sources[row], plan.x.sources[column]
    # Whole rows first: only the columns in between are copied twice.
    left, right = int(columns.min()), int(columns.max()) + 1
    return frame[rows, left:right].take(columns - left, axis=1)


class TileMerger:
    """Joins the detail of tiles that arrive in raster order; serves one thread at a time.

    The cross-fade is separable: each tile is faded into its left neighbour, then into the row above. Only the
    unfinished right and lower seams are kept (a strip of 8 * feather output rows across the frame and one of
    8 * feather columns beside a tile), so memory does not grow with the height of the frame, and all other detail is
    passed on untouched.

    Weights are multiples of 2^-12 and the two sides of a seam add up to exactly 1, corners included.
    """

    def __init__(self, plan: TilePlan, channels: int = 3) -> None:
        self._plan = plan
        self._expected = 0
        row_seam, column_seam = 2 * SCALE * plan.y.feather, 2 * SCALE * plan.x.feather
        reach = SCALE * (plan.y.stride + 2 * plan.y.feather)
        self._right = np.zeros((channels, reach, column_seam), np.float32)
        self._below = np.zeros((channels, row_seam, SCALE * plan.x.length), np.float32)
        self._rise_x = _ramp(column_seam)
        self._rise_y = _ramp(row_seam)

    def merge(self, index: int, detail: NDArray[np.float32]) -> NDArray[np.float32]:
        """Merge one tile and return what is now final: a view of `detail` that covers `plan.finished(index)`.

        detail: float32 (channels, 4 * tile_h, 4 * tile_w), faded in place. Index 0 starts a new frame.
        Raises InputError if tiles do not arrive one after the other.
        """
        if index not in (0, self._expected):
            raise InputError(f"tile {index} cannot be merged now; tile {self._expected} is next")
        self._expected = index + 1
        y, x = self._plan.y, self._plan.x
        row, column = divmod(index, x.count)
        kept = detail[:, _kept(y, row), _kept(x, column)]
        columns_done = _fade(kept, _seams(x, column), self._right[:, : kept.shape[1]], self._rise_x)
        start, stop = x.finished(column)
        below = self._below[:, :, SCALE * start : SCALE * stop]
        done = _fade(columns_done.swapaxes(1, 2), _seams(y, row), below.swapaxes(1, 2), self._rise_y)
        return done.swapaxes(1, 2)


def _fade(
    detail: NDArray[np.float32], seams: tuple[int, int], carried: NDArray[np.float32], rise: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Cross-fade along the last axis, in place, and return what is final: all but the seam at the end.

    seams: output pixels shared with the previous and with the next tile. carried: holds the previous tile's faded share
    of the first seam, and then this tile's share of the second.
    """
    before, after = seams
    if before:
        seam = detail[..., :before]
        seam *= rise[:before]
        seam += carried[..., :before]
    end = detail.shape[-1] - after
    np.multiply(detail[..., end:], 1.0 - rise[:after], out=carried[..., :after])
    return detail[..., :end]


def _seams(axis: AxisPlan, i: int) -> tuple[int, int]:
    """Output pixels that tile i shares with the tile before it and with the tile after it."""
    return SCALE * axis.seam(i - 1) if i else 0, SCALE * axis.seam(i)


def _kept(axis: AxisPlan, i: int) -> slice:
    """Output pixels of tile i with a weight above 0: its finished part and the seam to the next tile."""
    start, stop = axis.finished(i)
    origin = axis.origin(i)
    return slice(SCALE * (start - origin), SCALE * (stop + axis.seam(i) - origin))


def _ramp(length: int) -> NDArray[np.float32]:
    """Weights from 0 to 1 at the centres of `length` pixels, rounded so that float32 holds 1 minus them exactly too."""
    centres = (np.arange(length) + 0.5) / max(length, 1)
    return (np.rint(centres * _RAMP_STEPS) / _RAMP_STEPS).astype(np.float32)
