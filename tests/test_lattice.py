from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch

from rsd_edge.errors import InputError
from rsd_edge.evaluate.lattice import measure_lattice

FIXTURES = Path(__file__).parent / "fixtures"

Image = npt.NDArray[np.uint8]


def pair(name: str) -> tuple[Image, Image]:
    with np.load(FIXTURES / "metric_pairs.npz") as data:
        return data[f"image_{name}"], data[f"lq_{name}"]


def blur_matrix(size: int) -> npt.NDArray[np.float64]:
    """Gaussian of sigma 2 and radius 8 along one axis, reflected at the ends without repeating them."""
    matrix = np.zeros((size, size))
    for row in range(size):
        for step in range(-8, 9):
            column = abs(row + step)
            column = 2 * (size - 1) - column if column >= size else column
            matrix[row, column] += np.exp(-(step**2) / 8)
    return np.asarray(matrix / matrix.sum(axis=1, keepdims=True))


def independent_lattice(image: Image, lq: Image) -> tuple[float, float]:
    """The definition written out with torch's bicubic, dense blur matrices and a loop over phases."""
    weights = np.array([24.966, 128.553, 65.481]) / 255
    small = torch.tensor(lq.astype(np.float64)).permute(2, 0, 1)[None]
    base = torch.nn.functional.interpolate(small, scale_factor=4, mode="bicubic", align_corners=False)[0]
    detail = (image - base.permute(1, 2, 0).numpy().clip(0, 255).round()) @ weights
    height, width = detail.shape
    detail = detail - blur_matrix(height) @ detail @ blur_matrix(width).T
    phases = [detail[i::4, j::4] for i in range(4) for j in range(4)]
    variances = [phase.var() for phase in phases]
    return (max(variances) - min(variances)) / float(np.mean(variances)), float(np.std([p.mean() for p in phases]))


@pytest.mark.parametrize("name", ["a", "b"])
def test_follows_the_definition(name: str) -> None:
    image, lq = pair(name)
    lattice = measure_lattice(image, lq)
    # OpenCV's 8-bit bicubic has weights of 11 bits, so one pixel in some hundred rounds to the other side.
    assert (lattice.spread, lattice.mean) == pytest.approx(independent_lattice(image, lq), rel=2e-3)


def test_white_noise_has_hardly_any() -> None:
    noise = np.random.default_rng(1).normal(0, 10, (512, 512, 1))
    lattice = measure_lattice(noisy(noise), flat_lq(128))
    # 16384 samples a phase: the variances scatter by sqrt(2 / 16384) = 1.1 %, 16 of them span about 3.5 times that;
    # the means scatter by 10 * 219 / 255 / 128 = 0.07.
    assert lattice.spread < 0.08
    assert lattice.mean < 0.1


def test_a_printed_pattern_shows_in_the_mean() -> None:
    pattern = np.zeros((512, 512, 1))
    pattern[1::4, 2::4] = 16
    lattice = measure_lattice(noisy(pattern), flat_lq(128))
    # One phase of 16 stands out by 16 * 219 / 255: std of the means is sqrt(15) / 16 of that. The blur passes
    # exp(-(2 pi / 4 * 2)^2 / 2) = 0.7 % of the coarsest wave of the pattern, and less of the finer ones.
    assert lattice.mean == pytest.approx(16 * 219 / 255 * np.sqrt(15) / 16, rel=0.007)


def test_uneven_noise_shows_in_the_spread() -> None:
    noise = np.random.default_rng(1).normal(0, 10, (512, 512, 1))
    noise[::4, ::4] *= 1.5
    lattice = measure_lattice(noisy(noise), flat_lq(128))
    # One variance is 2.25 times the others: 1.25 / (17.25 / 16) = 1.16, give or take the scatter named above.
    assert lattice.spread == pytest.approx(1.16, abs=0.08)
    assert lattice.mean < 0.15


def test_no_detail_is_no_lattice() -> None:
    """The bicubic image itself measures zero, clipped or not."""
    lq = np.random.default_rng(3).choice([0, 255, 120], (16, 16, 3)).astype(np.uint8)
    image = np.asarray(cv2.resize(lq, (64, 64), interpolation=cv2.INTER_CUBIC), np.uint8)
    lattice = measure_lattice(image, lq)
    assert (lattice.spread, lattice.mean) == (0, 0)


def noisy(noise: npt.NDArray[np.float64]) -> Image:
    return np.clip(np.round(128 + noise) + np.zeros(3), 0, 255).astype(np.uint8)


def flat_lq(size: int) -> Image:
    return np.full((size, size, 3), 128, np.uint8)


def test_needs_four_times_the_source() -> None:
    with pytest.raises(InputError, match="needs 64x64, not 32x48"):
        measure_lattice(np.zeros((48, 32, 3), np.uint8), flat_lq(16))


def test_names_the_smallest_size() -> None:
    with pytest.raises(InputError, match="at least 2 pixels, not 1x1"):
        measure_lattice(np.zeros((4, 4, 3), np.uint8), flat_lq(1))
