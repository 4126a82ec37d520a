"""What the stages make of their networks and losses, against the formulas written out; 0.1 % anywhere is too much.

Written out in float64 from the schedule's definition; networks, noise and samples are the stages' own.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_loop import OneWeight
from torch import Tensor, nn

from rsd_edge.distill.config import DistillConfig
from rsd_edge.distill.loop import draws, train
from rsd_edge.distill.objectives import rsd_loss, weighted_mean
from rsd_edge.distill.pixel_losses import random_window
from rsd_edge.distill.stage import Part, Stage
from rsd_edge.distill.stages.autoencoder import AutoencoderStage
from rsd_edge.distill.stages.student import GAN_WINDOW, FinetuneStage, StudentStage
from rsd_edge.distill.stages.teacher import TeacherStage
from rsd_edge.models.published import bicubic_up
from rsd_edge.schedule import ResidualSchedule

MakeConfig = Callable[..., DistillConfig]

pytestmark = pytest.mark.usefixtures("one_torch_thread")

WEIGHTS: dict[str, Any] = {"distill_weight": 0.5, "gan_weight": 0.3, "lpips_weight": 0.7, "fake_steps": 1}
T = 14
CLOSE = 1e-4
"""Relative: float32 through networks and differences of squares, a tenth of the change that must show."""


def part_of(stage: Stage, iteration: int = 0) -> Part:
    (part,) = draws(stage, itertools.repeat(stage.validation), iteration)()
    return part


def disturb(network: nn.Module, seed: int) -> None:
    """So that a copy is no copy any more, and zero-initialised layers say something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def student_stage(config: DistillConfig) -> StudentStage:
    stage = StudentStage(config)
    disturb(stage.student, 1)
    if "fake" in stage.networks:
        disturb(stage.fake, 2)
        stage.fake.requires_grad_(False)
    return stage


class WrittenOut:
    """The quantities of Algorithm 1 for one part."""

    def __init__(self, stage: StudentStage, part: Part) -> None:
        self.stage, self.noise, self.lq = stage, part.noise, part.batch.y0
        schedule = ResidualSchedule(stage.config.model.schedule)
        self.kappa = stage.config.model.schedule.kappa
        self.eta = torch.from_numpy(schedule.etas.copy())
        self.z0 = stage.latent.encoder(part.batch.x0)
        self.z_y = stage.latent.stem(part.batch.y0)
        elbo = torch.from_numpy(schedule.alphas / self._before(schedule) / schedule.etas)
        elbo[0] = elbo[1]
        self.w = elbo / elbo.mean()

    @staticmethod
    def _before(schedule: ResidualSchedule) -> Any:
        before = schedule.etas_prev.copy()
        before[0] = 1.0  # the first weight is replaced
        return before

    def at(self, t: Tensor | int) -> Tensor:
        return self.eta[torch.as_tensor(t).expand(len(self.lq))].view(-1, 1, 1, 1)

    def noised(self, mean: Tensor, t: Tensor | int, purpose: str) -> Tensor:
        eta, eps = self.at(t), self.noise.like(purpose, self.z_y)
        return mean + eta * (self.z_y - mean) + self.kappa * eta.sqrt() * eps

    def ask(self, network: nn.Module, z: Tensor, t: Tensor | int, *eps: Tensor, scale_of: int | None = None) -> Tensor:
        """A network's answer to z_t, divided by sqrt(kappa^2 eta_t + 1)."""
        eta = self.at(t if scale_of is None else scale_of)
        seen = (z / (self.kappa**2 * eta + 1).sqrt()).float()
        return network(seen, torch.as_tensor(t).expand(len(z)), self.lq, *eps).double()

    def eps(self, purpose: str) -> Tensor:
        return self.noise.normal(purpose, 1, *self.z_y.shape[2:])

    def from_prior(self) -> Tensor:
        return self.ask(self.stage.student, self.noised(self.z_y, T, "z_T"), T, self.eps("eps_T"))

    def from_truth(self) -> Tensor:
        t_n = self.noise.choice("t_n", (3, 7, 11, 14))
        return self.ask(self.stage.student, self.noised(self.z0, t_n, "z_tn"), t_n, self.eps("eps"))

    def logits(self, z: Tensor) -> Tensor:
        """Of the head on the fake model's features of z as it is, at the first step."""
        seen = (z / math.sqrt(self.kappa**2 * float(self.eta[0]) + 1)).float()
        fake = self.stage.fake
        features = fake.denoiser.encode(seen, torch.zeros(len(z), dtype=torch.int64), self.lq)
        return fake.head(features.bottleneck).double()  # type: ignore[misc]

    def perceived(self, z0_hat: Tensor, x0: Tensor) -> Tensor:
        detail = self.stage.latent.decoder(z0_hat.float(), self.lq)
        return self.stage.lpips(bicubic_up(self.lq) + detail, x0).mean()


