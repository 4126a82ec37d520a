"""Which goals of the GPU kernels the benchmark reports as met."""

from __future__ import annotations

from typing import Any

import pytest
from kernel_goals import judge

from rsd_edge.kernels import traffic
from rsd_edge.specs import TileSpec
from rsd_edge.tiling import plan_tiles

GPU = {"device": "a GPU", "minimum_mb": 400.0, "l2_mb": 50.0}


@pytest.mark.parametrize(
    ("name", "info", "verdicts"),
    [
        ("bench_training[forward_noise-torch.float32]", {"of_copy": 0.9, "times_eager": 2.9}, ["met", "missed"]),
        ("bench_training[posterior_step-torch.bfloat16]", {"of_copy": 0.89, "times_eager": 3.0}, ["missed", "met"]),
        ("bench_training[prior_input-torch.float32]", {"of_copy": 1.0, "times_eager": 1.0}, ["met"]),
        ("bench_large_frame[noise_field]", {"of_copy": 0.95}, ["met"]),
        ("bench_large_frame[noise_field]", {"of_copy": 0.95, "minimum_mb": 38.0}, ["not run"]),  # fits into the cache
        ("bench_norm[torch.channels_last]", {}, ["not run"]),
        ("bench_small[forward_noise-1]", {"of_copy": 0.1, "times_eager": 9.0}, []),
        ("bench_frame[64]", {"share_of_frame": 0.02}, ["met"]),
        ("bench_frame[1]", {"share_of_frame": 0.021}, ["missed"]),
    ],
)
def test_verdicts(name: str, info: dict[str, Any], verdicts: list[str]) -> None:
    assert [goal.verdict for goal in judge([(name, {**GPU, **info})])] == verdicts


def test_nothing_is_claimed_without_a_gpu() -> None:
    info = {"of_copy": 1.0, "times_eager": 9.0, "minimum_mb": 400.0}
    assert judge([("bench_training[forward_noise-torch.float32]", info)]) == []


def test_the_large_frame_is_beyond_the_cache_of_an_h200() -> None:
    plan = plan_tiles(1440, 2560, TileSpec(size=64, halo=16, fixed=True))
    moved = (
        traffic.noise_field(plan.count, 5, plan.tile_h * plan.tile_w, 2),
        traffic.frame_tiles(plan, 2),
        traffic.merge_tiles(plan, 2),
    )
    assert min(one.minimum for one in moved) > 1.5 * 50e6
