"""Stage 1: the latent space. Encoder and LR-guided decoder reconstruct; the stem learns to replace the encoder.

Under a published teacher the latent space is given: its encoder is frozen, and decoder and stem learn to live in it.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from rsd_edge.distill.config import DistillConfig
from rsd_edge.distill.perceptual import LpipsSqueeze
from rsd_edge.distill.pixel_losses import BatchStatistics, PixelCriterion
from rsd_edge.distill.roles import channels_last, published_encoder, teacher_checkpoint
from rsd_edge.distill.runtime import Runtime
from rsd_edge.distill.stage import Draw, Part, Scalars, Stage, Validation
from rsd_edge.distill.validate import image_figures, lattice_figures
from rsd_edge.errors import InputError
from rsd_edge.models.edge import EdgeDecoder, EdgeEncoder, EdgeStem
from rsd_edge.models.published import bicubic_up
from rsd_edge.specs import EDGE_FAMILY


class AutoencoderStage(Stage):
    """z0 = Enc(x0); x0_hat = bicubic(y0) + Dec(z0 + noise, y0); stem(y0) -> Enc(bicubic(y0))."""

    name = "autoencoder"
    unused = ("recompute",)

    def __init__(self, config: DistillConfig, runtime: Runtime | None = None) -> None:
        super().__init__(config, config.autoencoder, runtime)
        self.require_loss("lpips_weight", "pixel_weight", "chroma_weight")
        torch.manual_seed(config.seed)
        arch = config.model.edge
        if config.teacher_model.family == EDGE_FAMILY:
            self.encoder: nn.Module = self._own_encoder()
        else:
            teacher = teacher_checkpoint(config)
            self.given = {"teacher": teacher.digest()}
            self.encoder = published_encoder(teacher).to(self.runtime.device)
        self.train_network("stem", channels_last(EdgeStem(arch)), average=True)
        self.train_network("decoder", channels_last(EdgeDecoder(arch)), average=True)
        self.add_optimizer("autoencoder", self.networks)
        self.lpips = channels_last(LpipsSqueeze.packaged()).to(self.runtime.device)
        self.criterion = PixelCriterion(self.stage, self.lpips, self.runtime)

    def _own_encoder(self) -> nn.Module:
        if self.runtime.processes * self.stage.accumulate > 1:
            raise InputError(
                "stage autoencoder trains in one process with accumulate 1: its batch normalisation, which defines the "
                "latent, sees whole batches only"
            )
        encoder = channels_last(EdgeEncoder(self.config.model.edge))
        self.train_network("encoder", encoder, average=True)
        return encoder

    def step(self, iteration: int, draw: Draw) -> Scalars:
        del iteration
        parts = draw()
        shared = self.criterion.survey(parts, self._detail)
        norm, scalars = self.update("autoencoder", parts, lambda part: self._terms(part, shared))
        return scalars | {"gradient": norm}

    def _detail(self, part: Part) -> Tensor:
        z0 = self.encoder(part.batch.x0)
        z0 = z0 + self.stage.latent_noise * part.noise.like("latent", z0)
        return cast(Tensor, self.live["decoder"](z0, part.batch.y0)).float()

    def _terms(self, part: Part, shared: BatchStatistics | None) -> tuple[Tensor, Scalars]:
        x0, lq, scalars = part.batch.x0, part.batch.y0, cast(Scalars, {})
        base = bicubic_up(lq)
        loss = self.criterion(self._detail(part), base, x0, part.noise, scalars, shared)
        with torch.no_grad():
            # The statistics of HR images alone define the latent, so the bicubic image must not move them.
            self.encoder.eval()
            z_y = self.encoder(base)
            self.encoder.train()
        scalars["stem"] = functional.mse_loss(self.live["stem"](lq).float(), z_y)
        return loss + scalars["stem"], scalars

    @torch.no_grad()
    def validate(self) -> Validation:
        """Reconstruction, beside bicubic, and how well the stem stands for the encoder."""
        x0, lq = self.validation.x0, self.validation.y0
        average = {"encoder": self.encoder} | {name: ema.average for name, ema in self.averages.items()}
        base = bicubic_up(lq)
        z0 = average["encoder"](x0)
        detail = average["decoder"](z0, lq)
        stem_error = functional.mse_loss(average["stem"](lq), average["encoder"](base))
        bicubic = image_figures(base, x0, self.lpips)
        figures = image_figures(base + detail, x0, self.lpips) | lattice_figures(detail)
        figures |= {f"bicubic_{name}": value for name, value in bicubic.items()}
        figures |= {"stem_mse": round(float(stem_error), 4), "latent_std": round(float(cast(Tensor, z0).std()), 3)}
        return Validation(figures, (base, base + detail, x0))
