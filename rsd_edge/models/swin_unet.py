"""The generator of ResShift, SinSR and RSD: a UNet of residual blocks with windowed (Swin) attention.

Parameter names are those of the published checkpoints, which load strictly. What these files carry besides, the index
of relative positions and the attention masks, follows from sizes alone and is computed here once for each input size.

Normalisation runs in fp32 whatever the network's dtype; so does the softmax inside scaled_dot_product_attention.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from rsd_edge.models.recompute import run_block
from rsd_edge.specs import SwinUNetArchitecture

_GROUPS = 32
_LONGEST_PERIOD = 10000.0
_MASKED = -100.0


class GroupNorm32(nn.GroupNorm):
    """Group normalisation in fp32 that returns the dtype it was given."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(_GROUPS, channels, eps)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        return functional.group_norm(x.float(), self.num_groups, weight, bias, self.eps).to(x.dtype)


class ResBlock(nn.Module):
    """Two convolutions around a scale and shift by the timestep's embedding, plus a skip connection."""

    def __init__(self, channels: int, embedding: int, out_channels: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            GroupNorm32(channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * out_channels))
        self.out_layers = nn.Sequential(
            GroupNorm32(out_channels), nn.SiLU(), nn.Identity(), nn.Conv2d(out_channels, out_channels, 3, padding=1)
        )
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.emb_layers(embedding)[..., None, None].chunk(2, dim=1)
        norm, rest = self.out_layers[0], self.out_layers[1:]
        hidden = norm(self.in_layers(x)) * (1 + scale) + shift
        return cast(Tensor, self.skip_connection(x) + rest(hidden))


class Downsample(nn.Module):
    """Half the size, by a strided convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.op(x))


class Upsample(nn.Module):
    """Twice the size: nearest neighbours, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest")))


