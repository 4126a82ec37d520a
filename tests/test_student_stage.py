"""The student stage: Algorithm 1 in as few passes as it takes, each network trained by its own losses alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from rsd_edge.distill.config import DistillConfig
from rsd_edge.distill.data import Batch, validation_batch
from rsd_edge.distill.loop import draws
from rsd_edge.distill.stage import Draw, Stage
from rsd_edge.distill.stages.student import FinetuneStage, StudentStage
from rsd_edge.models.checkpoint import state_of
from rsd_edge.models.edge import EdgeGenerator
from rsd_edge.models.published import bicubic_up

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


def test_an_iteration_takes_fresh_batches_for_every_fake_step(prepared: MakeConfig) -> None:
    config = prepared(distill_weight=1.0, fake_steps=3)
    stage = StudentStage(config)
    parts: list[Any] = []
    take = draw_of(stage)

    def draw() -> Any:
        parts.extend(drawn := take())
        return drawn

    scalars = stage.step(0, draw)
    assert len(parts) == stage.batches_per_iteration == 4
    assert len({part.noise.update for part in parts}) == 4
    assert scalars.keys() == {"fake", "lpips", "distill", "gradient"}


def test_without_distillation_there_is_no_fake_model(prepared: MakeConfig) -> None:
    config = prepared(distill_weight=0.0, fake_steps=3)
    stage = StudentStage(config)
    assert stage.networks.keys() == stage.optimizers.keys() == {"student"}
    assert stage.batches_per_iteration == 1
    before = state_of(stage.student)
    scalars = stage.step(0, draw_of(stage))
    assert scalars.keys() == {"lpips", "gradient"}
    assert moved(before, stage.student.state_dict())


def test_the_fake_step_trains_the_fake_model_alone(prepared: MakeConfig) -> None:
    config = prepared(**DISTILL, warmup=0)
    stage = StudentStage(config)
    student, fake = state_of(stage.student), state_of(stage.fake)
    assert moved(stage.teacher.state_dict(), state_of(stage.fake.denoiser)) == set()  # it starts as the teacher
    stage.update("fake", draw_of(stage)(), stage._fake_terms)
    assert moved(student, stage.student.state_dict()) == set()
    assert all(parameter.grad is None for parameter in stage.student.parameters())
    assert moved(fake, stage.fake.state_dict())


@pytest.mark.parametrize("objective", ["rsd", "vsd", "sinsr"])
def test_the_students_update_leaves_teacher_and_fake_model_alone(prepared: MakeConfig, objective: str) -> None:
    config = prepared(**DISTILL, objective=objective, gan_weight=0.1, lpips_weight=0.0)
    stage = StudentStage(config)
    scalars = stage.step(0, draw_of(stage))
    assert scalars.keys() == {"fake", "discriminator", "distill", "gan", "gradient"}
    assert all(parameter.grad is None for parameter in stage.teacher.parameters())
    after_its_own = state_of(stage.fake)
    stage.optimizers["fake"].zero_grad()
    stage.fake.requires_grad_(False)
    stage.update("student", draw_of(stage, 1)(), lambda part: stage._student_terms(part, 0, []))
    assert all(parameter.grad is None for parameter in stage.fake.parameters())
    assert moved(after_its_own, state_of(stage.fake)) == set()
    gradient = cast(EdgeGenerator, stage.student).tail.weight.grad
    assert gradient is not None
    assert gradient.abs().max() > 0


def test_the_fake_model_is_ready_for_its_next_step(prepared: MakeConfig) -> None:
    stage = StudentStage(prepared(**DISTILL))
    stage.step(0, draw_of(stage))
    assert all(parameter.requires_grad for parameter in stage.fake.parameters())


def test_rsd_and_vsd_share_the_loss_and_not_the_gradient(prepared: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the prior's step, where both start alike."""
    results: list[tuple[float, Tensor]] = []
    fake: State = {}
    for objective in ("rsd", "vsd"):
        stage = StudentStage(prepared(**DISTILL, warmup=0, fake_lr=0.01, objective=objective, lpips_weight=0.0))
        if results:
            stage.fake.load_state_dict(fake)
        else:
            stage.update("fake", draw_of(stage)(), stage._fake_terms)
            fake = state_of(stage.fake)
        sampler = stage.sampler
        monkeypatch.setattr(sampler, "from_truth", lambda z0, z_y, noise, own=sampler: own.from_prior(z_y, noise))
        stage.fake.requires_grad_(False)
        (part,) = draw_of(stage, 1)()
        loss = stage._student_terms(part, 0, [])[0]
        (gradient,) = torch.autograd.grad(loss, [cast(EdgeGenerator, stage.student).tail.weight])
        results.append((float(loss.detach()), gradient))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)  # in one pass of two points or of one
    assert (results[0][1] - results[1][1]).norm() > 0.05 * results[0][1].norm()


