"""From a noisy latent to a clean one with the published networks: one step, all steps, or all without noise between.

Arrays are NumPy's or torch's, float32; latents z are (n, zc, h, w). The order of operations and their rounding are the
published ones: through fifteen steps, a network can make 5e-4 of a coefficient's last digit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias, TypeVar

import numpy as np

from rsd_edge.errors import InputError
from rsd_edge.schedule import ResidualSchedule
from rsd_edge.specs import ModelSpec

ArrayT = TypeVar("ArrayT", bound=Any)
"""NumPy or torch."""

Predict: TypeAlias = Callable[[ArrayT, int], ArrayT]
"""(z_t, t) -> x0_hat: the generator, its scaling of the input, and whatever it is conditioned on."""


def ancestral(predict: Predict[ArrayT], schedule: ResidualSchedule, z_last: ArrayT, noises: Sequence[ArrayT]) -> ArrayT:
    """z0 by all T steps of the reverse process (ResShift Eq. 2, 3).

    noises: standard normal, one for each step but the last, in the order of use; further ones are ignored, since the
    last step adds none. Raises InputError if there are too few.
    """
    if len(noises) < schedule.steps - 1:
        raise InputError(f"{schedule.steps} steps need {schedule.steps - 1} noises between them, not {len(noises)}")
    z = z_last
    for i, t in enumerate(reversed(range(schedule.steps))):
        z = schedule.posterior_mean(z, predict(z, t), t)
        if t:
            z = z + noises[i] * _posterior_std(schedule, t)
    return z


def _posterior_std(schedule: ResidualSchedule, t: int) -> float:
    """As published, by way of a float32 logarithm, which decides the last digit."""
    return math.exp(0.5 * float(np.float32(math.log(schedule.posterior_variance[t]))))


def deterministic(predict: Predict[ArrayT], schedule: ResidualSchedule, z_last: ArrayT, z_y: ArrayT) -> ArrayT:
    """z0_hat by all T steps without noise between them: the teacher's map from z_T that SinSR learns.

    z_{t-1} = k f(z_t) + m z_t + j z_y with m = sqrt(eta_{t-1} / eta_t), j = eta_{t-1} - sqrt(eta_{t-1} eta_t) and
    k = 1 - j - m.
    """
    z = z_last
    for t in reversed(range(schedule.steps)):
        before, now = float(schedule.etas_prev[t]), float(schedule.etas[t])
        m, j = math.sqrt(before / now), before - math.sqrt(before * now)
        z = predict(z, t) * (1 - j - m) + z * m + z_y * j
    return z


def sample(predict: Predict[ArrayT], model: ModelSpec, z_y: ArrayT, noise: ArrayT) -> ArrayT:
    """z0 in as many steps as the model takes: one; or all, which for SinSR add no noise.

    z_y: encoded LR image. noise: (n, model.noise_channels, h, w); the first zc channels draw z_T, the next ones serve
    the steps in their order, and the last one is the student's eps, which `predict` has to take itself.
    """
    schedule, zc = ResidualSchedule(model.schedule), model.architecture.latent_channels
    z_last: ArrayT = schedule.prior(z_y, noise[:, :zc])
    if model.steps == 1:
        z0: ArrayT = predict(z_last, schedule.steps - 1)
        return z0
    if model.family == "sinsr":
        z0 = deterministic(predict, schedule, z_last, z_y)
    else:
        z0 = ancestral(predict, schedule, z_last, [noise[:, i * zc : (i + 1) * zc] for i in range(1, model.steps)])
    return z0


def with_steps(model: ModelSpec, steps: int | None) -> ModelSpec:
    """The model taking that many steps; None for as many as it says. Raises InputError if it cannot."""
    wanted = model.steps if steps is None else steps
    allowed = {1} if model.family in ("edge", "rsd") else {1, model.schedule.steps}
    if wanted not in allowed:
        numbers = " or ".join(str(number) for number in sorted(allowed))
        raise InputError(f"model '{model.name}' of family {model.family} takes {numbers} steps, not {wanted}")
    return replace(model, steps=wanted)
