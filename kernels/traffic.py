"""Bytes of device memory that each operator moves, so that a time says how near to the bandwidth a kernel is.

`minimum`: every byte of the operands read or written once. `counted`: once for each program that touches it, which is
what leaves the L1 caches. Left out: seeds, timesteps, coefficients and block sums, the word that merge_tiles sets, and
the table of the noise field, which stays in the caches. tests/interpreted_traffic.py counts both while the kernels run
in Triton's interpreter.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rsd_edge.frames import SCALE
from rsd_edge.kernels.catalogue import MERGE_LANES, merge_columns
from rsd_edge.tiling import AxisPlan, TilePlan

RGB = 3
_TAPS_BESIDE = 2
"""LR pixels on either side of its own that merge_tiles reads for an output."""


@dataclass(frozen=True)
class Traffic:
    """Bytes of one call."""

    counted: int
    minimum: int


def _once(count: int) -> Traffic:
    return Traffic(count, count)


def forward_noise(elements: int, size: int, *, drawn: bool = False) -> Traffic:
    """elements: of x0; size: bytes of one. Reads x0, y and, unless it is drawn, eps; writes x_t."""
    return _once((3 if drawn else 4) * elements * size)


def forward_noise_backward(elements: int, size: int) -> Traffic:
    """Reads one gradient, writes two."""
    return _once(3 * elements * size)


def prior_input(samples: int, zc: int, pixels: int, size: int) -> Traffic:
    """Reads z_y, lq and noise, writes the network's input."""
    return _once((zc + RGB + (zc + 1) + (zc + RGB + 1)) * samples * pixels * size)


def posterior_step(elements: int, size: int) -> Traffic:
    """Reads x_t, x0_hat and eps (not at t = 0), writes x_{t-1} and its part of the network's input."""
    return _once(5 * elements * size)


def rsd_terms(elements: int, size: int) -> Traffic:
    """Reads three tensors."""
    return _once(3 * elements * size)


def rsd_terms_backward(elements: int, size: int) -> Traffic:
    """Reads three tensors, writes three gradients."""
    return _once(6 * elements * size)


def group_norm_silu(elements: int, size: int) -> Traffic:
    """Reads x for its statistics and once more to apply them: a group does not fit the memory of a multiprocessor."""
    return Traffic(3 * elements * size, 2 * elements * size)


def noise_field(samples: int, channels: int, pixels: int, size: int) -> Traffic:
    """Only writes."""
    return _once(samples * channels * pixels * size)


def frame_tiles(plan: TilePlan, size: int) -> Traffic:
    """Writes every tile; reads the frame, and its halos once for each tile they are part of."""
    pixels = plan.count * plan.tile_h * plan.tile_w
    written = RGB * pixels * size
    return Traffic(RGB * pixels + written, RGB * plan.y.length * plan.x.length + written)


def merge_tiles(plan: TilePlan, size: int) -> Traffic:
    """Reads the detail of cores and seams, writes the frame; a block of the LR frame is read with what lies around."""
    height, width = plan.y.length, plan.x.length
    detail = RGB * _kept(plan.y) * _kept(plan.x) * size
    written = RGB * SCALE * height * SCALE * width
    block = merge_columns(plan.x.stride)
    lines = MERGE_LANES // block
    # Two programs for the same LR rows: of their output rows, the upper two and the lower two.
    rows = sum(_with_taps(height, range(0, height, lines), lines, _TAPS_BESIDE - i, 1 + i) for i in range(2))
    starts = [start + low for start in range(0, width, plan.x.stride) for low in range(0, plan.x.stride, block)]
    columns = _with_taps(width, [start for start in starts if start < width], block, _TAPS_BESIDE, _TAPS_BESIDE)
    return Traffic(detail + RGB * rows * columns + written, detail + RGB * height * width + written)


def _with_taps(length: int, starts: Iterable[int], block: int, before: int, after: int) -> int:
    """LR pixels along an axis that blocks read, added up; at its ends, its end pixels again."""
    reads = ((min(max(start - before, 0), length - 1), min(start + block + after, length)) for start in starts)
    return sum(stop - start for start, stop in reads)


def _kept(axis: AxisPlan) -> int:
    """Output pixels along an axis, those of seams twice."""
    return SCALE * (axis.length + sum(axis.seam(i) for i in range(axis.count)))
