"""Frames to tiles and back as operators; rsd_edge/tiling.py holds the geometry, as a TilePlan."""

from __future__ import annotations

import torch
from torch import Tensor

from rsd_edge.errors import InputError
from rsd_edge.frames import SCALE
from rsd_edge.kernels import reference_frames
from rsd_edge.kernels.catalogue import MERGE_LANES, MERGE_REGISTERS, merge_columns
from rsd_edge.kernels.implementation import DTYPES, check_implementation, launch, runs_reference
from rsd_edge.kernels.noise_field import MAX_SAMPLES
from rsd_edge.tiling import AxisPlan, TilePlan

TILE_LANES = 64
PIXELS_PER_LANE = 16


def frame_tiles(frame: Tensor, plan: TilePlan, *, dtype: torch.dtype = torch.float32, implementation: str) -> Tensor:
    """Tiles with their halo, RGB in [-1, 1], (count, 3, tile_h, tile_w) of `dtype`.

    frame: contiguous uint8 (h, w, 3) BGR of the plan's size. Beyond it are reflections in its end pixels. Raises
    InputError for tensors that do not fit, and what `check_implementation` raises.
    """
    _check_frame(frame, plan)
    if dtype not in DTYPES:
        raise InputError(f"tiles cannot be {dtype}; use float32, float16 or bfloat16")
    check_implementation(implementation, frame.device)
    tiles: Tensor = torch.ops.rsd_edge.frame_tiles(frame, _numbers(plan), dtype, implementation)
    return tiles


def merge_tiles(
    detail: Tensor, frame: Tensor, strength: Tensor, not_finite: Tensor, plan: TilePlan, *, implementation: str
) -> Tensor:
    """bicubic x4 of the frame + strength * detail: uint8 (4h, 4w, 3) BGR.

    detail: (count, 3, 4 tile_h, 4 tile_w), RGB in units of the [-1, 1] range; copied if not contiguous. strength:
    float32 (1,) on the frame's device, so that a CUDA graph can be replayed with another one. not_finite: int32 (1,)
    there, set to 1 if a value that counts in the result is an infinity or no number, and never set to 0. Raises as
    `frame_tiles`.
    """
    _check_frame(frame, plan)
    shape = (plan.count, 3, SCALE * plan.tile_h, SCALE * plan.tile_w)
    if detail.shape != shape or detail.dtype not in DTYPES or detail.device != frame.device:
        raise InputError(
            f"detail is {detail.dtype} {tuple(detail.shape)} on {detail.device}; "
            f"it must be floating {shape} on {frame.device}"
        )
    if strength.shape != (1,) or strength.dtype != torch.float32 or strength.device != frame.device:
        raise InputError(f"strength is {strength.dtype} {tuple(strength.shape)}; it must be float32 (1,) beside frame")
    if not_finite.shape != (1,) or not_finite.dtype != torch.int32 or not_finite.device != frame.device:
        found = f"{not_finite.dtype} {tuple(not_finite.shape)}"
        raise InputError(f"not_finite is {found}; it must be int32 (1,) beside frame")
    check_implementation(implementation, frame.device)
    numbers = _numbers(plan)
    result: Tensor = torch.ops.rsd_edge.merge_tiles(detail, frame, strength, not_finite, numbers, implementation)
    return result


def _check_frame(frame: Tensor, plan: TilePlan) -> None:
    shape = (plan.y.length, plan.x.length, 3)
    if frame.dtype != torch.uint8 or frame.shape != shape or not frame.is_contiguous():
        raise InputError(f"frame is {frame.dtype} {tuple(frame.shape)}; it must be contiguous uint8 {shape}")
    if (plan.y.halo, plan.y.feather) != (plan.x.halo, plan.x.feather):
        raise InputError("the plan's halo or feather differs between its axes; the kernels know one of each")
    if plan.count > MAX_SAMPLES:
        raise InputError(f"{plan.count} tiles do not fit one launch; use at most {MAX_SAMPLES}, that is larger tiles")


def _numbers(plan: TilePlan) -> list[int]:
    """The plan as what an operator's schema can hold."""
    return [plan.y.length, plan.x.length, plan.y.stride, plan.x.stride, plan.y.halo, plan.y.feather]


def _plan(numbers: list[int]) -> TilePlan:
    height, width, stride_y, stride_x, halo, feather = numbers
    return TilePlan(AxisPlan(height, stride_y, halo, feather), AxisPlan(width, stride_x, halo, feather))


@torch.library.custom_op("rsd_edge::frame_tiles", mutates_args=())
def _frame_tiles(frame: Tensor, numbers: list[int], dtype: torch.dtype, implementation: str) -> Tensor:
    plan = _plan(numbers)
    if runs_reference(implementation, frame.device):
        return reference_frames.frame_tiles(frame, plan, dtype)
    out = torch.empty((plan.count, 3, plan.tile_h, plan.tile_w), dtype=dtype, device=frame.device)
    lanes = plan.tile_h * -(-plan.tile_w // PIXELS_PER_LANE)
    launch(
        "frames", "frame_tiles", (-(-lanes // TILE_LANES), plan.count),
        frame, out, plan.y.length, plan.x.length, plan.x.count, plan.tile_h, plan.tile_w, plan.y.stride, plan.x.stride,
        plan.y.halo, plan.tile_h * plan.tile_w, lanes, LANES=TILE_LANES,
    )  # fmt: skip
    return out


@_frame_tiles.register_fake
def _(frame: Tensor, numbers: list[int], dtype: torch.dtype, implementation: str) -> Tensor:
    plan = _plan(numbers)
    return frame.new_empty((plan.count, 3, plan.tile_h, plan.tile_w), dtype=dtype)


@torch.library.custom_op("rsd_edge::merge_tiles", mutates_args=("not_finite",))
def _merge_tiles(
    detail: Tensor, frame: Tensor, strength: Tensor, not_finite: Tensor, numbers: list[int], implementation: str
) -> Tensor:
    plan = _plan(numbers)
    if runs_reference(implementation, frame.device):
        return reference_frames.merge_tiles(detail, frame, strength, not_finite, plan)
    height, width = plan.y.length, plan.x.length
    words = torch.empty((SCALE * height, 3 * width), dtype=torch.int32, device=frame.device)
    block = merge_columns(plan.x.stride)
    rows = MERGE_LANES // block
    launch(
        "frames", "merge_tiles", (2 * -(-height // rows), plan.x.count * -(-plan.x.stride // block)),
        detail, frame, words, strength, not_finite, height, width, plan.y.count, plan.x.count, plan.tile_h,
        plan.tile_w, plan.y.stride, plan.x.stride, plan.y.halo, plan.y.feather, ROWS=rows, COLUMNS=block,
        maxnreg=MERGE_REGISTERS,
    )  # fmt: skip
    return words.view(torch.uint8).view(SCALE * height, SCALE * width, 3)


@_merge_tiles.register_fake
def _(
    detail: Tensor, frame: Tensor, strength: Tensor, not_finite: Tensor, numbers: list[int], implementation: str
) -> Tensor:
    height, width = numbers[:2]
    return frame.new_empty((SCALE * height, SCALE * width, 3))
