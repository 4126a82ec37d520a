"""The four stages on four tiny photographs: they run, train what they should, and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from rsd_edge.distill.config import DistillConfig
from rsd_edge.distill.data import Batch, validation_batch
from rsd_edge.distill.loop import iteration_generator
from rsd_edge.distill.roles import stage_weights
from rsd_edge.distill.stages import STAGES, run_stage
from rsd_edge.distill.stages.student import FinetuneStage, StudentStage
from rsd_edge.distill.stages.teacher import TeacherStage
from rsd_edge.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, state_of
from rsd_edge.models.edge import EdgeGenerator

MakeConfig = Callable[..., DistillConfig]
State = dict[str, Tensor]

pytestmark = pytest.mark.usefixtures("one_torch_thread")

DISTILL = {"distill_weight": 1.0, "fake_steps": 2}
JOINT = {"pixel_weight": 1.0, "chroma_weight": 1.0, "lattice_weight": 0.1, "gan_weight": 0.1, "train_decoder": True}


@pytest.fixture
def prepared(tiny_config: MakeConfig, tiny_weights: Checkpoint) -> MakeConfig:
    """Configurations of runs whose earlier stages have (random) weights."""

    def make(precision: str = "fp32", **settings: Any) -> DistillConfig:
        config = tiny_config(precision, **settings)
        for stage in ("autoencoder", "teacher", "student"):
            save_checkpoint(stage_weights(config, stage), tiny_weights)
        return config

    return make


def batch_of(config: DistillConfig) -> Batch:
    return validation_batch(config.data, config.data.crop, 1)


def generator(seed: int = 0) -> torch.Generator:
    return iteration_generator(seed, "test", 0)


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
        student=replace(config.student, **DISTILL),  # type: ignore[arg-type]
        finetune=replace(config.finetune, **JOINT),  # type: ignore[arg-type]
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
    stage = STAGES[name](config)
    before = {part: state_of(network) for part, network in stage.networks.items()}
    batch = batch_of(config)
    for iteration in range(3):
        stage.step(iteration, lambda: batch, generator(iteration))
    # A decoder's or generator's dead units have no gradient in so small a network.
    for part, network in stage.networks.items():
        weights = {parameter for parameter in still(network, before[part]) if parameter.endswith("weight")}
        assert not weights, part


def test_frozen_parts_stay_as_they_are(prepared: MakeConfig) -> None:
    config = prepared(**DISTILL)
    stage = StudentStage(config)
    before = {part: state_of(network) for part, network in stage.frozen.items()}
    assert before.keys() == {"encoder", "stem", "decoder", "teacher"}
    batch = batch_of(config)
    stage.step(0, lambda: batch, generator())
    for part, network in stage.frozen.items():
        assert moved(before[part], network.state_dict()) == set()
        assert all(parameter.grad is None for parameter in network.parameters())


def test_an_iteration_takes_fresh_batches_for_every_fake_step(prepared: MakeConfig) -> None:
    config = prepared(distill_weight=1.0, fake_steps=3)
    stage = StudentStage(config)
    batch = batch_of(config)
    draws: list[int] = []

    def draw() -> Batch:
        draws.append(1)
        return batch

    scalars = stage.step(0, draw, generator())
    assert len(draws) == stage.batches_per_iteration == 4
    assert scalars.keys() == {"fake", "lpips", "distill", "gradient"}


def test_without_distillation_there_is_no_fake_model(prepared: MakeConfig) -> None:
    config = prepared(distill_weight=0.0, fake_steps=3)
    stage = StudentStage(config)
    assert stage.networks.keys() == stage.optimizers.keys() == {"student"}
    assert stage.batches_per_iteration == 1
    batch = batch_of(config)
    before = state_of(stage.student)
    scalars = stage.step(0, lambda: batch, generator())
    assert scalars.keys() == {"lpips", "gradient"}
    assert moved(before, stage.student.state_dict())


def test_the_fake_step_trains_the_fake_model_alone(prepared: MakeConfig) -> None:
    config = prepared(**DISTILL, warmup=0)
    stage = StudentStage(config)
    student, fake = state_of(stage.student), state_of(stage.fake)
    assert moved(stage.teacher.state_dict(), fake) == set()  # it starts as the teacher
    stage._fake_step(batch_of(config), generator())
    assert moved(student, stage.student.state_dict()) == set()
    assert all(parameter.grad is None for parameter in stage.student.parameters())
    assert moved(fake, stage.fake.state_dict())


@pytest.mark.parametrize("objective", ["rsd", "vsd"])
def test_the_students_step_leaves_teacher_and_fake_model_alone(prepared: MakeConfig, objective: str) -> None:
    config = prepared(**DISTILL, objective=objective)
    stage = StudentStage(config)
    stage._fake_step(batch_of(config), generator())  # so that the two networks differ
    for parameter in stage.fake.parameters():
        parameter.grad = None
    stage._distill_loss(batch_of(config), generator()).backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is None for parameter in stage.fake.parameters())
    assert all(parameter.grad is None for parameter in stage.teacher.parameters())
    assert all(parameter.requires_grad for parameter in stage.fake.parameters())  # ready for its next step
    gradient = stage.student.tail.weight.grad
    assert gradient is not None
    assert gradient.abs().max() > 0


def test_rsd_and_vsd_share_the_loss_and_not_the_gradient(prepared: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = prepared(**DISTILL, warmup=0, fake_lr=0.01)
    stage = StudentStage(config)
    stage._fake_step(batch_of(config), generator())
    sample = stage._sample(batch_of(config), generator(3))
    monkeypatch.setattr(stage, "_sample", lambda batch, generator: sample)
    losses, gradients = [], []
    for objective in ("rsd", "vsd"):
        stage.stage = replace(config.student, objective=objective)
        loss = stage._distill_loss(batch_of(config), generator())
        (gradient,) = torch.autograd.grad(loss, [stage.student.tail.weight], retain_graph=True)
        losses.append(float(loss.detach()))
        gradients.append(gradient)
    assert losses[0] == losses[1]
    assert (gradients[0] - gradients[1]).norm() > 0.05 * gradients[0].norm()


@pytest.mark.parametrize("objective", ["rsd", "vsd"])
def test_only_rsd_starts_the_student_from_several_steps(prepared: MakeConfig, objective: str) -> None:
    config = prepared(**DISTILL, objective=objective)
    stage = StudentStage(config)
    spy = Spy(stage.student)
    stage.student = cast(EdgeGenerator, spy)
    for seed in range(8):
        stage._sample(batch_of(config), generator(seed))
    steps = {int(t) for inputs in spy.seen for t in inputs[1]}
    assert steps == ({stage.diffusion.steps - 1} if objective == "vsd" else set(config.student.timesteps))


class Spy(nn.Module):
    """Passes everything through and remembers it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.seen: list[tuple[Tensor, ...]] = []

    def forward(self, *inputs: Tensor) -> Tensor:
        self.seen.append(inputs)
        return cast(Tensor, self.network(*inputs))