class Spy(nn.Module):
    """Passes everything through and remembers it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.seen: list[tuple[Tensor, ...]] = []

    def forward(self, *inputs: Tensor) -> Tensor:
        self.seen.append(inputs)
        return cast(Tensor, self.network(*inputs))


@pytest.mark.parametrize("objective", ["rsd", "vsd", "sinsr"])
def test_only_rsd_starts_the_student_from_several_steps(prepared: MakeConfig, objective: str) -> None:
    config = prepared(**DISTILL, objective=objective, gan_weight=0.1)
    stage = StudentStage(config)
    stage.student = spy = Spy(stage.student)
    for iteration in range(8):
        stage._fake_terms(draw_of(stage, iteration)()[0])
    steps = {int(t) for inputs in spy.seen for t in inputs[1]}
    assert steps == (set(config.student.timesteps) if objective == "rsd" else {stage.diffusion.steps - 1})


def standardised(stage: StudentStage, x_scaled: Tensor, mean: Tensor, z_y: Tensor, t: Tensor) -> Tensor:
    """The noise in a network's input, if it is that of q(. | mean, z_y) at t."""
    tables = stage.diffusion.tables
    scale, eta, std = (values[t].view(-1, 1, 1, 1) for values in (tables.input_scale, tables.eta, tables.sigma))
    return (x_scaled / scale - mean - eta * (z_y - mean)) / std


def test_sampling_is_algorithm_one(prepared: MakeConfig) -> None:
    """z_tn from the ground truth's chain at one of the student's steps, one noise channel, z_t from the student's
    output at any step, f_phi told of t alone; the head sees z0_hat and z0 at t = 0."""
    config = prepared(**DISTILL, timesteps=(3, 14), gan_weight=0.1)
    stage = StudentStage(config)
    student, fake = stage.student, stage.fake
    stage.student, stage.live["fake"] = spy, fake_spy = Spy(student), Spy(fake)
    t_n, steps = set(), set()
    for iteration in range(30):
        (part,) = draw_of(stage, iteration)()
        stage._fake_terms(part)
        x, t, lq, eps = spy.seen[-1]
        x_fake, t_fake, lq_fake, denoised = fake_spy.seen[-1]
        t_n |= set(t.tolist())
        steps |= set(t_fake[:2].tolist())
        assert denoised == 2
        assert t_fake[2:].tolist() == [0] * 4
        assert eps.shape == (2, 1, 16, 16)
    assert t_n == {3, 14}
    assert steps == set(range(15))  # 60 draws miss one of 15 once in a thousand seeds, and these seeds are fixed
    z0, z_y = stage.latent.encode(part.batch.x0, part.batch.y0)
    rest = standardised(stage, x, z0, z_y, t)
    assert rest.std().item() == pytest.approx(1, abs=0.07)  # 4 standard errors of 2048 draws
    assert rest.mean().item() == pytest.approx(0, abs=0.1)
    z0_hat = student(x, t, lq, eps)
    rest = standardised(stage, x_fake[:2], z0_hat, z_y, t_fake[:2])
    assert rest.std().item() == pytest.approx(1, abs=0.07)
    scale = stage.diffusion.tables.input_scale[0]
    torch.testing.assert_close(x_fake[2:], torch.cat([z0_hat, z0]) * scale, rtol=0, atol=1e-5)  # float32
    assert torch.equal(lq_fake, part.batch.y0.repeat(3, 1, 1, 1))


