from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rsd_edge.distill.perceptual import LpipsSqueeze
from rsd_edge.distill.pixel_losses import SHIFT, PixelCriterion, random_window, zoom_window
from rsd_edge.distill.pixel_objectives import (
    chroma_loss,
    direction_loss,
    gradient_phases,
    grid_loss,
    lattice_loss,
    phase_moments,
    pixel_loss,
    retoned,
    spectrum_directions,
    tone_loss,
)
from rsd_edge.distill.randomness import Randomness
from rsd_edge.distill.runtime import Runtime
from rsd_edge.distill.stage_config import StageConfig
from rsd_edge.errors import MissingDependencyError

NOISE = Randomness("test", 0, 2)
RUNTIME = Runtime("cpu")


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def coordinates(side: int) -> Tensor:
    """(1, 3, side, side): every pixel says where it is."""
    y, x = torch.meshgrid(torch.arange(float(side)), torch.arange(float(side)), indexing="ij")
    return torch.stack([y, x, 0 * x])[None]


def test_windows_show_both_images_the_same_part() -> None:
    image = coordinates(64)
    corners, spacings = set(), []
    for seed in range(200):
        first, second = zoom_window(image, image + 1000, generator(seed))
        assert first.shape == second.shape == (1, 3, 64 - SHIFT, 64 - SHIFT)
        torch.testing.assert_close(second - first, torch.full_like(first, 1000), rtol=0, atol=1e-3)  # float32 near 1000
        spacing = float(first[0, 1, 20, 21] - first[0, 1, 20, 20])
        spacings.append(spacing)
        assert float(first[0, 0, 21, 20] - first[0, 0, 20, 20]) == pytest.approx(spacing, abs=1e-4)
        assert first[0, :2].min() > -1e-3  # interpolation in float32
        assert first[0, :2].max() < 63 + 1e-3
        corners.add(tuple(first[0, :2, 0, 0].round().int().tolist()))
    whole = sum(abs(spacing - 1) < 1e-4 for spacing in spacings)
    assert 70 < whole < 130  # half of the windows keep their size, within 4 standard deviations
    assert min(spacings) < 0.6  # and some of the others are enlarged nearly twofold
    assert min(spacings) > 0.45
    assert {row % 4 for row, _ in corners} == {column % 4 for _, column in corners} == {0, 1, 2, 3}


def test_a_random_window_is_the_same_of_every_image() -> None:
    image = coordinates(32)
    seen = set()
    for seed in range(50):
        one, two = random_window(8, (image, -image), generator(seed))
        assert one.shape == (1, 3, 8, 8)
        assert torch.equal(one, -two)
        seen.add(tuple(one[0, :2, 0, 0].int().tolist()))
    assert len(seen) > 40
    assert max(row for row, _ in seen) > 20
    assert random_window(32, (image,), generator(0))[0] is image


@pytest.fixture(scope="module")
def lpips() -> LpipsSqueeze:
    return LpipsSqueeze.packaged()


def test_the_criterion_is_the_weighted_sum(lpips: LpipsSqueeze) -> None:
    base, image, target = (torch.rand(2, 3, 64, 64, generator=generator(seed)) for seed in (0, 1, 2))
    stage = StageConfig(lpips_weight=2.0, pixel_weight=0.5, chroma_weight=3.0, tone_weight=9.0)
    stage = replace(stage, lattice_weight=0.7, grid_weight=0.3, direction_weight=0.4)
    scalars: dict[str, Tensor] = {}
    loss = PixelCriterion(stage, lpips, RUNTIME)(image - base, base, target, NOISE, scalars)
    distance = lpips(*zoom_window(image, target, NOISE.shared("window"))).mean()
    expected = 2 * distance + 0.5 * pixel_loss(image, target).mean() + 3 * chroma_loss(image, target).mean()
    expected = expected + 9 * tone_loss(image, retoned(target, base)).mean()
    expected = expected + 0.7 * lattice_loss(phase_moments(image - base))
    expected = expected + 0.3 * grid_loss(gradient_phases(image, target))
    expected = expected + 0.4 * direction_loss(spectrum_directions(image, target))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)  # the image is a sum of two roundings
    assert scalars.keys() == {"lpips", "pixel", "chroma", "tone", "lattice", "grid", "direction"}
    torch.testing.assert_close(scalars["pixel"], (image - target).abs().mean(), rtol=1e-5, atol=0)


def test_another_lpips_is_loaded_only_for_its_loss(lpips: LpipsSqueeze, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    PixelCriterion(StageConfig(lpips="alex", pixel_weight=1.0), lpips, RUNTIME)
    with pytest.raises(MissingDependencyError, match="lpips 'alex' needs"):
        PixelCriterion(StageConfig(lpips="alex", lpips_weight=1.0), lpips, RUNTIME)


def test_terms_without_weight_are_not_computed(lpips: LpipsSqueeze) -> None:
    image = torch.rand(2, 3, 64, 64, generator=generator(1))
    scalars: dict[str, Tensor] = {}
    loss = PixelCriterion(StageConfig(pixel_weight=1.0), lpips, RUNTIME)(image, 0 * image, 0 * image, NOISE, scalars)
    assert scalars.keys() == {"pixel"}
    assert loss == scalars["pixel"]
