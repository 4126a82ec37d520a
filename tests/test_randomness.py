from __future__ import annotations

import pytest
import torch

from rsd_edge.distill.randomness import Randomness


def test_a_sample_has_its_noise_whoever_computes_it() -> None:
    whole = Randomness("0/student/3/1", 0, 6)
    parts = [Randomness("0/student/3/1", first, 2) for first in (0, 2, 4)]
    for draw in (
        lambda noise: noise.normal("z_t", 5, 4, 3),
        lambda noise: noise.choice("t", tuple(range(15))),
    ):
        assert torch.equal(draw(whole), torch.cat([draw(part) for part in parts]))
    assert torch.equal(whole.part(2, 2).normal("z_t", 5, 4, 3), parts[1].normal("z_t", 5, 4, 3))
    seeds = {int(noise.shared("window").initial_seed()) for noise in (whole, *parts)}
    assert len(seeds) == 1


def test_every_use_has_noise_of_its_own() -> None:
    updates = [f"{seed}/{stage}/{i}/{k}" for seed in (0, 1) for stage in ("a", "b") for i in (0, 1) for k in (0, 1)]
    draws = {float(Randomness(name, 0, 1).normal(use, 1, 1, 1)) for name in updates for use in ("z_t", "z_T")}
    assert len(draws) == 32
    assert len({float(Randomness("u", i, 1).normal("z_t", 1, 1, 1)) for i in range(20)}) == 20


def test_noise_is_standard_normal_and_steps_are_uniform() -> None:
    noise = Randomness("1/student/0/0", 0, 300)
    normal = noise.normal("z_t", 4, 8, 8)
    assert float(normal.mean()) == pytest.approx(0, abs=0.015)  # four standard errors of 76800 draws
    assert float(normal.std()) == pytest.approx(1, abs=0.011)
    counts = torch.bincount(noise.choice("t", (0, 1, 2)), minlength=3)
    assert counts.min() > 67  # four deviations below 100
    assert noise.choice("t_n", (3, 14)).unique().tolist() == [3, 14]
