"""The losses of RSD as pure functions, with the paper's symbols.

Latents are (n, zc, h, w), normalised. Every loss is a mean over elements of a sample, returned per sample (n,), in fp32
whatever the autocast state; callers reduce. `f_star` is the teacher f*(z_t, t, y0), `f_phi` the fake model's output on
the same z_t ~ q(z_t | z0_hat, z_y) (Eq. 4: the marginal, not the posterior).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

SID_EPSILON = 1e-8


def per_sample_mean(x: Tensor) -> Tensor:
    return x.float().flatten(1).mean(dim=1)


def teacher_loss(x0_hat: Tensor, x0: Tensor) -> Tensor:
    """ResShift's objective: ||f(x_t) - x0||^2 with w_t = 1. (n,)"""
    return per_sample_mean((x0_hat.float() - x0.float()).square())


def fake_loss(f_phi: Tensor, z0_hat: Tensor) -> Tensor:
    """L_fake = ||f_phi(z_t) - z0_hat||^2 with z0_hat detached: the fake model learns the student's outputs. (n,)"""
    return teacher_loss(f_phi, z0_hat.detach())


def rsd_loss(f_star: Tensor, f_phi: Tensor, z0_hat: Tensor) -> Tensor:
    """L_theta of Proposition 3.1 (Eq. 10, in the form of Eq. 34). (n,)

    ||f* - z0_hat||^2 - ||f_phi - z0_hat||^2 = ||f*||^2 - ||f_phi||^2 + 2 <f_phi - f*, z0_hat>.
    The gradient is wanted through z0_hat and through z_t into both networks, so neither output may be detached; the
    networks' parameters must not require gradients. The right-hand form is used because it never squares z0_hat.
    """
    f_star, f_phi, z0_hat = f_star.float(), f_phi.float(), z0_hat.float()
    return per_sample_mean((f_star - f_phi) * (f_star + f_phi - 2 * z0_hat))


def vsd_loss(f_star: Tensor, f_phi: Tensor, z0_hat: Tensor) -> Tensor:
    """The marginal-matching variant (Algorithm 2): rsd_loss with both outputs detached. (n,)

    Its gradient is 2 (f_phi - f*) on z0_hat alone.
    """
    return rsd_loss(f_star.detach(), f_phi.detach(), z0_hat)


def sid_normalise(loss: Tensor, f_star: Tensor, z0_hat: Tensor) -> Tensor:
    """Divide each sample's loss by mean |f*(z_t) - z0_hat| (detached) + 1e-8, as SiD does. (n,)"""
    scale = per_sample_mean((f_star.float() - z0_hat.float()).abs()).detach() + SID_EPSILON
    return loss / scale


def generator_gan_loss(logits_fake: Tensor) -> Tensor:
    """Non-saturating generator side: softplus(-D(fake)). (n,)"""
    return per_sample_mean(functional.softplus(-logits_fake.float()))


def discriminator_loss(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """Softplus discriminator side: softplus(-D(real)) + softplus(D(fake)). (n,)"""
    return per_sample_mean(functional.softplus(-logits_real.float())) + per_sample_mean(
        functional.softplus(logits_fake.float())
    )


def colour_differences(image: Tensor) -> Tensor:
    """(n, 2, h, w) of R - G and B - G: what is left of an RGB image without its luma, cheaply."""
    red, green, blue = image.unbind(dim=1)
    return torch.stack([red - green, blue - green], dim=1)


def pixel_loss(image: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of RGB. (n,)"""
    return per_sample_mean((image.float() - target.float()).abs())


def chroma_loss(image: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of the colour differences: punishes coloured grain, which a luma metric does not see. (n,)"""
    return pixel_loss(colour_differences(image.float()), colour_differences(target.float()))


FLAT_WINDOW = 9
FLAT_DEVIATION = 4 / 127.5
"""Local deviation of the target, four grey levels, at which an area counts 1 / e as much as a perfectly flat one."""


def flat_loss(image: Tensor, target: Tensor) -> Tensor:
    """Mean absolute distance from the target's local mean, where the target is flat. (n,)

    In sky, skin and walls there is nothing to invent: whatever the noise adds there is grain, and another seed's grain
    is another error. The local mean, not the target, is the aim, because the target has sensor noise of its own.
    """
    image, target = image.float(), target.float()
    mean = functional.avg_pool2d(target, FLAT_WINDOW, stride=1, padding=FLAT_WINDOW // 2, count_include_pad=False)
    luma = target.mean(dim=1, keepdim=True)
    centre = mean.mean(dim=1, keepdim=True)
    square = functional.avg_pool2d(
        luma.square(), FLAT_WINDOW, stride=1, padding=FLAT_WINDOW // 2, count_include_pad=False
    )
    deviation = (square - centre.square()).clamp_min(0).sqrt()
    return per_sample_mean(torch.exp(-deviation / FLAT_DEVIATION) * (image - mean).abs())


LATTICE_PERIOD = 8
"""Output pixels after which a sub-pixel network of two levels repeats: scale 4 times the generator's reduction by 2."""


def lattice_loss(detail: Tensor) -> Tensor:
    """How much the 64 phases of the 8-pixel grid differ in a batch of details (n, c, 8h, 8w). Scalar.

    Of the detail without its 5x5 box average: mean absolute deviation of the phases' means, in units of the detail's
    deviation, plus that of the phases' relative deviations from 1, both per channel. Sub-pixel convolutions have
    filters of their own for each phase, and nothing else here makes them agree. The period is the network's own: a
    penalty on the 4 pixels of the scale alone is met by a pattern of 8.
    """
    detail = detail.float()
    fine = detail - functional.avg_pool2d(detail, 5, stride=1, padding=2, count_include_pad=False)
    phases = functional.pixel_unshuffle(fine, LATTICE_PERIOD).transpose(0, 1)
    phases = phases.reshape(detail.shape[1], LATTICE_PERIOD**2, -1)
    # Inside the root, or a phase without any detail would have an infinite gradient.
    means, deviations = phases.mean(dim=2), (phases.var(dim=2) + 1e-10).sqrt()
    typical = deviations.mean(dim=1, keepdim=True)
    # The unit is detached, or a noisier detail would count as a smaller lattice.
    offsets = (means - means.mean(dim=1, keepdim=True)) / typical.detach()
    return offsets.abs().mean() + (deviations / typical - 1).abs().mean()
