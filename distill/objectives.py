"""The losses of RSD and of what it is compared with, as pure functions with the paper's symbols.

Latents are (n, zc, h, w), normalised. Every loss is a mean over elements of a sample, returned per sample (n,); callers
weight by w_t and reduce. Arithmetic is float32 whatever the autocast state, float64 for float64 latents. `f_star` is
the teacher f*(z_t, t, y0), `f_phi` the fake model's output on the same z_t ~ q(z_t | z0_hat, z_y) (Eq. 4: the marginal,
not the posterior).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from rsd_edge.kernels import reference
from rsd_edge.kernels.implementation import TRITON
from rsd_edge.kernels.reference import SID_EPSILON
from rsd_edge.kernels.rsd import rsd_terms


def per_sample_mean(x: Tensor) -> Tensor:
    return _wide(x).flatten(1).mean(dim=1)


def square_error(x0_hat: Tensor, x0: Tensor) -> Tensor:
    """||x0_hat - x0||^2. (n,)"""
    return per_sample_mean((_wide(x0_hat) - _wide(x0)).square())


def teacher_loss(x0_hat: Tensor, x0: Tensor) -> Tensor:
    """ResShift's objective: ||f(x_t) - x0||^2. (n,)"""
    return square_error(x0_hat, x0)


def fake_loss(f_phi: Tensor, z0_hat: Tensor) -> Tensor:
    """L_fake = ||f_phi(z_t) - z0_hat||^2 with z0_hat detached: the fake model learns the student's outputs. (n,)"""
    return square_error(f_phi, z0_hat.detach())


def rsd_loss(f_star: Tensor, f_phi: Tensor, z0_hat: Tensor, *, sid_normalise: bool = False) -> Tensor:
    """L_theta of Proposition 3.1 (Eq. 10, in the form of Eq. 34). (n,)

    ||f* - z0_hat||^2 - ||f_phi - z0_hat||^2 = ||f*||^2 - ||f_phi||^2 + 2 <f_phi - f*, z0_hat>.
    The gradient is wanted through z0_hat and through z_t into both networks, so neither output may be detached; the
    networks' parameters must not require gradients. `sid_normalise` divides each sample's loss by
    mean |f* - z0_hat| (detached) + 1e-8, as SiD does. On a GPU this is one kernel.
    """
    outputs = (_wide(f_star), _wide(f_phi), _wide(z0_hat))
    if z0_hat.is_cuda:
        difference, _, scale = rsd_terms(*outputs, implementation=TRITON)
    else:
        difference, _, scale = reference.rsd_terms(*outputs)
    return difference / (scale + SID_EPSILON) if sid_normalise else difference


def vsd_loss(f_star: Tensor, f_phi: Tensor, z0_hat: Tensor, *, sid_normalise: bool = False) -> Tensor:
    """The marginal-matching variant (Algorithm 2): rsd_loss with both outputs detached. (n,)

    Its gradient is 2 (f_phi - f*) on z0_hat alone.
    """
    return rsd_loss(f_star.detach(), f_phi.detach(), z0_hat, sid_normalise=sid_normalise)


def sinsr_loss(
    z0_hat: Tensor,
    z0_teacher: Tensor,
    z_last_hat: Tensor,
    z_last: Tensor,
    z0_again: Tensor,
    z0: Tensor,
    *,
    inverse_weight: float = 1.0,
    truth_weight: float = 1.0,
) -> Tensor:
    """SinSR's distillation, inverse and ground-truth terms, the first with weight 1. (n,)

    z0_hat = f(z_T, T) against z0_teacher, the deterministic teacher's answer to z_T; z_last_hat = f(z0_teacher, 0)
    against z_T; z0_again = f(sg f(z0, 0), T) against the truth z0.
    """
    inverse, truth = square_error(z_last_hat, z_last), square_error(z0_again, z0)
    return square_error(z0_hat, z0_teacher.detach()) + inverse_weight * inverse + truth_weight * truth


def weighted_mean(loss: Tensor, w_t: Tensor) -> Tensor:
    """mean of w_t times the samples' losses, both (n,). Scalar."""
    return (w_t * loss).mean()


def generator_gan_loss(logits_fake: Tensor) -> Tensor:
    """Non-saturating generator side: softplus(-D(fake)). (n,)"""
    return per_sample_mean(functional.softplus(-_wide(logits_fake)))


def discriminator_loss(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """Softplus discriminator side: softplus(-D(real)) + softplus(D(fake)). (n,)"""
    real, fake = functional.softplus(-_wide(logits_real)), functional.softplus(_wide(logits_fake))
    return per_sample_mean(real) + per_sample_mean(fake)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
