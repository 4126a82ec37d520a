"""The form in which an edge tile is exported: the same function, cheaper for every runtime measured.

A pixel shuffle inside the network becomes two reshapes around the transpose of one pair of axes in channels-last order,
which runtimes that keep integers channels-last do without leaving that order.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from rsd_edge.models.edge import EdgeTile, SubPixelConv


@torch.no_grad()
def deploy(tile: EdgeTile) -> EdgeTile:
    """Rewrite the tile in place, and return it. The last shuffle stays: its result leaves channel by channel."""
    for layers in (tile.student.up, tile.decoder.up_half):
        layers[1] = _channels_last_shuffle(layers)
    return tile


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
