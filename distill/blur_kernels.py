"""Blur kernels of the degradations: their kind and shape are drawn first and made into weights afterwards.

All kernels are (k, k) float32, sum 1, k odd.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import special

from rsd_edge.distill.presets import Blur

Kernel = NDArray[np.float32]

KINDS = ("iso", "aniso", "generalised_iso", "generalised_aniso", "plateau_iso", "plateau_aniso")
SINC = "sinc"
SMALL = 13
"""Kernels below this side cannot hold the slower oscillations of a sinc."""


@dataclass(frozen=True)
class Shape:
    """What a kernel looks like; angles in radians, cutoffs in radians a pixel."""

    kind: str
    size: int
    sigma_x: float = 1.0
    sigma_y: float = 1.0
    angle: float = 0.0
    beta: float = 1.0
    cutoff: float = math.pi


def _grid(size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    axis = np.arange(size, dtype=np.float64) - size // 2
    return axis[None, :], axis[:, None]


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


def make(shape: Shape) -> Kernel:
    """The weights of a kernel."""
    if shape.kind == SINC:
        return sinc(shape.size, shape.cutoff)
    spread = shape.size, shape.sigma_x, shape.sigma_y, shape.angle
    if shape.kind.startswith("generalised"):
        return generalised_gaussian(*spread, shape.beta)
    if shape.kind.startswith("plateau"):
        return plateau(*spread, shape.beta)
    return gaussian(*spread)


def draw_shape(rng: Generator, blur: Blur) -> Shape:
    """One kernel of a blur pass."""
    size = draw_size(rng, blur.sizes)
    if rng.random() < blur.sinc:
        lowest = 1 / 3 if size < SMALL else 1 / 5
        return draw_sinc(rng, size, (lowest, 1.0))
    kind = KINDS[draw_index(rng, blur.kinds)]
    sigma_x = rng.uniform(*blur.sigma)
    sigma_y, angle = sigma_x, 0.0
    if kind.endswith("aniso"):
        sigma_y, angle = rng.uniform(*blur.sigma), rng.uniform(-math.pi, math.pi)
    beta = 1.0
    if kind.startswith("generalised"):
        beta = _draw_beta(rng, *blur.generalised_beta)
    elif kind.startswith("plateau"):
        beta = _draw_beta(rng, *blur.plateau_beta)
    return Shape(kind, size, sigma_x, sigma_y, angle, beta)


def draw_sinc(rng: Generator, size: int, cutoff: tuple[float, float]) -> Shape:
    """A sinc of that size; cutoffs in units of pi."""
    return Shape(SINC, size, cutoff=math.pi * rng.uniform(*cutoff))


def draw_size(rng: Generator, sizes: tuple[int, int]) -> int:
    """An odd side, all equally likely."""
    return int(rng.integers(sizes[0] // 2, sizes[1] // 2 + 1)) * 2 + 1


def draw_index(rng: Generator, shares: tuple[float, ...]) -> int:
    """An index, each with its share; shares add up to 1."""
    point, last = rng.random(), len(shares) - 1
    for index, share in enumerate(shares[:last]):
        if point < share:
            return index
        point -= share
    return last


def _draw_beta(rng: Generator, low: float, high: float) -> float:
    # Peaked and flat shapes are equally likely: half of the draws come from either side of 1. So half of the plateaus,
    # whose published range begins at 1, have exactly 1.
    if low <= 1.0 <= high:
        low, high = (low, 1.0) if rng.random() < 0.5 else (1.0, high)
    return float(rng.uniform(low, high))
