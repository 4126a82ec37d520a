"""The residual-shift steps in Triton: one program for a block of a sample's pixels, all its channels.

Images are contiguous (n, channels, pixels). Arithmetic is float32, whatever the dtype in memory. Compilers see whole
vectors when `pixels` is a multiple of 16.
"""

from __future__ import annotations

import triton
import triton.language as tl

from rsd_edge.kernels.triton_noise import field_normal, field_words


@triton.jit
def forward_noise(
    X0, Y, EPS, OUT, T, ETA, SIGMA, SCALE, SEEDS, ORIGINS, TABLE, pixels, width,
    CHANNELS: tl.constexpr, SCALED: tl.constexpr, DRAW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of pixels, samples). With DRAW, EPS is not read: the field gives the noise."""
    sample = tl.program_id(1)
    offset = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offset < pixels
    t = tl.load(T + sample)
    eta, sigma = tl.load(ETA + t), tl.load(SIGMA + t)
    scale = 1.0
    if SCALED:
        scale = tl.load(SCALE + t)
    if DRAW:
        seed = tl.load(SEEDS + sample)
        y = tl.load(ORIGINS + 2 * sample) + offset // width
        x = tl.load(ORIGINS + 2 * sample + 1) + offset % width
    base = sample.to(tl.int64) * (CHANNELS * pixels)
    for c in tl.static_range(CHANNELS):
        at = base + c * pixels + offset
        x0 = tl.load(X0 + at, mask=inside).to(tl.float32)
        shift = tl.load(Y + at, mask=inside).to(tl.float32) - x0
        if DRAW:
            if c % 8 == 0:
                words = field_words(seed, y, x, c // 8)
            eps = field_normal(words, TABLE, c % 8, inside)
        else:
            eps = tl.load(EPS + at, mask=inside).to(tl.float32)
        tl.store(OUT + at, scale * (x0 + eta * shift + sigma * eps), mask=inside)


@triton.jit
def forward_noise_backward(
    GRAD, GRAD_X0, GRAD_Y, T, ETA, SCALE, pixels,
    CHANNELS: tl.constexpr, SCALED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of pixels, samples)."""
    sample = tl.program_id(1)
    offset = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offset < pixels
    t = tl.load(T + sample)
    eta = tl.load(ETA + t)
    scale = 1.0
    if SCALED:
        scale = tl.load(SCALE + t)
    base = sample.to(tl.int64) * (CHANNELS * pixels)
    for c in tl.static_range(CHANNELS):
        at = base + c * pixels + offset
        grad = scale * tl.load(GRAD + at, mask=inside).to(tl.float32)
        tl.store(GRAD_X0 + at, grad - eta * grad, mask=inside)
        tl.store(GRAD_Y + at, eta * grad, mask=inside)


@triton.jit
def prior_input(
    Z_Y, LQ, NOISE, OUT, mean_scale, noise_scale, pixels,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of pixels, samples). CHANNELS: of the latent; OUT has CHANNELS + 3 + 1 of them."""
    sample = tl.program_id(1).to(tl.int64)
    offset = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offset < pixels
    target = OUT + sample * ((CHANNELS + 4) * pixels) + offset
    noise = NOISE + sample * ((CHANNELS + 1) * pixels) + offset
    for c in tl.static_range(CHANNELS):
        z_y = tl.load(Z_Y + sample * (CHANNELS * pixels) + c * pixels + offset, mask=inside).to(tl.float32)
        eps = tl.load(noise + c * pixels, mask=inside).to(tl.float32)
        tl.store(target + c * pixels, mean_scale * z_y + noise_scale * eps, mask=inside)
    for c in tl.static_range(3):
        lq = tl.load(LQ + sample * (3 * pixels) + c * pixels + offset, mask=inside)
        tl.store(target + (CHANNELS + c) * pixels, lq, mask=inside)
    tl.store(target + (CHANNELS + 3) * pixels, tl.load(noise + CHANNELS * pixels, mask=inside), mask=inside)


@triton.jit
def posterior_step(
    X_T, X0_HAT, EPS, X_PREV, NET_INPUT, T, XT_COEF, X0_COEF, STD, NEXT_SCALE, pixels, input_channels,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of pixels, samples). The first CHANNELS of NET_INPUT's `input_channels` are written."""
    sample = tl.program_id(1)
    offset = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offset < pixels
    t = tl.load(T + sample)
    xt_coef, x0_coef = tl.load(XT_COEF + t), tl.load(X0_COEF + t)
    std, next_scale = tl.load(STD + t), tl.load(NEXT_SCALE + t)
    base = sample.to(tl.int64) * (CHANNELS * pixels)
    target = NET_INPUT + sample.to(tl.int64) * input_channels * pixels
    for c in tl.static_range(CHANNELS):
        at = base + c * pixels + offset
        x_t = tl.load(X_T + at, mask=inside).to(tl.float32)
        x0_hat = tl.load(X0_HAT + at, mask=inside).to(tl.float32)
        # Masked out at t = 0, where whatever the noise holds must not reach the result.
        eps = tl.load(EPS + at, mask=inside & (t > 0), other=0.0).to(tl.float32)
        x_prev = xt_coef * x_t + x0_coef * x0_hat + std * eps
        tl.store(X_PREV + at, x_prev, mask=inside)
        tl.store(target + c * pixels + offset, next_scale * x_prev, mask=inside)
