from __future__ import annotations

import errno
import json
import logging
import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from rsd_edge.distill.config import DistillConfig, load_config
from rsd_edge.distill.data import Batch
from rsd_edge.distill.loop import CONFIG_FILE, learning_rate, train
from rsd_edge.distill.randomness import Randomness
from rsd_edge.distill.roles import stage_weights
from rsd_edge.distill.snapshot import STATE_FILE, read_state
from rsd_edge.distill.stage import Draw, Part, Scalars, Stage, TrainingDivergedError, Validation
from rsd_edge.distill.stage_config import StageConfig
from rsd_edge.distill.stages.autoencoder import AutoencoderStage
from rsd_edge.distill.stages.student import StudentStage
from rsd_edge.distill.stages.teacher import TeacherStage
from rsd_edge.errors import InputError, ModelError, OutputError
from rsd_edge.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

MakeConfig = Callable[..., DistillConfig]
Loss = Callable[[Tensor, int], Tensor]


class OneWeight(Stage):
    """A stage of one parameter, which starts at 1."""

    name = "student"

    def __init__(self, config: DistillConfig, loss: Loss | None = None) -> None:
        super().__init__(config, config.student, None)
        self.loss = loss or (lambda weight, iteration: weight.sum())
        self.network = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.network.weight)
        self.train_network("student", self.network, average=True)
        self.add_optimizer("student", ["student"])
        self.rates: list[float] = []
        self.validations = 0

    def step(self, iteration: int, draw: Draw) -> Scalars:
        parts = draw()
        self.rates.append(self.optimizers["student"].param_groups[0]["lr"])
        _, scalars = self.update("student", parts, lambda part: (self.loss(self.network.weight, iteration), {}))
        return {**scalars, "draw": parts[0].noise.normal("test", 1, 1, 1).squeeze()}

    def validate(self) -> Validation:
        self.validations += 1
        return Validation({"weight": round(float(average_weight(self)), 6)})


def average_weight(stage: Stage) -> Tensor:
    (weight,) = stage.averages["student"].average.parameters()
    return weight


def state_path(config: DistillConfig) -> Path:
    return config.stage_dir("student") / STATE_FILE


