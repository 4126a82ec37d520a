"""The residual-shift process on torch tensors with a timestep per sample.

`rsd_edge.schedule` holds the numbers; here they become (n, 1, 1, 1) tensors. z are latents (n, zc, h, w), t (n,) are
indices.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rsd_edge.schedule import ResidualSchedule
from rsd_edge.specs import ScheduleSpec


class ResidualDiffusion(nn.Module):
    """Schedule coefficients as float32 buffers, computed in float64."""

    etas: Tensor
    std: Tensor
    input_scale: Tensor

    def __init__(self, spec: ScheduleSpec) -> None:
        super().__init__()
        self.schedule = ResidualSchedule(spec)
        self.steps = spec.steps
        etas = torch.tensor(self.schedule.etas)
        std = spec.kappa * etas.sqrt()
        self.register_buffer("etas", etas.float())
        self.register_buffer("std", std.float())
        self.register_buffer("input_scale", (std.square() + 1).rsqrt().float())

    @staticmethod
    def _at(values: Tensor, t: Tensor) -> Tensor:
        return values[t].view(-1, 1, 1, 1)

    def q_sample(self, z0: Tensor, z_y: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """z_t ~ q(z_t | z0, z_y) = z0 + eta_t (z_y - z0) + kappa sqrt(eta_t) eps (Eq. 4)."""
        return z0 + self._at(self.etas, t) * (z_y - z0) + self._at(self.std, t) * eps

    def scale(self, z_t: Tensor, t: Tensor) -> Tensor:
        """The network's view of z_t: divided by sqrt(kappa^2 eta_t + 1)."""
        return z_t * self._at(self.input_scale, t)

    def prior(self, z_y: Tensor, eps: Tensor) -> Tensor:
        """z_T = z_y + kappa sqrt(eta_T) eps."""
        return z_y + self.std[-1] * eps

    def last(self, n: int) -> Tensor:
        """The index of T for n samples."""
        return torch.full((n,), self.steps - 1, device=self.etas.device)

    @torch.no_grad()
    def ancestral(self, network: nn.Module, z_y: Tensor, lq: Tensor, generator: torch.Generator) -> Tensor:
        """z0_hat by all T steps of the reverse process (Eq. 2, 3), for a network (x_t scaled, t, lq) -> x0."""
        z_t = self.prior(z_y, torch.randn(z_y.shape, generator=generator, device=z_y.device))
        for i in reversed(range(self.steps)):
            t = torch.full((len(z_y),), i, device=z_y.device)
            z0_hat = network(self.scale(z_t, t), t, lq).float()
            noise = torch.randn(z_y.shape, generator=generator, device=z_y.device)
            z_t = self.schedule.posterior_mean(z_t, z0_hat, i) + self.schedule.posterior_std(i) * noise
        return z_t
