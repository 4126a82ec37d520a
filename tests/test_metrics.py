from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from rsd_edge.errors import InputError
from rsd_edge.evaluate.metrics import psnr_y, ssim_y, to_y

FIXTURES = Path(__file__).parent / "fixtures"

# Crops of two photographs against a JPEG of quality 35 with noise. Computed in float64 with NumPy and with SciPy's
# gaussian_filter (sigma 1.5, radius 5), from code that shares nothing with the package.
EXPECTED = {"a": (29.78625930703722, 0.8849890048395038), "b": (29.526494976480375, 0.9024545717232209)}

Image = npt.NDArray[np.uint8]


def pair(name: str) -> tuple[Image, Image]:
    with np.load(FIXTURES / "metric_pairs.npz") as data:
        return data[f"image_{name}"], data[f"reference_{name}"]


def flat(value: int | tuple[int, int, int], size: int = 16) -> Image:
    return np.full((size, size, 3), value, np.uint8)


@pytest.mark.parametrize(
    ("bgr", "luma"),
    [
        ((0, 0, 0), 16.0),
        ((255, 255, 255), 235.0),
        ((0, 0, 255), 81.481),  # 16 + 65.481, the standard's weights
        ((0, 255, 0), 144.553),
        ((255, 0, 0), 40.966),
    ],
)
def test_luma_of_known_colours(bgr: tuple[int, int, int], luma: float) -> None:
    assert to_y(flat(bgr)) == pytest.approx(np.full((16, 16), luma), abs=1e-9)  # float64 rounding


@pytest.mark.parametrize("name", ["a", "b"])
def test_photographs_score_as_computed_independently(name: str) -> None:
    psnr, ssim = EXPECTED[name]
    assert psnr_y(*pair(name)) == pytest.approx(psnr, abs=1e-9)  # both in float64
    assert ssim_y(*pair(name)) == pytest.approx(ssim, abs=1e-9)


def test_psnr_of_a_constant_difference() -> None:
    # Ten grey levels are 10 * 219 / 255 of luma.
    expected = 20 * math.log10(255 / (10 * 219 / 255))
    assert psnr_y(flat(100), flat(110)) == pytest.approx(expected, abs=1e-9)


def test_equal_images_are_perfect() -> None:
    image, _ = pair("a")
    assert psnr_y(image, image) == math.inf
    assert ssim_y(image, image) == pytest.approx(1, abs=1e-12)


def test_ssim_of_flat_images_is_its_luminance_term() -> None:
    x, y = 16 + 100 * 219 / 255, 16 + 140 * 219 / 255
    c1 = (0.01 * 255) ** 2
    # The variances cancel to about 1e-12 of 1e4, against C2 = 58.5.
    assert ssim_y(flat(100), flat(140)) == pytest.approx((2 * x * y + c1) / (x * x + y * y + c1), abs=1e-9)


def test_ssim_ignores_what_no_whole_window_is_centred_on() -> None:
    """The smallest image has one window, whose Gaussian weighs the centre more than the corner."""
    image = np.random.default_rng(0).integers(0, 256, (11, 11, 3)).astype(np.uint8)
    corner, centre = image.copy(), image.copy()
    corner[0, 0] ^= 128
    centre[5, 5] ^= 128
    assert ssim_y(centre, image) < ssim_y(corner, image) < 1


@pytest.mark.parametrize("metric", [psnr_y, ssim_y])
def test_shapes_must_agree(metric: object) -> None:
    assert callable(metric)
    with pytest.raises(InputError, match=r"\(16, 16, 3\) and \(20, 20, 3\)"):
        metric(flat(0), flat(0, 20))


def test_ssim_names_the_smallest_size() -> None:
    with pytest.raises(InputError, match="at least 11 pixels, not 10x10"):
        ssim_y(flat(0, 10), flat(0, 10))
