"""What is measured at borders of tiles: seams change it, what pictures show there does not."""

from __future__ import annotations

import numpy as np
import pytest
from fidelity import Image, directions_off, faded, grid, off_one_tile, seam_ratios, seam_steps

from rsd_edge.errors import InputError
from rsd_edge.frames import SCALE
from rsd_edge.specs import TileSpec
from rsd_edge.tiling import AxisPlan, plan_tiles

SIDE = 144
PLANS = [(plan.y, plan.x) for plan in (plan_tiles(SIDE, SIDE, TileSpec(size, halo=12)) for size in (52, 56, 64, 72))]


def picture(blocks: float = 0.0) -> Image:
    """Noise, weaker at the edges; `blocks`: grey levels between squares of eight input pixels, as of JPEG."""
    side = SCALE * SIDE
    ramp = np.clip(16 * np.minimum(np.arange(side), np.arange(side)[::-1]) / side, 0.3, 1.0)
    noise = np.random.default_rng(7).normal(0.0, 3.0, (side, side, 3)) * np.outer(ramp, ramp)[..., None]
    checks = np.add.outer(np.arange(side) // (8 * SCALE), np.arange(side) // (8 * SCALE)) % 2 * blocks
    return np.clip(128 + noise + checks[..., None], 0, 255).astype(np.uint8)


def seamed(image: Image, plan: tuple[AxisPlan, AxisPlan], levels: float) -> Image:
    """The same with a step where each of the three places across a border is."""
    result = image.astype(np.float64)
    for dimension, axis in enumerate(plan):
        for number, step in enumerate(seam_steps(axis)):
            where = [slice(None)] * 2
            where[dimension] = slice(step, None)
            result[tuple(where)] += levels * (-1) ** number
    return np.clip(np.rint(result), 0, 255).astype(np.uint8)


def test_what_lies_at_borders_by_itself_is_no_seam() -> None:
    for image in (picture(), picture(blocks=10.0)):
        beside, to_all = seam_ratios([image] * len(PLANS), PLANS)
        assert abs(beside - 1) < 0.01  # half of what the goal allows
        assert to_all > 1.02  # or the picture would not tell the two measures apart


def test_a_step_of_one_level_is_more_than_the_goal_allows() -> None:
    images = [seamed(picture(), plan, levels=1.0) for plan in PLANS]
    assert seam_ratios(images, PLANS)[0] > 1.02


def test_tiles_of_other_brightness_differ_from_one_tile_where_they_are_faded() -> None:
    whole, plan = picture(), PLANS[1]
    fades = faded(plan)
    # Two directions, each with 8 of every `stride` input pixels; the last tile has no border after it.
    share = 1 - (1 - 2 * 4 * (plan[0].count - 1) / SIDE) ** 2
    assert fades.mean() == pytest.approx(share)
    found = off_one_tile([np.where(fades[..., None], whole + 2, whole).astype(np.uint8)], [whole], [plan])
    assert found == {"off_one_tile_in_fades": 2.0, "off_one_tile_elsewhere": 0.0}


def test_a_weave_shows_in_the_grid_and_a_picture_does_not() -> None:
    plain = picture()
    least, most = grid([plain])
    assert 0.99 < least <= most < 1.01  # each place has 144 lines of 576 gradients in 3 channels
    woven = plain.copy()
    woven[::4] += 4  # one row in four: the steps into and out of it are higher
    least, most = grid([woven])
    assert least < 0.9
    assert most > 1.1
    assert grid([woven.transpose(1, 0, 2)]) == (least, most)


def test_detail_along_rows_shows_in_the_directions_and_more_detail_does_not() -> None:
    plain, fine = (np.random.default_rng(seed).normal(0, 8, (576, 576, 3)) for seed in (1, 2))
    canvas = fine + np.roll(fine, 1, axis=1)
    original, grainy, woven = (np.rint(128 + one).astype(np.uint8) for one in (plain, 1.5 * fine, canvas))
    # Logarithms of a window's power deviate by 5.57 dB; neighbours share half of their pixels, which tapers hide.
    assert directions_off([grainy], [original]) == pytest.approx(5.57 * (2 / 289) ** 0.5, rel=0.1)
    assert directions_off([woven], [original]) > 3


def test_images_without_borders_are_refused() -> None:
    small = plan_tiles(20, 20, TileSpec(56, halo=12))
    with pytest.raises(InputError, match="no image is large enough"):
        seam_ratios([np.zeros((80, 80, 3), np.uint8)], [(small.y, small.x)])
