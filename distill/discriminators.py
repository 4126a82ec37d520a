"""The two discriminators: a head on the fake model's encoder, as RSD has it, and one of patches of pixels."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from rsd_edge.models.edge import conv3x3


class FeatureHead(nn.Module):
    """Bottleneck features (n, channels, h, w) to a map of logits (n, 1, h, w).

    The paper only says that the head sits on the fake model's encoder; its layers are ours.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            conv3x3(channels, width), nn.LeakyReLU(0.2), conv3x3(width, width), nn.LeakyReLU(0.2), conv3x3(width, 1)
        )

    def forward(self, bottleneck: Tensor) -> Tensor:
        return cast(Tensor, self.layers(bottleneck)).float()


class FakeModel(nn.Module):
    """f_phi and the discriminator's head on its encoder, in one pass."""

    def __init__(self, denoiser: nn.Module, head: FeatureHead | None) -> None:
        super().__init__()
        self.denoiser, self.head = denoiser, head

    def forward(self, x_scaled: Tensor, t: Tensor, lq: Tensor, denoised: int) -> tuple[Tensor | None, Tensor | None]:
        """f_phi of the first `denoised` samples, and logits (n - denoised, 1, h, w) of the others; None for no sample.

        f_phi is told t and never t_n.
        """
        features = self.denoiser.encode(x_scaled, t, lq)  # type: ignore[operator]
        f_phi, logits = None, None
        if denoised:
            f_phi = self.denoiser.decode(features.first(denoised)).float()  # type: ignore[operator]
        if denoised < len(x_scaled):
            assert self.head is not None
            logits = self.head(features.bottleneck[denoised:])
        return f_phi, logits


class PatchDiscriminator(nn.Module):
    """Image and its bicubic base, both (n, 3, H, W) in [-1, 1], to a map of logits (n, 1, H / 4, W / 4).

    It judges texture, a patch of 28 pixels at a time; spectral normalisation keeps it from running away. The norms are
    estimated by `refine` alone, once for each step of its optimiser: estimated in every pass, as PyTorch does in
    training mode, they would depend on how many passes a batch takes.
    """

    def __init__(self, width: int = 40) -> None:
        super().__init__()
        layers = (
            nn.Conv2d(6, width, 3, padding=1),
            nn.Conv2d(width, width, 4, stride=2, padding=1),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            conv3x3(2 * width, 2 * width),
            conv3x3(2 * width, 1),
        )
        self.layers = nn.ModuleList(nn.utils.parametrizations.spectral_norm(layer) for layer in layers)
        self.eval()

    @torch.no_grad()
    def refine(self) -> None:
        """One power iteration of every layer's spectral norm."""
        self.train()
        for layer in self.layers:
            layer.weight  # noqa: B018 (in training mode, computing a normalised weight is an iteration)
        self.eval()

    def forward(self, image: Tensor, base: Tensor) -> Tensor:
        x = torch.cat([image, base], dim=1)
        for layer in self.layers[:-1]:
            x = functional.leaky_relu(layer(x), 0.2)
        return self.layers[-1](x)  # type: ignore[no-any-return]
