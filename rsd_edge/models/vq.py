"""The f4 VQ autoencoder that the published models share: images (n, 3, 4h, 4w) to latents (n, 3, h, w) and back.

Parameter names are those of the published checkpoint. Normalisation and code-book distances run in fp32.
"""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from rsd_edge.models.recompute import run_block
from rsd_edge.models.swin_unet import GroupNorm32
from rsd_edge.specs import VqArchitecture

_EPS = 1e-6
_DISTANCES_AT_ONCE = 1 << 24
"""Entries of the distance matrix that are computed together: 64 MB."""
_SCORES_AT_ONCE = 1 << 24
"""Likewise of the matrix of attention scores, in graphs."""


def _norm(channels: int) -> GroupNorm32:
    return GroupNorm32(channels, eps=_EPS)


class ResnetBlock(nn.Module):
    """Two normalised convolutions and a shortcut."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = _norm(channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = _norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if channels != out_channels:
            self.nin_shortcut = nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(functional.silu(self.norm1(x)))
        hidden = self.conv2(functional.silu(self.norm2(hidden)))
        shortcut = self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x
        return cast(Tensor, shortcut + hidden)


class PixelAttention(nn.Module):
    """One head among all pixels. The fused kernel never holds the matrix of all scores."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v = (nn.Conv2d(channels, channels, 1) for _ in range(3))
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        normed = self.norm(x)
        # The fused kernel wants the channels last; otherwise torch forms the matrix of all scores in silence.
        q, k, v = (
            conv(normed).reshape(n, 1, c, h * w).transpose(2, 3).contiguous() for conv in (self.q, self.k, self.v)
        )
        # Graphs have no fused kernel: there, a tile of 256 would need 17 GB for its scores.
        attend = _attend_in_parts if torch.onnx.is_in_onnx_export() else functional.scaled_dot_product_attention
        mixed = attend(q, k, v)
        return cast(Tensor, x + self.proj_out(mixed.transpose(2, 3).reshape(n, c, h, w)))


def _attend_in_parts(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of (n, 1, pixels, c), some of the pixels at a time."""
    pixels, scale, keys = int(k.shape[2]), int(q.shape[3]) ** -0.5, k.transpose(2, 3)
    rows = max(1, _SCORES_AT_ONCE // pixels)
    parts = (q[:, :, start : start + rows] for start in range(0, pixels, rows))
    return torch.cat([((part * scale) @ keys).softmax(3) @ v for part in parts], dim=2)


class Middle(nn.Module):
    """The blocks at the lowest resolution, which is that of the latent."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels)
        self.attn_1 = PixelAttention(channels)
        self.block_2 = ResnetBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.block_2(self.attn_1(self.block_1(x))))


class HalfSize(nn.Module):
    """A strided convolution that pads on the right and below only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv(functional.pad(x, (0, 1, 0, 1))))


class DoubleSize(nn.Module):
    """Nearest neighbours, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest")))


class Level(nn.Module):
    """Residual blocks of one resolution and the change to the next."""

    def __init__(self, channels: int, out_channels: int, blocks: int) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResnetBlock(channels if i == 0 else out_channels, out_channels) for i in range(blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        for name in ("downsample", "upsample"):
            if hasattr(self, name):
                x = getattr(self, name)(x)
        return x


class VqEncoder(nn.Module):
    """Image (n, 3, 4h, 4w) to (n, z_channels, h, w)."""

    def __init__(self, arch: VqArchitecture) -> None:
        super().__init__()
        widths = [arch.ch, *(arch.ch * factor for factor in arch.ch_mult)]
        self.conv_in = nn.Conv2d(arch.in_channels, arch.ch, 3, padding=1)
        self.down = nn.ModuleList(Level(width, after, arch.num_res_blocks) for width, after in pairwise(widths))
        for level, width in zip(list(self.down)[:-1], widths[1:], strict=False):
            level.downsample = HalfSize(width)
        self.mid = Middle(widths[-1])
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], arch.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return cast(Tensor, self.conv_out(functional.silu(self.norm_out(self.mid(x)))))


class VqDecoder(nn.Module):
    """(n, z_channels, h, w) to image (n, 3, 4h, 4w)."""

    def __init__(self, arch: VqArchitecture) -> None:
        super().__init__()
        self.recompute = False
        """Trade time for memory in training (`rsd_edge.models.recompute`)."""
        widths = [arch.ch * factor for factor in arch.ch_mult]
        above = [*widths[1:], widths[-1]]
        self.conv_in = nn.Conv2d(arch.z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList(
            Level(before, width, arch.num_res_blocks + 1) for before, width in zip(above, widths, strict=True)
        )
        for level, width in zip(list(self.up)[1:], widths[1:], strict=True):
            level.upsample = DoubleSize(width)
        self.norm_out = _norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], arch.out_ch, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = run_block(level, x, recompute=self.recompute)
        return cast(Tensor, self.conv_out(functional.silu(self.norm_out(x))))


class CodeBook(nn.Module):
    """Replaces each pixel of a latent by the nearest of its codes."""

    def __init__(self, codes: int, channels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, channels)

    def indices(self, z: Tensor) -> Tensor:
        """Nearest code of each pixel, int64 (n, h, w), by Euclidean distance in fp32."""
        n, _, h, w = z.shape
        pixels, codes = z.float().flatten(2).transpose(1, 2), self.embedding.weight.float()
        rows = max(1, _DISTANCES_AT_ONCE // (len(codes) * int(n)))
        half_norms = codes.square().sum(1) / 2
        parts = (pixels[:, start : start + rows] for start in range(0, int(h * w), rows))
        nearest = [torch.argmin(half_norms - part @ codes.T, dim=2) for part in parts]
        return torch.cat(nearest, dim=1).reshape(n, h, w)

    def forward(self, z: Tensor) -> Tensor:
        codes = self.embedding(self.indices(z)).permute(0, 3, 1, 2).to(z.dtype)
        # Straight through: the gradient of the code is that of the latent.
        return cast(Tensor, z + (codes - z).detach()) if z.requires_grad else cast(Tensor, codes)


class VqAutoencoder(nn.Module):
    """`encode` and `decode`; images are RGB in [-1, 1]."""

    def __init__(self, arch: VqArchitecture) -> None:
        super().__init__()
        self.arch = arch
        self.encoder = VqEncoder(arch)
        self.decoder = VqDecoder(arch)
        self.quantize = CodeBook(arch.n_embed, arch.embed_dim)
        self.quant_conv = nn.Conv2d(arch.z_channels, arch.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(arch.embed_dim, arch.z_channels, 1)

    def encode(self, image: Tensor) -> Tensor:
        """Image (n, 3, 4h, 4w) to latent (n, 3, h, w), not quantised."""
        return cast(Tensor, self.quant_conv(self.encoder(image.to(self.quant_conv.weight.dtype))))

    def decode(self, z: Tensor, *, quantise: bool = True) -> Tensor:
        """Latent (n, 3, h, w) to image (n, 3, 4h, 4w); `quantise` replaces each pixel by the nearest code first."""
        z = z.to(self.quant_conv.weight.dtype)
        return cast(Tensor, self.decoder(self.post_quant_conv(self.quantize(z) if quantise else z)))
