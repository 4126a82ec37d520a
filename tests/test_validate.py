"""The figures of validation are those of `rsd-edge eval`, on tensors."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from rsd_edge.distill.perceptual import LpipsSqueeze
from rsd_edge.distill.validate import image_figures, lattice_figures, psnr_y
from rsd_edge.evaluate import lattice, metrics
from rsd_edge.models.published import bicubic_up

Photo = Callable[[int, int], NDArray[np.uint8]]


def to_tensor(bgr: NDArray[np.uint8]) -> Tensor:
    return torch.tensor(bgr[..., ::-1].transpose(2, 0, 1)[None] / 127.5 - 1, dtype=torch.float32)


def noisy(image: NDArray[np.uint8], sigma: float) -> NDArray[np.uint8]:
    noise = np.random.default_rng(0).normal(0, sigma, image.shape)
    return np.clip(np.round(image + noise), 0, 255).astype(np.uint8)


def test_psnr_is_that_of_the_evaluation(photo: Photo) -> None:
    image = photo(48, 64)
    other = noisy(image, 10)
    expected = metrics.psnr_y(other, image)
    assert psnr_y(to_tensor(other), to_tensor(image)) == pytest.approx(expected, abs=1e-3)  # float32 sums
    both = torch.cat([to_tensor(other), to_tensor(image)]), torch.cat([to_tensor(image)] * 2)
    # A mean over images, not of their errors; equal images count as 1e-8, which is 128.1 dB.
    assert psnr_y(*both) == pytest.approx((expected + 128.13) / 2, abs=0.01)


def test_images_are_judged_as_8_bit_pixels(photo: Photo) -> None:
    target = to_tensor(photo(48, 64))
    loud = target * 1.5
    lpips = LpipsSqueeze.packaged()
    assert image_figures(loud, target, lpips) == image_figures(loud.clamp(-1, 1), target, lpips)
    figures = image_figures(target, target, lpips)
    assert figures["lpips_squeeze"] == 0


def test_bicubic_base_is_that_of_inference(photo: Photo) -> None:
    lq = photo(12, 16)
    base = bicubic_up(to_tensor(lq))[0].permute(1, 2, 0).numpy()[..., ::-1]
    source = lq.astype(np.float32) / np.float32(127.5) - 1
    expected = cv2.resize(source, (64, 48), interpolation=cv2.INTER_CUBIC)
    np.testing.assert_allclose(base, expected, rtol=0, atol=2e-6)  # float32 weights


def test_lattice_is_that_of_the_evaluation(photo: Photo) -> None:
    """A 4-pixel pattern of known strength on a photograph; equal up to the border that is left out here."""
    lq = photo(48, 64)
    base = cv2.resize(lq, (256, 192), interpolation=cv2.INTER_CUBIC)
    strength = np.ones((192, 256, 1))
    strength[::4, ::4] = 4
    noise = np.random.default_rng(1).normal(0, 4, (192, 256, 1)) * strength
    noise[::4, ::4] += 6
    image = np.clip(np.round(base + noise), 0, 255).astype(np.uint8)
    expected = lattice.measure_lattice(image, lq)
    figures = lattice_figures(to_tensor(image) - to_tensor(np.asarray(base, np.uint8)))
    assert expected.spread > 1
    # A sixth of the area is border.
    assert figures["lattice_spread"] == pytest.approx(expected.spread, rel=0.1)
    assert figures["lattice_mean"] == pytest.approx(expected.mean, rel=0.1)


def test_lattice_of_plain_noise_is_small() -> None:
    noise = torch.randn((4, 3, 128, 128), generator=torch.Generator().manual_seed(0)) * 0.05
    figures = lattice_figures(noise)
    assert figures["lattice_spread"] < 0.2  # 16 variances of some 3000 samples each