def softplus(x: Tensor) -> Tensor:
    return (1 + x.exp()).log()


def sample_mean(x: Tensor) -> Tensor:
    return x.mean(dim=(1, 2, 3))


def close(actual: Tensor, expected: Tensor) -> None:
    assert float(actual.detach()) == pytest.approx(float(expected.detach()), rel=CLOSE)


@pytest.mark.parametrize("objective", ["rsd", "vsd"])
def test_the_fake_models_side(prepared: MakeConfig, objective: str) -> None:
    stage = student_stage(prepared(**WEIGHTS, objective=objective, step_weights="elbo"))
    part = part_of(stage)
    written = WrittenOut(stage, part)
    loss, scalars = stage._fake_terms(part)
    z0_hat = written.from_truth() if objective == "rsd" else written.from_prior()
    t = part.noise.choice("t", tuple(range(15)))
    f_phi = written.ask(stage.fake.denoiser, written.noised(z0_hat, t, "z_t"), t)
    fake = (written.w[t] * sample_mean((f_phi - z0_hat) ** 2)).mean()
    critic = softplus(-written.logits(written.z0)).mean() + softplus(written.logits(z0_hat)).mean()
    assert len(set(written.w[t].tolist())) > 1  # samples of unlike weights
    close(scalars["fake"], fake)
    close(scalars["discriminator"], critic)
    close(loss, fake + 0.3 * critic)


@pytest.mark.parametrize(("objective", "normalise"), [("rsd", True), ("vsd", False)])
def test_the_students_side(prepared: MakeConfig, objective: str, normalise: bool) -> None:
    config = prepared(**WEIGHTS, objective=objective, sid_normalise=normalise, step_weights="elbo", lpips_windows=False)
    stage = student_stage(config)
    part = part_of(stage)
    written = WrittenOut(stage, part)
    loss, scalars = stage._student_terms(part, 0, [])
    z0_hat = written.from_truth() if objective == "rsd" else written.from_prior()
    t = part.noise.choice("t", tuple(range(15)))
    z_t = written.noised(z0_hat, t, "z_t")
    f_star, f_phi = (written.ask(network, z_t, t) for network in (stage.teacher, stage.fake.denoiser))
    difference = sample_mean((f_star - z0_hat) ** 2) - sample_mean((f_phi - z0_hat) ** 2)
    if normalise:
        difference = difference / (sample_mean((f_star - z0_hat).abs()) + 1e-8)
    distill, gan = (written.w[t] * difference).mean(), softplus(-written.logits(z0_hat)).mean()
    lpips = written.perceived(written.from_prior(), part.batch.x0)
    close(scalars["distill"], distill)
    close(scalars["gan"], gan)
    close(scalars["lpips"], lpips)
    close(loss, 0.5 * distill + 0.3 * gan + 0.7 * lpips)
    # A weight of a small term shows against the stage's own terms: float32 sums of three.
    own = 0.5 * scalars["distill"] + 0.3 * scalars["gan"] + 0.7 * scalars["lpips"]
    torch.testing.assert_close(loss, own, rtol=1e-6, atol=0)


def test_sinsrs_three_terms(prepared: MakeConfig) -> None:
    """Against SinSR's paper, with its published code's scale of T for what is asked at t = 0."""
    shares = {"inverse_weight": 0.6, "truth_weight": 0.3}
    stage = student_stage(prepared(**{**WEIGHTS, "lpips_windows": False}, **shares, objective="sinsr"))
    part = part_of(stage)
    written = WrittenOut(stage, part)
    asked: list[Tensor] = []
    hook = stage.student.register_forward_pre_hook(lambda network, inputs: asked.append(inputs[0]))
    loss, scalars = stage._student_terms(part, 0, [])
    hook.remove()
    truth = (written.z0 / (written.kappa**2 * written.at(T) + 1).sqrt()).float()
    torch.testing.assert_close(asked[1], truth, rtol=1e-5, atol=1e-6)  # float32
    student, none = stage.student, torch.zeros_like(written.z_y[:, :1])
    z_T = written.noised(written.z_y, T, "z_T")
    z = z_T
    for t in range(T, -1, -1):
        now, before = written.eta[t], written.eta[t - 1] if t else torch.tensor(0.0, dtype=torch.float64)
        x0 = written.ask(stage.teacher, z, t)
        z = (1 - before) * x0 + before * written.z_y + (before / now).sqrt() * (z - (1 - now) * x0 - now * written.z_y)
    z0_hat = written.ask(student, z_T, T, none)
    inverse = written.ask(student, z, 0, none, scale_of=T)
    of_truth = written.ask(student, written.z0, 0, none, scale_of=T)
    again = written.ask(student, of_truth, T, none)
    terms = [sample_mean((a - b) ** 2).mean() for a, b in ((z0_hat, z), (inverse, z_T), (again, written.z0))]
    distill, gan = terms[0] + 0.6 * terms[1] + 0.3 * terms[2], softplus(-written.logits(z0_hat)).mean()
    close(scalars["distill"], distill)
    close(scalars["gan"], gan)
    lpips = written.perceived(z0_hat, part.batch.x0)
    close(loss, 0.5 * distill + 0.3 * gan + 0.7 * lpips)


