"""Bytes of device memory that each operator moves, so that a time says how near to the bandwidth a kernel is.

`minimum`: every byte of the operands read or written once. `counted`: once for each program that touches it, which is
what leaves the L1 caches. Left out: seeds, timesteps, coefficients and block sums, and the table of the noise field,
which stays in the caches. tests/interpreted_traffic.py counts both while the kernels run in Triton's interpreter.
"""

from __future__ import annotations

from dataclasses import dataclass

from rsd_edge.frames import SCALE
from rsd_edge.tiling import AxisPlan, TilePlan

RGB = 3
_TAP_ROWS = 5
"""LR rows that one output row of merge_tiles reads; and as many columns."""


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
    """Reads the detail of cores and seams, writes the frame; each output row reads five rows of the LR frame."""
    height, width = plan.y.length, plan.x.length
    detail = RGB * _kept(plan.y) * _kept(plan.x) * size
    written = RGB * SCALE * height * SCALE * width
    rows = SCALE * height * _TAP_ROWS * RGB * (width + (_TAP_ROWS - 1) * plan.x.count)
    return Traffic(detail + rows + written, detail + RGB * height * width + written)


def _kept(axis: AxisPlan) -> int:
    """Output pixels along an axis, those of seams twice."""
    return SCALE * (axis.length + sum(axis.seam(i) for i in range(axis.count)))
