from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.random import Generator
from numpy.typing import NDArray

from rsd_edge.distill import blur_kernels, degrade
from rsd_edge.distill.degrade import (
    FIRST,
    SECOND,
    Pass,
    apply_pass,
    cubic_matrix,
    gaussian_noise,
    jpeg,
    poisson_noise,
    to_uint8,
)
from rsd_edge.opencv import cv2

Photo = Callable[[int, int], NDArray[np.uint8]]
Image = NDArray[np.float32]


def rng(seed: int = 0) -> Generator:
    return np.random.default_rng(seed)


def flat(value: float, side: int = 128) -> NDArray[np.uint8]:
    return np.full((side, side, 3), round(255 * value), np.uint8)


def test_the_ranges_are_the_official_ones() -> None:
    assert (
        Pass(
            blur=1.0,
            kernel=21,
            sigma=(0.2, 3.0),
            sinc=0.1,
            up_down_keep=(0.2, 0.7, 0.1),
            resize=(0.15, 1.5),
            gaussian_share=0.5,
            gaussian=(1, 30),
            poisson=(0.05, 3.0),
            gray_share=0.4,
        )
        == FIRST
    )
    assert (
        Pass(
            blur=0.8,
            kernel=15,
            sigma=(0.2, 1.5),
            sinc=0.1,
            up_down_keep=(0.3, 0.4, 0.3),
            resize=(0.3, 1.2),
            gaussian_share=0.5,
            gaussian=(1, 25),
            poisson=(0.05, 2.5),
            gray_share=0.4,
        )
        == SECOND
    )
    assert (degrade.JPEG, degrade.SECOND_SHARE) == ((30, 95), 0.5)
    assert (degrade.FINAL_SINC_SHARE, degrade.FINAL_SINC_KERNEL) == (0.8, 21)
    assert blur_kernels.KINDS == (
        "iso", "aniso", "generalised_iso", "generalised_aniso", "plateau_iso", "plateau_aniso",
    )  # fmt: skip
    assert blur_kernels.KIND_SHARES == (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)


@pytest.mark.parametrize("preset", ["real", "light", "bicubic"])
def test_a_sample_depends_on_its_seed_alone(photo: Photo, preset: str) -> None:
    hr = photo(64, 96)
    first = degrade.degrade(rng(3), hr, preset)
    assert first.shape == (16, 24, 3)
    assert first.dtype == np.uint8
    np.random.default_rng(0).random(7)
    assert np.array_equal(first, degrade.degrade(rng(3), hr, preset))
    assert np.array_equal(first, degrade.degrade(rng(4), hr, preset)) == (preset == "bicubic")


def test_kernels_have_unit_sum_and_odd_sizes() -> None:
    sizes = set()
    for seed in range(200):
        kernel = blur_kernels.random_kernel(rng(seed), 21, (0.2, 3.0), 0.1)
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


def test_a_random_kernel_is_a_sinc_with_the_given_probability() -> None:
    """Only a sinc has negative weights; a small one may have none, so sizes are large here."""
    drawn = [blur_kernels.random_kernel(rng(seed), 21, (0.2, 3.0), 0.25) for seed in range(1200)]
    large = [kernel for kernel in drawn if len(kernel) >= 9]
    share = np.mean([kernel.min() < 0 for kernel in large])
    assert share == pytest.approx(0.25, abs=0.06)  # 4 standard deviations of some 800 draws
    assert min(blur_kernels.random_kernel(rng(seed), 21, (0.2, 3.0), 0.0).min() for seed in range(100)) >= 0


