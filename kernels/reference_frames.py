"""Frames to tiles and back in plain torch: what rsd_edge/tiling.py and rsd_edge/frames.py define, whole frames at once.

Frames are uint8 (h, w, 3) BGR. Tiles (count, 3, tile_h, tile_w) and detail (count, 3, 4 tile_h, 4 tile_w) are RGB in
units of the [-1, 1] range, in the plan's raster order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rsd_edge.frames import GREY_LEVELS_PER_UNIT, SCALE
from rsd_edge.tiling import AxisPlan, TilePlan

_RAMP_STEPS = 1 << 12
_CUBIC_BITS = 22


def frame_tiles(frame: Tensor, plan: TilePlan, dtype: torch.dtype) -> Tensor:
    """Tiles with their halo; beyond the frame are reflections in its end pixels."""
    planes = frame.flip(2).permute(2, 0, 1).float() / GREY_LEVELS_PER_UNIT - 1.0
    rows, columns = _tile_coordinates(plan.y, frame.device), _tile_coordinates(plan.x, frame.device)
    tiles = planes[:, rows[:, None, :, None], columns[None, :, None, :]]
    return tiles.flatten(1, 2).transpose(0, 1).to(dtype).contiguous()


def merge_tiles(detail: Tensor, frame: Tensor, strength: Tensor, not_finite: Tensor, plan: TilePlan) -> Tensor:
    """bicubic + strength * feathered detail, rounded to uint8 (4h, 4w, 3) BGR. strength: float32 (1,).

    not_finite: int32 (1,), set to 1 if any detail of the frame is an infinity or no number.
    """
    merged = detail.new_zeros((3, SCALE * plan.y.length, SCALE * plan.x.length), dtype=torch.float32)
    for index in range(plan.count):
        row, column = divmod(index, plan.x.count)
        (y_tile, y_frame, y_weight), (x_tile, x_frame, x_weight) = _kept(plan.y, row), _kept(plan.x, column)
        weight = (y_weight[:, None] * x_weight).to(detail.device)
        merged[:, y_frame, x_frame] += weight * detail[index, :, y_tile, x_tile].float()
    not_finite.masked_fill_(~merged.isfinite().all(), 1)
    gain = strength * GREY_LEVELS_PER_UNIT
    levels = bicubic_x4(frame).float() + gain * merged.flip(0).permute(1, 2, 0)
    return levels.round().clamp(0, 255).to(torch.uint8)


def bicubic_x4(frame: Tensor) -> Tensor:
    """OpenCV's bicubic enlargement (a = -0.75, end pixels repeated) in its integers: uint8 (4h, 4w, 3).

    At x4 its weights are multiples of 1 / 2048, so that sums are exact and rounded once.
    """
    height, width = frame.shape[:2]
    (rows, row_weights), (columns, column_weights) = _taps(height, frame.device), _taps(width, frame.device)
    wide = (frame.int()[:, columns] * column_weights[None, :, :, None]).sum(2, dtype=torch.int32)
    total = (wide[rows] * row_weights[:, :, None, None]).sum(1, dtype=torch.int32)
    return ((total + (1 << (_CUBIC_BITS - 1))) >> _CUBIC_BITS).clamp(0, 255).to(torch.uint8)


def _taps(length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Four LR coordinates and their weights times 2048, int (4 * length, 4) each."""
    at = torch.arange(SCALE * length, device=device)
    phase = at % SCALE
    k = (2 * phase + 5) % 8  # eighths of a pixel beyond the second tap
    first = at // SCALE - 2 + phase // 2
    taps = (first[:, None] + torch.arange(4, device=device)).clamp(0, length - 1)
    m = 8 - k
    weights = (-3 * k * m * m, (5 * k - 72) * k * k + 2048, (5 * m - 72) * m * m + 2048, -3 * k * k * m)
    return taps, torch.stack(weights, dim=1).int()


def _tile_coordinates(axis: AxisPlan, device: torch.device) -> Tensor:
    origins = torch.tensor([axis.origin(i) for i in range(axis.count)], device=device)
    at = origins[:, None] + torch.arange(axis.side, device=device)
    if axis.length == 1:
        return torch.zeros_like(at)
    period = 2 * axis.length - 2
    at = at % period
    return torch.minimum(at, period - at)


def _kept(axis: AxisPlan, i: int) -> tuple[slice, slice, Tensor]:
    """Where tile i counts, in output pixels of the tile and of the frame, and its weights there."""
    start = SCALE * axis.finished(i)[0]
    stop = SCALE * (axis.finished(i)[1] + axis.seam(i))
    weights = torch.ones(stop - start)
    seam = 2 * SCALE * axis.feather
    rise = torch.round((torch.arange(seam) + 0.5) / max(seam, 1) * _RAMP_STEPS) / _RAMP_STEPS
    if i:
        overlap = SCALE * axis.seam(i - 1)
        weights[:overlap] = rise[:overlap]
    if axis.seam(i):
        weights[-SCALE * axis.seam(i) :] = 1.0 - rise[: SCALE * axis.seam(i)]
    origin = SCALE * axis.origin(i)
    return slice(start - origin, stop - origin), slice(start, stop), weights
