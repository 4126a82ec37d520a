"""The noise field in Triton: Philox4x32-10 counters to entries of the quantile table (see rsd_edge/noise.py)."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def field_words(seed, y, x, BLOCK_INDEX: tl.constexpr):
    """Four uint32 words for counters (x, y, BLOCK_INDEX, 0); seed int64 holds the bits of the unsigned seed."""
    c0, c1 = x.to(tl.uint32), y.to(tl.uint32)
    zero = c0 ^ c0
    return tl.philox(seed, c0, c1, zero + BLOCK_INDEX, zero)


@triton.jit
def field_normal(words, TABLE, K: tl.constexpr, mask):
    """Float32 sample K (0 to 7) of the words: sixteen bits select an int16 entry in units of 2^-12."""
    word = words[K // 2]
    entry = (word >> (16 * (K % 2))) & 0xFFFF
    return tl.load(TABLE + entry.to(tl.int32), mask=mask, other=0).to(tl.float32) * (1.0 / 4096.0)


@triton.jit
def noise_field(OUT, SEEDS, ORIGINS, TABLE, channels, pixels, width, BLOCK: tl.constexpr):
    """Grid (blocks of pixels, samples, blocks of 8 channels). OUT: (n, channels, pixels)."""
    sample, first = tl.program_id(1), tl.program_id(2) * 8
    offset = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offset < pixels
    y = tl.load(ORIGINS + 2 * sample) + offset // width
    x = tl.load(ORIGINS + 2 * sample + 1) + offset % width
    c0, c1 = x.to(tl.uint32), y.to(tl.uint32)
    zero = c0 ^ c0
    words = tl.philox(tl.load(SEEDS + sample), c0, c1, zero + tl.program_id(2).to(tl.uint32), zero)
    base = (sample.to(tl.int64) * channels + first) * pixels
    for k in tl.static_range(8):
        mask = inside & (first + k < channels)
        tl.store(OUT + base + k * pixels + offset, field_normal(words, TABLE, k, mask), mask=mask)