def test_the_patch_discriminators_two_sides(prepared: MakeConfig) -> None:
    losses = {"pixel_weight": 2.0, "lpips_weight": 0.0, "train_decoder": True, "gan_weight": 0.3, "gan": "pixels"}
    stage = FinetuneStage(prepared(**losses))
    disturb(stage.student, 1)
    part = part_of(stage)
    seen: list[tuple[Tensor, ...]] = []
    loss, scalars = stage._student_terms(part, 0, seen)
    base = bicubic_up(part.batch.y0)
    image = base + stage._detail(part)
    window = part.noise.shared("gan_window")
    fake, real, under = random_window(GAN_WINDOW, (image, part.batch.x0, base), window)
    of_fake, of_real = (stage.discriminator(which, under).double() for which in (fake, real))
    close(scalars["gan"], softplus(-of_fake).mean())
    close(loss, 2.0 * (image - part.batch.x0).abs().mean() + 0.3 * softplus(-of_fake).mean())
    own = 2.0 * scalars["pixel"] + 0.3 * scalars["gan"]
    torch.testing.assert_close(loss, own, rtol=1e-6, atol=0)  # float32 sums of two
    (pair,) = seen
    close(stage._patch_terms(pair)[0], softplus(-of_real).mean() + softplus(of_fake).mean())


def test_the_teachers_loss_at_every_step(prepared: MakeConfig) -> None:
    stage = TeacherStage(prepared())
    student = StudentStage(prepared())  # for the latents: the same frozen networks
    steps = set()
    for iteration in range(60):
        part = part_of(stage, iteration)
        t = part.noise.choice("t", tuple(range(15)))
        loss = stage._terms(part)[0] if iteration < 3 else None
        steps |= set(t.tolist())
        if loss is not None:
            written = WrittenOut(student, part)
            answer = written.ask(stage.teacher, written.noised(written.z0, t, "z_t"), t)
            close(loss, ((answer - written.z0) ** 2).mean())
    assert steps == set(range(15))


def test_the_autoencoders_loss(prepared: MakeConfig) -> None:
    stage = AutoencoderStage(prepared(pixel_weight=2.0, lpips_weight=0.0, latent_noise=0.4))
    encoder, (stem, decoder) = copy.deepcopy(stage.encoder), (stage.networks[name] for name in ("stem", "decoder"))
    for network in (stage.encoder, encoder):
        disturb(network, 3)
    part = part_of(stage)
    loss, scalars = stage._terms(part, None)
    base, z0 = bicubic_up(part.batch.y0), encoder(part.batch.x0)
    detail = decoder(z0 + 0.4 * part.noise.like("latent", z0), part.batch.y0)
    learnt = ((stem(part.batch.y0) - encoder.eval()(base)) ** 2).mean()
    close(scalars["stem"], learnt)
    close(loss, 2.0 * (base + detail - part.batch.x0).abs().mean() + learnt)


def test_each_iteration_enters_the_average_once(tiny_config: MakeConfig) -> None:
    """With the ramp: 1 - (1 + n) / (10 + n) of the weights after update n."""
    seen: list[float] = []

    def loss(weight: Tensor, iteration: int) -> Tensor:
        seen.append(weight.item())
        return weight.sum()

    stage = OneWeight(tiny_config(iterations=6, lr=0.1, warmup=0), loss)
    train(stage)
    average = seen[0]
    for update, weight in enumerate([*seen[1:], stage.network.weight.item()], start=1):
        average += (9 / (10 + update)) * (weight - average)
    (found,) = stage.averages["student"].average.parameters()
    assert found.item() == pytest.approx(average, abs=1e-6)  # float32; 0.1 % of a decay moves it by 1e-5


def test_small_constants_and_weights() -> None:
    z0_hat = torch.zeros(1, 1, 1, 2)
    f_phi = torch.tensor([1e-4, 1e-4]).view(1, 1, 1, 2)
    # Where the teacher agrees with the student, SiD's floor alone divides.
    assert float(rsd_loss(z0_hat, f_phi, z0_hat, sid_normalise=True)) == pytest.approx(-1.0, rel=1e-5)
    assert float(weighted_mean(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 0.5]))) == pytest.approx(1.75, rel=1e-6)
