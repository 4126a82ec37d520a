"""GroupNorm + SiLU in Triton: statistics, their merge into one scale and shift a channel, application.

The data is read twice and written once. Statistics are means and squared deviations of blocks, merged as Chan, Golub
and LeVeque do: sums of squares would cancel where a group's mean is large.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def stats_contiguous(X, PARTIALS, span, stride, BLOCK: tl.constexpr):
    """Grid (samples x groups, blocks). X: (n * groups, span).

    PARTIALS: (n * groups, 3, stride) of counts, means and squared deviations; of its rows, what is no block stays as it
    was, so that merge_stats can read whole vectors.
    """
    row, block = tl.program_id(0), tl.program_id(1)
    offset = block * BLOCK + tl.arange(0, BLOCK)
    inside = offset < span
    x = tl.load(X + row.to(tl.int64) * span + offset, mask=inside, other=0.0).to(tl.float32)
    count = tl.minimum(span - block * BLOCK, BLOCK).to(tl.float32)
    mean = tl.sum(x, axis=0) / count
    deviation = tl.where(inside, x - mean, 0.0)
    target = PARTIALS + row.to(tl.int64) * 3 * stride + block
    tl.store(target, count)
    tl.store(target + stride, mean)
    tl.store(target + 2 * stride, tl.sum(deviation * deviation, axis=0))


@triton.jit
def stats_channels_last(
    X, PARTIALS, pixels, channels, group_size, stride,
    STEPS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of STEPS x BLOCK pixels, samples, blocks of channels). X: (n, pixels, channels).

    PARTIALS: (n, groups, 3, stride), of which each channel of each block of pixels is one part.
    """
    block, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    channel = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    mean, squares, total = tl.zeros([BLOCK_C], tl.float32), tl.zeros([BLOCK_C], tl.float32), 0.0
    for step in range(STEPS):
        start = (block * STEPS + step) * BLOCK
        pixel = start + tl.arange(0, BLOCK)
        inside = (pixel < pixels)[:, None] & (channel < channels)[None, :]
        at = sample * pixels * channels + pixel.to(tl.int64)[:, None] * channels + channel[None, :]
        x = tl.load(X + at, mask=inside, other=0.0).to(tl.float32)
        count = tl.minimum(tl.maximum(pixels - start, 0), BLOCK).to(tl.float32)
        own_mean = tl.sum(x, axis=0) / tl.maximum(count, 1.0)
        deviation = tl.where(inside, x - own_mean[None, :], 0.0)
        share = count / tl.maximum(total + count, 1.0)
        distance = own_mean - mean
        mean += distance * share
        squares += tl.sum(deviation * deviation, axis=0) + distance * distance * total * share
        total += count
    group = sample * (channels // group_size) + channel // group_size
    target = PARTIALS + group * 3 * stride + block * group_size + channel % group_size
    tl.store(target, mean * 0.0 + total, mask=channel < channels)
    tl.store(target + stride, mean, mask=channel < channels)
    tl.store(target + 2 * stride, squares, mask=channel < channels)


@triton.jit
def partial_row(row, part, parts, stride):
    """Entries of a row; 0 for what only fills its last vector."""
    return tl.where(part < parts, tl.load(row + part, mask=part < stride, other=0.0), 0.0)


@triton.jit
def merge_stats(
    PARTIALS, WEIGHT, BIAS, SCALE, SHIFT, groups, group_size, parts, stride, epsilon,
    BLOCK: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Grid (samples x groups). SCALE, SHIFT: float32 (n, channels), so that the result is x * SCALE + SHIFT.

    Of the `stride` entries of a row, the first `parts` count: the others hold anything, but belong to whole vectors.
    """
    row = tl.program_id(0)
    partials = PARTIALS + row.to(tl.int64) * 3 * stride
    counts, sums = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for start in range(0, parts, BLOCK):
        part = start + tl.arange(0, BLOCK)
        count = partial_row(partials, part, parts, stride)
        counts += count
        sums += count * partial_row(partials + stride, part, parts, stride)
    total = tl.sum(counts, axis=0)
    mean = tl.sum(sums, axis=0) / total
    squares = tl.zeros([BLOCK], tl.float32)
    for start in range(0, parts, BLOCK):
        part = start + tl.arange(0, BLOCK)
        count = partial_row(partials, part, parts, stride)
        distance = partial_row(partials + stride, part, parts, stride) - mean
        squares += partial_row(partials + 2 * stride, part, parts, stride) + count * distance * distance
    inverse = 1.0 / tl.sqrt(tl.sum(squares, axis=0) / total + epsilon)
    index = tl.arange(0, BLOCK_C)
    mine = index < group_size
    channel = (row % groups) * group_size + index
    scale = tl.load(WEIGHT + channel, mask=mine).to(tl.float32) * inverse
    shift = tl.load(BIAS + channel, mask=mine).to(tl.float32) - mean * scale
    tl.store(SCALE + row * group_size + index, scale, mask=mine)
    tl.store(SHIFT + row * group_size + index, shift, mask=mine)


@triton.jit
def apply_contiguous(X, OUT, SCALE, SHIFT, pixels, BLOCK: tl.constexpr):
    """Grid (samples x channels, blocks of pixels)."""
    row = tl.program_id(0)
    offset = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = offset < pixels
    at = row.to(tl.int64) * pixels + offset
    z = tl.load(X + at, mask=inside).to(tl.float32) * tl.load(SCALE + row) + tl.load(SHIFT + row)
    tl.store(OUT + at, z * tl.sigmoid(z), mask=inside)


@triton.jit
def apply_channels_last(
    X, OUT, SCALE, SHIFT, pixels, channels, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of pixels, samples, blocks of channels)."""
    sample = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (pixel < pixels)[:, None] & (channel < channels)[None, :]
    at = sample * pixels * channels + pixel.to(tl.int64)[:, None] * channels + channel[None, :]
    scale = tl.load(SCALE + sample * channels + channel, mask=channel < channels, other=0.0)
    shift = tl.load(SHIFT + sample * channels + channel, mask=channel < channels, other=0.0)
    z = tl.load(X + at, mask=inside).to(tl.float32) * scale[None, :] + shift[None, :]
    tl.store(OUT + at, z * tl.sigmoid(z), mask=inside)
