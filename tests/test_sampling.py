from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from rsd_edge.errors import InputError
from rsd_edge.sampling import ancestral, deterministic, sample, with_steps
from rsd_edge.schedule import ResidualSchedule
from rsd_edge.specs import ModelSpec, PublishedArchitecture, ScheduleSpec

Array = NDArray[np.float64]

FOUR = ScheduleSpec(steps=4, power=0.8)


def model(family: str, steps: int, schedule: ScheduleSpec = FOUR) -> ModelSpec:
    return ModelSpec("x", family=family, steps=steps, schedule=schedule, architecture=PublishedArchitecture())


def predict(z: Array, t: int) -> Array:
    return np.tanh(z) * (1 + 0.1 * t) + 0.3


@pytest.fixture
def arrays() -> tuple[Array, Array]:
    """z_y (2, 3, 4, 4) and noise for four steps (2, 13, 4, 4)."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(2, 3, 4, 4)), rng.normal(size=(2, 13, 4, 4))


def test_deterministic_steps_are_those_of_sinsr(arrays: tuple[Array, Array]) -> None:
    """Written out from the marginal: the direction that eta_t and z_t imply is kept, its length is eta_{t-1}'s."""
    z_y, noise = arrays
    schedule = ResidualSchedule(FOUR)
    z = z_y + schedule.prior_std * noise[:, :3]
    expected = z
    for t in (3, 2, 1, 0):
        now, before = schedule.etas[t], schedule.etas[t - 1] if t else 0.0
        x0 = predict(expected, t)
        direction = (expected - (1 - now) * x0 - now * z_y) / math.sqrt(now)
        expected = (1 - before) * x0 + before * z_y + math.sqrt(before) * direction
    np.testing.assert_allclose(deterministic(predict, schedule, z, z_y), expected, rtol=0, atol=1e-12)  # float64


def test_ancestral_steps_are_the_posterior(arrays: tuple[Array, Array]) -> None:
    z_y, noise = arrays
    schedule = ResidualSchedule(FOUR)
    expected = z_y + schedule.prior_std * noise[:, :3]
    for i, t in enumerate((3, 2, 1, 0)):
        expected = schedule.posterior_mean(expected, predict(expected, t), t)
        expected = expected + schedule.posterior_std(t) * noise[:, 3 * (i + 1) :][:, :3]
    found = sample(predict, model("resshift", 4), z_y, noise)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)  # the standard deviation is rounded to float32
    z_last = z_y + schedule.prior_std * noise[:, :3]
    with pytest.raises(InputError, match="4 steps need 3 noises between them, not 2"):
        ancestral(predict, schedule, z_last, [noise[:, :3]] * 2)


@pytest.mark.parametrize("family", ["resshift", "sinsr", "rsd"])
def test_one_step_starts_at_the_last_index(family: str, arrays: tuple[Array, Array]) -> None:
    z_y, noise = arrays
    z_last = z_y + 2 * 0.99 * noise[:, :3]
    found = sample(predict, model(family, 1), z_y, noise)
    np.testing.assert_allclose(found, predict(z_last, 3), rtol=0, atol=1e-12)  # float64


def test_sinsr_in_all_steps_adds_no_noise(arrays: tuple[Array, Array]) -> None:
    z_y, noise = arrays
    other = np.concatenate([noise[:, :3], 5 + noise[:, 3:]], axis=1)
    spec = model("sinsr", 4)
    np.testing.assert_array_equal(sample(predict, spec, z_y, noise), sample(predict, spec, z_y, other))
    spec = model("resshift", 4)
    assert np.abs(sample(predict, spec, z_y, noise) - sample(predict, spec, z_y, other)).max() > 0.1


@pytest.mark.parametrize(
    ("family", "steps", "allowed"), [("resshift", 2, "1 or 4"), ("sinsr", 3, "1 or 4"), ("rsd", 4, "1")]
)
def test_numbers_of_steps_that_a_family_does_not_take(family: str, steps: int, allowed: str) -> None:
    with pytest.raises(InputError, match=f"model 'x' of family {family} takes {allowed} steps, not {steps}"):
        with_steps(model(family, 1), steps)
    assert with_steps(model(family, 1), None).steps == 1


def test_the_teacher_takes_one_step_or_all() -> None:
    assert with_steps(model("resshift", 4), 1).noise_channels == 4
    assert with_steps(model("resshift", 1, ScheduleSpec()), 15).noise_channels == 46
