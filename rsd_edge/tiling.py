"""Cutting a frame into tiles and joining their detail without seams.

Lengths are LR pixels unless a name says otherwise. A tile is a core, which is its share of the frame, and a halo of
real neighbours around it that gives the network its surroundings. Neighbouring tiles are cross-faded over `feather`
pixels on either side of the border between their cores; everywhere else exactly one tile decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from rsd_edge.errors import InputError
from rsd_edge.frames import SCALE, DType, Frame, Region, to_model
from rsd_edge.opencv import cv2
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

    @property
    def extent(self) -> int:
        """Length of all tiles together, from the first pixel of the first to the last of the last."""
        return self.count * self.stride + 2 * self.halo


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


class TileReader:
    """Holds a copy of a frame with what its tiles see around it; serves one thread at a time.

    Beyond the frame are reflections in the end pixels, which are not repeated (2 1 0 1 2), for ever: any side works.
    """

    def __init__(self, plan: TilePlan, dtype: DType) -> None:
        self._plan = plan
        # Each channel in one piece, as the network wants them.
        self._padded: Frame = np.empty((3, plan.y.extent, plan.x.extent), dtype).transpose(1, 2, 0)

    def load(self, frame: Frame) -> None:
        """Take a frame, BGR (h, w, 3)."""
        y, x = self._plan.y, self._plan.x
        bottom, right = (axis.extent - axis.halo - axis.length for axis in (y, x))
        for plane, target in zip(cv2.split(frame), self._padded.transpose(2, 0, 1), strict=True):
            cv2.copyMakeBorder(plane, y.halo, bottom, x.halo, right, cv2.BORDER_REFLECT_101, dst=target)

    def read(self, indices: Sequence[int], out: NDArray[np.float32]) -> None:
        """Tiles with their halo, float32 RGB (n, 3, tile_h, tile_w) in [-1, 1], written into `out`.

        Entries of `out` beyond len(indices) are left as they are.
        """
        for slot, index in enumerate(indices):
            to_model(self.pixels(index).transpose(1, 2, 0), out[slot])

    def pixels(self, index: int) -> Frame:
        """One tile with its halo, BGR (3, tile_h, tile_w): a view that `load` overwrites."""
        plan = self._plan
        y, x = plan.origin(index)
        top, left = y + plan.y.halo, x + plan.x.halo
        return self._padded.transpose(2, 0, 1)[:, top : top + plan.tile_h, left : left + plan.tile_w]


class TileMerger:
    """Joins the detail of tiles that arrive in raster order; serves one thread at a time.

    The cross-fade is separable: each tile is faded into its left neighbour, then into the row above. Only the
    unfinished right and lower seams are kept (a strip of 8 * feather output rows across the frame and one of
    8 * feather columns beside a tile), so memory does not grow with the height of the frame, and all other detail is
    passed on untouched.

    Weights are multiples of 2^-12 and the two sides of a seam add up to exactly 1, corners included.
    """

    def __init__(self, plan: TilePlan, channels: int = 3, *, restoring: bool = False) -> None:
        """restoring: keep what `restore` needs."""
        self._plan, self._restoring = plan, restoring
        self._faded: tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...] = ()
        self._expected = 0
        row_seam, column_seam = 2 * SCALE * plan.y.feather, 2 * SCALE * plan.x.feather
        height = SCALE * (plan.y.stride + 2 * plan.y.feather)
        self._right = np.zeros((height, column_seam, channels), np.float32)
        self._below = np.zeros((row_seam, SCALE * plan.x.length, channels), np.float32)
        # NumPy is slow where only the innermost axis is stretched.
        self._rise_x = np.tile(_ramp(column_seam)[None, :, None], (1, 1, channels))
        self._rise_y = _ramp(row_seam)[:, None, None]
        self._fall_x, self._fall_y = 1.0 - self._rise_x, 1.0 - self._rise_y

    def merge(self, index: int, detail: NDArray[np.float32]) -> NDArray[np.float32]:
        """Merge one tile and return what is now final: a view of `detail` that covers `plan.finished(index)`.

        detail: float32 (4 * tile_h, 4 * tile_w, channels), faded in place. Index 0 starts a new frame.
        Raises InputError if tiles do not arrive one after the other.
        """
        if index not in (0, self._expected):
            raise InputError(f"tile {index} cannot be merged now; tile {self._expected} is next")
        self._expected = index + 1
        y, x = self._plan.y, self._plan.x
        row, column = divmod(index, x.count)
        kept = detail[_kept(y, row), _kept(x, column)]
        (left, right), (upper, lower) = _seams(x, column), _seams(y, row)
        height, width = kept.shape[0] - lower, kept.shape[1] - right
        start, stop = (SCALE * edge for edge in x.finished(column))
        below = self._below[:, start:stop]
        if self._restoring:
            self._faded = tuple((strip, strip.copy()) for strip in (kept[:, :left], kept[:upper, left:width]))
        _fade_in(kept[:, :left], self._right, self._rise_x)
        _fade_out(kept[:, width:], self._right, self._fall_x)
        _fade_in(kept[:upper, :width], below, self._rise_y)
        _fade_out(kept[height:, :width], below, self._fall_y)
        return kept[:height, :width]

    def restore(self) -> None:
        """Make the detail of the last `merge` what it was before, so that it can be merged again."""
        for strip, before in self._faded:
            np.copyto(strip, before)
        self._faded = ()


def _fade_in(seam: NDArray[np.float32], carried: NDArray[np.float32], rise: NDArray[np.float32]) -> None:
    """Weigh a tile's first seam, in place, and add what the tile before it left in the same corner of `carried`."""
    h, w, _ = seam.shape
    seam *= rise[:h, :w]  # which stretches, along the seam
    seam += carried[:h, :w]


def _fade_out(seam: NDArray[np.float32], carried: NDArray[np.float32], fall: NDArray[np.float32]) -> None:
    """Leave a tile's weighted last seam in `carried` for the tile after it."""
    h, w, _ = seam.shape
    np.multiply(seam, fall[:h, :w], out=carried[:h, :w])


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
