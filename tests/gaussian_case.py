"""A case of RSD that is solved on paper: x0 | y0 is Gaussian, in one dimension, so the best denoisers are linear.

Nothing here is taken from the package: the schedule's numbers and every expectation are written out again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

NODES = 8
"""Of Gauss-Hermite quadrature, for each of two noises: exact up to degree 15, and the losses have degree 2."""

STEPS, KAPPA = 15, 2.0
_FIRST = min(0.04 / 2.0, 0.04, 0.001**0.5)
ETAS = [(_FIRST * (0.99 / _FIRST) ** ((i / 14) ** 0.3)) ** 2 for i in range(STEPS)]


@dataclass(frozen=True)
class Gaussian:
    """x0 | y0 ~ N(mean, deviation^2)."""

    mean: float
    deviation: float

    def gain(self, t: int) -> float:
        """Slope of E[x0 | x_t] in x_t."""
        return (1 - ETAS[t]) * self.deviation**2 / self.marginal_variance(t)

    def marginal_mean(self, y: float, t: int) -> float:
        return self.mean + ETAS[t] * (y - self.mean)

    def marginal_variance(self, t: int) -> float:
        return (1 - ETAS[t]) ** 2 * self.deviation**2 + KAPPA**2 * ETAS[t]

    def denoise(self, x_t: Tensor, y: float, t: int) -> Tensor:
        """E[x0 | x_t]."""
        return self.mean + self.gain(t) * (x_t - self.marginal_mean(y, t))

    def denoise_scaled(self, x_scaled: Tensor, y: float, t: int) -> Tensor:
        """The same for what a network sees."""
        return self.denoise(x_scaled * (KAPPA**2 * ETAS[t] + 1) ** 0.5, y, t)


def distance(student: Gaussian, teacher: Gaussian, t: int) -> float:
    """E||f_G - f*||^2 over the student's marginal of step t."""
    shift = (student.mean - teacher.mean) * (1 - teacher.gain(t) * (1 - ETAS[t]))
    return shift**2 + (student.gain(t) - teacher.gain(t)) ** 2 * student.marginal_variance(t)


def distance_gradient(student: Gaussian, teacher: Gaussian, t: int) -> tuple[float, float]:
    """Its derivatives in the student's mean and deviation."""
    keep, s, variance = 1 - ETAS[t], student.deviation, student.marginal_variance(t)
    by_mean = 2 * (student.mean - teacher.mean) * (1 - teacher.gain(t) * keep) ** 2
    difference = student.gain(t) - teacher.gain(t)
    gain_slope = 2 * keep * s * KAPPA**2 * ETAS[t] / variance**2
    by_deviation = 2 * difference * gain_slope * variance + difference**2 * 2 * keep**2 * s
    return by_mean, by_deviation


def detached_gradient(student: Gaussian, teacher: Gaussian, t: int) -> tuple[float, float]:
    """E[2 (f_G - f*) d z0_hat]: what is left with both networks detached."""
    by_mean = 2 * (student.mean - teacher.mean) * (1 - teacher.gain(t) * (1 - ETAS[t]))
    return by_mean, 2 * (student.gain(t) - teacher.gain(t)) * (1 - ETAS[t]) * student.deviation


def quadrature() -> tuple[Tensor, Tensor, Tensor]:
    """Two independent standard normals on their nodes, (n, 1, 1, 1) each, and the weights (n,), float64."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    weights = weights / weights.sum()
    first, second = np.meshgrid(nodes, nodes, indexing="ij")
    columns = first.reshape(-1, 1, 1, 1), second.reshape(-1, 1, 1, 1), np.outer(weights, weights).reshape(-1)
    u, e, w = (torch.tensor(column, dtype=torch.float64) for column in columns)
    return u, e, w
