"""Stages 3 and 4: the one-step student by Algorithm 1 of RSD, and the joint fine-tune with the decoder in pixels.

Both are one loop: a stage's weights decide which terms it has. With `distill_weight` 0 no fake model is trained and the
student stage becomes the plain regression that a claim of distillation has to be compared with.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from rsd_edge.distill.config import DistillConfig, StageConfig
from rsd_edge.distill.data import Batch, validation_batch
from rsd_edge.distill.diffusion import ResidualDiffusion
from rsd_edge.distill.ema import Ema
from rsd_edge.distill.loop import Draw, Stage
from rsd_edge.distill.objectives import (
    discriminator_loss,
    fake_loss,
    generator_gan_loss,
    rsd_loss,
    sid_normalise,
    vsd_loss,
)
from rsd_edge.distill.perceptual import LpipsSqueeze
from rsd_edge.distill.pixel_losses import PixelCriterion, random_window
from rsd_edge.distill.roles import PatchDiscriminator, bicubic_up, channels_last, load_part, load_stage
from rsd_edge.distill.validate import image_figures, lattice_figures
from rsd_edge.models.edge import EdgeGenerator, student_from_teacher

GAN_WINDOW = 64
"""Side of what the discriminator sees of each image: a quarter of a crop, since it judges 28 pixels at a time."""


@dataclass(frozen=True)
class Renoised:
    """What the latent losses look at: z0_hat, and z_t ~ q(z_t | z0_hat, z_y) with its index t."""

    z0_hat: Tensor
    z_t: Tensor
    t: Tensor
    lq: Tensor


class StudentStage(Stage):
    """L = w_distill L_theta + pixel losses of Dec(G(z_T, T, eps)) [+ GAN]; f_phi takes K steps for each of G."""

    name = "student"

    def __init__(self, config: DistillConfig, stage: StageConfig | None = None) -> None:
        super().__init__(config, stage or config.student)
        self.require_loss("distill_weight", "lpips_weight", "pixel_weight", "chroma_weight")
        torch.manual_seed(config.seed + 2)
        self.diffusion = ResidualDiffusion(config.model.schedule)
        self._build_parts()
        self.averages = {name: Ema(self.networks[name], self.stage.ema) for name in self._generator_side()}
        parameters = itertools.chain.from_iterable(self.networks[name].parameters() for name in self._generator_side())
        self.add_optimizer("student", parameters, self.stage.lr)
        if self.stage.distill_weight:
            self._build_fake()
        if self.stage.gan_weight:
            self.discriminator = channels_last(PatchDiscriminator())
            self.networks["discriminator"] = self.discriminator
            self.add_optimizer("discriminator", self.discriminator.parameters(), self.stage.gan_lr)
        self.lpips = channels_last(LpipsSqueeze.packaged())
        self.criterion = PixelCriterion(self.stage, self.lpips)
        self.validation = validation_batch(config.data, config.crop_of(self.stage), config.seed)

    def _initial(self) -> tuple[dict[str, nn.Module], EdgeGenerator]:
        """The frozen parts and the student at birth."""
        checkpoint = load_stage(self.config, "teacher")
        parts = {part: load_part(checkpoint, part) for part in ("encoder", "stem", "decoder", "teacher")}
        student = student_from_teacher(cast(EdgeGenerator, parts["teacher"]), self.config.model.edge)
        return parts, student

    def _build_parts(self) -> None:
        parts, student = self._initial()
        self.student = channels_last(student)
        self.networks = {"student": self.student}
        if self.stage.train_decoder:
            for part in ("stem", "decoder"):
                self.networks[part] = parts.pop(part).requires_grad_(True).train()
        self.frozen = parts
        self.stem = self.networks.get("stem", parts.get("stem"))
        self.decoder = self.networks.get("decoder", parts.get("decoder"))

    def _generator_side(self) -> tuple[str, ...]:
        return ("student", "stem", "decoder") if self.stage.train_decoder else ("student",)

    def _build_fake(self) -> None:
        self.teacher = self.frozen["teacher"]
        self.fake = channels_last(EdgeGenerator(self.config.model.edge, noise_channel=False))
        self.fake.load_state_dict(self.teacher.state_dict())
        self.networks["fake"] = self.fake
        self.add_optimizer("fake", self.fake.parameters(), self.stage.fake_lr)

    @property
    def batches_per_iteration(self) -> int:
        return 1 + (self.stage.fake_steps if self.stage.distill_weight else 0)

    def _generate(self, z_t: Tensor, t: Tensor, lq: Tensor, generator: torch.Generator) -> Tensor:
        eps = torch.randn((len(lq), 1, *lq.shape[2:]), generator=generator)
        return cast(Tensor, self.student(self.diffusion.scale(z_t, t), t, lq, eps)).float()

    def _sample(self, batch: Batch, generator: torch.Generator) -> Renoised:
        """Algorithm 1's sample(): the student from a random t_n of the truth's chain, renoised to a uniform t."""
        with torch.no_grad():
            z0 = self.frozen["encoder"](batch.x0).float()
            z_y = cast(nn.Module, self.stem)(batch.y0).float()
        n = len(z0)
        if self.stage.objective == "vsd":
            # Algorithm 2 knows no t_n: its student starts from the prior always.
            t_n = self.diffusion.last(n)
            z_tn = self.diffusion.prior(z_y, torch.randn(z0.shape, generator=generator))
        else:
            choices = torch.tensor(self.stage.timesteps)
            t_n = choices[torch.randint(len(choices), (n,), generator=generator)]
            z_tn = self.diffusion.q_sample(z0, z_y, t_n, torch.randn(z0.shape, generator=generator))
        z0_hat = self._generate(z_tn, t_n, batch.y0, generator)
        t = torch.randint(self.diffusion.steps, (n,), generator=generator)
        z_t = self.diffusion.q_sample(z0_hat, z_y, t, torch.randn(z0.shape, generator=generator))
        return Renoised(z0_hat, z_t, t, batch.y0)

    def _x0_from(self, network: nn.Module, sample: Renoised) -> Tensor:
        return cast(Tensor, network(self.diffusion.scale(sample.z_t, sample.t), sample.t, sample.lq)).float()

    def _fake_step(self, batch: Batch, generator: torch.Generator) -> Tensor:
        with self.autocast():
            with torch.no_grad():
                sample = self._sample(batch, generator)
            loss = fake_loss(self._x0_from(self.fake, sample), sample.z0_hat).mean()
        self.update("fake", loss)
        return loss

    def _distill_loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        sample = self._sample(batch, generator)
        self.fake.requires_grad_(False)
        f_star, f_phi = self._x0_from(self.teacher, sample), self._x0_from(self.fake, sample)
        self.fake.requires_grad_(True)
        objective = rsd_loss if self.stage.objective == "rsd" else vsd_loss
        return sid_normalise(objective(f_star, f_phi, sample.z0_hat), f_star, sample.z0_hat).mean()

    def _detail(self, lq: Tensor, generator: torch.Generator) -> Tensor:
        """Dec(G(z_T, T, eps)), z_T ~ prior: what inference computes."""
        z_y = cast(nn.Module, self.stem)(lq).float()
        z_T = self.diffusion.prior(z_y, torch.randn(z_y.shape, generator=generator))  # noqa: N806 (the paper's symbol)
        z0_hat = self._generate(z_T, self.diffusion.last(len(lq)), lq, generator)
        return cast(Tensor, cast(nn.Module, self.decoder)(z0_hat, lq)).float()

    def step(self, iteration: int, draw: Draw, generator: torch.Generator) -> dict[str, Tensor]:
        scalars: dict[str, Tensor] = {}
        if self.stage.distill_weight:
            losses = [self._fake_step(draw(), generator) for _ in range(self.stage.fake_steps)]
            scalars["fake"] = torch.stack(losses).mean()
        batch = draw()
        with self.autocast():
            base = bicubic_up(batch.y0)
            detail = self._detail(batch.y0, generator)
            loss = self.criterion(detail, base, batch.x0, generator, scalars)
            if self.stage.distill_weight:
                scalars["distill"] = self._distill_loss(batch, generator)
                loss = loss + self.stage.distill_weight * scalars["distill"]
            if self.stage.gan_weight:
                fake, real, under = random_window(GAN_WINDOW, (base + detail, batch.x0, base), generator)
                loss = loss + self._gan_loss(iteration, fake, under, scalars)
        scalars["gradient"] = self.update("student", loss)
        if self.stage.gan_weight:
            scalars["discriminator"] = self._discriminator_step(fake.detach(), real, under)
        return scalars

    def _gan_loss(self, iteration: int, image: Tensor, base: Tensor, scalars: dict[str, Tensor]) -> Tensor:
        # Until gan_start the discriminator learns alone, or its first noise would undo what the losses taught.
        if iteration < self.stage.gan_start:
            return image.new_zeros(())
        self.discriminator.requires_grad_(False)
        scalars["gan"] = generator_gan_loss(self.discriminator(image, base)).mean()
        self.discriminator.requires_grad_(True)
        return self.stage.gan_weight * scalars["gan"]

    def _discriminator_step(self, fake: Tensor, real: Tensor, base: Tensor) -> Tensor:
        with self.autocast():
            logits = self.discriminator(torch.cat([real, fake]), torch.cat([base, base]))
            loss = discriminator_loss(*logits.chunk(2)).mean()
        self.update("discriminator", loss)
        return loss

    @torch.no_grad()
    def validate(self, generator: torch.Generator) -> dict[str, float]:
        """One step from the prior with the averaged weights; two draws of the noise tell how much of it is texture."""
        x0, y0 = self.validation.x0, self.validation.y0
        average = {name: ema.average for name, ema in self.averages.items()}
        live = self.student, self.stem, self.decoder
        self.student = cast(EdgeGenerator, average["student"])
        self.stem, self.decoder = average.get("stem", self.stem), average.get("decoder", self.decoder)
        try:
            base = bicubic_up(y0)
            detail, other = self._detail(y0, generator), self._detail(y0, generator)
        finally:
            self.student, self.stem, self.decoder = live
        figures = image_figures(base + detail, x0, self.lpips) | lattice_figures(detail)
        deviation = (detail - other).clamp(-2, 2).mul(127.5).std() / 2**0.5
        return figures | {"seed_std": round(float(deviation), 3)}


class FinetuneStage(StudentStage):
    """The same loop from a finished student, with stem and decoder in training."""

    name = "finetune"

    def __init__(self, config: DistillConfig) -> None:
        super().__init__(config, config.finetune)

    def _initial(self) -> tuple[dict[str, nn.Module], EdgeGenerator]:
        checkpoint = load_stage(self.config, "student")
        parts = {part: load_part(checkpoint, part) for part in ("encoder", "stem", "decoder", "teacher")}
        student = cast(EdgeGenerator, load_part(checkpoint, "student").requires_grad_(True).train())
        return parts, student
