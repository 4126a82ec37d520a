"""The terms of RSD's loss as one operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rsd_edge.kernels import reference
from rsd_edge.kernels.implementation import check_images, check_implementation, launch, runs_reference

BLOCK = 2048


def rsd_terms(f_star: Tensor, f_phi: Tensor, z0_hat: Tensor, *, implementation: str) -> tuple[Tensor, Tensor, Tensor]:
    """Three means over the elements of each sample, float32 (n,).

    difference: ||f* - z0_hat||^2 - ||f_phi - z0_hat||^2 (Proposition 3.1). fake: ||f_phi - z0_hat||^2, so that the
    teacher's error is their sum. normaliser: |f* - z0_hat|, detached; SiD divides by it + `reference.SID_EPSILON`.
    Gradients of the first two flow to all three inputs: float32, float16 or bfloat16 (n, c, h, w), copied if they are
    not contiguous. The same values give the same bits. Raises InputError for tensors that do not fit, and what
    `check_implementation` raises.
    """
    check_images(f_star=f_star, f_phi=f_phi, z0_hat=z0_hat)
    check_implementation(implementation, f_star.device)
    difference, fake, normaliser = torch.ops.rsd_edge.rsd_terms(f_star, f_phi, z0_hat, implementation)
    return difference, fake, normaliser.detach()


@torch.library.custom_op("rsd_edge::rsd_terms", mutates_args=())
def _rsd_terms(f_star: Tensor, f_phi: Tensor, z0_hat: Tensor, implementation: str) -> tuple[Tensor, Tensor, Tensor]:
    if runs_reference(implementation, f_star.device):
        return reference.rsd_terms(f_star, f_phi, z0_hat)
    n, size = len(f_star), f_star[0].numel()
    partials = torch.empty(n, -(-size // BLOCK), 3, device=f_star.device)
    grid = (n, partials.shape[1])
    launch("rsd", "rsd_partials", grid, f_star, f_phi, z0_hat, partials, size, BLOCK=BLOCK)
    means = partials.sum(dim=1) / size
    return means[:, 0].clone(), means[:, 1].clone(), means[:, 2].clone()


@_rsd_terms.register_fake
def _(f_star: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    n = len(f_star)
    first, second, third = (f_star.new_empty((n,), dtype=torch.float32) for _ in range(3))
    return first, second, third


@torch.library.custom_op("rsd_edge::rsd_terms_backward", mutates_args=())
def _rsd_terms_backward(
    f_star: Tensor, f_phi: Tensor, z0_hat: Tensor, grad_difference: Tensor, grad_fake: Tensor, implementation: str
) -> tuple[Tensor, Tensor, Tensor]:
    size = f_star[0].numel()
    if runs_reference(implementation, f_star.device):
        difference = (2 / size) * grad_difference[:, None, None, None]
        fake = (2 / size) * grad_fake[:, None, None, None]
        star, phi, z0 = f_star.float(), f_phi.float(), z0_hat.float()
        grads = (difference * (star - z0), (fake - difference) * (phi - z0))
        grad_z0 = difference * (phi - star) - fake * (phi - z0)
        grad_star, grad_phi, grad_z0 = (grad.to(f_star.dtype).contiguous() for grad in (*grads, grad_z0))
        return grad_star, grad_phi, grad_z0
    grad_star, grad_phi, grad_z0 = (f_star.new_empty(f_star.shape) for _ in range(3))
    launch(
        "rsd", "rsd_backward", (len(f_star), -(-size // BLOCK)),
        f_star, f_phi, z0_hat, grad_star, grad_phi, grad_z0, grad_difference, grad_fake, size, 2 / size, BLOCK=BLOCK,
    )  # fmt: skip
    return grad_star, grad_phi, grad_z0


@_rsd_terms_backward.register_fake
def _(f_star: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    first, second, third = (f_star.new_empty(f_star.shape) for _ in range(3))
    return first, second, third


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.implementation = inputs
    ctx.save_for_backward(*tensors)
    ctx.mark_non_differentiable(output[2])


def _differentiate(ctx: Any, grad_difference: Tensor, grad_fake: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    grads = torch.ops.rsd_edge.rsd_terms_backward(*ctx.saved_tensors, grad_difference, grad_fake, ctx.implementation)
    return *grads, None


_rsd_terms.register_autograd(_differentiate, setup_context=_keep)