def rows(config: DistillConfig) -> list[dict[str, Any]]:
    lines = (config.stage_dir("student") / "log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_the_rate_warms_up_and_falls_along_a_cosine() -> None:
    stage = StageConfig(iterations=110, warmup=10, lr_final=0.2)
    factors = [learning_rate(stage, iteration) for iteration in range(110)]
    assert factors[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert factors[10] == 1.0
    assert factors[60] == pytest.approx(0.6)  # half-way between 1 and lr_final
    assert factors[35] == pytest.approx(0.2 + 0.8 * (1 + math.sqrt(0.5)) / 2)
    assert factors[-1] == pytest.approx(0.2, abs=1e-3)  # one step before the end
    assert sorted(factors[10:], reverse=True) == factors[10:]
    assert learning_rate(stage, 500) == pytest.approx(0.2)
    assert learning_rate(StageConfig(iterations=10, warmup=10), 10) == 1.0


def test_a_rate_can_stay_constant() -> None:
    stage = StageConfig(iterations=50, warmup=0, lr_final=1.0)
    assert {learning_rate(stage, iteration) for iteration in range(50)} == {1.0}


def test_the_optimiser_follows_the_schedule(tiny_config: MakeConfig) -> None:
    config = tiny_config(iterations=4, warmup=2, lr=0.1, lr_final=0.5)
    stage = OneWeight(config)
    train(stage)
    assert stage.rates == pytest.approx([0.05, 0.1, 0.1, 0.1 * (0.5 + 0.5 * 0.5)])
    # AdamW moves a weight with a constant gradient by the rate, and does not decay it.
    assert stage.network.weight.item() == pytest.approx(1 - sum(stage.rates), abs=1e-6)
    assert stage.optimizers["student"].param_groups[0]["betas"] == config.student.betas


def test_a_finished_stage_leaves_weights_and_a_record(tiny_config: MakeConfig) -> None:
    config = tiny_config(iterations=3, lr=0.1, warmup=0, validate_every=2)
    stage = OneWeight(config)
    path = train(stage)
    assert path == stage_weights(config, "student")
    checkpoint = load_checkpoint(path)
    average = average_weight(stage)
    assert torch.equal(checkpoint.parts["student"]["weight"], average)
    assert checkpoint.record["stage"] == "student"
    assert checkpoint.record["iterations"] == 3
    assert checkpoint.record["validation"] == {"weight": round(float(average), 6)}
    assert checkpoint.record["config"]["student"]["lr"] == 0.1
    assert [row["iteration"] for row in rows(config) if "validation" in row] == [2, 3]
    assert [row["iteration"] for row in rows(config) if "draw" in row] == [1, 2, 3]
    assert load_config(path.parent / CONFIG_FILE) == config
    assert not list(path.parent.glob("*.part")) + list(path.parent.glob(".*.part"))


def test_running_a_finished_stage_again_changes_nothing(tiny_config: MakeConfig) -> None:
    config = tiny_config(iterations=2)
    first = load_checkpoint(train(OneWeight(config)))
    stage = OneWeight(config)
    again = load_checkpoint(train(stage))
    assert stage.rates == []
    assert again.record["validation"] == first.record["validation"]
    assert torch.equal(again.parts["student"]["weight"], first.parts["student"]["weight"])


class Interrupted(StudentStage):
    """Ctrl-C after two iterations and a half."""

    def step(self, iteration: int, draw: Draw) -> Scalars:
        scalars = super().step(iteration, draw)
        if iteration == 3:
            raise KeyboardInterrupt
        return scalars


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@pytest.mark.usefixtures("one_torch_thread")
def test_a_resumed_run_equals_an_uninterrupted_one(
    tiny_config: MakeConfig, tiny_weights: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Bit for bit: networks, averages on their ramp, two optimisers, the order of the samples, noise."""
    config = tiny_config(
        iterations=5, save_every=2, warmup=2, distill_weight=1.0, fake_steps=2, gan_weight=0.1, gan_start=1, lr=0.01
    )
    runs = [replace(config, run_dir=str(tmp_path / name)) for name in ("whole", "interrupted")]
    for run in runs:
        save_checkpoint(stage_weights(run, "teacher"), tiny_weights)
    train(StudentStage(runs[0]))
    with caplog.at_level(logging.WARNING), pytest.raises(KeyboardInterrupt):
        train(Interrupted(runs[1]))
    assert "student interrupted: iteration 2 of 5 is kept, the same command goes on from there" in caplog.text
    assert not stage_weights(runs[1], "student").exists()
    train(StudentStage(runs[1]))
    whole, resumed = (read_state(state_path(run)) for run in runs)
    assert whole["networks"].keys() == {"student", "fake"}
    assert whole.pop("seconds") > 0
    assert resumed.pop("seconds") > 0
    assert same(whole, resumed)
    kept = [[{**row, "seconds": 0} for row in rows(run)] for run in runs]
    assert kept[0] == kept[1]  # rows of the lost iterations are not there twice
    assert [row["iteration"] for row in kept[0] if "seconds" in row and "lpips" in row] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_saves_what_is_done(tiny_config: MakeConfig, number: signal.Signals) -> None:
    config = tiny_config(iterations=9, save_every=9)
    before = signal.getsignal(number)

    def loss(weight: Tensor, iteration: int) -> Tensor:
        if iteration == 2:
            signal.raise_signal(number)
        return weight.sum()

    with pytest.raises(KeyboardInterrupt):
        train(OneWeight(config, loss))
    assert read_state(state_path(config))["iteration"] == 3  # the iteration is finished first
    assert signal.getsignal(number) == before
    stage = OneWeight(config)
    train(stage)
    assert len(stage.rates) == 6


def test_the_parts_of_a_batch_give_its_gradient(tiny_config: MakeConfig) -> None:
    """Gradient accumulation, with the noise that the whole batch would have had."""

    class Noisy(OneWeight):
        def step(self, iteration: int, draw: Draw) -> Scalars:
            def loss(part: Part) -> tuple[Tensor, Scalars]:
                targets = part.batch.x0.mean(dim=(1, 2, 3)) + part.noise.normal("test", 1, 1, 1).flatten()
                return (self.network.weight - targets).square().mean(), {}

            norm, _ = self.update("student", draw(), loss)
            return {"gradient": norm}

    rows_by_parts = []
    for parts in (1, 2, 4):
        config = tiny_config(iterations=3, batch=4, accumulate=parts, lr=0.1)
        config = replace(config, run_dir=f"{config.run_dir}{parts}")
        train(Noisy(config))
        rows_by_parts.append([row["gradient"] for row in rows(config) if "gradient" in row])
    assert rows_by_parts[1] == pytest.approx(rows_by_parts[0], abs=2e-5)  # written with five digits
    assert rows_by_parts[2] == pytest.approx(rows_by_parts[0], abs=2e-5)


def test_fp16_scales_the_loss_and_skips_what_overflows(tiny_config: MakeConfig) -> None:
    config = tiny_config("fp16", iterations=1, lr=0.1, warmup=0)
    stage = OneWeight(config, lambda weight, iteration: weight.sum() * 1e36)  # times 65536 it overflows
    part = [Part(Batch(torch.zeros(1), torch.zeros(1)), Randomness("test", 0, 1))]
    norms = [float(stage.update("student", part, lambda part: (stage.loss(stage.network.weight, 0), {}))[0])]
    assert math.isinf(norms[0])
    assert stage.network.weight.item() == 1.0
    while not math.isfinite(norms[-1]):
        norms.append(float(stage.update("student", part, lambda part: (stage.loss(stage.network.weight, 0), {}))[0]))
    assert norms[-1] == pytest.approx(1e36)
    assert stage.network.weight.item() == pytest.approx(0.9)
    always = OneWeight(config, lambda weight, iteration: (weight - weight.detach()).abs().sqrt().sum())

    def until_it_gives_up() -> None:
        for _ in range(40):  # 2^16 is halved until it is below 1
            always.update("student", part, lambda part: (always.loss(always.network.weight, 0), {}))

    with pytest.raises(TrainingDivergedError, match="gradient of 'student' is not finite"):
        until_it_gives_up()


def test_an_interruption_before_the_first_save_says_so(
    tiny_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    def interrupt(weight: Tensor, iteration: int) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(OneWeight(tiny_config(), interrupt))
    assert "student interrupted: no iteration was saved yet" in caplog.text


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda weight: weight.sum() * math.nan, "loss of 'student' is nan"),
        (lambda weight: weight.sum() * math.inf, "loss of 'student' is inf"),
        (lambda weight: (weight - weight.detach()).abs().sqrt().sum(), "gradient of 'student' is not finite"),
    ],
)
def test_divergence_stops_the_run_and_keeps_the_last_state(
    tiny_config: MakeConfig, bad: Callable[[Tensor], Tensor], message: str
) -> None:
    config = tiny_config(iterations=4, save_every=2)
    before: list[bytes] = []
    weights: list[float] = []

    def loss(weight: Tensor, iteration: int) -> Tensor:
        weights.append(weight.item())
        if iteration < 3:
            return weight.sum()
        before.append(state_path(config).read_bytes())
        return bad(weight)

    stage = OneWeight(config, loss)
    with pytest.raises(TrainingDivergedError, match=message) as caught:
        train(stage)
    assert "stage student" in str(caught.value)
    assert "try again with a lower student.lr" in str(caught.value)
    assert stage.network.weight.item() == weights[-1]  # nothing was updated
    assert state_path(config).read_bytes() == before[0]
    assert read_state(state_path(config))["iteration"] == 2
    assert not stage_weights(config, "student").exists()


def test_weights_that_overflow_are_not_saved(tiny_config: MakeConfig) -> None:
    """The loss and gradient of the fatal step are finite; only the step itself leaves the range of float32."""
    config = tiny_config(iterations=4, save_every=1, lr=3e37, warmup=0, lr_final=1.0)
    stage = OneWeight(config)
    nn.init.constant_(stage.network.weight, -3e38)  # two steps from the end of float32 at -3.4e38
    with pytest.raises(TrainingDivergedError, match="weights of 'student' are not finite after iteration 2"):
        train(stage)
    assert read_state(state_path(config))["iteration"] == 1


@pytest.mark.parametrize(
    ("stage", "name", "value"),
    [
        (AutoencoderStage, "recompute", True),
        (TeacherStage, "lpips_weight", 2.0),
        (TeacherStage, "lpips_windows", False),
        (StudentStage, "latent_noise", 0.1),
    ],
)
def test_settings_that_would_change_nothing_are_refused(
    tiny_config: MakeConfig, stage: type[Stage], name: str, value: object
) -> None:
    config = tiny_config()
    settings = replace(getattr(config, stage.name), **{name: value})
    with pytest.raises(InputError, match=f"stage {stage.name} has no use for {stage.name}.{name}; leave it out"):
        stage(replace(config, **{stage.name: settings}))  # type: ignore[call-arg]


def test_a_diverged_run_goes_on_with_the_lower_rate(tiny_config: MakeConfig) -> None:
    config = tiny_config(iterations=2, save_every=2, lr=0.1, warmup=0, lr_final=1.0)
    train(OneWeight(config))
    student = replace(config.student, iterations=3, lr=0.001, betas=(0.5, 0.6))
    stage = OneWeight(replace(config, student=student))
    train(stage)
    assert stage.rates == [0.001]
    assert stage.optimizers["student"].param_groups[0]["betas"] == (0.5, 0.6)


def test_a_state_of_other_parts_is_refused(tiny_config: MakeConfig) -> None:
    """As when a baseline without fake model is started in the folder of a distilled student, or the reverse."""
    config = tiny_config()
    train(OneWeight(config))
    before = state_path(config).read_bytes()
    stage = OneWeight(config)
    stage.networks["fake"] = nn.Linear(1, 1)
    with pytest.raises(ModelError, match=r"does not fit this configuration \(it holds networks student; .*, fake\)"):
        train(stage)
    stage = OneWeight(config)
    del stage.networks["student"]
    with pytest.raises(ModelError, match="choose another run_dir"):
        train(stage)
    stage = OneWeight(config)
    stage.networks["student"] = nn.Linear(2, 1)
    with pytest.raises(ModelError, match=r"does not fit this configuration .*size mismatch") as caught:
        train(stage)
    assert "\n" not in str(caught.value)
    assert state_path(config).read_bytes() == before


@pytest.mark.parametrize("keep", [0, 10, 500])
def test_a_damaged_state_is_named(tiny_config: MakeConfig, keep: int) -> None:
    config = tiny_config()
    train(OneWeight(config))
    state_path(config).write_bytes(state_path(config).read_bytes()[:keep])
    with pytest.raises(
        ModelError, match=r"state\.safetensors cannot be read .*delete it to start this stage again"
    ) as caught:
        train(OneWeight(config))
    assert "\n" not in str(caught.value)


def test_a_state_of_another_kind_is_named(tiny_config: MakeConfig) -> None:
    config = tiny_config()
    state_path(config).parent.mkdir(parents=True)
    state_path(config).write_bytes(save({}, metadata={"tree": '{"items": []}'}))
    with pytest.raises(ModelError, match="cannot be read"):
        train(OneWeight(config))


def test_a_full_disk_keeps_the_last_state(tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(iterations=4, save_every=2)
    original = os.replace
    done: list[Any] = []

    def full(source: Any, target: Any) -> None:
        if len(done) == 2:  # the configuration and the first state
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done.append(target)
        original(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match=r"cannot write .*state\.safetensors: the disk is full; free some space"):
        train(OneWeight(config))
    assert read_state(state_path(config))["iteration"] == 2
    assert not list(state_path(config).parent.glob(".*"))
    monkeypatch.undo()
    train(OneWeight(config))
    assert read_state(state_path(config))["iteration"] == 4


def test_a_run_folder_that_cannot_be_made_is_named(tiny_config: MakeConfig) -> None:
    config = tiny_config()
    Path(config.run_dir).write_text("a file")
    with pytest.raises(OutputError, match=r"cannot write into .*run: it is a file; choose a folder"):
        train(OneWeight(config))


def test_a_stage_without_a_loss_is_refused(tiny_config: MakeConfig) -> None:
    with pytest.raises(InputError, match=r"stage student has no loss; set student\.distill_weight or student\.lpips"):
        StudentStage(tiny_config(lpips_weight=0.0))
