"""GroupNorm + SiLU in Triton: statistics, their merge into one scale and shift a channel, application.

The data is read twice and written once. Statistics are means and squared deviations of blocks, merged as Chan, Golub
and LeVeque do: sums of squares would cancel where a group's mean is large.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def stats_contiguous(X, PARTIALS, span, BLOCK: tl.constexpr):
    """Grid (samples x groups, blocks). X: (n * groups, span). PARTIALS: (n * groups, blocks, 3): count, mean, M2."""
    row, block = tl.program_id(0), tl.program_id(1)
    offset = block * BLOCK + tl.arange(0, BLOCK)
    inside = offset < span
    x = tl.load(X + row.to(tl.int64) * span + offset, mask=inside, other=0.0).to(tl.float32)
    count = tl.minimum(span - block * BLOCK, BLOCK).to(tl.float32)
    mean = tl.sum(x, axis=0) / count
    deviation = tl.where(inside, x - mean, 0.0)
    target = PARTIALS + (row.to(tl.int64) * tl.num_programs(1) + block) * 3
    tl.store(target, count)
    tl.store(target + 1, mean)
    tl.store(target + 2, tl.sum(deviation * deviation, axis=0))


@triton.jit
def stats_channels_last(
    X, PARTIALS, pixels, channels, group_size, parts, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of pixels, samples, blocks of channels). X: (n, pixels, channels).

    PARTIALS: (n, groups, parts, 3), of which each channel of each block of pixels is one part.
    """
    block, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    pixel = block * BLOCK + tl.arange(0, BLOCK)
    channel = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (pixel < pixels)[:, None] & (channel < channels)[None, :]
    at = sample * pixels * channels + pixel.to(tl.int64)[:, None] * channels + channel[None, :]
    x = tl.load(X + at, mask=inside, other=0.0).to(tl.float32)
    count = tl.minimum(pixels - block * BLOCK, BLOCK).to(tl.float32)
    mean = tl.sum(x, axis=0) / count
    deviation = tl.where(inside, x - mean[None, :], 0.0)
    group = sample * (channels // group_size) + channel // group_size
    target = PARTIALS + (group * parts + block * group_size + channel % group_size) * 3
    tl.store(target, mean * 0.0 + count, mask=channel < channels)
    tl.store(target + 1, mean, mask=channel < channels)
    tl.store(target + 2, tl.sum(deviation * deviation, axis=0), mask=channel < channels)


@triton.jit
def merge_stats(
    PARTIALS, WEIGHT, BIAS, SCALE, SHIFT, groups, group_size, parts, epsilon,
    BLOCK: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Grid (samples x groups). SCALE, SHIFT: float32 (n, channels), so that the result is x * SCALE + SHIFT."""
    row = tl.program_id(0)
    partials = PARTIALS + row.to(tl.int64) * parts * 3
    counts, sums = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for start in range(0, parts, BLOCK):
        part = start + tl.arange(0, BLOCK)
        count = tl.load(partials + part * 3, mask=part < parts, other=0.0)
        counts += count
        sums += count * tl.load(partials + part * 3 + 1, mask=part < parts, other=0.0)
    total = tl.sum(counts, axis=0)
    mean = tl.sum(sums, axis=0) / total
    squares = tl.zeros([BLOCK], tl.float32)
    for start in range(0, parts, BLOCK):
        part = start + tl.arange(0, BLOCK)
        count = tl.load(partials + part * 3, mask=part < parts, other=0.0)
        distance = tl.load(partials + part * 3 + 1, mask=part < parts, other=0.0) - mean
        squares += tl.load(partials + part * 3 + 2, mask=part < parts, other=0.0) + count * distance * distance
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
