from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from numpy.random import Generator
from numpy.typing import NDArray

from rsd_edge.distill import blur_kernels
from rsd_edge.distill.blur_kernels import KINDS, Shape, draw_index, draw_shape, draw_sinc, draw_size, make
from rsd_edge.distill.presets import Blur, SecondOrder

DRAWS = 2000


def rng(seed: int = 0) -> Generator:
    return np.random.default_rng(seed)


def drawn(blur: Blur, seed: int = 1) -> list[Shape]:
    generator = rng(seed)
    return [draw_shape(generator, blur) for _ in range(DRAWS)]


def assert_share(count: int, total: int, share: float) -> None:
    """Within four standard deviations of a binomial."""
    assert abs(count - total * share) <= 4 * math.sqrt(total * share * (1 - share)), (count / total, share)


@pytest.mark.parametrize("blur", [SecondOrder().first.blur, SecondOrder().second.blur])
def test_kinds_are_drawn_by_their_shares(blur: Blur) -> None:
    counts = Counter(shape.kind for shape in drawn(blur))
    assert set(counts) == {*KINDS, "sinc"}
    assert_share(counts["sinc"], DRAWS, 0.1)
    for kind, share in zip(KINDS, (0.45, 0.25, 0.12, 0.03, 0.12, 0.03), strict=True):
        assert_share(counts[kind], DRAWS, 0.9 * share)


@pytest.mark.parametrize("blur", [SecondOrder().first.blur, SecondOrder().second.blur])
def test_shapes_stay_in_their_ranges_and_fill_them(blur: Blur) -> None:
    shapes = drawn(blur)
    sizes = Counter(shape.size for shape in shapes)
    possible = list(range(3, blur.sizes[1] + 1, 2))
    assert sorted(sizes) == possible
    for size in possible:
        assert_share(sizes[size], DRAWS, 1 / len(possible))
    blurs = [shape for shape in shapes if shape.kind != "sinc"]
    low, high = blur.sigma
    for sigmas in ([shape.sigma_x for shape in blurs], [shape.sigma_y for shape in blurs]):
        assert low <= min(sigmas) < low + 0.02 * (high - low)  # a share of 0.02 is missed by 1800 draws once in 1e16
        assert high - 0.02 * (high - low) < max(sigmas) <= high
    for shape in blurs:
        turned = shape.kind.endswith("aniso")
        assert (shape.sigma_x != shape.sigma_y) == turned
        assert (shape.angle != 0) == turned
        assert abs(shape.angle) <= math.pi


def test_half_of_the_betas_lie_on_either_side_of_one() -> None:
    shapes = drawn(Blur(kinds=(0, 0, 0.5, 0, 0.5, 0), sinc=0))
    generalised = [shape.beta for shape in shapes if shape.kind == "generalised_iso"]
    assert 0.5 <= min(generalised) < 0.55
    assert 3.8 < max(generalised) <= 4
    assert_share(sum(beta < 1 for beta in generalised), len(generalised), 0.5)
    plateau = [shape.beta for shape in shapes if shape.kind == "plateau_iso"]
    assert min(plateau) == 1
    assert 1.95 < max(plateau) <= 2
    assert_share(sum(beta == 1 for beta in plateau), len(plateau), 0.5)


def test_a_range_of_betas_beyond_one_is_not_left() -> None:
    betas = [shape.beta for shape in drawn(Blur(kinds=(0, 0, 1, 0, 0, 0), sinc=0, generalised_beta=(2.0, 3.0)))]
    assert 2 <= min(betas) < 2.05
    assert 2.95 < max(betas) <= 3


def test_the_cutoff_of_a_sinc_depends_on_its_size() -> None:
    shapes = drawn(Blur(sinc=1.0))
    for large in (False, True):
        cutoffs = [shape.cutoff / math.pi for shape in shapes if (shape.size >= 13) == large]
        lowest = 1 / 5 if large else 1 / 3
        assert lowest <= min(cutoffs) < lowest + 0.02  # some 1000 draws come that close to either end
        assert 0.98 < max(cutoffs) <= 1


def test_the_final_sinc_is_of_its_own() -> None:
    final, generator = SecondOrder().final_sinc, rng()
    shapes = [draw_sinc(generator, draw_size(generator, final.sizes), final.cutoff) for _ in range(DRAWS)]
    assert {shape.size for shape in shapes} == set(range(7, 22, 2))
    cutoffs = [shape.cutoff / math.pi for shape in shapes]
    assert 1 / 3 <= min(cutoffs) < 0.35
    assert 0.98 < max(cutoffs) <= 1


