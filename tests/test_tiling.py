from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from rsd_edge.errors import InputError
from rsd_edge.specs import TileSpec
from rsd_edge.tiling import TileMerger, TilePlan, TileReader, plan_tiles

SPECS = [
    TileSpec(),
    TileSpec(size=64),
    TileSpec(size=192, fixed=True),
    TileSpec(size=44, halo=16, feather=5, multiple_of=4),
    TileSpec(size=24, halo=8, feather=4, multiple_of=8),
    TileSpec(size=10, halo=4, feather=0, multiple_of=1),
    TileSpec(size=9, halo=3, feather=1, multiple_of=1, fixed=True),
]
SIDES = [1, 2, 5, 9, 13, 17, 31, 33, 97, 128, 129, 251, 500]


def merge_all(plan: TilePlan, merger: TileMerger, field: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cut every tile's detail out of a field that reaches one tile beyond the frame on all sides, and merge."""
    result = np.full((4 * plan.y.length, 4 * plan.x.length, field.shape[2]), np.nan, np.float32)
    for index in range(plan.count):
        y, x = plan.origin(index)
        top, left = 4 * (y + plan.tile_h), 4 * (x + plan.tile_w)
        detail = field[top : top + 4 * plan.tile_h, left : left + 4 * plan.tile_w].copy()
        region = plan.finished(index)
        target = result[4 * region.y0 : 4 * region.y1, 4 * region.x0 : 4 * region.x1]
        assert np.isnan(target).all()
        target[...] = merger.merge(index, detail)
    return result


def field_for(plan: TilePlan, channels: int = 1) -> NDArray[np.float32]:
    rng = np.random.default_rng(plan.count)
    shape = (4 * (plan.y.length + 3 * plan.tile_h), 4 * (plan.x.length + 3 * plan.tile_w), channels)
    return rng.normal(size=shape).astype(np.float32)


def inside(plan: TilePlan, field: NDArray[np.float32]) -> NDArray[np.float32]:
    top, left = 4 * plan.tile_h, 4 * plan.tile_w
    return field[top : top + 4 * plan.y.length, left : left + 4 * plan.x.length]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_plan_keeps_its_promises(spec: TileSpec) -> None:
    stride_max = spec.size - 2 * spec.halo
    for length in SIDES:
        axis = plan_tiles(length, 1, spec).y
        assert axis.side == axis.stride + 2 * spec.halo <= spec.size
        assert axis.stride >= 2 * spec.feather  # or two cross-fades would overlap
        assert axis.count <= -(-length // stride_max)
        assert (axis.count - 1) * axis.stride < length <= axis.count * axis.stride
        assert all(axis.origin(i) % spec.multiple_of == 0 for i in range(axis.count))
        assert axis.side % spec.multiple_of == 0
        assert not spec.fixed or axis.side == spec.size
        parts = [axis.finished(i) for i in range(axis.count)]
        assert [start for start, _ in parts] == [0, *(stop for _, stop in parts[:-1])]
        assert parts[-1][1] == length
        assert all(0 < stop - start <= axis.stride + axis.feather for start, stop in parts)


def test_tiles_share_a_frame_evenly() -> None:
    plan = plan_tiles(180, 320, TileSpec(size=160, halo=16))
    assert (plan.y.count, plan.x.count) == (2, 3)
    assert (plan.tile_h, plan.tile_w) == (90 + 32, 108 + 32)
    assert [plan.origin(i) for i in (0, 2, 4)] == [(-16, -16), (-16, 200), (74, 92)]


def test_plans_are_cached() -> None:
    assert plan_tiles(100, 200, TileSpec()) is plan_tiles(100, 200, TileSpec())


def test_a_frame_without_pixels_is_refused() -> None:
    with pytest.raises(InputError, match="at least 1"):
        plan_tiles(0, 5, TileSpec())


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (2, 3), (31, 53), (97, 130)])
@pytest.mark.parametrize("spec", [TileSpec(size=44), TileSpec(size=64, fixed=True), TileSpec()], ids=str)
def test_tiles_have_neighbours_and_reflections_beyond_the_frame(shape: tuple[int, int], spec: TileSpec) -> None:
    plan = plan_tiles(*shape, spec)
    reader = TileReader(plan, np.dtype(np.uint8))
    out = np.full((plan.count + 1, 3, plan.tile_h, plan.tile_w), 7.0, np.float32)
    for seed in range(2):  # nothing of one frame is left in the next
        frame = np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)
        margin = max(plan.tile_h, plan.tile_w)
        padded = np.pad(frame, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
        model = padded[..., ::-1].transpose(2, 0, 1).astype(np.float64) / 127.5 - 1.0
        reader.load(frame)
        reader.read(range(plan.count), out)
        for index in range(plan.count):
            y, x = (start + margin for start in plan.origin(index))
            expected = model[:, y : y + plan.tile_h, x : x + plan.tile_w]
            # one float32 rounding at 2 and one at 1
            np.testing.assert_allclose(out[index], expected, rtol=0, atol=1.2e-7)
        assert np.all(out[plan.count] == 7.0)


def test_tiles_are_read_in_the_order_asked_for() -> None:
    plan = plan_tiles(40, 200, TileSpec(size=64))
    reader = TileReader(plan, np.dtype(np.uint8))
    reader.load(np.random.default_rng(0).integers(0, 256, (40, 200, 3), dtype=np.uint8))
    every = np.empty((plan.count, 3, plan.tile_h, plan.tile_w), np.float32)
    reader.read(range(plan.count), every)
    some = np.empty_like(every[:2])
    reader.read([3, 1], some)
    np.testing.assert_array_equal(some, every[[3, 1]])


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_weights_add_up_to_exactly_one(spec: TileSpec) -> None:
    for height, width in [(1, 1), (1, 67), (67, 1), (17, 29), (97, 131)]:
        plan = plan_tiles(height, width, spec)
        merged = merge_all(plan, TileMerger(plan, 1), np.ones_like(field_for(plan)))
        np.testing.assert_array_equal(merged, 1.0)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_tiles_that_agree_are_returned_as_they_are(spec: TileSpec) -> None:
    """Also shows that each value lands in its place. w a + (1 - w) a rounds three times at each of two seams."""
    for height, width in [(3, 1), (13, 61), (97, 131)]:
        plan = plan_tiles(height, width, spec)
        field = field_for(plan, channels=2)
        merged = merge_all(plan, TileMerger(plan, 2), field)
        np.testing.assert_allclose(merged, inside(plan, field), rtol=6 * 2.0**-24, atol=1e-12)


@pytest.mark.parametrize("spec", [TileSpec(size=48), TileSpec(size=44, feather=5, multiple_of=4)], ids=str)
def test_cross_fade_is_a_straight_line_across_the_border(spec: TileSpec) -> None:
    """Tile i holds the value i: between the borders that is a staircase whose edges are ramps of 8 * feather pixels."""
    plan = plan_tiles(4, 61, spec)
    merger = TileMerger(plan, 1)
    rows = []
    for i in range(plan.count):
        rows.append(merger.merge(i, np.full((4 * plan.tile_h, 4 * plan.tile_w, 1), float(i), np.float32))[0, :, 0])
    centres = np.arange(4 * 61) + 0.5
    borders = 4 * plan.x.stride * np.arange(1, plan.count)
    expected = sum(np.clip((centres - border) / (8 * spec.feather) + 0.5, 0, 1) for border in borders)
    np.testing.assert_allclose(np.concatenate(rows), expected, rtol=0, atol=2.0**-13)  # weights are cut to 2^-12


def test_the_cross_fade_is_separable() -> None:
    """Four tiles with one value each: around the corner that they share, the result is the product of two ramps."""
    plan = plan_tiles(40, 44, TileSpec(size=64))
    values = np.array([[1.0, -2.0], [3.0, 0.5]], np.float32)
    merger = TileMerger(plan, 1)
    result = np.empty((160, 176), np.float32)
    for index in range(plan.count):
        value = values.ravel()[index]
        region = plan.finished(index)
        result[4 * region.y0 : 4 * region.y1, 4 * region.x0 : 4 * region.x1] = merger.merge(
            index, np.full((4 * plan.tile_h, 4 * plan.tile_w, 1), value, np.float32)
        )[..., 0]
    rise_y, rise_x = (
        np.clip((np.arange(4 * length) + 0.5 - 4 * stride) / 32 + 0.5, 0, 1)
        for length, stride in ((40, plan.y.stride), (44, plan.x.stride))
    )
    expected = np.stack([1 - rise_y, rise_y], 1) @ values @ np.stack([1 - rise_x, rise_x])
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6)  # steps of 1/64 are exact, a few roundings at 3


def test_a_merger_serves_frame_after_frame() -> None:
    plan = plan_tiles(61, 67, TileSpec(size=48))
    merger = TileMerger(plan, 1)
    field = field_for(plan)
    first = merge_all(plan, merger, field)
    merge_all(plan, merger, -field)
    np.testing.assert_array_equal(merge_all(plan, merger, field), first)


def test_merging_out_of_order_is_refused() -> None:
    plan = plan_tiles(61, 67, TileSpec(size=48))
    merger = TileMerger(plan, 1)
    detail = np.zeros((4 * plan.tile_h, 4 * plan.tile_w, 1), np.float32)
    merger.merge(0, detail)
    with pytest.raises(InputError, match="tile 1 is next"):
        merger.merge(2, detail)


def test_a_cross_fade_does_not_reach_beyond_the_halo() -> None:
    assert TileSpec(halo=4, feather=4).feather == 4
    with pytest.raises(InputError, match="tile feather 5 must lie between 0 and the halo 4"):
        TileSpec(halo=4, feather=5)
