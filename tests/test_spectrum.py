from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from rsd_edge.errors import InputError
from rsd_edge.evaluate.metrics import to_y
from rsd_edge.evaluate.spectrum import ROUNDING_POWER, measure_spectrum, ring_power

FIXTURES = Path(__file__).parent / "fixtures"

Image = npt.NDArray[np.uint8]
Plane = npt.NDArray[np.float64]


def pair(name: str) -> tuple[Image, Image]:
    with np.load(FIXTURES / "metric_pairs.npz") as data:
        return data[f"image_{name}"], data[f"reference_{name}"]


def gray(plane: Plane) -> Image:
    return np.repeat(plane[:, :, np.newaxis], 3, axis=2).astype(np.uint8)


def even_noise(size: int) -> Plane:
    return 2 * np.random.default_rng(0).integers(-15, 16, (size, size)).astype(np.float64)


def independent_profile(image: Image) -> list[float]:
    """The definition with the whole transform and a mask for each ring."""
    luma = 16 + image.astype(np.float64) @ np.array([24.966, 128.553, 65.481]) / 255
    height, width = luma.shape
    rows, columns = np.arange(height)[:, None], np.arange(width)[None]
    window = np.sin(np.pi * rows / height) ** 2 * np.sin(np.pi * columns / width) ** 2
    power = np.abs(np.fft.fft2((luma - np.average(luma, weights=window)) * window)) ** 2 / np.sum(window**2)
    radius = np.sqrt(np.fft.fftfreq(height)[:, None] ** 2 + np.fft.fftfreq(width)[None] ** 2)
    rings = [power[(radius >= k / 32) & (radius < (k + 1) / 32)].mean() for k in range(2, 16)]
    floor = (0.0979058824**2 + 0.5041294118**2 + 0.2567882353**2) / 12
    return [10 * math.log10(max(ring, floor)) for ring in rings]


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("width", [80, 79])
def test_follows_the_definition(name: str, width: int) -> None:
    image, reference = (picture[:, :width] for picture in pair(name))
    spectrum = measure_spectrum(image, reference)
    differences = np.subtract(independent_profile(image), independent_profile(reference))
    assert spectrum is not None
    assert spectrum.error == pytest.approx(np.abs(differences).mean(), abs=1e-6)  # float64 and weights of 10 digits
    assert spectrum.bias == pytest.approx(differences.mean(), abs=1e-6)
    assert abs(spectrum.bias) < spectrum.error  # both signs occur, so that the two are told apart


def test_an_image_has_the_spectrum_of_itself() -> None:
    image, _ = pair("a")
    spectrum = measure_spectrum(image, image)
    assert spectrum is not None
    assert (spectrum.error, spectrum.bias) == (0, 0)


def test_twice_the_amplitude_is_six_decibels() -> None:
    noise = even_noise(128)
    once, twice = gray(128 + noise), gray(128 + 2 * noise)
    more, less = measure_spectrum(twice, once), measure_spectrum(once, twice)
    assert more is not None
    assert less is not None
    six = 20 * math.log10(2)
    assert (more.error, more.bias) == pytest.approx((six, six), abs=1e-9)  # float64 rounding
    assert (less.error, less.bias) == pytest.approx((six, -six), abs=1e-9)


def test_averaging_neighbours_loses_what_its_transfer_function_says() -> None:
    noise = even_noise(512)
    spectrum = measure_spectrum(gray(128 + (noise + np.roll(noise, 1, axis=1)) / 2), gray(128 + noise))
    across, down = np.meshgrid(np.fft.fftfreq(512), np.fft.fftfreq(512))
    radius, gain = np.hypot(across, down), np.cos(np.pi * across) ** 2
    rings = [gain[(radius >= k / 32) & (radius < (k + 1) / 32)].mean() for k in range(2, 16)]
    expected = np.mean(10 * np.log10(rings))  # -1.99
    assert spectrum is not None
    # Rings hold 4000 to 25000 samples under a window that leaves a quarter of them independent; their power scatters by
    # 1 to 3 %, most of it the same in both images.
    assert spectrum.bias == pytest.approx(expected, abs=0.02)
    assert spectrum.error == pytest.approx(-expected, abs=0.02)


def test_blur_is_negative_and_noise_positive() -> None:
    _, image = pair("b")
    blurred = measure_spectrum(np.asarray(cv2.GaussianBlur(image, (0, 0), 1.5), np.uint8), image)
    noise = np.random.default_rng(0).normal(0, 20, image.shape)
    noisy = measure_spectrum(np.clip(image + noise, 0, 255).astype(np.uint8), image)
    assert blurred is not None
    assert noisy is not None
    assert blurred.bias == -blurred.error < -3
    assert noisy.bias > 1


def test_white_noise_has_its_variance_in_every_ring() -> None:
    noise = np.random.default_rng(2).normal(0, 3, (512, 768)) + 1000
    # As above, 4 standard deviations of the smallest ring, which holds 6000 samples, a quarter independent.
    assert ring_power(noise) == pytest.approx(np.full(14, 9.0), rel=0.1)


@pytest.mark.parametrize(("frequency", "ring"), [(2.5, 0), (3.5, 1), (8.5, 6), (15.5, 13)])
@pytest.mark.parametrize("direction", [(1.0, 0.0), (0.0, 1.0), (0.6, -0.8)])
def test_a_wave_lies_in_its_ring(frequency: float, ring: int, direction: tuple[float, float]) -> None:
    down, across = np.mgrid[:256, :320]
    wave = np.cos(2 * np.pi * frequency / 32 * (direction[0] * down + direction[1] * across))
    power = ring_power(wave)
    # The window's side lobes fall with the cube of the distance, here at least 4 bins, and are squared.
    assert np.delete(power, ring).max() < 1e-3 * power[ring]


def test_flat_areas_count_as_rounding_noise() -> None:
    reference = gray(128 + even_noise(64))
    flat = np.full((64, 64, 3), 128, np.uint8)
    spectrum = measure_spectrum(flat, reference)
    assert spectrum is not None
    assert spectrum.bias == pytest.approx(
        np.mean(10 * np.log10(ROUNDING_POWER / ring_power(to_y(reference)))), rel=1e-9
    )
    assert measure_spectrum(flat, flat // 2) == measure_spectrum(flat, flat)


def test_rounding_noise_is_what_eight_bits_make() -> None:
    exact = np.random.default_rng(3).uniform(5, 250, (512, 512, 3))
    error = np.round(exact) - exact
    luma = error @ np.array([24.966, 128.553, 65.481]) / 255
    assert pytest.approx(luma.var(), rel=0.01) == ROUNDING_POWER  # 262144 samples: 4 standard deviations are 1 %


def test_small_images_have_none() -> None:
    image = gray(128 + even_noise(64))
    assert measure_spectrum(image, image) is not None
    assert measure_spectrum(image[:63], image[:63]) is None
    assert measure_spectrum(image[:, :63], image[:, :63]) is None


def test_shapes_must_agree() -> None:
    image = gray(128 + even_noise(64))
    with pytest.raises(InputError, match=r"\(64, 64, 3\) and \(64, 60, 3\)"):
        measure_spectrum(image, image[:, :60])
