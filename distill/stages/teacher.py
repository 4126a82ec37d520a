"""Stage 2: the teacher, a ResShift in the latent space: f(z_t scaled, t, y0) -> z0 over all T steps."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from rsd_edge.distill.config import DistillConfig
from rsd_edge.distill.data import validation_batch
from rsd_edge.distill.diffusion import ResidualDiffusion
from rsd_edge.distill.ema import Ema
from rsd_edge.distill.loop import Draw, Stage
from rsd_edge.distill.objectives import teacher_loss
from rsd_edge.distill.perceptual import LpipsSqueeze
from rsd_edge.distill.roles import bicubic_up, channels_last, load_part, load_stage
from rsd_edge.distill.validate import image_figures
from rsd_edge.models.edge import EdgeGenerator


class TeacherStage(Stage):
    """Trains the generator without noise channel on ||f(z_t, t, y0) - z0||^2, t uniform."""

    name = "teacher"

    def __init__(self, config: DistillConfig) -> None:
        super().__init__(config, config.teacher)
        torch.manual_seed(config.seed + 1)
        autoencoder = load_stage(config, "autoencoder")
        self.frozen = {part: load_part(autoencoder, part) for part in ("encoder", "stem", "decoder")}
        self.teacher = channels_last(EdgeGenerator(config.model.edge, noise_channel=False))
        self.networks = {"teacher": self.teacher}
        self.averages = {"teacher": Ema(self.teacher, self.stage.ema)}
        self.add_optimizer("teacher", self.teacher.parameters(), self.stage.lr)
        self.diffusion = ResidualDiffusion(config.model.schedule)
        self.lpips = LpipsSqueeze.packaged()
        self.validation = validation_batch(config.data, config.crop_of(self.stage), config.seed)

    def step(self, iteration: int, draw: Draw, generator: torch.Generator) -> dict[str, Tensor]:
        del iteration
        batch = draw()
        with self.autocast():
            with torch.no_grad():
                z0 = self.frozen["encoder"](batch.x0).float()
                z_y = self.frozen["stem"](batch.y0).float()
            t = torch.randint(self.diffusion.steps, (len(z0),), generator=generator)
            z_t = self.diffusion.q_sample(z0, z_y, t, torch.randn(z0.shape, generator=generator))
            loss = teacher_loss(self.teacher(self.diffusion.scale(z_t, t), t, batch.y0), z0).mean()
        return {"loss": loss, "gradient": self.update("teacher", loss)}

    @torch.no_grad()
    def validate(self, generator: torch.Generator) -> dict[str, float]:
        """One step (z0_hat at T, decoded) and all T steps, on the same crops."""
        x0, y0 = self.validation.x0, self.validation.y0
        teacher = self.averages["teacher"].average
        base, z_y = bicubic_up(y0), self.frozen["stem"](y0)
        z_T = self.diffusion.prior(z_y, torch.randn(z_y.shape, generator=generator))  # noqa: N806 (the paper's symbol)
        last = self.diffusion.last(len(z_y))
        one = teacher(self.diffusion.scale(z_T, last), last, y0)
        many = self.diffusion.ancestral(teacher, z_y, y0, generator)
        figures: dict[str, float] = {}
        for name, latent in (("one_step", one), ("all_steps", many)):
            image = base + cast(Tensor, self.frozen["decoder"](latent, y0))
            figures |= {f"{name}_{key}": value for key, value in image_figures(image, x0, self.lpips).items()}
        return figures