class WindowAttention(nn.Module):
    """Attention among the pixels of each window, with a learned bias for every relative position."""

    def __init__(self, channels: int, window: int, heads: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.register_buffer("_index", relative_position_index(window).reshape(-1), persistent=False)

    def forward(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        """windows: (n, count, window^2, c). mask: (count, window^2, window^2), added to the scores, or None."""
        n, count, pixels, channels = windows.shape
        qkv = self.qkv(windows).reshape(n * count, pixels, 3, self.heads, channels // self.heads)
        # Four dimensions: for five, torch has no fused kernel.
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        bias = (
            self.relative_position_bias_table[cast(Tensor, self._index)]
            .reshape(1, pixels, pixels, self.heads)
            .permute(0, 3, 1, 2)
        )
        if mask is not None:
            bias = (bias + mask[:, None].to(bias.dtype)).repeat(n, 1, 1, 1)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        return cast(Tensor, self.proj(mixed.transpose(1, 2).reshape(n, count, pixels, channels)))


class PointwiseMlp(nn.Module):
    """Two 1x1 convolutions around a GELU."""

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__()
        hidden = int(channels * ratio)
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.fc2(functional.gelu(self.fc1(x))))


class SwinBlock(nn.Module):
    """Window attention and an MLP, both residual; with a shift, the windows lie across those of the block before."""

    def __init__(self, channels: int, heads: int, window: int, shift: int, mlp_ratio: float) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = GroupNorm32(channels)
        self.attn = WindowAttention(channels, window, heads)
        self.norm2 = GroupNorm32(channels)
        self.mlp = PointwiseMlp(channels, mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._attend(self.norm1(x))
        return cast(Tensor, x + self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        size, mask = self.window, None
        rows = x.permute(0, 2, 3, 1)
        if self.shift:
            rows = rows.roll((-self.shift, -self.shift), (1, 2))
            mask = shifted_window_mask(h, w, size, self.shift, x.device)
        windows = rows.reshape(n, h // size, size, w // size, size, c).transpose(2, 3)
        mixed = self.attn(windows.reshape(n, -1, size * size, c), mask)
        rows = mixed.reshape(n, h // size, w // size, size, size, c).transpose(2, 3).reshape(n, h, w, c)
        if self.shift:
            rows = rows.roll((self.shift, self.shift), (1, 2))
        return cast(Tensor, rows.permute(0, 3, 1, 2))


class PixelProjection(nn.Module):
    """A 1x1 convolution, under the name that it has in the checkpoints."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.proj(x))


class SwinLayer(nn.Module):
    """Swin blocks at their own width, every second one shifted where the network's own size has several windows."""

    def __init__(self, channels: int, arch: SwinUNetArchitecture, resolution: int) -> None:
        super().__init__()
        self.resolution = resolution
        width = arch.swin_embed_dim
        window = min(arch.window_size, resolution)
        shift = arch.window_size // 2 if resolution > arch.window_size else 0
        heads = width // arch.num_head_channels
        self.patch_embed = PixelProjection(channels, width)
        self.blocks = nn.ModuleList(
            SwinBlock(width, heads, window, shift if i % 2 else 0, arch.mlp_ratio) for i in range(arch.swin_depth)
        )
        self.patch_unembed = PixelProjection(width, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        for block in self.blocks:
            x = block(x)
        return cast(Tensor, self.patch_unembed(x))


class SwinFeatures(NamedTuple):
    """What the encoder half of a `SwinUNet` hands to its decoder half."""

    bottleneck: Tensor
    """(n, bottleneck_channels, h / 8, w / 8) for four levels."""
    skips: tuple[Tensor, ...]
    embedding: Tensor
    """(n, c), or (1, c) for the whole batch."""

    def first(self, n: int) -> SwinFeatures:
        """Those of the first n samples."""
        return SwinFeatures(self.bottleneck[:n], tuple(skip[:n] for skip in self.skips), self.embedding[:n])


class SwinUNet(nn.Module):
    """f(x_t scaled, t, lq[, eps]) -> x0_hat in the latent space, (n, 3, h, w), h and w multiples of `multiple_of`.

    The inputs are concatenated in that order; `eps` (n, 1, h, w) is the student's noise channel (RSD, Section 3.3).
    """

    def __init__(self, arch: SwinUNetArchitecture) -> None:
        super().__init__()
        self.arch = arch
        self.recompute = False
        """Trade time for memory in training (`rsd_edge.models.recompute`)."""
        width, embedding = arch.model_channels, 4 * arch.model_channels
        self.time_embed = nn.Sequential(nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        down = _Builder(arch, embedding)
        self.input_blocks = down.input_blocks()
        self.bottleneck_channels = down.channels
        self.middle_block = nn.ModuleList(
            (
                ResBlock(down.channels, embedding, down.channels),
                SwinLayer(down.channels, arch, down.resolution),
                ResBlock(down.channels, embedding, down.channels),
            )
        )
        self.output_blocks = down.output_blocks()
        self.out = nn.Sequential(GroupNorm32(width), nn.SiLU(), nn.Conv2d(width, arch.out_channels, 3, padding=1))

    def published_buffers(self) -> dict[str, tuple[int, ...]]:
        """Shapes, by name, of what published files may carry besides weights: `recomputed` tells them."""
        shapes: dict[str, tuple[int, ...]] = {}
        for name, layer in self.named_modules():
            for i, module in enumerate(layer.blocks if isinstance(layer, SwinLayer) else ()):
                block, pixels = cast(SwinBlock, module), cast(SwinBlock, module).window ** 2
                shapes[f"{name}.blocks.{i}.attn.relative_position_index"] = (pixels, pixels)
                if block.shift:
                    count = (cast(SwinLayer, layer).resolution // block.window) ** 2
                    shapes[f"{name}.blocks.{i}.attn_mask"] = (count, pixels, pixels)
        return shapes

    def forward(self, x_t_scaled: Tensor, t: Tensor, lq: Tensor, eps: Tensor | None = None) -> Tensor:
        """
        x_t_scaled: noisy latent (n, 3, h, w) times the schedule's input scale. t: 0-based step indices (n,).
        lq: LR image (n, 3, h, w), RGB in [-1, 1]. eps: standard normal (n, 1, h, w), for a student only.
        """
        return self.decode(self.encode(x_t_scaled, t, lq, eps))

    def encode(self, x_t_scaled: Tensor, t: Tensor, lq: Tensor, eps: Tensor | None = None) -> SwinFeatures:
        """The half down to the bottleneck; arguments as for `forward`."""
        dtype = cast(nn.Linear, self.time_embed[0]).weight.dtype
        inputs = [x_t_scaled, lq] if eps is None else [x_t_scaled, lq, eps]
        x = torch.cat(inputs, dim=1).to(dtype)
        embedding = self.time_embed(timestep_embedding(t, self.arch.model_channels).to(dtype))
        skips = []
        for block in self.input_blocks:
            x = self._run(cast(nn.ModuleList, block), x, embedding)
            skips.append(x)
        return SwinFeatures(self._run(self.middle_block, x, embedding), tuple(skips), embedding)

    def decode(self, features: SwinFeatures) -> Tensor:
        """The half from the bottleneck to x0_hat (n, 3, h, w)."""
        x = features.bottleneck
        for block, skip in zip(self.output_blocks, reversed(features.skips), strict=True):
            x = self._run(cast(nn.ModuleList, block), torch.cat([x, skip], dim=1), features.embedding)
        return cast(Tensor, self.out(x))

    def _run(self, layers: nn.ModuleList, x: Tensor, embedding: Tensor) -> Tensor:
        for layer in layers:
            inputs = (x, embedding) if isinstance(layer, ResBlock) else (x,)
            x = run_block(layer, *inputs, recompute=self.recompute)
        return x


class _Builder:
    """Walks down the levels and up again, and remembers the channels that are joined on the way."""

    def __init__(self, arch: SwinUNetArchitecture, embedding: int) -> None:
        self.arch, self.embedding = arch, embedding
        self.channels, self.resolution = arch.model_channels, arch.image_size
        self._joined: list[int] = []

    def input_blocks(self) -> nn.ModuleList:
        arch = self.arch
        first = nn.Conv2d(arch.in_channels + arch.noise_channels, self.channels, 3, padding=1)
        blocks = [nn.ModuleList([first])]
        self._joined.append(self.channels)
        for level, (factor, count) in enumerate(zip(arch.channel_mult, arch.num_res_blocks, strict=True)):
            for i in range(count):
                blocks.append(self._block(self.channels, factor * arch.model_channels, attention=i == 0))
                self._joined.append(self.channels)
            if level + 1 < len(arch.channel_mult):
                blocks.append(nn.ModuleList([Downsample(self.channels)]))
                self._joined.append(self.channels)
                self.resolution //= 2
        return nn.ModuleList(blocks)

    def output_blocks(self) -> nn.ModuleList:
        arch = self.arch
        blocks = []
        for level, (factor, count) in reversed(
            list(enumerate(zip(arch.channel_mult, arch.num_res_blocks, strict=True)))
        ):
            for i in range(count + 1):
                width = self.channels + self._joined.pop()
                block = self._block(width, factor * arch.model_channels, attention=i == 0)
                if level and i == count:
                    block.append(Upsample(self.channels))
                    self.resolution *= 2
                blocks.append(block)
        return nn.ModuleList(blocks)

    def _block(self, channels: int, out_channels: int, *, attention: bool) -> nn.ModuleList:
        layers: list[nn.Module] = [ResBlock(channels, self.embedding, out_channels)]
        if attention and self.resolution in self.arch.attention_resolutions:
            layers.append(SwinLayer(out_channels, self.arch, self.resolution))
        self.channels = out_channels
        return nn.ModuleList(layers)


def timestep_embedding(t: Tensor, channels: int) -> Tensor:
    """Step indices (n,) to cosines and sines of geometric frequencies, float32 (n, channels)."""
    half = channels // 2
    rates = torch.exp(-math.log(_LONGEST_PERIOD) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
    angles = t.float()[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def relative_position_index(window: int) -> Tensor:
    """Row of the bias table for each pair of pixels of a window, int64 (window^2, window^2)."""
    y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    y, x = y.reshape(-1), x.reshape(-1)
    dy, dx = y[:, None] - y[None], x[:, None] - x[None]
    return (dy + window - 1) * (2 * window - 1) + dx + window - 1


@lru_cache(maxsize=32)
def shifted_window_mask(h: int, w: int, window: int, shift: int, device: torch.device) -> Tensor:
    """0 or -100 between the pixels of each window, (windows, window^2, window^2), as the published networks have it.

    After the roll, the lower windows hold pixels from both ends of the frame. A mask would keep these apart; the one
    that the published networks were trained with keeps the left and the right part of each lower window apart, and
    nothing else. The masks in their checkpoints say the same.
    """
    column = torch.arange(window * window, device=device) % window
    right = column >= window - shift
    apart = right[:, None] != right[None]
    mask = torch.zeros(h // window, w // window, window * window, window * window, device=device)
    mask[-1] = mask[-1].masked_fill(apart, _MASKED)
    return mask.flatten(0, 1)


def recomputed(name: str) -> bool:
    """True for the entries of published state dicts that hold no weights and follow from sizes."""
    return name.endswith((".relative_position_index", ".attn_mask"))


def widen_for_noise(state: dict[str, Tensor], noise_channels: int = 1) -> dict[str, Tensor]:
    """A teacher's state dict as a student's at birth: the first convolution gains zero slices for the noise."""
    name = "input_blocks.0.0.weight"
    weight = state[name]
    shape: Sequence[int] = (weight.shape[0], noise_channels, *weight.shape[2:])
    return {**state, name: torch.cat([weight, weight.new_zeros(shape)], dim=1)}
