"""Stage 1: the latent space. Encoder and LR-guided decoder reconstruct; the stem learns to replace the encoder."""

from __future__ import annotations

import itertools
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from rsd_edge.distill.config import DistillConfig
from rsd_edge.distill.data import validation_batch
from rsd_edge.distill.ema import Ema
from rsd_edge.distill.loop import Draw, Stage
from rsd_edge.distill.perceptual import LpipsSqueeze
from rsd_edge.distill.pixel_losses import PixelCriterion
from rsd_edge.distill.roles import bicubic_up, channels_last
from rsd_edge.distill.validate import image_figures, lattice_figures
from rsd_edge.models.edge import EdgeDecoder, EdgeEncoder, EdgeStem


class AutoencoderStage(Stage):
    """z0 = Enc(x0); x0_hat = bicubic(y0) + Dec(z0 + noise, y0); stem(y0) -> Enc(bicubic(y0))."""

    name = "autoencoder"

    def __init__(self, config: DistillConfig) -> None:
        super().__init__(config, config.autoencoder)
        self.require_loss("lpips_weight", "pixel_weight", "chroma_weight")
        torch.manual_seed(config.seed)
        arch = config.model.edge
        self.encoder = channels_last(EdgeEncoder(arch))
        self.stem = channels_last(EdgeStem(arch))
        self.decoder = channels_last(EdgeDecoder(arch))
        self.networks = {"encoder": self.encoder, "stem": self.stem, "decoder": self.decoder}
        self.averages = {name: Ema(network, self.stage.ema) for name, network in self.networks.items()}
        parameters = itertools.chain.from_iterable(network.parameters() for network in self.networks.values())
        self.add_optimizer("autoencoder", parameters, self.stage.lr)
        self.lpips = channels_last(LpipsSqueeze.packaged())
        self.criterion = PixelCriterion(self.stage, self.lpips)
        self.validation = validation_batch(config.data, config.crop_of(self.stage), config.seed)

    def step(self, iteration: int, draw: Draw, generator: torch.Generator) -> dict[str, Tensor]:
        del iteration
        batch = draw()
        scalars: dict[str, Tensor] = {}
        with self.autocast():
            base = bicubic_up(batch.y0)
            z0 = self.encoder(batch.x0)
            z0 = z0 + self.stage.latent_noise * torch.randn(z0.shape, generator=generator)
            detail = self.decoder(z0, batch.y0).float()
            loss = self.criterion(detail, base, batch.x0, generator, scalars)
            with torch.no_grad():
                # The statistics of HR images alone define the latent, so the bicubic image must not move them.
                self.encoder.eval()
                z_y = self.encoder(base)
                self.encoder.train()
            scalars["stem"] = functional.mse_loss(self.stem(batch.y0).float(), z_y)
        scalars["gradient"] = self.update("autoencoder", loss + scalars["stem"])
        return scalars

    @torch.no_grad()
    def validate(self, generator: torch.Generator) -> dict[str, float]:
        del generator
        x0, y0 = self.validation.x0, self.validation.y0
        average = {name: ema.average for name, ema in self.averages.items()}
        base = bicubic_up(y0)
        z0 = average["encoder"](x0)
        detail = average["decoder"](z0, y0)
        stem_error = functional.mse_loss(average["stem"](y0), average["encoder"](base))
        figures = image_figures(base + detail, x0, self.lpips)
        bicubic = image_figures(base, x0, self.lpips)
        figures |= lattice_figures(detail)
        figures |= {f"bicubic_{name}": value for name, value in bicubic.items()}
        return figures | {
            "stem_mse": round(float(stem_error), 4),
            "latent_std": round(float(cast(Tensor, z0).std()), 3),
        }
