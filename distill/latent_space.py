"""The latent space of a teacher: from images to latents and back, by the autoencoder that the teacher was trained with.

Shapes: HR image x0 (n, 3, 4h, 4w) and LR image y0 (n, 3, h, w), RGB in [-1, 1]; latents (n, zc, h, w), float32.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import cast

import torch
from torch import Tensor, nn

from rsd_edge.models.published import bicubic_up
from rsd_edge.models.vq import VqAutoencoder


class LatentSpace(nn.Module):
    """What a student stage needs of an autoencoder."""

    recompute: bool = False
    """Trade time for memory in `detail` (`rsd_edge.models.recompute`), where the decoder is the published one: the
    compact one is small."""

    @abstractmethod
    def encode(self, x0: Tensor, y0: Tensor) -> tuple[Tensor, Tensor]:
        """z0 = Enc(x0), without gradients, and z_y of y0."""

    @abstractmethod
    def condition(self, y0: Tensor) -> Tensor:
        """z_y, where the chain ends: the encoded bicubic image, or what stands for it."""

    @abstractmethod
    def detail(self, z0: Tensor, y0: Tensor) -> Tensor:
        """Dec(z0) less the bicubic image, (n, 3, 4h, 4w)."""


class EdgeLatentSpace(LatentSpace):
    """Encoder, stem and LR-guided decoder of the compact networks."""

    def __init__(self, encoder: nn.Module, stem: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.stem, self.decoder = encoder, stem, decoder

    def encode(self, x0: Tensor, y0: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            z0 = self.encoder(x0).float()
        return z0, self.condition(y0)

    def condition(self, y0: Tensor) -> Tensor:
        return cast(Tensor, self.stem(y0)).float()

    def detail(self, z0: Tensor, y0: Tensor) -> Tensor:
        return cast(Tensor, self.decoder(z0, y0)).float()


class VqLatentSpace(LatentSpace):
    """The published autoencoder. Its encoder sees HR and bicubic image in one batch."""

    def __init__(self, autoencoder: VqAutoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    @torch.no_grad()
    def encode(self, x0: Tensor, y0: Tensor) -> tuple[Tensor, Tensor]:
        z0, z_y = self.autoencoder.encode(torch.cat([x0, bicubic_up(y0)])).float().chunk(2)
        return z0, z_y

    @torch.no_grad()
    def condition(self, y0: Tensor) -> Tensor:
        return self.autoencoder.encode(bicubic_up(y0)).float()

    def detail(self, z0: Tensor, y0: Tensor) -> Tensor:
        """Through the nearest codes, as at inference; gradients pass straight through them."""
        # Distances to the codes are taken in fp32 whatever the autocast state.
        with torch.autocast(z0.device.type, enabled=False):
            z_q = self.autoencoder.quantize(z0.float())
        self.autoencoder.decoder.recompute = self.recompute
        return self.autoencoder.decode(z_q, quantise=False).float() - bicubic_up(y0)
