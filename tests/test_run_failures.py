"""What a run says, and leaves, that cannot go on: a folder in use, divergence, a worker that was killed."""

from __future__ import annotations

import fcntl
import itertools
import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import active_children
from typing import Any

import pytest
import torch
from test_loop import OneWeight, average_weight, state_path

from rsd_edge.distill.config import DistillConfig
from rsd_edge.distill.data import Batch, CropDataset, DataWorkerError, training_batches
from rsd_edge.distill.loop import draws, train
from rsd_edge.distill.snapshot import read_state
from rsd_edge.distill.stage import TrainingDivergedError, Validation
from rsd_edge.distill.stages.student import StudentStage
from rsd_edge.errors import OutputError

MakeConfig = Callable[..., DistillConfig]


def test_a_folder_that_another_process_trains_in_is_refused(tiny_config: MakeConfig) -> None:
    config = tiny_config()
    folder = config.stage_dir("student")
    folder.parent.mkdir()
    with (folder.parent / f".{folder.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match=r"another process trains .*student; wait for its end, or choose another"):
            train(OneWeight(config))
    assert not folder.exists()
    train(OneWeight(config))


class Blinded(OneWeight):
    """Its second validation gives no number."""

    def validate(self) -> Validation:
        super().validate()
        return Validation({"weight": math.nan if self.validations == 2 else float(average_weight(self))})


def test_a_validation_that_is_not_finite_is_divergence(
    tiny_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_config(iterations=4, validate_every=2, save_every=2)
    with pytest.raises(TrainingDivergedError, match=r"weight of the validation is nan; .* with a lower student\.lr"):
        train(Blinded(config))
    assert read_state(state_path(config))["iteration"] == 2  # nothing that gave it was saved
    assert "student failed: iteration 2 of 4 is kept" in caplog.text


def test_divergence_before_the_first_save_says_so(tiny_config: MakeConfig, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(TrainingDivergedError):
        train(OneWeight(tiny_config(), lambda weight, iteration: weight.sum() * math.nan))
    assert "student failed: no iteration was saved yet" in caplog.text


@pytest.mark.parametrize(
    ("network", "rate", "losses"),
    [
        ("student", "lr", {}),
        ("fake", "fake_lr", {"distill_weight": 1.0, "fake_steps": 1}),
        ("discriminator", "gan_lr", {"gan_weight": 1.0, "gan": "pixels", "gan_start": 1}),
    ],
)
def test_divergence_names_the_rate_of_the_network_that_diverged(
    prepared: MakeConfig, network: str, rate: str, losses: dict[str, Any]
) -> None:
    stage = StudentStage(prepared(**losses))
    with torch.no_grad():
        next(stage.networks[network].parameters()).fill_(math.inf)
    batch = Batch(torch.zeros(2, 3, 64, 64), torch.zeros(2, 3, 16, 16))
    with pytest.raises(TrainingDivergedError, match=rf"'{network}' .*; try again with a lower student\.{rate}$"):
        stage.step(0, draws(stage, itertools.repeat(batch), 0))


def test_a_killed_worker_ends_a_run_with_one_line(tiny_config: MakeConfig) -> None:
    config = tiny_config()
    before = set(active_children())
    data = training_batches(CropDataset(replace(config.data, workers=1), 64, 5), 2, 0)
    next(data)
    (worker,) = set(active_children()) - before
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(DataWorkerError, match=r"a worker .* ended .*lower data\.workers or data\.cache_mb") as caught:
        list(itertools.islice(data, 50))  # past what the worker has fetched already
    assert "\n" not in str(caught.value)
