from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from rsd_edge.errors import InputError
from rsd_edge.evaluate.metrics import psnr_rgb, psnr_y, ssim_rgb, ssim_y, to_y

FIXTURES = Path(__file__).parent / "fixtures"

# Crops of two photographs against a JPEG of quality 35 with noise. Computed in float64 with NumPy and with SciPy's
# gaussian_filter (sigma 1.5, radius 5), from code that shares nothing with the package.
EXPECTED = {"a": (29.78625930703722, 0.8849890048395038), "b": (29.526494976480375, 0.9024545717232209)}

# The same crops by the functions of pyiqa 0.1.13 and 0.1.16 (both give these digits), test_y_channel=True and
# color_space='ycbcr' as in the official script of RSD. In `negative` the reference of `a` is inverted.
PYIQA = {
    "a": (29.786216735839844, 0.8844898136345222),
    "b": (29.52645492553711, 0.9020199549608899),
    "negative": (9.190768241882324, 0.11519176631766698),
}

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


def test_rounded_luma_is_that_of_whole_levels() -> None:
    """(7, 0, 0) in BGR has a luma of 16.685, which rounds to 17; black has 16."""
    assert psnr_y(flat((7, 0, 0)), flat(0), rounded=True) == pytest.approx(20 * math.log10(255), abs=1e-9)
    exact = 20 * math.log10(255 / (7 * 24.966 / 255))
    assert psnr_y(flat((7, 0, 0)), flat(0)) == pytest.approx(exact, abs=1e-9)
    assert psnr_y(flat((2, 0, 0)), flat(0), rounded=True) == math.inf  # 16.196 and 16


def test_psnr_rgb_is_over_all_channels() -> None:
    # Errors of 3, 0 and 6 levels: their mean square is 15.
    assert psnr_rgb(flat((103, 100, 106)), flat(100)) == pytest.approx(10 * math.log10(255**2 / 15), abs=1e-9)


def test_ssim_of_constants_is_the_luminance_term() -> None:
    c1 = (0.01 * 255) ** 2
    channels = [(2 * value * 100 + c1) / (value**2 + 100**2 + c1) for value in (50, 100, 200)]
    # Variances are zero, up to rounding errors of the squares, which are far below C2.
    assert ssim_rgb(flat((50, 100, 200)), flat(100)) == pytest.approx(np.mean(channels), abs=1e-9)


def test_ssim_rounded_is_that_of_rounded_planes() -> None:
    """Gray images whose luma is whole already score alike either way; others do not."""
    image, reference = pair("a")
    assert ssim_y(image, reference, rounded=True) != ssim_y(image, reference)
    # Half a level of rounding noise moves SSIM by much less than the images' own difference of 0.1.
    assert ssim_y(image, reference, rounded=True) == pytest.approx(ssim_y(image, reference), abs=5e-3)


@pytest.mark.parametrize("metric", [psnr_rgb, ssim_rgb])
def test_channels_of_other_shapes_are_refused(metric: Callable[[Image, Image], float]) -> None:
    with pytest.raises(InputError, match="different shape"):
        metric(flat(0, 16), flat(0, 17))


@pytest.mark.parametrize("name", PYIQA)
def test_scores_of_pyiqa(name: str) -> None:
    psnr, ssim = PYIQA[name]
    image, reference = pair("a" if name == "negative" else name)
    reference = 255 - reference if name == "negative" else reference
    assert psnr_y(image, reference) == pytest.approx(
        psnr, abs=1e-4
    )  # it computes in float32 and adds 1e-8 to the error
    # Its luma is rounded in float32, which may go the other way at a half.
    assert ssim_y(image, reference, rounded=True, clipped=True) == pytest.approx(ssim, abs=1e-6)