@pytest.mark.parametrize("size", [7, 21])
def test_random_sinc_has_its_cutoff_in_range(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    def recording(size: int, cutoff: float) -> NDArray[np.float32]:
        seen.append(cutoff)
        return np.ones((size, size), np.float32)

    monkeypatch.setattr(blur_kernels, "sinc", recording)
    generator = rng()
    for _ in range(500):
        blur_kernels.random_sinc(generator, size)
    lowest = math.pi / 3 if size < 13 else math.pi / 5
    assert lowest <= min(seen) < lowest + 0.05  # 500 draws come that close to either end
    assert math.pi - 0.05 < max(seen) <= math.pi


def keys(x: float) -> float:
    """Keys' cubic convolution kernel with a = -0.5."""
    x = abs(x)
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def test_cubic_matrix_is_the_stretched_kernel_on_a_reflected_signal() -> None:
    """Against a loop over an explicitly padded signal."""
    signal = rng(1).uniform(0, 1, 24)
    padded = np.pad(signal, 12, mode="symmetric")
    expected = []
    for out in range(6):
        centre = 4 * out + 1.5
        weights = np.array([keys((position - 12 - centre) / 4) for position in range(48)])
        expected.append((weights * padded).sum() / weights.sum())
    np.testing.assert_allclose(cubic_matrix(24) @ signal, expected, rtol=0, atol=1e-6)  # float32 weights


def test_cubic_matrix_agrees_with_torch_away_from_the_ends() -> None:
    """torch cuts the kernel at the border where this reflects the image; four output pixels inside they are one."""
    signal = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theirs = torch.nn.functional.interpolate(signal, scale_factor=0.25, mode="bicubic", antialias=True)[0, 0].numpy()
    matrix = cubic_matrix(64)
    ours = matrix @ signal[0, 0].numpy() @ matrix.T
    np.testing.assert_allclose(ours[4:-4, 4:-4], theirs[4:-4, 4:-4], rtol=0, atol=1e-6)


def test_the_bicubic_preset_only_resizes(photo: Photo) -> None:
    assert np.array_equal(degrade.degrade(rng(), flat(0.4), "bicubic"), np.full((32, 32, 3), 102, np.uint8))
    hr = photo(64, 64)
    expected = np.einsum("ih,hwc,jw->ijc", cubic_matrix(64), hr / 255.0, cubic_matrix(64))
    assert np.abs(degrade.degrade(rng(), hr, "bicubic") - 255 * expected.clip(0, 1)).max() <= 0.501  # rounded to 8 bits


def test_presets_are_ordered_by_what_they_do(photo: Photo) -> None:
    """Down a ramp that runs across, only noise varies; on a photograph, distance from the clean downscaling counts."""
    ramp = np.broadcast_to(np.arange(64, 192, dtype=np.uint8)[None, :, None], (128, 128, 3)).copy()
    hr = photo(128, 128)
    clean = degrade.degrade(rng(), hr, "bicubic").astype(float)

    def noise(preset: str) -> float:
        return float(np.mean([degrade.degrade(rng(seed), ramp, preset).std(axis=0).mean() for seed in range(40)]))

    def distance(preset: str) -> float:
        return float(np.mean([np.abs(degrade.degrade(rng(seed), hr, preset) - clean).mean() for seed in range(40)]))

    assert noise("bicubic") < 0.1  # values at a half round either way
    assert 2 < noise("light") < 0.9 * noise("real")
    assert 1 < distance("light") < 0.8 * distance("real")


@pytest.mark.parametrize("gray", [False, True])
def test_gaussian_noise_has_the_given_deviation(gray: bool) -> None:
    image = np.full((400, 400, 3), 0.5, np.float32)
    noise = (gaussian_noise(rng(), image, 25.0, gray) - image) * 255
    assert noise.std() == pytest.approx(25, rel=0.007)  # 4 standard errors of 160,000 draws
    assert (np.ptp(noise, axis=2).max() < 1e-4) == gray


@pytest.mark.parametrize("gray", [False, True])
def test_poisson_noise_grows_with_the_light(gray: bool) -> None:
    """All 256 values occur, so counts are at 256 levels: variance value / 256, times the scale squared."""
    ramp = np.repeat(np.arange(256, dtype=np.float32) / 255, 100)[:, None, None]
    image = np.asarray(np.broadcast_to(ramp, (25600, 8, 3)), np.float32)
    noise = poisson_noise(rng(), image, 2.0, gray) - image
    for value in (64, 128, 255):
        rows = slice(100 * value, 100 * value + 100)
        expected = 2.0 * math.sqrt(value / 255 / 256)
        assert noise[rows].std() == pytest.approx(expected, rel=0.1)  # 4 standard errors of 800 draws
    bright = slice(6400, None)
    assert (noise / np.sqrt(ramp / 256).clip(1e-9))[bright].std() == pytest.approx(2, rel=0.009)  # 150,000 draws
    assert noise[:100].std() == 0
    assert abs(float(noise[-100:].mean())) < 0.02  # 4 standard errors
    assert (np.ptp(noise, axis=2).max() < 1e-5) == gray


def test_jpeg_and_gray_noise_take_the_colours_in_opencvs_order(photo: Photo) -> None:
    """The codec weighs red and blue differently: swapped, a strongly compressed photograph comes out otherwise."""
    bgr = photo(64, 64)
    coded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 30])[1]
    np.testing.assert_array_equal(to_uint8(jpeg(bgr.astype(np.float32) / 255, 30)), cv2.imdecode(coded, 1))
    blue = np.zeros((64, 64, 3), np.float32)
    blue[..., 0] = 1  # luma 0.114: the variance of its shot noise tells it from red, whose luma is 0.299
    noise = poisson_noise(rng(), blue, 1.0, True) - blue
    assert noise.std() == pytest.approx(math.sqrt(0.114 / 2), rel=0.1)  # peak 2: one distinct value; 4096 draws


def test_jpeg_loses_more_at_lower_quality(photo: Photo) -> None:
    image = np.asarray(photo(64, 64) / 255, np.float32)
    errors = [float(np.abs(jpeg(image, quality) - image).mean()) for quality in (95, 60, 30)]
    assert 0 < errors[0] < errors[1] < errors[2] < 0.2


def test_a_pass_resizes_within_its_range() -> None:
    image = np.full((100, 100, 3), 0.5, np.float32)
    generator = rng()
    sides = np.array([apply_pass(generator, image, FIRST, (100, 100)).shape[0] for _ in range(400)])
    assert sides.min() >= 15
    assert sides.max() <= 150
    assert np.mean(sides < 100) == pytest.approx(0.7, abs=0.1)  # 4 standard deviations; a factor near 1 rounds to 100
    assert np.mean(sides > 100) == pytest.approx(0.2, abs=0.08)
    assert apply_pass(rng(), image, SECOND, (25, 20)).shape[0] <= 30


def test_a_pass_stays_in_range() -> None:
    white = np.ones((64, 64, 3), np.float32)
    for seed in range(10):
        image = apply_pass(rng(seed), white, FIRST, (64, 64))
        assert image.min() >= 0
        assert image.max() <= 1
