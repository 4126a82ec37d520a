"""Stage 2: the teacher, a ResShift in the latent space: f(z_t scaled, t, y0) -> z0 over all T steps."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from rsd_edge.distill.config import DistillConfig
from rsd_edge.distill.diffusion import ResidualDiffusion
from rsd_edge.distill.latent_space import EdgeLatentSpace
from rsd_edge.distill.objectives import teacher_loss
from rsd_edge.distill.perceptual import LpipsSqueeze
from rsd_edge.distill.pixel_losses import PIXEL_WEIGHTS
from rsd_edge.distill.roles import EDGE_LATENT, autoencoder_checkpoint, channels_last, load_part
from rsd_edge.distill.runtime import Runtime
from rsd_edge.distill.stage import Draw, Part, Scalars, Stage, Validation
from rsd_edge.distill.validate import image_figures
from rsd_edge.models.edge import EdgeGenerator
from rsd_edge.models.published import bicubic_up


class TeacherStage(Stage):
    """Trains the generator without noise channel on ||f(z_t, t, y0) - z0||^2, t uniform."""

    name = "teacher"
    unused = ("latent_noise", "lpips", "lpips_windows", *PIXEL_WEIGHTS)

    def __init__(self, config: DistillConfig, runtime: Runtime | None = None) -> None:
        super().__init__(config, config.teacher, runtime)
        torch.manual_seed(config.seed + 1)
        autoencoder = autoencoder_checkpoint(config)
        self.given = {"autoencoder": autoencoder.digest()}
        self.frozen = {part: load_part(autoencoder, part) for part in EDGE_LATENT}
        self.latent = EdgeLatentSpace(*self.frozen.values()).to(self.runtime.device)
        self.teacher = channels_last(EdgeGenerator(config.model.edge, noise_channel=False))
        self.teacher.recompute = self.stage.recompute
        self.train_network("teacher", self.teacher, average=True)
        self.add_optimizer("teacher", ["teacher"])
        self.diffusion = ResidualDiffusion(config.model.schedule, self.runtime.device)
        self.lpips = LpipsSqueeze.packaged().to(self.runtime.device)

    def step(self, iteration: int, draw: Draw) -> Scalars:
        del iteration
        norm, scalars = self.update("teacher", draw(), self._terms)
        return scalars | {"gradient": norm}

    def _terms(self, part: Part) -> tuple[Tensor, Scalars]:
        lq, noise = part.batch.y0, part.noise
        with torch.no_grad():
            z0, z_y = self.latent.encode(part.batch.x0, lq)
        t = noise.choice("t", tuple(range(self.diffusion.steps)))
        x = self.diffusion.q_sample(z0, z_y, t, noise.like("z_t", z0), scaled=True)
        loss = teacher_loss(self.live["teacher"](x, t, lq), z0).mean()
        return loss, {"loss": loss}

    @torch.no_grad()
    def validate(self) -> Validation:
        """One step (z0_hat at T, decoded) and all T steps, on the same crops."""
        x0, lq = self.validation.x0, self.validation.y0
        teacher = self.averages["teacher"].average
        base, z_y, noise = bicubic_up(lq), self.latent.condition(lq), self.validation_noise(len(lq))
        noises = [noise.like(f"z_{i}", z_y) for i in range(self.diffusion.steps)]
        last = self.diffusion.last(len(z_y))
        one = teacher(self.diffusion.scale(self.diffusion.prior(z_y, noises[0]), last), last, lq)
        many = self.diffusion.ancestral(teacher, z_y, lq, noises)
        figures: dict[str, float] = {}
        images = [base]
        for name, latent in (("one_step", one), ("all_steps", many)):
            image = base + self.latent.detail(cast(Tensor, latent), lq)
            figures |= {f"{name}_{key}": value for key, value in image_figures(image, x0, self.lpips).items()}
            images.append(image)
        return Validation(figures, (*images, x0))