def test_sampling_is_algorithm_one(prepared: MakeConfig) -> None:
    """z_tn from the ground truth's chain at one of the student's steps, one noise channel, z_t from the student's
    output at any step, f_phi told of t alone."""
    config = prepared(**DISTILL, timesteps=(3, 14))
    stage = StudentStage(config)
    spies = {name: Spy(getattr(stage, name)) for name in ("student", "teacher", "fake")}
    for name, spy in spies.items():
        setattr(stage, name, spy)
    batch = batch_of(config)
    t_n, t = set(), set()
    for seed in range(30):
        sample = stage._sample(batch, generator(seed))
        x_scaled, steps, lq, eps = spies["student"].seen[-1]
        t_n |= set(steps.tolist())
        t |= set(sample.t.tolist())
        assert lq is batch.y0
        assert eps.shape == (2, 1, 16, 16)
        assert torch.equal(sample.z0_hat, spies["student"].network(x_scaled, steps, lq, eps))
    assert t_n == {3, 14}
    assert t == set(range(15))  # 60 draws miss one of 15 once in a thousand seeds, and these seeds are fixed
    # The chain of the ground truth: what is left after its mean is noise of unit variance.
    z0, z_y = stage.frozen["encoder"](batch.x0), stage.frozen["stem"](batch.y0)
    diffusion = stage.diffusion
    scale, eta, std = (
        values[steps].view(-1, 1, 1, 1) for values in (diffusion.input_scale, diffusion.etas, diffusion.std)
    )
    rest = (x_scaled / scale - z0 - eta * (z_y - z0)) / std
    assert rest.std().item() == pytest.approx(1, abs=0.07)  # 4 standard errors of 2048 draws
    assert rest.mean().item() == pytest.approx(0, abs=0.1)
    # The student's output renoised, in the same way.
    eta, std = (values[sample.t].view(-1, 1, 1, 1) for values in (diffusion.etas, diffusion.std))
    rest = (sample.z_t - sample.z0_hat - eta * (z_y - sample.z0_hat)) / std
    assert rest.std().item() == pytest.approx(1, abs=0.07)
    stage._distill_loss(batch, generator(1))
    sample = stage._sample(batch, generator(1))
    for name in ("teacher", "fake"):
        x_scaled, steps, lq = spies[name].seen[-1]
        torch.testing.assert_close(x_scaled, diffusion.scale(sample.z_t, sample.t), rtol=0, atol=1e-6)
        assert torch.equal(steps, sample.t)
        assert lq is batch.y0


