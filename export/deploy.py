"""The form in which an edge tile is exported: the same function, cheaper for every runtime measured.

Two rewrites, both exact but for the order of additions:

- The convolutions at four times the LR resolution have few channels and large maps, the worst shape for a matrix unit
  and for a cache. They become convolutions at twice the resolution whose channels hold the four sub-pixel phases.
- A pixel shuffle inside the network becomes two reshapes around the transpose of one pair of axes in channels-last
  order, which runtimes that keep integers channels-last do without leaving that order.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from rsd_edge.models.edge import EdgeTile, SubPixelConv

_KERNEL = 3


@torch.no_grad()
def deploy(tile: EdgeTile) -> EdgeTile:
    """Rewrite the tile in place, and return it."""
    decoder = tile.decoder
    tile.student.up[1] = _channels_last_shuffle(tile.student.up)
    decoder.up_half[1] = _channels_last_shuffle(decoder.up_half)
    if len(decoder.mix_full):
        shuffle = decoder.up_full[1]
        del decoder.up_full[1]
        packed = (pack_phases(layer) if isinstance(layer, nn.Conv2d) else layer for layer in decoder.mix_full)
        decoder.mix_full = nn.Sequential(*packed, shuffle)
    return tile


@torch.no_grad()
def pack_phases(conv: nn.Conv2d) -> nn.Conv2d:
    """The 3x3 convolution that does on phases at half the resolution what `conv` does at the full one.

    With U = pixel unshuffle by 2: packed(U(x)) = U(conv(x)), the zero padding included. A quarter of its weights are
    those of `conv`, the rest zeros.
    """
    channels_out, channels_in = conv.weight.shape[:2]
    packed = nn.Conv2d(4 * channels_in, 4 * channels_out, _KERNEL, padding=1)
    packed.weight.zero_()
    for phase_y in range(2):
        for phase_x in range(2):
            for ky in range(_KERNEL):
                for kx in range(_KERNEL):
                    # The pixel under this tap, counted from the even row and column of its 2 x 2 block.
                    y, x = phase_y + ky - 1, phase_x + kx - 1
                    out, source = 2 * phase_y + phase_x, 2 * (y % 2) + x % 2
                    packed.weight[out::4, source::4, y // 2 + 1, x // 2 + 1] = conv.weight[:, :, ky, kx]
    cast(Tensor, packed.bias).copy_(cast(Tensor, conv.bias).repeat_interleave(4))
    return packed


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
