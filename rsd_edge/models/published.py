"""ResShift, SinSR and RSD as they run: encoder, generator and decoder of one model, with their scaling and padding."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from rsd_edge.models.checkpoint import Checkpoint
from rsd_edge.models.swin_unet import SwinUNet
from rsd_edge.models.vq import VqAutoencoder
from rsd_edge.sampling import sample
from rsd_edge.schedule import ResidualSchedule
from rsd_edge.specs import ModelSpec

GENERATOR = "generator"
AUTOENCODER = "autoencoder"


class Encoder(nn.Module):
    """Enlarged LR image (n, 3, 4h, 4w), RGB in [-1, 1], to z_y (n, 3, h, w) in fp32."""

    def __init__(self, autoencoder: VqAutoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, image: Tensor) -> Tensor:
        return self.autoencoder.encode(image).float()


class ScaledGenerator(nn.Module):
    """(z_t, t, lq[, eps]) to z0_hat, all fp32: the generator behind the schedule's scaling of its input."""

    std: Tensor

    def __init__(self, generator: SwinUNet, schedule: ResidualSchedule) -> None:
        super().__init__()
        self.generator = generator
        variance = torch.tensor(schedule.etas).float() * schedule.kappa**2 + 1.0
        self.register_buffer("std", variance.sqrt(), persistent=False)

    def forward(self, z_t: Tensor, t: Tensor, lq: Tensor, eps: Tensor | None = None) -> Tensor:
        """t: step indices, int64 (1,), the same for the whole batch. eps: for a student, (n, 1, h, w)."""
        std = self.std[t].float().reshape(1, 1, 1, 1)
        return cast(Tensor, self.generator(z_t / std, t, lq, eps)).float()


class Decoder(nn.Module):
    """z0 (n, 3, h, w) to image (n, 3, 4h, 4w) in fp32; by way of the nearest codes, or without looking them up."""

    def __init__(self, autoencoder: VqAutoencoder, *, quantise: bool = True) -> None:
        super().__init__()
        self.autoencoder, self.quantise = autoencoder, quantise

    def forward(self, z0: Tensor) -> Tensor:
        if self.quantise:  # before the cast to the network's dtype: distances to the codes are taken in fp32
            z0 = self.autoencoder.quantize(z0)
        return self.autoencoder.decode(z0, quantise=False).float()


class PublishedModel(nn.Module):
    """(lq, noise) -> image (n, 3, 4h, 4w), RGB, not clamped."""

    def __init__(
        self, model: ModelSpec, generator: SwinUNet, autoencoder: VqAutoencoder, *, quantise: bool = True
    ) -> None:
        super().__init__()
        self.model = model
        self.encoder = Encoder(autoencoder)
        self.generator = ScaledGenerator(generator, ResidualSchedule(model.schedule))
        self.decoder = Decoder(autoencoder, quantise=quantise)
        self.takes_noise = generator.arch.noise_channels > 0

    def forward(self, lq: Tensor, noise: Tensor) -> Tensor:
        """lq: (n, 3, h, w), RGB in [-1, 1], of any size. noise: standard normal (n, model.noise_channels, h, w)."""
        h, w = lq.shape[2:]
        lq, noise = (pad_to_multiple(x, self.model.multiple_of) for x in (lq, noise))
        image: Tensor = self.decoder(self.sample(lq, noise))
        return image[:, :, : 4 * h, : 4 * w]

    def sample(self, lq: Tensor, noise: Tensor) -> Tensor:
        """z0 (n, 3, h, w) for sides that are multiples already."""
        z_y: Tensor = self.encoder(bicubic_up(lq))
        eps = noise[:, -1:] if self.takes_noise else None

        def predict(z_t: Tensor, t: int) -> Tensor:
            return cast(Tensor, self.generator(z_t, torch.tensor([t], device=z_t.device), lq, eps))

        return sample(predict, self.model, z_y, noise)


def published_model(checkpoint: Checkpoint, *, quantise: bool = True) -> PublishedModel:
    """The networks of a checkpoint, in evaluation mode. Raises ModelError for another family or a part that misfits."""
    arch = checkpoint.spec.published
    generator, autoencoder = SwinUNet(arch.unet), VqAutoencoder(arch.vq)
    checkpoint.load_into(GENERATOR, generator)
    checkpoint.load_into(AUTOENCODER, autoencoder)
    return PublishedModel(checkpoint.spec, generator, autoencoder, quantise=quantise).eval().requires_grad_(False)


def bicubic_up(lq: Tensor) -> Tensor:
    """(n, 3, h, w) to (n, 3, 4h, 4w): what the encoder sees (a = -0.75, no antialias)."""
    return functional.interpolate(lq.float(), scale_factor=4, mode="bicubic", align_corners=False)


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Reflect (n, c, h, w) on the right and below until both sides are multiples, again where they are small."""
    while any(side % multiple for side in x.shape[2:]):
        h, w = x.shape[2:]
        below, right = (min(-side % multiple, side - 1) for side in (h, w))
        if not below and not right:  # one pixel has nothing to reflect
            return functional.pad(x, (0, -w % multiple, 0, -h % multiple), mode="replicate")
        x = functional.pad(x, (0, right, 0, below), mode="reflect")
    return x
