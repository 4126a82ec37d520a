"""What the kernels compute, in plain torch with the papers' symbols. This is the truth, and the path without a GPU.

Latents and images are (n, c, h, w); a coefficient named with _t is (n,), one for each sample. Arithmetic is done in
float32, or in float64 for float64 arguments, and the result is rounded once to the dtype of the first argument.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

SID_EPSILON = 1e-8


def forward_noise(x0: Tensor, y: Tensor, eps: Tensor, eta_t: Tensor, sigma_t: Tensor, scale_t: Tensor) -> Tensor:
    """scale_t (x0 + eta_t (y - x0) + sigma_t eps), ResShift Eq. 4 with sigma_t = kappa sqrt(eta_t).

    scale_t is 1 for x_t itself and the input scale for what the network sees.
    """
    eta_t, sigma_t, scale_t = _per_sample(eta_t), _per_sample(sigma_t), _per_sample(scale_t)
    x_t = _wide(x0) + eta_t * (_wide(y) - _wide(x0)) + sigma_t * _wide(eps)
    return (scale_t * x_t).to(x0.dtype)


def prior_input(z_y: Tensor, lq: Tensor, noise: Tensor, mean_scale: float, noise_scale: float) -> Tensor:
    """The student's input [x_T scaled, lq, eps], (n, zc + 3 + 1, h, w).

    z_y: (n, zc, h, w). lq: (n, 3, h, w). noise: (n, zc + 1, h, w), standard normal: zc channels that draw x_T, then
    eps. mean_scale: input scale of T; noise_scale: the same times kappa sqrt(eta_T).
    """
    zc = z_y.shape[1]
    x_scaled = mean_scale * _wide(z_y) + noise_scale * _wide(noise[:, :zc])
    return torch.cat([x_scaled.to(z_y.dtype), lq, noise[:, zc:]], dim=1)


def posterior_step(
    x_t: Tensor, x0_hat: Tensor, eps: Tensor, xt_coef_t: Tensor, x0_coef_t: Tensor, std_t: Tensor, next_scale_t: Tensor
) -> tuple[Tensor, Tensor]:
    """x_{t-1} ~ q(x_{t-1} | x_t, x0_hat) (ResShift Eq. 3), and x_{t-1} scaled for the network.

    Where std_t is 0, at t = 0, eps is not looked at: there is no noise, whatever it holds.
    """
    std_t = _per_sample(std_t)
    mean = _per_sample(xt_coef_t) * _wide(x_t) + _per_sample(x0_coef_t) * _wide(x0_hat)
    x_prev = mean + torch.where(std_t > 0, std_t * _wide(eps), 0.0)
    return x_prev.to(x_t.dtype), (_per_sample(next_scale_t) * x_prev).to(x_t.dtype)


def rsd_terms(f_star: Tensor, f_phi: Tensor, z0_hat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The terms of RSD's loss (Proposition 3.1), means over the elements of each sample, (n,) each.

    difference: ||f* - z0_hat||^2 - ||f_phi - z0_hat||^2, as (f* - f_phi)(f* + f_phi - 2 z0_hat), which does not
    subtract two nearly equal sums. fake: ||f_phi - z0_hat||^2; the teacher's error is difference + fake.
    normaliser: |f* - z0_hat|, detached, by which SiD divides.
    """
    f_star, f_phi, z0_hat = _wide(f_star), _wide(f_phi), _wide(z0_hat)
    difference = ((f_star - f_phi) * ((f_star - z0_hat) + (f_phi - z0_hat))).flatten(1).mean(dim=1)
    fake = (f_phi - z0_hat).square().flatten(1).mean(dim=1)
    normaliser = (f_star - z0_hat).abs().flatten(1).mean(dim=1).detach()
    return difference, fake, normaliser


def group_norm_silu(x: Tensor, weight: Tensor, bias: Tensor, groups: int, epsilon: float) -> Tensor:
    """SiLU(GroupNorm(x)); x: (n, c, h, w) in any memory format, weight and bias: (c,)."""
    normalised = functional.group_norm(_wide(x), groups, _wide(weight), _wide(bias), epsilon)
    return functional.silu(normalised).to(x.dtype)


def _per_sample(coefficient: Tensor) -> Tensor:
    return coefficient[:, None, None, None]


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
