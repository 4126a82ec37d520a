"""The four stages on four tiny photographs: they run, train what they should, and nothing else."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from rsd_edge.distill.config import DistillConfig
from rsd_edge.distill.data import Batch, validation_batch
from rsd_edge.distill.latent_space import EdgeLatentSpace
from rsd_edge.distill.loop import draws
from rsd_edge.distill.stage import Draw, Stage
from rsd_edge.distill.stages import STAGES, run_stage
from rsd_edge.distill.stages.student import FinetuneStage, StudentStage
from rsd_edge.distill.stages.teacher import TeacherStage
from rsd_edge.models.checkpoint import Checkpoint, load_checkpoint, state_of
from rsd_edge.models.edge import EdgeGenerator

MakeConfig = Callable[..., DistillConfig]
State = dict[str, Tensor]

pytestmark = pytest.mark.usefixtures("one_torch_thread")

DISTILL = {"distill_weight": 1.0, "fake_steps": 2}
JOINT = {"pixel_weight": 1.0, "chroma_weight": 1.0, "lattice_weight": 0.1, "train_decoder": True}
JOINT |= {"gan_weight": 0.1, "gan": "pixels"}


def batch_of(config: DistillConfig) -> Batch:
    return validation_batch(config.data, config.data.crop, 1)


def draw_of(stage: Stage, iteration: int = 0, batch: Batch | None = None) -> Draw:
    return draws(stage, itertools.repeat(batch or batch_of(stage.config)), iteration)


def moved(before: State, after: State) -> set[str]:
    return {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}


def still(network: nn.Module, before: State) -> set[str]:
    """Parameters that did not move."""
    return {name for name, _ in network.named_parameters()} - moved(before, network.state_dict())


def test_the_four_stages_run_one_after_the_other(tiny_config: MakeConfig) -> None:
    """As shipped: autocast, the student distilled, the fine-tune with decoder and GAN."""
    config = tiny_config("bf16", validate_every=1, pixel_weight=1.0)
    config = replace(
        config,
        student=replace(config.student, **DISTILL),
        finetune=replace(config.finetune, **JOINT),
    )
    before = torch.get_num_threads()
    checkpoints = {name: load_checkpoint(run_stage(name, config)) for name in STAGES}
    assert torch.get_num_threads() == before
    assert list(checkpoints) == ["autoencoder", "teacher", "student", "finetune"]
    parts = {name: set(checkpoint.parts) for name, checkpoint in checkpoints.items()}
    assert parts["autoencoder"] == {"encoder", "stem", "decoder"}
    assert parts["teacher"] == {"encoder", "stem", "decoder", "teacher"}
    assert parts["student"] == parts["finetune"] == {"encoder", "stem", "decoder", "teacher", "student"}

    def changed(earlier: str, later: str) -> set[str]:
        old, new = checkpoints[earlier].parts, checkpoints[later].parts
        return {part for part in old if moved(old[part], new[part])}

    assert changed("autoencoder", "teacher") == set()
    assert changed("teacher", "student") == set()
    assert changed("student", "finetune") == {"stem", "decoder", "student"}
    for name, checkpoint in checkpoints.items():
        assert checkpoint.spec == config.model
        assert checkpoint.record["stage"] == name
        assert checkpoint.record["iterations"] == 2
        assert all(map(torch.isfinite, map(torch.tensor, checkpoint.record["validation"].values())))
    figures = {name: set(checkpoint.record["validation"]) for name, checkpoint in checkpoints.items()}
    lattice = {f"{grid}_{what}" for grid in ("lattice", "lattice8") for what in ("spread", "mean")}
    assert figures["autoencoder"] > {"lpips_squeeze", "bicubic_psnr_y", "stem_mse", "latent_std"} | lattice
    assert figures["teacher"] == {
        f"{steps}_{name}" for steps in ("one_step", "all_steps") for name in ("lpips_squeeze", "psnr_y")
    }
    assert figures["student"] == figures["finetune"] == {"lpips_squeeze", "psnr_y", "seed_std"} | lattice


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["autoencoder", "teacher", "finetune"])
def test_every_parameter_of_a_trained_network_moves(prepared: MakeConfig, name: str, precision: str) -> None:
    """Autocast caches casts of weights, and a cast made without gradients would cut off a network unnoticed.

    Three iterations, because zeros of new networks keep what comes before them still: convolutions, modulation.
    """
    config = prepared(precision, **DISTILL, **JOINT, warmup=0, lr=1e-3)
    stage = STAGES[name](config, None)
    before = {part: state_of(network) for part, network in stage.networks.items()}
    for iteration in range(3):
        stage.step(iteration, draw_of(stage, iteration))
    # A decoder's or generator's dead units have no gradient in so small a network.
    for part, network in stage.networks.items():
        weights = {parameter for parameter in still(network, before[part]) if parameter.endswith("weight")}
        assert not weights, part


def test_frozen_parts_stay_as_they_are(prepared: MakeConfig) -> None:
    config = prepared(**DISTILL)
    stage = StudentStage(config)
    before = {part: state_of(network) for part, network in stage.frozen.items()}
    assert before.keys() == {"encoder", "stem", "decoder", "teacher"}
    stage.step(0, draw_of(stage))
    for part, network in stage.frozen.items():
        assert moved(before[part], network.state_dict()) == set()
        assert all(parameter.grad is None for parameter in network.parameters())


def test_the_fine_tune_goes_on_from_the_student(prepared: MakeConfig, tiny_weights: Checkpoint) -> None:
    stage = FinetuneStage(prepared(**JOINT))
    assert stage.averages.keys() == {"student", "stem", "decoder"}
    assert stage.frozen.keys() == {"encoder", "teacher"}
    for part in stage.averages:
        assert moved(tiny_weights.parts[part], stage.networks[part].state_dict()) == set()
        assert all(parameter.requires_grad for parameter in stage.networks[part].parameters())
    assert isinstance(stage.latent, EdgeLatentSpace)
    assert stage.latent.stem is stage.networks["stem"]
    assert stage.latent.decoder is stage.networks["decoder"]


@pytest.mark.parametrize("gan", ["features", "pixels"])
@pytest.mark.parametrize("objective", ["vsd", "rsd", "sinsr"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_student_variants_run(prepared: MakeConfig, precision: str, objective: str, gan: str) -> None:
    config = prepared(precision, **DISTILL, objective=objective, gan=gan, gan_weight=0.01, step_weights="elbo")
    path = run_stage("student", config)
    assert "student" in load_checkpoint(path).parts


def test_validation_judges_the_averages(prepared: MakeConfig) -> None:
    stage = FinetuneStage(prepared(**JOINT))
    reference = stage.validate()
    assert stage.validate().figures == reference.figures
    assert [image.shape for image in reference.images] == [(2, 3, 64, 64)] * 3
    tail = cast(EdgeGenerator, stage.student).tail
    with torch.no_grad():
        tail.weight.add_(1)
    assert stage.validate().figures == reference.figures
    stage.averages["student"].average.load_state_dict(stage.student.state_dict())
    assert stage.validate().figures != reference.figures
    assert reference.figures["seed_std"] > 0


def test_the_deviation_between_seeds_is_that_of_one_draw(prepared: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    stage, generator = FinetuneStage(prepared(**JOINT)), torch.Generator().manual_seed(0)
    drawn = torch.randn((2, 2, 3, 64, 64), generator=generator).mul(0.1).unbind()
    details = iter(drawn)
    monkeypatch.setattr(stage, "_averaged_detail", lambda lq, noise: next(details))
    assert stage.validate().figures["seed_std"] == pytest.approx(12.75, rel=0.02)  # in levels of 8 bits


def test_the_teachers_two_figures_are_one_step_and_all_steps(prepared: MakeConfig) -> None:
    """With a teacher that knows nothing but its condition, fifteen steps end where the last one does."""
    stage = TeacherStage(prepared())
    figures = stage.validate().figures
    assert figures["one_step_psnr_y"] != figures["all_steps_psnr_y"]
    average = stage.averages["teacher"].average
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.zero_()
    figures = stage.validate().figures
    assert figures["one_step_psnr_y"] == figures["all_steps_psnr_y"]


def test_the_bicubic_image_does_not_move_the_latents_statistics(prepared: MakeConfig) -> None:
    stage = STAGES["autoencoder"](prepared(lr=1e-9), None)
    batch = batch_of(stage.config)
    encoder = copy.deepcopy(stage.networks["encoder"]).train()
    stage.step(0, draw_of(stage, batch=batch))
    encoder(batch.x0)
    expected = cast(Tensor, encoder.normalise.running_mean)
    actual = cast(Tensor, stage.networks["encoder"].normalise.running_mean)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)  # the same sums
    assert stage.networks["encoder"].training


def test_runs_with_one_seed_start_alike(prepared: MakeConfig, tmp_path: Path) -> None:
    config = prepared()
    first, again = (STAGES["autoencoder"](config, None) for _ in range(2))
    other = STAGES["autoencoder"](replace(config, seed=8), None)
    for part in ("encoder", "stem", "decoder"):
        assert moved(first.networks[part].state_dict(), again.networks[part].state_dict()) == set()
        assert moved(first.networks[part].state_dict(), other.networks[part].state_dict())
