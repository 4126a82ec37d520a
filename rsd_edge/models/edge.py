"""The compact `edge` networks: encoder, stem, generator, decoder, and the tile that fuses the last three.

Shapes: LR image lq (n, 3, h, w) and HR image (n, 3, 4h, 4w), RGB in [-1, 1]; latent z (n, zc, h, w), normalised to zero
mean and unit variance per channel, which the schedule's input scaling assumes. h and w must be even.

All networks share some choices: ReLU and plain convolutions (they quantise), sub-pixel convolution for upsampling
(no transposed convolution), no normalisation layer and no attention (nothing looks at the whole tile, so that a tile
with its halo gives what the whole frame gives).
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from rsd_edge.models.recompute import run_block
from rsd_edge.schedule import ResidualSchedule
from rsd_edge.specs import EdgeArchitecture, ModelSpec

RGB = 3


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)


class ResidualBlock(nn.Module):
    """x + conv1x1(relu(conv3x3(x))), the second convolution zero-initialised so that a new block is the identity.

    One 3x3 convolution a block, not two: the same arithmetic buys more width and half the receptive radius, and the
    radius is what the halo of a tile has to cover.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_in = conv3x3(width, width)
        self.conv_out = nn.Conv2d(width, width, 1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(cast(Tensor, self.conv_out.bias))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, x + self.conv_out(functional.relu(self.conv_in(x))))


