"""RSD's loss terms in Triton: one read of three tensors forward, one backward. Arithmetic is float32."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rsd_partials(F_STAR, F_PHI, Z0_HAT, PARTIALS, size, BLOCK: tl.constexpr):
    """Grid (samples, blocks). Sums over a block of a sample's `size` elements: PARTIALS is (n, blocks, 3)."""
    sample, block = tl.program_id(0), tl.program_id(1)
    offset = block * BLOCK + tl.arange(0, BLOCK)
    inside = offset < size
    at = sample.to(tl.int64) * size + offset
    z0_hat = tl.load(Z0_HAT + at, mask=inside, other=0.0).to(tl.float32)
    star = tl.load(F_STAR + at, mask=inside, other=0.0).to(tl.float32)
    phi = tl.load(F_PHI + at, mask=inside, other=0.0).to(tl.float32)
    star_error, phi_error = star - z0_hat, phi - z0_hat
    target = PARTIALS + (sample.to(tl.int64) * tl.num_programs(1) + block) * 3
    tl.store(target, tl.sum((star - phi) * (star_error + phi_error), axis=0))
    tl.store(target + 1, tl.sum(phi_error * phi_error, axis=0))
    tl.store(target + 2, tl.sum(tl.abs(star_error), axis=0))


@triton.jit
def rsd_backward(
    F_STAR, F_PHI, Z0_HAT, GRAD_STAR, GRAD_PHI, GRAD_Z0, GRAD_DIFFERENCE, GRAD_FAKE, size, per_element,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (samples, blocks). per_element: 2 / size."""
    sample = tl.program_id(0)
    offset = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = offset < size
    at = sample.to(tl.int64) * size + offset
    difference = tl.load(GRAD_DIFFERENCE + sample) * per_element
    fake = tl.load(GRAD_FAKE + sample) * per_element
    z0_hat = tl.load(Z0_HAT + at, mask=inside).to(tl.float32)
    star = tl.load(F_STAR + at, mask=inside).to(tl.float32)
    phi = tl.load(F_PHI + at, mask=inside).to(tl.float32)
    fake_part = (fake - difference) * (phi - z0_hat)
    star_part = difference * (star - z0_hat)
    tl.store(GRAD_STAR + at, star_part, mask=inside)
    tl.store(GRAD_PHI + at, fake_part, mask=inside)
    # Not the negated sum of the other two: that would lose what f_phi - f* keeps when both are near z0_hat.
    tl.store(GRAD_Z0 + at, difference * (phi - star) - fake * (phi - z0_hat), mask=inside)
