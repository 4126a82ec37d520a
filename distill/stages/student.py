"""Stages 3 and 4: the one-step student by Algorithm 1 of RSD, and the joint fine-tune with the decoder in pixels.

Both are one loop: a stage's weights decide which terms it has. With `distill_weight` 0 the student stage becomes the
plain regression that a claim of distillation has to be compared with.

The networks are called as rarely as the algorithm allows: HR and bicubic image are encoded together, the student sees
its step t_n and the prior's in one pass, and the fake model's encoder serves f_phi and the discriminator at once.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from rsd_edge.distill.config import DistillConfig
from rsd_edge.distill.diffusion import ResidualDiffusion
from rsd_edge.distill.discriminators import FakeModel, FeatureHead, PatchDiscriminator
from rsd_edge.distill.latent_space import EdgeLatentSpace
from rsd_edge.distill.objectives import (
    discriminator_loss,
    fake_loss,
    generator_gan_loss,
    rsd_loss,
    sinsr_loss,
    vsd_loss,
    weighted_mean,
)
from rsd_edge.distill.perceptual import LpipsSqueeze
from rsd_edge.distill.pixel_losses import BatchStatistics, PixelCriterion, random_window
from rsd_edge.distill.randomness import Randomness
from rsd_edge.distill.roles import (
    Roles,
    build_roles,
    channels_last,
    fake_of,
    load_stage,
    silence,
    student_part,
    takes_noise,
    teacher_checkpoint,
)
from rsd_edge.distill.runtime import Runtime
from rsd_edge.distill.stage import Draw, Part, Scalars, Stage, Validation
from rsd_edge.distill.stage_config import StudentConfig
from rsd_edge.distill.start import start_of
from rsd_edge.distill.student_sampler import Point, StudentSampler, generate
from rsd_edge.distill.validate import image_figures, lattice_figures
from rsd_edge.errors import InputError
from rsd_edge.models.checkpoint import Checkpoint
from rsd_edge.models.published import bicubic_up

GAN_WINDOW = 64
"""Side of what the patch discriminator sees of each image: a quarter of a crop, since it judges 28 pixels at a time."""


class StudentStage(Stage):
    """L = w_distill L_theta + pixel losses of Dec(G(z_T, T, eps)) + w_gan L_GAN; f_phi takes K steps for each of G."""

    name = "student"
    unused = ("latent_noise",)
    stage: StudentConfig

    def __init__(
        self, config: DistillConfig, runtime: Runtime | None = None, teacher: Checkpoint | None = None
    ) -> None:
        """teacher: instead of the weights that the configuration names."""
        super().__init__(config, self._settings(config), runtime)
        self.require_loss("distill_weight", "lpips_weight", "pixel_weight", "chroma_weight")
        torch.manual_seed(config.seed + 2)
        device = self.runtime.device
        roles = self._roles(teacher)
        if self.stage.deterministic and takes_noise(roles.student):
            silence(roles.student)  # which is never trained, and would be heard where the student runs
        self.given = roles.given
        self.latent, self.teacher = roles.latent.to(device), roles.teacher.to(device)
        self.diffusion = ResidualDiffusion(config.model.schedule, device)
        self.step_weights = self.diffusion.step_weights(self.stage.step_weights)
        self._train_generator_side(roles)
        self.sampler = StudentSampler(self.diffusion, self.stage, takes_noise=takes_noise(self.student))
        self._train_adversaries()
        self.lpips = channels_last(LpipsSqueeze.packaged()).to(device)
        self.criterion = PixelCriterion(self.stage, self.lpips, self.runtime)

    def _settings(self, config: DistillConfig) -> StudentConfig:
        return config.student

    def _roles(self, teacher: Checkpoint | None) -> Roles:
        crop = self.config.crop_of(self.stage)
        return build_roles(self.config, teacher or teacher_checkpoint(self.config), crop)

    def _train_generator_side(self, roles: Roles) -> None:
        self.frozen = roles.parts
        self.student = roles.student
        side = ["student"]
        self.train_network("student", self.student, average=True)
        if self.stage.train_decoder:
            if not isinstance(self.latent, EdgeLatentSpace):
                raise InputError(f"{self.name}.train_decoder needs a model of family edge; leave it out")
            for part in ("stem", "decoder"):
                side.append(part)
                self.train_network(part, self.frozen.pop(part).requires_grad_(True).train(), average=True)
            self.latent = EdgeLatentSpace(self.latent.encoder, self.live["stem"], self.live["decoder"])
        for network in (self.student, self.teacher, self.latent):
            network.recompute = self.stage.recompute  # type: ignore[assignment]
        self.add_optimizer("student", side)

    def _train_adversaries(self) -> None:
        if self.stage.needs_fake:
            denoiser = fake_of(self.teacher)
            head = None
            if self.stage.feature_gan:
                head = FeatureHead(cast(int, denoiser.bottleneck_channels), self.config.roles.head_width)
            self.fake = channels_last(FakeModel(denoiser, head))
            self.train_network("fake", self.fake, average=False)
            self.add_optimizer("fake", ["fake"], "fake_lr")
        if self.stage.pixel_gan:
            self.discriminator = channels_last(PatchDiscriminator())
            self.train_network("discriminator", self.discriminator, average=False)
            self.add_optimizer("discriminator", ["discriminator"], "gan_lr")

    @property
    def batches_per_iteration(self) -> int:
        return 1 + (self.stage.fake_steps if self.stage.needs_fake else 0)

    def step(self, iteration: int, draw: Draw) -> Scalars:
        scalars: Scalars = {}
        if self.stage.needs_fake:
            rows = [self.update("fake", draw(), self._fake_terms)[1] for _ in range(self.stage.fake_steps)]
            scalars |= {name: torch.stack([row[name] for row in rows]).mean() for name in rows[0]}
        seen: list[tuple[Tensor, ...]] = []
        if self.stage.needs_fake:
            self.fake.requires_grad_(False)
        if self.stage.pixel_gan:
            self.discriminator.refine()
        parts = draw()
        shared = self.criterion.survey(parts, self._detail)
        norm, terms = self.update("student", parts, lambda part: self._student_terms(part, iteration, seen, shared))
        if self.stage.needs_fake:
            self.fake.requires_grad_(True)
        scalars |= terms | {"gradient": norm}
        if self.stage.pixel_gan:
            scalars |= self.update("discriminator", seen, self._patch_terms)[1]
        return scalars

    # The fake model's side.

    def _fake_terms(self, part: Part) -> tuple[Tensor, Scalars]:
        """||f_phi(z_t) - z0_hat||^2 + w_gan GAN_D, the student's outputs being data."""
        lq, noise = part.batch.y0, part.noise
        with torch.no_grad():
            z0, z_y = part.latents or self.latent.encode(part.batch.x0, lq)
            (z0_hat,) = generate(self.student, [self.sampler.start(z0, z_y, noise)], lq)
            x, t = self.sampler.renoised(z0_hat, z_y, noise)
        xs, ts = [x], [t]
        if self.stage.feature_gan:
            first = self.diffusion.at(0, len(z0))
            xs += [self.diffusion.scale(z, first) for z in (z0_hat, z0)]
            ts += [first, first]
        f_phi, logits = self.live["fake"](torch.cat(xs), torch.cat(ts), lq.repeat(len(xs), 1, 1, 1), len(z0))
        loss = weighted_mean(fake_loss(f_phi, z0_hat), self.step_weights[t])
        scalars = {"fake": loss}
        if self.stage.feature_gan:
            of_fake, of_real = logits.chunk(2)
            scalars["discriminator"] = discriminator_loss(of_real, of_fake).mean()
            loss = loss + self.stage.gan_weight * scalars["discriminator"]
        return loss, scalars

    # The student's side.

    def _student_terms(
        self, part: Part, iteration: int, seen: list[tuple[Tensor, ...]], shared: BatchStatistics | None = None
    ) -> tuple[Tensor, Scalars]:
        """All terms of the student; what a patch discriminator is to see is added to `seen`."""
        x0, lq, noise = part.batch.x0, part.batch.y0, part.noise
        scalars: Scalars = {}
        # Known latents have no gradient to the stem.
        known = None if self.stage.train_decoder else part.latents
        listens = self.stage.feature_gan and iteration >= self.stage.gan_start
        latent_terms = bool(self.stage.distill_weight) or listens
        if latent_terms:
            z0, z_y = known or self.latent.encode(x0, lq)
        else:  # no loss asks for z0, so x0 need not be encoded
            z0 = z_y = known[1] if known else self.latent.condition(lq)
        prior, z_y = self.sampler.from_prior(z_y, noise), z_y.detach()
        points = [prior]
        if latent_terms and self.stage.starts_from_truth:
            points.append(self.sampler.from_truth(z0, z_y, noise))
        outputs = generate(self.live["student"], points, lq)
        base = bicubic_up(lq)
        detail = self.latent.detail(outputs[0], lq)
        loss = self.criterion(detail, base, x0, noise, scalars, shared)
        if latent_terms:
            loss = loss + self._latent_terms(outputs, prior, z0, z_y, part, listens, scalars)
        if self.stage.pixel_gan:
            window = noise.shared("gan_window")
            fake, real, under = random_window(GAN_WINDOW, (base + detail, x0, base), window)
            seen.append((fake.detach(), real, under))
            loss = loss + self._patch_gan(iteration, fake, under, scalars)
        return loss, scalars

    def _detail(self, part: Part) -> Tensor:
        """Dec(G(z_T, T, eps)) of a part, as its terms will have it."""
        point = self.sampler.from_prior(self.latent.condition(part.batch.y0), part.noise)
        return self.latent.detail(generate(self.student, [point], part.batch.y0)[0], part.batch.y0)

    def _latent_terms(
        self,
        outputs: tuple[Tensor, ...],
        prior: Point,
        z0: Tensor,
        z_y: Tensor,
        part: Part,
        listens: bool,
        scalars: Scalars,
    ) -> Tensor:
        """w_distill L_theta + w_gan GAN_G on z0_hat, with one pass through the fake model's encoder."""
        z0_hat, lq = outputs[-1], part.batch.y0
        loss = z0_hat.new_zeros(())
        distil = self.stage.distill_weight > 0
        xs, ts = [], []
        if distil and self.stage.objective == "sinsr":
            scalars["distill"] = self._sinsr(z0_hat, prior, z0, z_y, lq)
        elif distil:
            x, t = self.sampler.renoised(z0_hat, z_y, part.noise)
            xs, ts = [x], [t]
        denoised = len(z0) * len(xs)
        if listens:
            first = self.diffusion.at(0, len(z0))
            xs, ts = [*xs, self.diffusion.scale(z0_hat, first)], [*ts, first]
        if xs:
            f_phi, logits = self.fake(torch.cat(xs), torch.cat(ts), lq.repeat(len(xs), 1, 1, 1), denoised)
            if denoised:
                f_star = cast(Tensor, self.teacher(x, t, lq)).float()
                objective = rsd_loss if self.stage.objective == "rsd" else vsd_loss
                losses = objective(f_star, f_phi, z0_hat, sid_normalise=self.stage.sid_normalise)
                scalars["distill"] = weighted_mean(losses, self.step_weights[t])
            if listens:
                scalars["gan"] = generator_gan_loss(logits).mean()
                loss = loss + self.stage.gan_weight * scalars["gan"]
        return loss + self.stage.distill_weight * scalars["distill"] if distil else loss

    def _sinsr(self, z0_hat: Tensor, prior: Point, z0: Tensor, z_y: Tensor, lq: Tensor) -> Tensor:
        """SinSR's three terms. The student's inputs at t = 0 are scaled with T's factor, as its published code does."""
        last, first = prior.t, self.diffusion.at(0, len(z0))
        # A target: where stem and decoder are trained, too, z_T has a gradient to the stem.
        z_T = (prior.x_scaled / self.diffusion.tables.input_scale[-1]).detach()  # noqa: N806 (the paper's symbol)
        z0_teacher = self.diffusion.deterministic(self.teacher, z_T, z_y, lq)
        with torch.no_grad():
            inverted = Point(self.diffusion.scale(z0, last), first, prior.eps)
            (z_T_of_truth,) = generate(self.student, [inverted], lq)  # noqa: N806
        points = [
            Point(self.diffusion.scale(z0_teacher, last), first, prior.eps),
            Point(self.diffusion.scale(z_T_of_truth, last), last, prior.eps),
        ]
        z_T_hat, z0_again = generate(self.live["student"], points, lq)  # noqa: N806
        weights = {"inverse_weight": self.stage.inverse_weight, "truth_weight": self.stage.truth_weight}
        return sinsr_loss(z0_hat, z0_teacher, z_T_hat, z_T, z0_again, z0, **weights).mean()

    # The patch discriminator of the fine-tune.

    def _patch_gan(self, iteration: int, image: Tensor, base: Tensor, scalars: Scalars) -> Tensor:
        # Until gan_start the discriminator learns alone, or its first noise would undo what the losses taught.
        if iteration < self.stage.gan_start:
            return image.new_zeros(())
        self.discriminator.requires_grad_(False)
        scalars["gan"] = generator_gan_loss(self.discriminator(image, base)).mean()
        self.discriminator.requires_grad_(True)
        return self.stage.gan_weight * scalars["gan"]

    def _patch_terms(self, seen: tuple[Tensor, ...]) -> tuple[Tensor, Scalars]:
        fake, real, base = seen
        logits = self.live["discriminator"](torch.cat([real, fake]), torch.cat([base, base]))
        loss = discriminator_loss(*logits.chunk(2)).mean()
        return loss, {"discriminator": loss}

    # What the stage is judged by, and what it leaves.

    @torch.no_grad()
    def validate(self) -> Validation:
        """One step from the prior with the averaged weights; two draws of the noise tell how much of it is texture."""
        x0, lq = self.validation.x0, self.validation.y0
        base, noise = bicubic_up(lq), self.validation_noise(2 * len(lq))
        details = [self._averaged_detail(lq, noise.part(i * len(lq), len(lq))) for i in range(2)]
        figures = image_figures(base + details[0], x0, self.lpips) | lattice_figures(details[0])
        deviation = (details[0] - details[1]).clamp(-2, 2).mul(127.5).std() / 2**0.5
        figures |= {"seed_std": round(float(deviation), 3)}
        return Validation(figures, (base, base + details[0], x0))

    def _averaged_detail(self, lq: Tensor, noise: Randomness) -> Tensor:
        """Dec(G(z_T, T, eps)) with the averages: what inference computes."""
        latent, average = self.latent, {name: ema.average for name, ema in self.averages.items()}
        if self.stage.train_decoder and isinstance(latent, EdgeLatentSpace):
            latent = EdgeLatentSpace(latent.encoder, average["stem"], average["decoder"])
        point = self.sampler.from_prior(latent.condition(lq), noise)
        return latent.detail(generate(average["student"], [point], lq)[0], lq)

    def weights(self, record: dict[str, Any]) -> Checkpoint:
        """The averaged student, under the name that it is run by, with the frozen parts."""
        checkpoint = super().weights(record)
        student = checkpoint.parts.pop("student")
        return Checkpoint(checkpoint.spec, {**checkpoint.parts, student_part(checkpoint.spec): student}, record)


class FinetuneStage(StudentStage):
    """The same loop from a finished student, with stem and decoder in training."""

    name = "finetune"

    def _settings(self, config: DistillConfig) -> StudentConfig:
        return config.finetune

    def _roles(self, teacher: Checkpoint | None) -> Roles:
        if self.config.finetune_from:
            start = start_of(self.config)
            self.origin = start.origin
            return start.roles
        finished = load_stage(self.config, "student")
        crop = self.config.crop_of(self.stage)
        own_teacher = "teacher" in finished.parts and not self.config.roles.teacher.weights
        roles = build_roles(self.config, finished if own_teacher else teacher or teacher_checkpoint(self.config), crop)
        roles.given["student"] = roles.given["teacher"] if own_teacher else finished.digest()
        finished.load_into(student_part(finished.spec), roles.student)
        for name in (finished.parts.keys() & roles.parts.keys()) - {"teacher"}:
            finished.load_into(name, roles.parts[name])
        return roles
