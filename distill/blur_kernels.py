"""Blur kernels of the second-order degradation model (Real-ESRGAN's ranges, as listed in its options).

All kernels are (k, k) float32, sum 1, k odd.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import special

Kernel = NDArray[np.float32]


def _grid(size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    axis = np.arange(size, dtype=np.float64) - size // 2
    return np.meshgrid(axis, axis)


def _unit_sum(kernel: NDArray[np.float64]) -> Kernel:
    return np.asarray(kernel / kernel.sum(), np.float32)


def mahalanobis(size: int, sigma_x: float, sigma_y: float, angle: float) -> NDArray[np.float64]:
    """Squared distance d^T Sigma^-1 d of each kernel cell from the centre; `angle` in radians."""
    x, y = _grid(size)
    cos, sin = math.cos(angle), math.sin(angle)
    along = (cos * x + sin * y) / sigma_x
    across = (-sin * x + cos * y) / sigma_y
    return np.square(along) + np.square(across)


def gaussian(size: int, sigma_x: float, sigma_y: float, angle: float) -> Kernel:
    return _unit_sum(np.exp(-0.5 * mahalanobis(size, sigma_x, sigma_y, angle)))


def generalised_gaussian(size: int, sigma_x: float, sigma_y: float, angle: float, beta: float) -> Kernel:
    return _unit_sum(np.exp(-0.5 * mahalanobis(size, sigma_x, sigma_y, angle) ** beta))


def plateau(size: int, sigma_x: float, sigma_y: float, angle: float, beta: float) -> Kernel:
    return _unit_sum(1.0 / (1.0 + mahalanobis(size, sigma_x, sigma_y, angle) ** beta))


def sinc(size: int, cutoff: float) -> Kernel:
    """Circular low-pass of angular frequency `cutoff` (radians a pixel): rings like an over-sharpened photo."""
    x, y = _grid(size)
    radius = np.hypot(x, y)
    with np.errstate(divide="ignore", invalid="ignore"):
        kernel = cutoff * special.j1(cutoff * radius) / (2 * np.pi * radius)
    kernel[size // 2, size // 2] = cutoff**2 / (4 * np.pi)
    return _unit_sum(kernel)


KINDS = ("iso", "aniso", "generalised_iso", "generalised_aniso", "plateau_iso", "plateau_aniso")
KIND_SHARES = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)


def random_kernel(rng: Generator, max_size: int, sigma: tuple[float, float], sinc_share: float) -> Kernel:
    """One kernel of the first or second blur: size odd from 3 to max_size; a sinc with probability `sinc_share`."""
    size = int(rng.integers(1, max_size // 2 + 1)) * 2 + 1
    if rng.random() < sinc_share:
        return random_sinc(rng, size)
    kind = KINDS[int(rng.choice(len(KINDS), p=KIND_SHARES))]
    sigma_x = rng.uniform(*sigma)
    anisotropic = kind.endswith("aniso")
    sigma_y = rng.uniform(*sigma) if anisotropic else sigma_x
    shape: dict[str, Any] = {"sigma_x": sigma_x, "sigma_y": sigma_y}
    shape["angle"] = rng.uniform(-math.pi, math.pi) if anisotropic else 0.0
    if kind.startswith("generalised"):
        return generalised_gaussian(size, **shape, beta=_beta(rng, 0.5, 4.0))
    if kind.startswith("plateau"):
        return plateau(size, **shape, beta=_beta(rng, 1.0, 2.0))
    return gaussian(size, **shape)


def random_sinc(rng: Generator, size: int) -> Kernel:
    # Small kernels cannot hold the slower oscillations.
    lowest = math.pi / 3 if size < 13 else math.pi / 5
    return sinc(size, rng.uniform(lowest, math.pi))


def _beta(rng: Generator, low: float, high: float) -> float:
    # Half of the draws below 1 where the range allows, so that peaked and flat shapes are equally likely.
    if low < 1.0 and rng.random() < 0.5:
        return float(rng.uniform(low, 1.0))
    return float(rng.uniform(max(low, 1.0), high))
