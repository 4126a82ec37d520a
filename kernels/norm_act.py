"""GroupNorm + SiLU as one operator, for contiguous and channels_last tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rsd_edge.errors import InputError
from rsd_edge.kernels import reference
from rsd_edge.kernels.implementation import check_images, check_implementation, launch, runs_reference
from rsd_edge.kernels.noise_field import MAX_SAMPLES

SPAN_BLOCK = 4096
PIXEL_BLOCK = 64
PIXEL_STEPS = 8
"""Statistics of so many blocks are merged on the way: 12 bytes a channel and block would be a tenth of the data."""
CHANNEL_BLOCK = 64
APPLY_BLOCK = 2048
MERGE_BLOCK = 512
PARTS_MULTIPLE = 16


def group_norm_silu(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, *, epsilon: float = 1e-6, implementation: str
) -> Tensor:
    """SiLU(GroupNorm(x)) in x's dtype and memory format; statistics are float32.

    x: float32, float16 or bfloat16 (n, c, h, w), contiguous or channels_last, anything else is copied. weight, bias:
    (c,). epsilon: 1e-6 as in the VQ networks. Gradients flow to all three; they are torch's own, in float32 and not
    fused, because what pays is the forward pass of the VQ decoder, whose weights do not learn. Whether training gains
    from this operator was not measured. Raises InputError for tensors that do not fit, and what
    `check_implementation` raises.
    """
    check_images(x=x)
    channels = x.shape[1]
    if groups < 1 or channels % groups:
        raise InputError(f"{channels} channels do not divide into {groups} groups")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor.shape != (channels,) or tensor.device != x.device or not tensor.is_floating_point():
            raise InputError(f"{name} is {tuple(tensor.shape)} on {tensor.device}; it must be ({channels},) beside x")
    if len(x) > MAX_SAMPLES:
        raise InputError(f"{len(x)} samples do not fit one launch; use at most {MAX_SAMPLES}")
    check_implementation(implementation, x.device)
    out: Tensor = torch.ops.rsd_edge.group_norm_silu(x, weight, bias, groups, epsilon, implementation)
    return out


def _memory_format(x: Tensor) -> torch.memory_format:
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


@torch.library.custom_op("rsd_edge::group_norm_silu", mutates_args=())
def _group_norm_silu(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, epsilon: float, implementation: str
) -> Tensor:
    layout = _memory_format(x)
    x = x.contiguous(memory_format=layout)
    if runs_reference(implementation, x.device):
        return reference.group_norm_silu(x, weight, bias, groups, epsilon).contiguous(memory_format=layout)
    return (
        _channels_last(x, weight, bias, groups, epsilon)
        if layout is torch.channels_last
        else _contiguous(x, weight, bias, groups, epsilon)
    )


@_group_norm_silu.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=_memory_format(x))


def _contiguous(x: Tensor, weight: Tensor, bias: Tensor, groups: int, epsilon: float) -> Tensor:
    n, channels, height, width = x.shape
    pixels = height * width
    span = channels // groups * pixels
    parts = -(-span // SPAN_BLOCK)
    partials = _partials(n * groups, parts, x.device)
    launch("norm", "stats_contiguous", (n * groups, parts), x, partials, span, partials.shape[2], BLOCK=SPAN_BLOCK)
    scale, shift = _merge(partials, parts, weight, bias, n, groups, epsilon)
    out = torch.empty_like(x)
    grid = (n * channels, -(-pixels // APPLY_BLOCK))
    launch("norm", "apply_contiguous", grid, x, out, scale, shift, pixels, BLOCK=APPLY_BLOCK)
    return out


def _channels_last(x: Tensor, weight: Tensor, bias: Tensor, groups: int, epsilon: float) -> Tensor:
    n, channels, height, width = x.shape
    pixels, group_size = height * width, channels // groups
    blocks, columns = -(-pixels // (PIXEL_STEPS * PIXEL_BLOCK)), -(-channels // CHANNEL_BLOCK)
    shape = {"BLOCK": PIXEL_BLOCK, "BLOCK_C": CHANNEL_BLOCK}
    partials = _partials(n * groups, blocks * group_size, x.device)
    in_memory, out = x.permute(0, 2, 3, 1), torch.empty_like(x)
    launch(
        "norm", "stats_channels_last", (blocks, n, columns),
        in_memory, partials, pixels, channels, group_size, partials.shape[2], STEPS=PIXEL_STEPS, **shape,
    )  # fmt: skip
    scale, shift = _merge(partials, blocks * group_size, weight, bias, n, groups, epsilon)
    launch(
        "norm", "apply_channels_last", (-(-pixels // PIXEL_BLOCK), n, columns),
        in_memory, out.permute(0, 2, 3, 1), scale, shift, pixels, channels, **shape,
    )  # fmt: skip
    return out


def _partials(rows: int, parts: int, device: torch.device) -> Tensor:
    """Room for the statistics of `parts` blocks a row, in whole vectors."""
    return torch.empty(rows, 3, -(-parts // PARTS_MULTIPLE) * PARTS_MULTIPLE, device=device)


def _merge(
    partials: Tensor, parts: int, weight: Tensor, bias: Tensor, n: int, groups: int, epsilon: float
) -> tuple[Tensor, Tensor]:
    scale = torch.empty(n, len(weight), device=weight.device)
    shift, group_size = torch.empty_like(scale), len(weight) // groups
    launch(
        "norm", "merge_stats", (n * groups,),
        partials, weight, bias, scale, shift, groups, group_size, parts, partials.shape[2], epsilon,
        BLOCK=MERGE_BLOCK, BLOCK_C=1 << (group_size - 1).bit_length(),
    )  # fmt: skip
    return scale, shift


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.groups, ctx.epsilon, _ = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Through aten's own GroupNorm, in float32: the statistics are computed again rather than kept."""
    x, weight, bias = ctx.saved_tensors
    n, channels, height, width = x.shape
    sizes = (n, channels, height * width, ctx.groups)
    wide, scale = x.float().contiguous(), weight.float()
    normalised, mean, inverse = torch.native_group_norm(wide, scale, bias.float(), *sizes, ctx.epsilon)
    gate = torch.sigmoid(normalised)
    inner = grad.float() * gate * (1 + normalised * (1 - gate))
    grads = torch.ops.aten.native_group_norm_backward(
        inner.contiguous(), wide, mean, inverse, scale, *sizes, [True, True, True]
    )
    grad_x, grad_weight, grad_bias = grads
    return grad_x.to(x.dtype), grad_weight.to(weight.dtype), grad_bias.to(bias.dtype), None, None, None


_group_norm_silu.register_autograd(_differentiate, setup_context=_keep)
