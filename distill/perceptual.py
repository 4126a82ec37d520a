"""LPIPS on SqueezeNet 1.1 as a differentiable torch loss (Zhang et al., CVPR 2018, version 0.1 weights).

The weights are the initialisers of `rsd_edge/evaluate/lpips_squeeze.onnx`, the file that `rsd-edge eval` runs: one copy
serves the loss and the metric.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rsd_edge.errors import MissingDependencyError, ModelError

TAPS = (1, 4, 7, 9, 10, 11, 12)
"""Indices in `LpipsSqueeze.features` after which LPIPS compares activations."""

_FIRES = {3: (64, 16, 64), 4: (128, 16, 64), 6: (128, 32, 128), 7: (256, 32, 128)}
_FIRES |= {9: (256, 48, 192), 10: (384, 48, 192), 11: (384, 64, 256), 12: (512, 64, 256)}
_TAP_CHANNELS = (64, 128, 256, 384, 384, 512, 512)

_ENERGY_FLOOR = 1e-8
"""Added to the squared norm of a feature vector. The published code adds 1e-10 to the norm itself, whose derivative is
infinite where all channels are off; this form differs from it by less than 1e-6 and has a finite derivative there."""


def perceptual_distance(network: str) -> nn.Module:
    """LPIPS on AlexNet ("alex", what the RSD paper trains with) or VGG ("vgg"), by the package lpips. (x, y) -> (n,).

    Raises MissingDependencyError with the command that installs what is missing.
    """
    try:
        from lpips import LPIPS
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision beside a torch that it was not built for
        raise MissingDependencyError(
            f"lpips '{network}' needs the package lpips and a working torchvision ({type(error).__name__}); "
            "run: pip install 'rsd-edge[lpips]', or take lpips squeeze"
        ) from error
    return _PackageLpips(LPIPS(net=network, verbose=False))


class _PackageLpips(nn.Module):
    """The package's network, frozen, with our way of returning one number for each sample."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        distance: Tensor = self.network(x.float(), y.float())
        return distance.float().flatten()


class Fire(nn.Module):
    """SqueezeNet's block: a 1x1 bottleneck, then 1x1 and 3x3 convolutions side by side."""

    def __init__(self, inputs: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) -> (n, 2 * expand, h, w)."""
        x = functional.relu_(self.squeeze(x))
        return functional.relu_(torch.cat((self.expand1x1(x), self.expand3x3(x)), dim=1))


class LpipsSqueeze(nn.Module):
    """LPIPS distance between images, with frozen weights."""

    shift: Tensor
    inverse_scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, stride=2), nn.ReLU(inplace=True)]
        for index in range(2, 13):
            layers.append(Fire(*_FIRES[index]) if index in _FIRES else nn.MaxPool2d(3, 2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.heads = nn.ParameterList(nn.Parameter(torch.zeros(channels)) for channels in _TAP_CHANNELS)
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("inverse_scale", 1 / torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))
        self.requires_grad_(False)

    @classmethod
    def packaged(cls) -> LpipsSqueeze:
        """The network with the published weights. Raises MissingDependencyError without the `onnx` package."""
        with resources.as_file(resources.files("rsd_edge.evaluate") / "lpips_squeeze.onnx") as path:
            return cls.from_onnx(path)

    @classmethod
    def from_onnx(cls, path: Path) -> LpipsSqueeze:
        """The network with the initialisers of an ONNX file written by `rsd_edge.export.lpips_onnx`."""
        try:
            import onnx
            from onnx import numpy_helper
        except ImportError as error:
            raise MissingDependencyError(
                "the LPIPS loss reads its weights with the 'onnx' package; run: pip install onnx"
            ) from error
        network = cls()
        names = network.state_dict().keys()
        graph = onnx.load(path).graph
        tensors = {item.name: item for item in graph.initializer}
        state = {name: torch.tensor(numpy_helper.to_array(tensors[name])) for name in names & tensors.keys()}
        missing = sorted(names - state.keys())
        if missing:
            raise ModelError(f"{path} lacks LPIPS weights ({missing[0]}, {len(missing)} in all); reinstall rsd-edge")
        network.load_state_dict(state)
        return network

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """LPIPS of each pair: x, y (n, 3, h, w) RGB in [-1, 1], sides of at least 16 -> (n,) float32.

        Differentiable in x; y is a constant. Under autocast the convolutions run in its type; normalisation and
        distances are float32 always.
        """
        first = self._activations(x)
        with torch.no_grad():
            second = self._activations(y)
        distance = x.new_zeros(x.shape[0], dtype=torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            for a, b, head in zip(first, second, self.heads, strict=True):
                distance = distance + _TapDistance.apply(a.float(), b.float(), head)  # type: ignore[no-untyped-call]
        return distance

    def _activations(self, image: Tensor) -> list[Tensor]:
        value = (image.float() - self.shift) * self.inverse_scale
        taps = []
        for index, layer in enumerate(self.features):
            value = layer(value)
            if index in TAPS:
                taps.append(value)
        return taps


class _TapDistance(torch.autograd.Function):
    """sum_c head_c mean_hw (a/|a| - b/|b|)^2, with |.| over channels; a, b (n, c, h, w), head (c,) -> (n,).

    Written out because autograd on the plain expression walks over these large maps a dozen times, which was a third of
    a training step: this form takes a third of the plain one's time.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, head: Tensor) -> Tensor:
        inverse_a, inverse_b = _inverse_norm(a), _inverse_norm(b)
        difference = torch.addcmul(b * -inverse_b, a, inverse_a)
        ctx.save_for_backward(a, inverse_a, difference, head)
        pixels = difference.shape[2] * difference.shape[3]
        energies: Tensor = torch.linalg.vector_norm(difference, dim=(2, 3)).square()
        return energies @ head / pixels

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        a, inverse, difference, head = ctx.saved_tensors
        pixels = difference.shape[2] * difference.shape[3]
        outer = difference * (head[:, None, None] * (2 / pixels) * gradients[0][:, None, None, None])
        radial = torch.einsum("nchw,nchw->nhw", outer, a)[:, None] * inverse.square()
        return torch.addcmul(outer, a, radial, value=-1).mul_(inverse), None, None


def _inverse_norm(features: Tensor) -> Tensor:
    energy = torch.linalg.vector_norm(features, dim=1, keepdim=True).square()
    return torch.rsqrt(energy + _ENERGY_FLOOR)
