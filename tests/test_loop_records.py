"""What a run says of itself when it is done, over several starts."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
from test_loop import OneWeight, rows, state_path
from torch import Tensor

from rsd_edge.distill.config import DistillConfig
from rsd_edge.distill.loop import CONFIG_FILE, train
from rsd_edge.distill.snapshot import read_state
from rsd_edge.distill.stage import TrainingDivergedError
from rsd_edge.errors import ModelError
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


def test_fewer_iterations_than_are_done_are_refused(tiny_config: MakeConfig) -> None:
    """The configuration that is kept and the record of the weights would say different things."""
    path = train(OneWeight(tiny_config(iterations=3)))
    config = path.with_name(CONFIG_FILE).read_text()
    message = r"has done 3 iterations already, and student\.iterations is 2; set it to 3 or more"
    with pytest.raises(ModelError, match=message):
        train(OneWeight(tiny_config(iterations=2)))
    assert path.with_name(CONFIG_FILE).read_text() == config
    assert load_checkpoint(train(OneWeight(tiny_config(iterations=3)))).record["iterations"] == 3


def test_a_diverged_run_tells_how_to_be_rid_of_a_state_that_is_ruined(
    tiny_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_config(iterations=2, save_every=1)
    with pytest.raises(TrainingDivergedError), caplog.at_level(logging.WARNING):
        train(OneWeight(config, lambda weight, iteration: weight.sum() * (math.nan if iteration else 1)))
    assert "iteration 1 of 2 is kept; if it fails from there with lower rates, too, delete " in caplog.text
    assert f"{state_path(config)} to start this stage again" in caplog.text
    state_path(config).unlink()
    stage = OneWeight(config)
    train(stage)
    assert len(stage.rates) == 2


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
