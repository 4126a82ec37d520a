"""What a run says of itself when it is done, over several starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
from test_loop import OneWeight, rows, state_path
from torch import Tensor

from rsd_edge.distill.config import DistillConfig
from rsd_edge.distill.loop import train
from rsd_edge.distill.snapshot import read_state
from rsd_edge.models.checkpoint import load_checkpoint

MakeConfig = Callable[..., DistillConfig]


def until(config: DistillConfig, iterations: int) -> DistillConfig:
    return replace(config, student=replace(config.student, iterations=iterations))


def test_the_seconds_of_earlier_starts_count(tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config, clock = tiny_config(), [5000.0]
    monkeypatch.setattr("rsd_edge.distill.loop.time", SimpleNamespace(monotonic=lambda: clock[0]))

    def slow(weight: Tensor, iteration: int) -> Tensor:
        clock[0] += 100
        return weight.sum()

    train(OneWeight(until(config, 2), slow))
    clock[0] += 7000  # nobody trains
    path = train(OneWeight(until(config, 3), slow))
    assert read_state(state_path(config))["seconds"] == 300
    assert load_checkpoint(path).record["seconds"] == 300


def test_weights_are_recorded_with_the_iterations_that_made_them(tiny_config: MakeConfig) -> None:
    train(OneWeight(tiny_config(iterations=3)))
    assert load_checkpoint(train(OneWeight(tiny_config(iterations=2)))).record["iterations"] == 3


def test_a_fine_tune_is_validated_before_its_first_step_alone(tiny_config: MakeConfig) -> None:
    def finetune(iterations: int) -> OneWeight:
        stage = OneWeight(tiny_config(iterations=iterations, validate_every=2))
        stage.origin = {"digest": "finished"}
        return stage

    train(finetune(2))
    train(finetune(4))
    found = [row for row in rows(tiny_config()) if "validation" in row]
    assert [row["iteration"] for row in found] == [0, 2, 4]
    assert found[0]["validation"] == {"weight": 1.0}