def test_the_student_and_both_denoisers_are_asked_once(prepared: MakeConfig) -> None:
    """One pass of the student for t_n and T, one of the fake model for z_t and z0_hat; the teacher sees z_t alone."""
    config = prepared(**DISTILL, gan_weight=0.1)
    stage = StudentStage(config)
    networks = {"student": stage.student, "teacher": stage.teacher, "fake": stage.fake}
    spies = {name: Spy(network) for name, network in networks.items()}
    stage.live["student"], stage.teacher, stage.fake = spies["student"], spies["teacher"], spies["fake"]
    (part,) = draw_of(stage)()
    stage._student_terms(part, 0, [])
    assert {name: len(spy.seen) for name, spy in spies.items()} == {"student": 1, "teacher": 1, "fake": 1}
    x, t, *_ = spies["student"].seen[0]
    assert t[:2].tolist() == [14, 14]
    assert set(t[2:].tolist()) <= set(config.student.timesteps)
    z_y = stage.latent.condition(part.batch.y0)
    z_T = x[:2] / stage.diffusion.tables.input_scale[14]
    assert ((z_T - z_y) / (2 * 0.99)).std().item() == pytest.approx(1, abs=0.07)  # the prior has no z0
    x_fake, t_fake, _, denoised = spies["fake"].seen[0]
    x_star, t_star, _ = spies["teacher"].seen[0]
    assert torch.equal(x_star, x_fake[:2])
    assert torch.equal(t_star, t_fake[:2])
    assert (denoised, t_fake[2:].tolist()) == (2, [0, 0])


def test_the_pixel_losses_look_at_what_inference_computes(prepared: MakeConfig) -> None:
    stage = StudentStage(prepared(lpips_weight=0.0, pixel_weight=1.0))
    (part,) = draw_of(stage)()
    loss, scalars = stage._student_terms(part, 0, [])
    point = stage.sampler.from_prior(stage.latent.condition(part.batch.y0), part.noise)
    assert point.t.tolist() == [14, 14]
    z0_hat = stage.student(point.x_scaled, point.t, part.batch.y0, point.eps)
    image = bicubic_up(part.batch.y0) + stage.frozen["decoder"](z0_hat, part.batch.y0)
    torch.testing.assert_close(scalars["pixel"], (image - part.batch.x0).abs().mean())
    assert torch.equal(loss, scalars["pixel"])


def test_the_terms_are_weighted_as_configured(prepared: MakeConfig) -> None:
    weights = {"distill_weight": 0.5, "gan_weight": 0.3, "lpips_weight": 0.7}
    stage = StudentStage(prepared(fake_steps=1, **weights))
    (part,) = draw_of(stage)()
    loss, scalars = stage._student_terms(part, 0, [])
    expected = sum(weights[f"{name}_weight"] * scalars[name] for name in ("distill", "gan", "lpips"))
    torch.testing.assert_close(loss, expected)
    loss, scalars = stage._fake_terms(part)
    torch.testing.assert_close(loss, scalars["fake"] + 0.3 * scalars["discriminator"])


def test_activation_checkpointing_changes_no_gradient(prepared: MakeConfig) -> None:
    gradients = []
    for recompute in (False, True):
        stage = StudentStage(prepared(**DISTILL, gan_weight=0.1, recompute=recompute))
        stage.fake.requires_grad_(False)
        (part,) = draw_of(stage)()
        loss = stage._student_terms(part, 0, [])[0]
        gradients.append(torch.autograd.grad(loss, list(stage.student.parameters())))
    assert all(torch.equal(first, second) for first, second in zip(*gradients, strict=True))


def test_the_discriminator_learns_before_it_is_listened_to(prepared: MakeConfig) -> None:
    config = prepared(**JOINT, gan_start=1)
    stage = FinetuneStage(config)
    before = state_of(stage.discriminator)
    alone = stage.step(0, draw_of(stage))
    assert "gan" not in alone
    assert {"discriminator", "pixel", "chroma", "lattice"} < alone.keys()
    assert moved(before, dict(stage.discriminator.named_parameters()))
    heard = stage.step(1, draw_of(stage, 1))
    assert {"gan", "discriminator"} < heard.keys()
    assert all(parameter.requires_grad for parameter in stage.discriminator.parameters())
    student = StudentStage(prepared(**DISTILL, gan_weight=0.1, gan_start=1))
    assert "gan" not in student.step(0, draw_of(student))
    assert "gan" in student.step(1, draw_of(student, 1))
