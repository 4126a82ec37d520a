"""The form in which an edge tile is exported: the same function, cheaper for every runtime measured.

What is linear goes into the weights of the next convolution: the prior's two coefficients and the sum of its two terms.
Pixel shuffles become reshapes and transposes that runtimes do quickly: inside the network one that keeps channels last,
the layout of integer convolutions; at the end two that move one axis each. The detail leaves the way frames are stored,
ready to be added to one: rows of pixels in BGR order.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from rsd_edge.models.edge import RGB, EdgeTile, SubPixelConv

LQ_GAIN = 4.0
"""The LR image in [-1, 1] meets latents and noise, which reach about 4, in one tensor. Scaled like them, it keeps
nearly all of its 256 levels where that tensor becomes 8 bits."""


class DeployedTile(nn.Module):
    """(lq, noise) -> detail as EdgeTile, but (n, 4h, 4w, 3) in BGR order."""

    @torch.no_grad()
    def __init__(self, tile: EdgeTile) -> None:
        """Takes the networks of the tile over and changes their weights."""
        super().__init__()
        self.latent_channels = tile.latent_channels
        self.stem, self.student, self.decoder = tile.stem, tile.student, tile.decoder
        z_y = cast(nn.Conv2d, self.stem.body[-1])
        z_y.weight.mul_(tile.mean_scale)
        cast(Tensor, z_y.bias).mul_(tile.mean_scale)
        self.student.head = _head_of_noise(self.student.head, tile)
        self.decoder.head.weight[:, tile.latent_channels :].div_(LQ_GAIN)
        for layers in (self.student.up, self.decoder.up_half):
            layers[1] = _channels_last_shuffle(layers)
        self.decoder.up_full[1] = _pixel_rows_shuffle(self.decoder.up_full)

    def forward(self, lq: Tensor, noise: Tensor) -> Tensor:
        scaled_lq = LQ_GAIN * lq
        features = self.student.head(torch.cat([self.stem(lq), noise, scaled_lq], dim=1))
        return cast(Tensor, self.decoder(self.student.after_head(features, None), scaled_lq))


def _head_of_noise(head: nn.Conv2d, tile: EdgeTile) -> nn.Conv2d:
    """The student's first convolution, on [z_y scaled, noise, lq scaled] in place of [x_T scaled, lq, eps]."""
    x_t, lq, eps = torch.split(head.weight, [tile.latent_channels, RGB, 1], dim=1)
    weight = torch.cat([x_t, tile.noise_scale * x_t, eps, lq / LQ_GAIN], dim=1)
    wider = nn.Conv2d(weight.shape[1], head.out_channels, 3, padding=1)
    wider.weight.copy_(weight)
    cast(Tensor, wider.bias).copy_(cast(Tensor, head.bias))
    return wider


class ChannelsLastShuffle(nn.Module):
    """Pixel shuffle by 2 of 4 * channels channels in the order (column phase, row phase, channel)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        columns_apart = x.permute(0, 2, 3, 1).reshape(n, h, 2 * w, 2, self.channels)
        return columns_apart.transpose(2, 3).reshape(n, 2 * h, 2 * w, self.channels).permute(0, 3, 1, 2)


def _channels_last_shuffle(layers: SubPixelConv) -> ChannelsLastShuffle:
    conv = cast(nn.Conv2d, layers[0])
    for parameter in (conv.weight, cast(Tensor, conv.bias)):
        by_phase = parameter.reshape(-1, 2, 2, *parameter.shape[1:])  # channel, row phase, column phase
        parameter.copy_(by_phase.permute(2, 1, 0, *range(3, by_phase.ndim)).flatten(0, 2).clone())
    return ChannelsLastShuffle(conv.out_channels // 4)


class PixelRowsShuffle(nn.Module):
    """Pixel shuffle by 2 of 12 channels in the order (row phase, column phase, colour) to (n, 2h, 2w, colour)."""

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        rows = x.reshape(2 * n, 2 * RGB, h * w).transpose(1, 2).reshape(n, 2, h, 2 * RGB * w)
        return rows.transpose(1, 2).reshape(n, 2 * h, 2 * w, RGB)


def _pixel_rows_shuffle(layers: SubPixelConv) -> PixelRowsShuffle:
    conv = cast(nn.Conv2d, layers[0])
    for parameter in (conv.weight, cast(Tensor, conv.bias)):
        by_phase = parameter.reshape(RGB, 2, 2, *parameter.shape[1:]).flip(0)  # BGR, row phase, column phase
        parameter.copy_(by_phase.permute(1, 2, 0, *range(3, by_phase.ndim)).flatten(0, 2).clone())
    return PixelRowsShuffle()
