"""The hand-written gradient of the LPIPS loss; its values are in test_lpips.py."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from rsd_edge.distill.perceptual import _TapDistance, perceptual_distance
from rsd_edge.errors import MissingDependencyError


def features(seed: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.rand((2, 5, 3, 4), generator=generator, dtype=torch.float64)


def plain(a: Tensor, b: Tensor, head: Tensor) -> Tensor:
    """The published definition, for autograd to differentiate."""
    unit_a, unit_b = (x / x.square().sum(dim=1, keepdim=True).sqrt() for x in (a, b))
    return (head[:, None, None] * (unit_a - unit_b) ** 2).sum(dim=1).mean(dim=(1, 2))


HEAD = torch.tensor([0.1, 2.0, 0.0, 0.7, 0.3], dtype=torch.float64)


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_gradient_passes_the_numerical_check(scale: float) -> None:
    """`scale` 1e-3 brings the norms near the floor, where the floor's own derivative counts."""
    a, b = features(1, scale).requires_grad_(), features(2)
    assert torch.autograd.gradcheck(lambda x: _TapDistance.apply(x, b, HEAD), (a,), eps=1e-6 * scale, rtol=1e-4)


def test_value_and_gradient_are_those_of_the_definition() -> None:
    a, b = features(1).requires_grad_(), features(2)
    weights = torch.tensor([1.0, -3.0], dtype=torch.float64)  # each sample's own upstream gradient
    distance = _TapDistance.apply(a, b, HEAD)
    expected = plain(a, b, HEAD)
    # The floor of 1e-8 under squared norms near 2.
    torch.testing.assert_close(distance, expected, rtol=1e-7, atol=0)
    (gradient,) = torch.autograd.grad((weights * distance).sum(), a)
    (wanted,) = torch.autograd.grad((weights * expected).sum(), a)
    torch.testing.assert_close(gradient, wanted, rtol=1e-6, atol=1e-10)


def test_alex_and_vgg_come_from_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    class LPIPS(nn.Module):
        def __init__(self, net: str, verbose: bool) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(float(len(net))))

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.scale * (x - y).square().mean(dim=(1, 2, 3), keepdim=True)

    package = ModuleType("lpips")
    package.LPIPS = LPIPS  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lpips", package)
    network = perceptual_distance("alex")
    x = torch.zeros(3, 3, 8, 8, requires_grad=True)
    distance = network(x, torch.ones(3, 3, 8, 8))
    assert distance.tolist() == [4.0] * 3
    assert not any(parameter.requires_grad for parameter in network.parameters())
    distance.sum().backward()
    assert x.grad is not None


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(MissingDependencyError, match=r"lpips 'vgg' needs .*pip install 'rsd-edge\[lpips\]'"):
        perceptual_distance("vgg")
