from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from numpy.random import Generator

from rsd_edge.distill import shuffle
from rsd_edge.distill.degrade_steps import Image
from rsd_edge.distill.presets import Shuffled
from rsd_edge.distill.shuffle import STEPS, correlated_noise, degrade_shuffled, draw_kernel, draw_order

DRAWS = 2000


def rng(seed: int = 0) -> Generator:
    return np.random.default_rng(seed)


def assert_share(count: int, total: int, share: float) -> None:
    """Within four standard deviations of a binomial."""
    assert abs(count - total * share) <= 4 * math.sqrt(total * share * (1 - share)), (count / total, share)


def test_every_order_occurs_and_the_reduction_to_lr_comes_second() -> None:
    """Six steps, two of which keep their order: 360 orders, all equally likely."""
    generator = rng(1)
    orders = Counter(draw_order(generator) for _ in range(10 * DRAWS))
    assert len(orders) == math.factorial(len(STEPS)) // 2
    assert min(orders.values()) >= 20  # of 56 expected: five standard deviations
    assert max(orders.values()) <= 95
    for order in orders:
        assert sorted(order) == sorted(STEPS)
        assert order.index("reduce") < order.index("reduce to LR")
    first = Counter(order[0] for order in orders.elements())
    for step in STEPS:
        share = {"reduce": 2 / 6, "reduce to LR": 0.0}.get(step, 1 / 6)
        assert_share(first[step], 10 * DRAWS, share)


def test_the_steps_are_applied_in_the_order_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise after the last reduction is fresh on every pixel; before it, the reduction has smoothed it."""
    image = np.full((128, 128, 3), 0.5, np.float32)
    settings = Shuffled(half_share=0, jpeg_share=0, noise=(20, 20), correlated_share=0, gray_share=0, jpeg=(100, 100))

    def deviation(order: tuple[str, ...]) -> float:
        monkeypatch.setattr(shuffle, "draw_order", lambda generator: order)
        return float(np.mean([degrade_shuffled(rng(seed), image, settings).std() for seed in range(20)])) * 255

    blurs, reductions = ("blur", "blur again"), ("reduce", "reduce to LR")
    last = deviation((*blurs, *reductions, "jpeg", "noise"))
    first = deviation(("noise", *blurs, *reductions, "jpeg"))
    # JPEG halves the resolution of colours, and with it some of the noise.
    assert 12 < last < 21
    assert first < 0.4 * last


def test_kernels_stay_in_their_ranges() -> None:
    settings, generator = Shuffled(), rng(2)
    for factor, widest, variance in ((4, 2.8, 8.0), (2, 2.4, 6.0)):
        shapes = [draw_kernel(generator, settings, factor) for _ in range(DRAWS)]
        assert {shape.size for shape in shapes} == set(range(7, 26, 2))
        slanted = [shape for shape in shapes if shape.kind == "aniso"]
        assert_share(len(slanted), DRAWS, 0.5)
        for sigmas in ([shape.sigma_x for shape in slanted], [shape.sigma_y for shape in slanted]):
            assert 0.05 <= min(sigmas) < 0.3
            assert 0.98 * math.sqrt(variance) < max(sigmas) <= math.sqrt(variance)
        round_ones = [shape.sigma_x for shape in shapes if shape.kind == "iso"]
        assert 0.05 <= min(round_ones) < 0.1
        assert 0.98 * widest < max(round_ones) <= widest


def test_what_is_optional_is_done_by_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Halving first, every n-th pixel, JPEG within and after, and the three kinds of noise."""
    done: Counter[str] = Counter()
    qualities: list[int] = []

    def count_jpeg(image: Image, quality: int) -> Image:
        done["jpeg"] += 1
        qualities.append(quality)
        return image

    def count_noise(rng: Generator, image: Image, sigma: float, gray: bool) -> Image:
        done["gray" if gray else "colour"] += 1
        assert 2 <= sigma <= 25
        return image

    def count_correlated(rng: Generator, size: tuple[int, int], sigma: float) -> Image:
        done["correlated"] += 1
        assert sigma == 25
        return np.zeros((*size, 3), np.float32)

    def count_kernel(rng: Generator, settings: Shuffled, factor: int) -> shuffle.Shape:
        done[f"x{factor}"] += 1
        return shuffle.Shape("iso", 7, 1.0, 1.0)

    every_nth = shuffle._every_nth

    def count_shifted(image: Image, factor: int, sigma: float) -> Image:
        done["shifted"] += 1
        assert 0.1 <= sigma <= 0.6 * factor
        return every_nth(image, factor, sigma)

    monkeypatch.setattr(shuffle, "jpeg", count_jpeg)
    monkeypatch.setattr(shuffle, "gaussian_noise", count_noise)
    monkeypatch.setattr(shuffle, "correlated_noise", count_correlated)
    monkeypatch.setattr(shuffle, "draw_kernel", count_kernel)
    monkeypatch.setattr(shuffle, "_every_nth", count_shifted)
    image = np.full((64, 64, 3), 0.5, np.float32)
    for seed in range(1000):
        assert degrade_shuffled(rng(seed), image, Shuffled()).shape == (16, 16, 3)
    assert_share(done["jpeg"] - 1000, 1000, 0.9)
    assert 30 <= min(qualities) <= max(qualities) <= 95
    assert len(set(qualities)) == 66
    for kind, share in (("correlated", 0.2), ("gray", 0.4), ("colour", 0.4), ("shifted", 0.25)):
        assert_share(done[kind], 1000, share)
    assert_share(done["x2"] // 2, 1000, 0.25)
    assert done["x2"] + done["x4"] == 2000


@pytest.mark.parametrize("factor", [2, 4])
def test_the_first_part_of_a_reduction_goes_up_to_twice_the_factor(factor: int) -> None:
    image, settings, generator = np.zeros((256, 256, 3), np.float32), Shuffled(shifted_share=0), rng(3)
    heights = [len(shuffle._reduce(generator, image, settings, factor)) for _ in range(300)]
    whole = 256 // (2 * factor)
    assert whole <= min(heights) <= 1.05 * whole
    assert 0.9 * 256 <= max(heights) <= 256


def test_correlated_noise_is_correlated_and_no_louder_than_it_may_be() -> None:
    largest = []
    for seed in range(30):
        noise = correlated_noise(rng(seed), (60, 60), 25.0).reshape(-1, 3) * 255
        covariance = np.cov(noise.T)
        largest.append(float(np.linalg.eigvalsh(covariance)[-1]))
        assert abs(noise.mean()) < 25 / 60 * 4
    assert max(largest) <= 25**2 * 1.1  # 4 standard errors of a variance of 3600 draws
    assert max(largest) > 0.9 * 25**2
    assert min(largest) < 0.6 * 25**2


@pytest.mark.parametrize("factor", [2, 4])
def test_every_nth_pixel_stands_for_the_middle_of_its_block(factor: int) -> None:
    """A ramp has the value of the block's middle, which no blur of it changes."""
    ramp = np.asarray(np.broadcast_to(np.arange(64)[None, :, None] / 64, (64, 64, 3)), np.float32)
    reduced = shuffle._every_nth(ramp, factor, 0.9)
    assert reduced.shape == (64 // factor, 64 // factor, 3)
    middle = (np.arange(64 // factor) * factor + (factor - 1) / 2) / 64
    inner = slice(4, -4)
    np.testing.assert_allclose(reduced[5, inner, 0], middle[inner], rtol=0, atol=1e-5)  # float32 sums of 25
