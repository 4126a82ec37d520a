"""BSRGAN's degradation: its steps are applied in a random order, drawn anew for every image."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from rsd_edge.distill.blur_kernels import Shape, draw_size
from rsd_edge.distill.degrade_steps import Image, draw_quality, filtered, gaussian_noise, jpeg, separable
from rsd_edge.distill.noise_tables import standard_normal
from rsd_edge.distill.presets import Shuffled
from rsd_edge.frames import SCALE
from rsd_edge.opencv import cv2

RESIZERS = (cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_AREA)
BLURS = ("blur", "blur again")
REDUCTIONS = ("reduce", "reduce to LR")
STEPS = (*BLURS, *REDUCTIONS, "noise", "jpeg")
SHIFTED_SIDE = 25
SHIFTED_SIGMA = 0.1
"""The lowest, in pixels; the highest is 0.6 times the reduction."""


@dataclass(frozen=True)
class Target:
    """What a reduction leads to."""

    height: int
    width: int
    factor: int
    """Still to go when the shuffled steps begin: 4, or 2 for an image that was halved first."""


def draw_order(rng: Generator) -> tuple[str, ...]:
    """The steps in random order, the second part of the reduction after the first."""
    order = [STEPS[index] for index in rng.permutation(len(STEPS))]
    first, last = sorted(order.index(step) for step in REDUCTIONS)
    order[first], order[last] = REDUCTIONS
    return tuple(order)


def degrade_shuffled(rng: Generator, image: Image, settings: Shuffled) -> Image:
    """Perhaps halve; blur twice, reduce twice, add noise and JPEG in random order; JPEG."""
    height, width = image.shape[:2]
    factor = SCALE
    if rng.random() < settings.half_share:
        image = _resize(rng, image, height // 2, width // 2)
        factor = SCALE // 2
    target = Target(height // SCALE, width // SCALE, factor)
    steps = _steps(rng, settings, target)
    for step in draw_order(rng):
        image = steps[step](image)
    return jpeg(image, draw_quality(rng, settings.jpeg))


def _steps(rng: Generator, settings: Shuffled, target: Target) -> dict[str, Callable[[Image], Image]]:
    def noise(image: Image) -> Image:
        return np.clip(_noise(rng, image, settings), 0, 1)

    def compress(image: Image) -> Image:
        return jpeg(image, draw_quality(rng, settings.jpeg)) if rng.random() < settings.jpeg_share else image

    def blur(image: Image) -> Image:
        return filtered(image, draw_kernel(rng, settings, target.factor))

    def reduce(image: Image) -> Image:
        return _reduce(rng, image, settings, target.factor)

    def to_lr(image: Image) -> Image:
        return _resize(rng, image, target.height, target.width)

    return dict(zip(STEPS, (blur, blur, reduce, to_lr, noise, compress), strict=True))


def draw_kernel(rng: Generator, settings: Shuffled, factor: int) -> Shape:
    """An isotropic or anisotropic Gaussian, narrower if less reduction is to come."""
    size = draw_size(rng, settings.sizes)
    if rng.random() < settings.anisotropic_share:
        # The published widths at x2 and x4 are 6 and 8, and 2.4 and 2.8.
        low, high = (bound * (4 + factor) / 8 for bound in settings.variance)
        sigma_x, sigma_y = (_visible(math.sqrt(rng.uniform(low, high))) for _ in range(2))
        return Shape("aniso", size, sigma_x, sigma_y, rng.uniform(0, math.pi))
    low, high = (bound * (2 + 0.2 * factor) / 2.8 for bound in settings.sigma)
    sigma = _visible(rng.uniform(low, high))
    return Shape("iso", size, sigma, sigma)


def _visible(sigma: float) -> float:
    # Below this a Gaussian is one pixel in float32, and 0 could not be divided by.
    return max(sigma, 0.05)


def _reduce(rng: Generator, image: Image, settings: Shuffled, factor: int) -> Image:
    height, width = image.shape[:2]
    if rng.random() < settings.shifted_share:
        return _every_nth(image, factor, rng.uniform(SHIFTED_SIGMA, 0.6 * factor))
    part = rng.uniform(1, 2 * factor)
    return _resize(rng, image, max(1, int(height / part)), max(1, int(width / part)))


def _every_nth(image: Image, factor: int, sigma: float) -> Image:
    """Every `factor`-th pixel of the image blurred by a Gaussian in the middle of the pixels that each stands for."""
    distance = np.arange(SHIFTED_SIDE) - SHIFTED_SIDE // 2 - (factor - 1) / 2
    weights = np.exp(-0.5 * np.square(distance / sigma))
    line = np.asarray(weights / weights.sum(), np.float32)
    return np.ascontiguousarray(separable(image, line, line)[::factor, ::factor])


def _resize(rng: Generator, image: Image, height: int, width: int) -> Image:
    method = RESIZERS[int(rng.integers(len(RESIZERS)))]
    return np.asarray(np.clip(cv2.resize(image, (width, height), interpolation=method), 0, 1), np.float32)


def _noise(rng: Generator, image: Image, settings: Shuffled) -> Image:
    sigma = float(rng.integers(settings.noise[0], settings.noise[1] + 1))
    kind = rng.random()
    if kind < settings.correlated_share:
        return image + correlated_noise(rng, image.shape[:2], settings.noise[1])
    return gaussian_noise(rng, image, sigma, kind < settings.correlated_share + settings.gray_share)


def correlated_noise(rng: Generator, size: tuple[int, int], sigma: float) -> Image:
    """Noise (h, w, 3) whose covariance between channels has random axes and, along them, variances up to sigma^2."""
    axes = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    mixing = axes * np.sqrt(rng.random(3)) * (sigma / 255)
    return standard_normal(rng, (*size, 3)) @ np.asarray(mixing.T, np.float32)