class TimedResidualBlock(ResidualBlock):
    """A residual block whose hidden features are scaled and shifted by the timestep's embedding."""

    def __init__(self, width: int, time_width: int) -> None:
        super().__init__(width)
        self.modulation = nn.Linear(time_width, 2 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        hidden = self.conv_in(x)
        if time is not None:
            scale, shift = self.modulation(time)[..., None, None].chunk(2, dim=1)
            hidden = hidden * (1 + scale) + shift
        return cast(Tensor, x + self.conv_out(functional.relu(hidden)))

    @torch.no_grad()
    def fold(self, time: Tensor) -> None:
        """Bake one timestep, embedded as `time` (1, time_width), into the first convolution."""
        scale, shift = self.modulation(time)[0].chunk(2)
        self.conv_in.weight.mul_((1 + scale)[:, None, None, None])
        bias = cast(Tensor, self.conv_in.bias)
        bias.mul_(1 + scale).add_(shift)


class SubPixelConv(nn.Sequential):
    """Convolution and pixel shuffle, x2. The four phases start equal (ICNR), which keeps the lattice out at birth."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        conv = nn.Conv2d(in_channels, 4 * out_channels, kernel, padding=kernel // 2)
        with torch.no_grad():
            conv.weight.copy_(conv.weight[::4].repeat_interleave(4, dim=0))
            bias = cast(Tensor, conv.bias)
            bias.copy_(bias[::4].repeat_interleave(4))
        super().__init__(conv, nn.PixelShuffle(2))


class EdgeEncoder(nn.Module):
    """HR image (n, 3, 4h, 4w) to latent (n, zc, h, w). Training only.

    The batch normalisation without affine terms is what makes the latent unit-variance; its running statistics are part
    of the latent's definition, so the decoder and the stem need no scaling of their own.
    """

    def __init__(self, arch: EdgeArchitecture) -> None:
        super().__init__()
        width = arch.encoder_width
        self.body = nn.Sequential(
            conv3x3(RGB, width // 2),
            nn.ReLU(),
            conv3x3(width // 2, width, stride=2),
            nn.ReLU(),
            conv3x3(width, 2 * width, stride=2),
            *(ResidualBlock(2 * width) for _ in range(4)),
            nn.ReLU(),
            nn.Conv2d(2 * width, arch.latent_channels, 1),
        )
        self.normalise = nn.BatchNorm2d(arch.latent_channels, affine=False, momentum=0.02)

    def forward(self, image: Tensor) -> Tensor:
        return cast(Tensor, self.normalise(self.body(image).float()))


class EdgeStem(nn.Module):
    """LR image lq (n, 3, h, w) to z_y (n, zc, h, w): what the encoder makes of the bicubic image, at LR cost."""

    def __init__(self, arch: EdgeArchitecture) -> None:
        super().__init__()
        width = arch.stem_width
        self.body = nn.Sequential(
            conv3x3(RGB, width),
            *(ResidualBlock(width) for _ in range(arch.stem_blocks)),
            nn.ReLU(),
            nn.Conv2d(width, arch.latent_channels, 1),
        )

    def forward(self, lq: Tensor) -> Tensor:
        return cast(Tensor, self.body(lq))


class EdgeFeatures(NamedTuple):
    """What the encoder half of an `EdgeGenerator` hands to its decoder half."""

    bottleneck: Tensor
    """(n, coarse width, h / 2, w / 2)."""
    skip: Tensor
    time: Tensor | None

    def first(self, n: int) -> EdgeFeatures:
        """Those of the first n samples."""
        return EdgeFeatures(self.bottleneck[:n], self.skip[:n], None if self.time is None else self.time[:n])


class EdgeGenerator(nn.Module):
    """x0-predicting network of two levels: f(x_t scaled, t, lq[, eps]) -> z0_hat.

    With `noise_channel` it is the student G, whose first convolution sees one more Gaussian channel, concatenated last
    (RSD, Section 3.3); without, the teacher and the fake model.
    """

    def __init__(self, arch: EdgeArchitecture, *, noise_channel: bool) -> None:
        super().__init__()
        fine, coarse = arch.generator_widths
        before, middle, after = arch.generator_blocks
        time = arch.time_width
        self.noise_channel = noise_channel
        self.bottleneck_channels = coarse
        self.recompute = False
        """Trade time for memory in training (`rsd_edge.models.recompute`)."""
        self.frequencies = time // 2
        self.time_embed = nn.Sequential(nn.Linear(time, time), nn.ReLU(), nn.Linear(time, time), nn.ReLU())
        self.head = conv3x3(arch.latent_channels + RGB + int(noise_channel), fine)
        self.fine_in = nn.ModuleList(TimedResidualBlock(fine, time) for _ in range(before))
        self.down = conv3x3(fine, coarse, stride=2)
        self.coarse = nn.ModuleList(TimedResidualBlock(coarse, time) for _ in range(middle))
        self.up = SubPixelConv(coarse, fine, kernel=1)
        self.fine_out = nn.ModuleList(TimedResidualBlock(fine, time) for _ in range(after))
        self.tail = conv3x3(fine, arch.latent_channels)

    def embed(self, t: Tensor) -> Tensor:
        """Timestep index t (n,) to its embedding (n, time_width)."""
        rates = torch.exp(-math.log(1000.0) * torch.arange(self.frequencies, device=t.device) / self.frequencies)
        angles = t.float()[:, None] * rates
        return cast(Tensor, self.time_embed(torch.cat([angles.cos(), angles.sin()], dim=1)))

    def forward(self, x_t_scaled: Tensor, t: Tensor | None, lq: Tensor, eps: Tensor | None = None) -> Tensor:
        """Predict z0_hat (n, zc, h, w).

        Args:
            x_t_scaled: noisy latent (n, zc, h, w) times `ResidualSchedule.input_scale(t)`.
            t: timestep indices (n,), 0-based; None after `fold`.
            lq: LR image (n, 3, h, w), RGB in [-1, 1].
            eps: standard normal (n, 1, h, w) for a student; None for a teacher.
        """
        return self.decode(self.encode(x_t_scaled, t, lq, eps))

    def encode(self, x_t_scaled: Tensor, t: Tensor | None, lq: Tensor, eps: Tensor | None = None) -> EdgeFeatures:
        """The half down to the bottleneck; arguments as for `forward`."""
        inputs = [x_t_scaled, lq] if eps is None else [x_t_scaled, lq, eps]
        time = None if t is None else self.embed(t)
        return self._encode_head(self.head(torch.cat(inputs, dim=1)), time)

    def _encode_head(self, x: Tensor, time: Tensor | None) -> EdgeFeatures:
        for block in self.fine_in:
            x = run_block(block, x, time, recompute=self.recompute)
        deep = self.down(functional.relu(x))
        for block in self.coarse:
            deep = run_block(block, deep, time, recompute=self.recompute)
        return EdgeFeatures(deep, x, time)

    def decode(self, features: EdgeFeatures) -> Tensor:
        """The half from the bottleneck to z0_hat (n, zc, h, w)."""
        x = features.skip + self.up(features.bottleneck)
        for block in self.fine_out:
            x = run_block(block, x, features.time, recompute=self.recompute)
        return cast(Tensor, self.tail(functional.relu(x)))

    def after_head(self, x: Tensor, time: Tensor | None) -> Tensor:
        """The head's features (n, fine, h, w) to z0_hat (n, zc, h, w)."""
        return self.decode(self._encode_head(x, time))

    @torch.no_grad()
    def fold(self, t: int) -> None:
        """Bake timestep index t into the weights, once; afterwards call with t = None."""
        time = self.embed(torch.tensor([t], device=self.head.weight.device))
        for block in (*self.fine_in, *self.coarse, *self.fine_out):
            cast(TimedResidualBlock, block).fold(time)


def student_from_teacher(teacher: EdgeGenerator, arch: EdgeArchitecture) -> EdgeGenerator:
    """The student at birth: the teacher with a zero-initialised noise channel, so that both give the same output."""
    student = EdgeGenerator(arch, noise_channel=True)
    state = dict(teacher.state_dict())
    weight = state["head.weight"]
    state["head.weight"] = torch.cat([weight, torch.zeros_like(weight[:, :1])], dim=1)
    student.load_state_dict(state)
    return student


class EdgeDecoder(nn.Module):
    """Latent and LR image to detail (n, 3, 4h, 4w) = image - bicubic_up4(lq), in units of the [-1, 1] range.

    Convolutions after the first pixel shuffle mix its phases. The second one has none: at the full resolution they took
    half of a small network's time, and the lattice loss keeps flat areas even without them.
    """

    def __init__(self, arch: EdgeArchitecture) -> None:
        super().__init__()
        width, half = arch.decoder_width, arch.decoder_half_width
        self.head = conv3x3(arch.latent_channels + RGB, width)
        self.blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(arch.decoder_blocks)), nn.ReLU())
        self.up_half = SubPixelConv(width, half, kernel=3)
        self.mix_half = nn.Sequential(ResidualBlock(half), nn.ReLU())
        self.up_full = SubPixelConv(half, RGB, kernel=3)

    def forward(self, z0: Tensor, lq: Tensor) -> Tensor:
        x = self.blocks(self.head(torch.cat([z0, lq], dim=1)))
        x = self.mix_half(self.up_half(x))
        return cast(Tensor, self.up_full(x))


class EdgeTile(nn.Module):
    """Everything that runs at inference, as one module: (lq, noise) -> detail.

    noise (n, zc + 1, h, w) is standard normal: the first zc channels draw x_T from the prior, the last is the student's
    eps. The timestep is folded into `student`, in place, the input scale into the prior's two coefficients.
    """

    def __init__(self, spec: ModelSpec, stem: EdgeStem, student: EdgeGenerator, decoder: EdgeDecoder) -> None:
        super().__init__()
        schedule = ResidualSchedule(spec.schedule)
        last = schedule.steps - 1
        self.latent_channels = spec.architecture.latent_channels
        self.mean_scale = schedule.input_scale(last)
        self.noise_scale = schedule.input_scale(last) * schedule.prior_std
        self.stem, self.student, self.decoder = stem, student, decoder
        self.student.fold(last)

    def forward(self, lq: Tensor, noise: Tensor) -> Tensor:
        z_noise, eps = torch.split(noise, [self.latent_channels, 1], dim=1)
        x_scaled = self.mean_scale * self.stem(lq) + self.noise_scale * z_noise
        return cast(Tensor, self.decoder(self.student(x_scaled, None, lq, eps), lq))
