"""The residual-shift noise schedule (ResShift) and the Gaussians that it defines.

Everything is computed in float64 once; the methods multiply by Python floats, so arrays keep their own type: NumPy or
torch, float32 or half. Steps are 0-based here: index i is the papers' step t = i + 1, and index T - 1 is pure prior.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from rsd_edge.errors import InputError
from rsd_edge.specs import ScheduleSpec

ArrayT = TypeVar("ArrayT", bound=Any)
"""A NumPy array or a torch tensor: whatever multiplies with a float."""


class ResidualSchedule:
    """Coefficients of a ScheduleSpec, each a read-only float64 array of length T (`steps`).

    `sqrt_etas`, `etas`: how far the mean has moved from the image to its upscaled LR version, growing towards 1.
    `etas_prev`: eta of the previous step (0 before the first). `alphas`: etas - etas_prev.
    `posterior_mean_coef_xt`, `posterior_mean_coef_x0`, `posterior_variance`: ResShift Eq. 2 and 3.
    """

    def __init__(self, spec: ScheduleSpec | None = None) -> None:
        self.spec = spec if spec is not None else ScheduleSpec()
        self.kappa = self.spec.kappa
        self.steps = self.spec.steps
        self.sqrt_etas = _frozen(_sqrt_etas(self.spec))
        self.etas = _frozen(self.sqrt_etas**2)
        self.etas_prev = _frozen(np.concatenate(([0.0], self.etas[:-1])))
        self.alphas = _frozen(self.etas - self.etas_prev)
        self.posterior_mean_coef_xt = _frozen(self.etas_prev / self.etas)
        self.posterior_mean_coef_x0 = _frozen(self.alphas / self.etas)
        self.posterior_variance = _frozen(self.kappa**2 * self.posterior_mean_coef_xt * self.alphas)

    @property
    def prior_std(self) -> float:
        """Standard deviation of the prior around the encoded LR image: kappa * sqrt(eta_T)."""
        return float(self.kappa * self.sqrt_etas[-1])

    def input_scale(self, t: int) -> float:
        """Factor that brings x_t to unit variance before the network, given latents of unit variance."""
        return float(1.0 / math.sqrt(self.kappa**2 * self.etas[self._checked(t)] + 1.0))

    def forward_marginal(self, x0: ArrayT, y: ArrayT, eps: ArrayT, t: int) -> ArrayT:
        """x_t = x0 + eta_t (y - x0) + kappa sqrt(eta_t) eps (ResShift Eq. 4); arrays of one shape, `eps` N(0, 1)."""
        t = self._checked(t)
        x_t: ArrayT = x0 + (y - x0) * float(self.etas[t]) + eps * float(self.kappa * self.sqrt_etas[t])
        return x_t

    def posterior_mean(self, x_t: ArrayT, x0_hat: ArrayT, t: int) -> ArrayT:
        """Mean of q(x_{t-1} | x_t, x0_hat) (ResShift Eq. 3); at t = 0 this is x0_hat."""
        t = self._checked(t)
        mean: ArrayT = x_t * float(self.posterior_mean_coef_xt[t]) + x0_hat * float(self.posterior_mean_coef_x0[t])
        return mean

    def posterior_std(self, t: int) -> float:
        """Standard deviation of q(x_{t-1} | x_t, x0_hat) (ResShift Eq. 3); 0 at t = 0, where sampling ends."""
        return math.sqrt(self.posterior_variance[self._checked(t)])

    def prior(self, y: ArrayT, eps: ArrayT) -> ArrayT:
        """x_T = y + kappa sqrt(eta_T) eps, where sampling starts; `y` is the encoded LR image, `eps` N(0, 1)."""
        x_last: ArrayT = y + eps * self.prior_std
        return x_last

    def _checked(self, t: int) -> int:
        if not 0 <= t < self.steps:
            raise InputError(f"schedule index {t} does not exist; use 0 to {self.steps - 1}")
        return t


def _sqrt_etas(spec: ScheduleSpec) -> NDArray[np.float64]:
    """ResShift's `exponential` rule: a geometric progression from the first to the last value, bent by a power."""
    if spec.steps == 1:
        return np.array([spec.etas_end])
    first = spec.sqrt_eta_first
    progress = np.linspace(0.0, 1.0, spec.steps) ** spec.power
    return np.asarray(first * (spec.etas_end / first) ** progress)


def _frozen(values: NDArray[np.float64]) -> NDArray[np.float64]:
    values.flags.writeable = False
    return values