def test_an_index_is_drawn_by_its_share() -> None:
    generator = rng()
    counts = Counter(draw_index(generator, (0.2, 0.0, 0.7, 0.1)) for _ in range(DRAWS))
    assert set(counts) == {0, 2, 3}
    for index, share in ((0, 0.2), (2, 0.7), (3, 0.1)):
        assert_share(counts[index], DRAWS, share)


def test_kernels_have_unit_sum_and_odd_sizes() -> None:
    sizes = set()
    for seed in range(200):
        kernel = make(draw_shape(rng(seed), Blur()))
        sizes.add(kernel.shape[0])
        assert kernel.shape[0] == kernel.shape[1]
        assert kernel.sum(dtype=np.float64) == pytest.approx(1, abs=1e-5)  # float32 weights
        # Point symmetry, which every kind has; the angles' cosines round in the 16th digit.
        np.testing.assert_allclose(kernel, kernel[::-1, ::-1], rtol=0, atol=1e-6)
    assert sizes == set(range(3, 22, 2))


def test_isotropic_kernels_have_all_symmetries_and_others_do_not() -> None:
    kernels = [
        blur_kernels.gaussian(15, 1.3, 1.3, 0.0),
        blur_kernels.generalised_gaussian(15, 1.3, 1.3, 0.0, 0.7),
        blur_kernels.plateau(15, 1.3, 1.3, 0.0, 1.5),
        blur_kernels.sinc(15, 2.0),
    ]
    for kernel in kernels:
        np.testing.assert_allclose(kernel, kernel.T, rtol=0, atol=1e-7)
        np.testing.assert_allclose(kernel, kernel[::-1], rtol=0, atol=1e-7)
    wide = blur_kernels.gaussian(15, 3.0, 1.0, 0.0)
    assert wide[7, 10] > 10 * wide[10, 7]  # angle 0: sigma_x runs along the rows
    turned = blur_kernels.gaussian(15, 3.0, 1.0, math.pi / 2)
    np.testing.assert_allclose(turned, wide.T, rtol=0, atol=1e-7)
    slanted = blur_kernels.gaussian(15, 3.0, 1.0, math.pi / 4)
    assert slanted[9, 9] > 2 * slanted[9, 5]


def test_kernel_shapes_follow_their_formulas() -> None:
    """Ratios to the centre at (2, 1) pixels, which no normalisation touches."""
    d2 = 2**2 / 1.5**2 + 1**2 / 0.8**2

    def ratio(kernel: NDArray[np.float32]) -> float:
        return float(kernel[7 + 1, 7 + 2] / kernel[7, 7])

    relative = 1e-5  # float32 weights
    assert ratio(blur_kernels.gaussian(15, 1.5, 0.8, 0.0)) == pytest.approx(math.exp(-d2 / 2), rel=relative)
    generalised = blur_kernels.generalised_gaussian(15, 1.5, 0.8, 0.0, 0.6)
    assert ratio(generalised) == pytest.approx(math.exp(-(d2**0.6) / 2), rel=relative)
    assert ratio(blur_kernels.plateau(15, 1.5, 0.8, 0.0, 1.7)) == pytest.approx(1 / (1 + d2**1.7), rel=relative)


def bessel_j1(x: float) -> float:
    """Bessel's integral, by the trapezoidal rule, which is exact to rounding for a periodic integrand."""
    tau = np.arange(64) * (2 * math.pi / 64)
    return float(np.cos(tau - x * np.sin(tau)).mean())


def test_a_sinc_kernel_is_a_circular_low_pass() -> None:
    cutoff = 1.5
    kernel = blur_kernels.sinc(21, cutoff).astype(np.float64)
    for y, x in ((0, 1), (2, 1), (3, 4), (10, 0)):
        argument = cutoff * math.hypot(x, y)
        # In units of the centre, where 2 J1(x) / x is 1; float32 weights.
        assert kernel[10 + y, 10 + x] / kernel[10, 10] == pytest.approx(2 * bessel_j1(argument) / argument, abs=1e-6)
    waves = np.cos(np.arange(-10, 11) * cutoff * np.array([[0.5], [1.0], [1.5]]))
    passed = (kernel * waves[:, None]).sum(axis=(1, 2))
    assert passed == pytest.approx([1, 0.5, 0], abs=0.15)  # the ripple of a window of 21