def test_the_pixel_losses_look_at_what_inference_computes(prepared: MakeConfig) -> None:
    config = prepared()
    stage = StudentStage(config)
    spy = Spy(stage.student)
    stage.student = cast(EdgeGenerator, spy)
    batch = batch_of(config)
    detail = stage._detail(batch.y0, generator())
    x_scaled, steps, lq, eps = spy.seen[-1]
    assert steps.tolist() == [14, 14]
    z0_hat = spy.network(x_scaled, steps, lq, eps)
    torch.testing.assert_close(detail, stage.frozen["decoder"](z0_hat, lq), rtol=0, atol=1e-6)  # the same sums
    z_T = x_scaled * (4 * 0.99**2 + 1) ** 0.5
    rest = (z_T - stage.frozen["stem"](lq)) / (2 * 0.99)
    assert rest.std().item() == pytest.approx(1, abs=0.07)  # 4 standard errors of 2048 draws


def test_the_discriminator_learns_before_it_is_listened_to(prepared: MakeConfig) -> None:
    config = prepared(**JOINT, gan_start=1)
    stage = FinetuneStage(config)
    batch = batch_of(config)
    before = state_of(stage.discriminator)
    alone = stage.step(0, lambda: batch, generator())
    assert "gan" not in alone
    assert {"discriminator", "pixel", "chroma", "lattice"} < alone.keys()
    assert moved(before, dict(stage.discriminator.named_parameters()))
    heard = stage.step(1, lambda: batch, generator())
    assert {"gan", "discriminator"} < heard.keys()
    assert all(parameter.requires_grad for parameter in stage.discriminator.parameters())


def test_the_fine_tune_goes_on_from_the_student(prepared: MakeConfig, tiny_weights: Checkpoint) -> None:
    stage = FinetuneStage(prepared(**JOINT))
    assert stage.averages.keys() == {"student", "stem", "decoder"}
    assert stage.frozen.keys() == {"encoder", "teacher"}
    for part in stage.averages:
        assert moved(tiny_weights.parts[part], stage.networks[part].state_dict()) == set()
        assert all(parameter.requires_grad for parameter in stage.networks[part].parameters())
    assert stage.stem is stage.networks["stem"]
    assert stage.decoder is stage.networks["decoder"]


@pytest.mark.parametrize("objective", ["vsd", "rsd"])
def test_the_student_variants_run(prepared: MakeConfig, objective: str) -> None:
    path = run_stage("student", prepared("bf16", **DISTILL, objective=objective, gan_weight=0.01))
    assert "student" in load_checkpoint(path).parts


def test_validation_judges_the_averages_and_leaves_the_networks(prepared: MakeConfig) -> None:
    stage = FinetuneStage(prepared(**JOINT))
    reference = stage.validate(generator())
    assert stage.validate(generator()) == reference
    with torch.no_grad():
        stage.student.tail.weight.add_(1)
    live = stage.student, stage.stem, stage.decoder
    assert stage.validate(generator()) == reference
    assert (stage.student, stage.stem, stage.decoder) == live
    stage.averages["student"].average.load_state_dict(stage.student.state_dict())
    assert stage.validate(generator()) != reference
    assert reference["seed_std"] > 0


def test_the_teachers_two_figures_are_one_step_and_all_steps(prepared: MakeConfig) -> None:
    """With a teacher that knows nothing but its condition, fifteen steps end where the last one does."""
    stage = TeacherStage(prepared())
    figures = stage.validate(generator())
    assert figures["one_step_psnr_y"] != figures["all_steps_psnr_y"]
    average = stage.averages["teacher"].average
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.zero_()
    figures = stage.validate(generator())
    assert figures["one_step_psnr_y"] == figures["all_steps_psnr_y"]


def test_the_bicubic_image_does_not_move_the_latents_statistics(prepared: MakeConfig) -> None:
    stage = STAGES["autoencoder"](prepared(lr=1e-9))
    batch = batch_of(stage.config)
    encoder = copy.deepcopy(stage.networks["encoder"]).train()
    stage.step(0, lambda: batch, generator())
    encoder(batch.x0)
    expected = cast(Tensor, encoder.normalise.running_mean)  # type: ignore[union-attr]
    actual = cast(Tensor, stage.networks["encoder"].normalise.running_mean)  # type: ignore[union-attr]
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)  # the same sums
    assert stage.networks["encoder"].training


def test_runs_with_one_seed_start_alike(prepared: MakeConfig, tmp_path: Path) -> None:
    config = prepared()
    first, again = (STAGES["autoencoder"](config) for _ in range(2))
    other = STAGES["autoencoder"](replace(config, seed=8))
    for part in ("encoder", "stem", "decoder"):
        assert moved(first.networks[part].state_dict(), again.networks[part].state_dict()) == set()
        assert moved(first.networks[part].state_dict(), other.networks[part].state_dict())
