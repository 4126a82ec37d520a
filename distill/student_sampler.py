"""Algorithm 1's sample(): where the student is asked, what it answers, and what the denoisers see of the answer."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from rsd_edge.distill.diffusion import ResidualDiffusion
from rsd_edge.distill.randomness import Randomness
from rsd_edge.distill.stage_config import StudentConfig


class Point(NamedTuple):
    """Where a student is asked: x_t scaled, the index t (n,), and eps for a student that takes it."""

    x_scaled: Tensor
    t: Tensor
    eps: Tensor | None


def generate(network: nn.Module, points: list[Point], lq: Tensor) -> tuple[Tensor, ...]:
    """z0_hat, float32, at each of several points of the same samples, in one pass."""
    eps = [point.eps for point in points if point.eps is not None]
    x, t = torch.cat([point.x_scaled for point in points]), torch.cat([point.t for point in points])
    noise = (torch.cat(eps),) if eps else ()
    z0_hat = network(x, t, lq.repeat(len(points), 1, 1, 1), *noise)
    return tuple(cast(Tensor, z0_hat).float().chunk(len(points)))


class StudentSampler:
    """Draws points for one kind of training."""

    def __init__(self, diffusion: ResidualDiffusion, stage: StudentConfig, *, takes_noise: bool) -> None:
        self.diffusion, self.stage, self.takes_noise = diffusion, stage, takes_noise

    def start(self, z0: Tensor, z_y: Tensor, noise: Randomness) -> Point:
        """Where the outputs come from that the latent losses look at.

        Algorithm 2 (vsd) and SinSR know no t_n: their students start from the prior always.
        """
        return self.from_truth(z0, z_y, noise) if self.stage.starts_from_truth else self.from_prior(z_y, noise)

    def from_prior(self, z_y: Tensor, noise: Randomness) -> Point:
        """z_T ~ prior: where inference starts."""
        z_T = self.diffusion.prior(z_y, noise.like("z_T", z_y))  # noqa: N806 (the paper's symbol)
        t = self.diffusion.last(len(z_y))
        return Point(self.diffusion.scale(z_T, t), t, self._eps("eps_T", z_y, noise))

    def from_truth(self, z0: Tensor, z_y: Tensor, noise: Randomness) -> Point:
        """z_{t_n} ~ q(. | z0, z_y) with t_n uniform over the student's steps."""
        t_n = noise.choice("t_n", self.stage.timesteps)
        x = self.diffusion.q_sample(z0, z_y, t_n, noise.like("z_tn", z0), scaled=True)
        return Point(x, t_n, self._eps("eps", z0, noise))

    def renoised(self, z0_hat: Tensor, z_y: Tensor, noise: Randomness) -> tuple[Tensor, Tensor]:
        """z_t ~ q(z_t | z0_hat, z_y), as the networks see it, with t uniform; and t."""
        t = noise.choice("t", tuple(range(self.diffusion.steps)))
        return self.diffusion.q_sample(z0_hat, z_y, t, noise.like("z_t", z0_hat), scaled=True), t

    def _eps(self, purpose: str, like: Tensor, noise: Randomness) -> Tensor | None:
        if not self.takes_noise:
            return None
        if self.stage.deterministic:
            return torch.zeros_like(like[:, :1])
        return noise.normal(purpose, 1, *like.shape[2:])
