"""The residual-shift process on torch tensors with a timestep for each sample.

The numbers are those of `rsd_edge.schedule`, the arithmetic that of `rsd_edge.kernels`. z are latents (n, zc, h, w),
t (n,) are indices.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rsd_edge import sampling
from rsd_edge.kernels import reference
from rsd_edge.kernels.implementation import REFERENCE, TRITON
from rsd_edge.kernels.noising import forward_noise
from rsd_edge.kernels.tables import StepTables
from rsd_edge.schedule import ResidualSchedule
from rsd_edge.specs import ScheduleSpec

Network = Callable[..., Tensor]
"""(x_t scaled, t, lq) -> x0."""


class ResidualDiffusion:
    """Eq. 4, the prior and the input scale of a schedule, on one device.

    float32; float64 serves proofs, and float64 latents need it. On a GPU the noising is one kernel.
    """

    def __init__(
        self, spec: ScheduleSpec, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        self.schedule = ResidualSchedule(spec)
        self.steps = spec.steps
        self.tables = StepTables.of(spec, device=device, dtype=dtype)
        self.implementation = TRITON if self.tables.eta.is_cuda else REFERENCE

    def q_sample(self, z0: Tensor, z_y: Tensor, t: Tensor, eps: Tensor, *, scaled: bool = False) -> Tensor:
        """z_t ~ q(z_t | z0, z_y) = z0 + eta_t (z_y - z0) + kappa sqrt(eta_t) eps (Eq. 4).

        With `scaled` what a network sees of it: divided by sqrt(kappa^2 eta_t + 1).
        """
        tables = self.tables
        if self.implementation == TRITON:
            return forward_noise(z0, z_y, eps, t, tables, scaled=scaled, implementation=TRITON)
        scale = tables.input_scale[t] if scaled else torch.ones_like(tables.eta[t])
        return reference.forward_noise(z0, z_y, eps, tables.eta[t], tables.sigma[t], scale)

    def scale(self, z_t: Tensor, t: Tensor) -> Tensor:
        """The network's view of z_t: divided by sqrt(kappa^2 eta_t + 1)."""
        return z_t * self.tables.input_scale[t].view(-1, 1, 1, 1)

    def prior(self, z_y: Tensor, eps: Tensor) -> Tensor:
        """z_T = z_y + kappa sqrt(eta_T) eps."""
        return z_y + self.tables.sigma[-1] * eps

    def last(self, n: int) -> Tensor:
        """The index of T for n samples."""
        return self.at(self.steps - 1, n)

    def at(self, t: int, n: int) -> Tensor:
        """The index t for n samples."""
        return torch.full((n,), t, device=self.tables.eta.device)

    def step_weights(self, kind: str) -> Tensor:
        """w_t for each index, (T,), mean 1.

        constant: 1, as the paper trains. elbo: proportional to alpha_t / (eta_t eta_{t-1}), the weights of the joint KL
        (ResShift Eq. 7); the first index, where that has no bound, takes the second's.
        """
        if kind == "constant" or self.steps == 1:
            return torch.ones_like(self.tables.eta)
        schedule = self.schedule
        weights = schedule.alphas[1:] / (schedule.etas[1:] * schedule.etas_prev[1:])
        elbo = torch.tensor([weights[0], *weights], dtype=self.tables.eta.dtype, device=self.tables.eta.device)
        return elbo / elbo.mean()

    @torch.no_grad()
    def ancestral(self, network: Network, z_y: Tensor, lq: Tensor, noises: list[Tensor]) -> Tensor:
        """z0_hat by all T steps of the reverse process (Eq. 2, 3); noises: T, the first one for z_T."""
        z_last = self.prior(z_y, noises[0])
        return sampling.ancestral(self._predict(network, lq), self.schedule, z_last, noises[1:])

    @torch.no_grad()
    def deterministic(self, network: Network, z_last: Tensor, z_y: Tensor, lq: Tensor) -> Tensor:
        """z0_hat by all T steps without noise between them: the map that SinSR learns."""
        return sampling.deterministic(self._predict(network, lq), self.schedule, z_last, z_y)

    def _predict(self, network: Network, lq: Tensor) -> Callable[[Tensor, int], Tensor]:
        def predict(z_t: Tensor, step: int) -> Tensor:
            t = self.at(step, len(z_t))
            return network(self.scale(z_t, t), t, lq).to(z_t.dtype)

        return predict
