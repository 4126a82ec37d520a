from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rsd_edge.distill.diffusion import ResidualDiffusion
from rsd_edge.schedule import ResidualSchedule
from rsd_edge.specs import ScheduleSpec

SPEC = ScheduleSpec()


def close(actual: Tensor, expected: Tensor) -> None:
    """Equal but for float32 coefficients on values up to about 5."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-6)


def noises(first: int, *shape: int) -> list[Tensor]:
    return [normal(*shape, seed=first + i) for i in range(SPEC.steps)]


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def diffusion() -> ResidualDiffusion:
    return ResidualDiffusion(SPEC)


@pytest.fixture
def schedule() -> ResidualSchedule:
    return ResidualSchedule(SPEC)


def test_q_sample_is_the_forward_marginal_of_each_samples_own_step(
    diffusion: ResidualDiffusion, schedule: ResidualSchedule
) -> None:
    z0, z_y, eps = (normal(15, 4, 3, 3, seed=seed) for seed in (1, 2, 3))
    z_t = diffusion.q_sample(z0, z_y, torch.arange(15), eps)
    for t in range(15):
        expected = schedule.forward_marginal(z0[t].double(), z_y[t].double(), eps[t].double(), t)
        close(z_t[t].double(), expected)


def test_scaling_prior_and_last_step(diffusion: ResidualDiffusion, schedule: ResidualSchedule) -> None:
    z, eps = normal(15, 4, 3, 3, seed=1), normal(15, 4, 3, 3, seed=2)
    scaled = diffusion.scale(z, torch.arange(15))
    for t in range(15):
        close(scaled[t].double(), z[t].double() * schedule.input_scale(t))
    close(diffusion.prior(z, eps).double(), schedule.prior(z.double(), eps.double()))
    assert diffusion.last(3).tolist() == [14, 14, 14]
    # The prior is the marginal of the last step without its remainder (1 - eta_T) of z0.
    marginal = diffusion.q_sample(z, z, diffusion.last(15), eps)
    close(diffusion.prior(z, eps), marginal)


def test_elbo_weights_are_those_of_the_joint_kl(diffusion: ResidualDiffusion, schedule: ResidualSchedule) -> None:
    weights = diffusion.step_weights("elbo").double()
    assert float(weights.mean()) == pytest.approx(1)
    expected = torch.as_tensor(schedule.alphas[1:] / (schedule.etas[1:] * schedule.etas_prev[1:]))
    torch.testing.assert_close(weights[1:] / weights[1], expected / expected[0], rtol=1e-6, atol=0)
    assert weights[0] == weights[1]  # where there is no bound


class Recorder(nn.Module):
    """A known network that remembers what it was asked."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer
        self.asked: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(self, x: Tensor, t: Tensor, lq: Tensor) -> Tensor:
        self.asked.append((x, t, lq))
        answer: Tensor = self.answer(x)
        return answer


def test_sampling_with_a_perfect_network_ends_at_the_image(diffusion: ResidualDiffusion) -> None:
    z0, z_y, lq = normal(2, 4, 3, 3, seed=1), normal(2, 4, 3, 3, seed=2), normal(2, 3, 3, 3, seed=3)
    network = Recorder(lambda x: z0)
    result = diffusion.ancestral(network, z_y, lq, noises(10, 2, 4, 3, 3))
    torch.testing.assert_close(result, z0, rtol=0, atol=0)  # the last step has no noise and no memory of z_t
    assert [t.tolist() for _, t, _ in network.asked] == [[i, i] for i in reversed(range(15))]
    assert all(condition is lq for _, _, condition in network.asked)
    # On the way the network sees the marginals: mean z0 + eta (z_y - z0), here over 72 draws, and unit variance or so.
    for x, t, _ in network.asked:
        i = int(t[0])
        z_t = x / diffusion.tables.input_scale[i]
        rest = (z_t - z0 - diffusion.tables.eta[i] * (z_y - z0)) / diffusion.tables.sigma[i]
        assert abs(float(rest.mean())) < 0.5  # 4 standard errors
        assert 0.65 < float(rest.std()) < 1.35  # likewise


def test_sampling_follows_the_posterior(diffusion: ResidualDiffusion, schedule: ResidualSchedule) -> None:
    """The chain written out, in float64, with the same draws."""
    z_y, lq = normal(2, 4, 3, 3, seed=2), normal(2, 3, 3, 3, seed=3)
    draws = noises(20, 2, 4, 3, 3)
    result = diffusion.ancestral(Recorder(lambda x: 0.5 * x + 0.1), z_y, lq, draws)
    z_t = schedule.prior(z_y.double(), draws[0].double())
    for i in reversed(range(15)):
        z0_hat = 0.5 * schedule.input_scale(i) * z_t + 0.1
        noise = draws[15 - i].double() if i else 0.0
        z_t = schedule.posterior_mean(z_t, z0_hat, i) + schedule.posterior_std(i) * noise
    torch.testing.assert_close(result.double(), z_t, rtol=0, atol=2e-5)  # fifteen steps of float32
    again = diffusion.ancestral(Recorder(lambda x: 0.5 * x + 0.1), z_y, lq, noises(40, 2, 4, 3, 3))
    assert not torch.equal(again, result)
