"""The schedule against numbers computed with the published ResShift code (tests/fixtures/schedule_parity.npz)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from rsd_edge.errors import InputError
from rsd_edge.schedule import ResidualSchedule
from rsd_edge.specs import ScheduleSpec

FIXTURE = Path(__file__).parent / "fixtures" / "schedule_parity.npz"
FLOAT64 = {"rtol": 1e-9, "atol": 1e-12}  # float64 on both sides, a dozen operations apart
FLOAT32 = {"rtol": 0.0, "atol": 2e-6}  # values up to 8 in float32, a few roundings of 2^-22 each


@pytest.fixture(scope="module")
def parity() -> dict[str, NDArray[np.floating]]:
    with np.load(FIXTURE) as data:
        return dict(data)


@pytest.fixture(scope="module")
def schedule() -> ResidualSchedule:
    return ResidualSchedule(ScheduleSpec())


@pytest.mark.parametrize(
    ("attribute", "key"),
    [
        ("sqrt_etas", "sched_sqrt_etas"),
        ("etas", "sched_etas"),
        ("alphas", "sched_alpha"),
        ("posterior_mean_coef_xt", "sched_posterior_mean_coef1"),
        ("posterior_mean_coef_x0", "sched_posterior_mean_coef2"),
        ("posterior_variance", "sched_posterior_variance"),
    ],
)
def test_coefficients_match(
    schedule: ResidualSchedule, parity: dict[str, NDArray[np.floating]], attribute: str, key: str
) -> None:
    np.testing.assert_allclose(getattr(schedule, attribute), parity[key], **FLOAT64)


def test_ends_of_the_schedule(schedule: ResidualSchedule) -> None:
    assert schedule.steps == 15
    assert schedule.sqrt_etas[0] == pytest.approx(0.02, rel=1e-12)
    assert schedule.sqrt_etas[-1] == pytest.approx(0.99, rel=1e-12)
    assert schedule.prior_std == pytest.approx(1.98, rel=1e-12)
    np.testing.assert_array_equal(schedule.etas_prev, [0.0, *schedule.etas[:-1]])


def test_forward_marginal_matches(schedule: ResidualSchedule, parity: dict[str, NDArray[np.floating]]) -> None:
    x_t = schedule.forward_marginal(parity["z0_hat"], parity["z_y"], parity["noise"], 7)
    np.testing.assert_allclose(x_t, parity["q_sample_t7"], **FLOAT32)
    assert x_t.dtype == np.float32


def test_prior_matches(schedule: ResidualSchedule, parity: dict[str, NDArray[np.floating]]) -> None:
    z_last = schedule.prior(parity["z_y"], parity["noise"])
    np.testing.assert_allclose(z_last, parity["z_T"], **FLOAT32)
    assert z_last.dtype == np.float32


def test_input_scale_matches(schedule: ResidualSchedule, parity: dict[str, NDArray[np.floating]]) -> None:
    np.testing.assert_allclose(parity["z_T"] * schedule.input_scale(14), parity["z_T_scaled"], **FLOAT32)


def test_posterior_mean_matches_the_published_coefficients(
    schedule: ResidualSchedule, parity: dict[str, NDArray[np.floating]]
) -> None:
    t = 7
    x_t, x0_hat = parity["q_sample_t7"], parity["z0_hat"]
    expected = parity["sched_posterior_mean_coef1"][t] * x_t + parity["sched_posterior_mean_coef2"][t] * x0_hat
    mean = schedule.posterior_mean(x_t, x0_hat, t)
    np.testing.assert_allclose(mean, expected, **FLOAT32)
    assert mean.dtype == np.float32


def test_posterior_follows_from_the_forward_marginal(schedule: ResidualSchedule) -> None:
    """x_t from the marginal, then x_{t-1} from the posterior with the true x0, is the marginal of t - 1."""
    x0, y = 0.3, -0.8
    for t in range(1, schedule.steps):
        mean_t = schedule.forward_marginal(x0, y, 0.0, t)
        carried = schedule.posterior_mean(mean_t, x0, t)
        assert carried == pytest.approx(schedule.forward_marginal(x0, y, 0.0, t - 1), rel=1e-12)
        spread_t = schedule.kappa * schedule.sqrt_etas[t]
        variance = (schedule.posterior_mean_coef_xt[t] * spread_t) ** 2 + schedule.posterior_std(t) ** 2
        assert variance == pytest.approx(schedule.kappa**2 * schedule.etas[t - 1], rel=1e-12)


def test_the_last_sampling_step_returns_the_estimate_without_noise(schedule: ResidualSchedule) -> None:
    assert schedule.posterior_std(0) == 0.0
    assert schedule.posterior_mean(123.0, 0.25, 0) == 0.25


def test_other_constants_are_used() -> None:
    schedule = ResidualSchedule(ScheduleSpec(steps=4, kappa=1.0, power=2.0, min_noise_level=0.2, etas_end=0.9))
    first = np.sqrt(0.001)  # smaller than 0.2 / kappa
    expected = first * (0.9 / first) ** (np.arange(4) / 3) ** 2
    np.testing.assert_allclose(schedule.sqrt_etas, expected, **FLOAT64)
    assert schedule.prior_std == pytest.approx(0.9, rel=1e-12)


def test_one_step_is_pure_prior() -> None:
    schedule = ResidualSchedule(ScheduleSpec(steps=1))
    np.testing.assert_array_equal(schedule.sqrt_etas, [0.99])
    assert schedule.posterior_std(0) == 0.0


def test_torch_tensors_keep_their_type(schedule: ResidualSchedule) -> None:
    torch = pytest.importorskip("torch")
    x0, y, eps = (torch.full((1, 2), value, dtype=torch.float16) for value in (0.5, -0.25, 1.0))
    x_t = schedule.forward_marginal(x0, y, eps, 3)
    assert x_t.dtype == torch.float16
    expected = schedule.forward_marginal(0.5, -0.25, 1.0, 3)
    assert float(x_t[0, 0]) == pytest.approx(expected, rel=2e-3)  # half precision: 2^-10 relative
    assert schedule.posterior_mean(x_t, x0, 3).dtype == torch.float16


@pytest.mark.parametrize("t", [-1, 15])
def test_an_index_outside_the_schedule_is_refused(schedule: ResidualSchedule, t: int) -> None:
    with pytest.raises(InputError, match="use 0 to 14"):
        schedule.posterior_std(t)


def test_coefficients_cannot_be_changed(schedule: ResidualSchedule) -> None:
    with pytest.raises(ValueError, match="read-only"):
        schedule.etas[0] = 1.0
