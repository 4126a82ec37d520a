from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch

from rsd_edge.distill.perceptual import LpipsSqueeze, _TapDistance
from rsd_edge.errors import InputError, ModelError
from rsd_edge.evaluate.lpips import LpipsMetric
from rsd_edge.export.lpips_onnx import build_model, gather_weights

FIXTURES = Path(__file__).parent / "fixtures"

# The crops of test_metrics.py, computed in float64 by a network written for that purpose, with the published weights.
EXPECTED = {"a": 0.034422234670249824, "b": 0.07362156899294617}

Image = npt.NDArray[np.uint8]


def pair(name: str) -> tuple[Image, Image]:
    with np.load(FIXTURES / "metric_pairs.npz") as data:
        return data[f"image_{name}"], data[f"reference_{name}"]


def to_tensor(image: Image) -> torch.Tensor:
    return torch.tensor(image[:, :, ::-1].transpose(2, 0, 1)[None] / 127.5 - 1, dtype=torch.float32)


@pytest.fixture(scope="module")
def metric() -> LpipsMetric:
    return LpipsMetric(threads=1)


@pytest.fixture(scope="module")
def network() -> LpipsSqueeze:
    return LpipsSqueeze.packaged()


@pytest.mark.parametrize("name", ["a", "b"])
def test_metric_scores_as_computed_independently(metric: LpipsMetric, name: str) -> None:
    assert metric(*pair(name)) == pytest.approx(EXPECTED[name], rel=1e-5)  # float32 through 13 layers


@pytest.mark.parametrize("name", ["a", "b"])
def test_loss_equals_the_metric(network: LpipsSqueeze, name: str) -> None:
    x, y = (to_tensor(image) for image in pair(name))
    distance = network(x, y)
    assert distance.shape == (1,)
    assert distance.item() == pytest.approx(EXPECTED[name], rel=1e-5)


def test_equal_images_have_distance_zero(metric: LpipsMetric) -> None:
    image, _ = pair("a")
    assert metric(image, image) == 0


def test_channel_order_matters(metric: LpipsMetric) -> None:
    image, reference = pair("a")
    swapped = metric(image[:, :, ::-1].copy(), reference[:, :, ::-1].copy())
    assert abs(swapped / EXPECTED["a"] - 1) > 0.01


def test_metric_takes_odd_sizes(metric: LpipsMetric, network: LpipsSqueeze) -> None:
    image, reference = (array[:37, :51] for array in pair("b"))
    expected = network(to_tensor(image), to_tensor(reference)).item()
    assert metric(image, reference) == pytest.approx(expected, rel=1e-5)


def test_metric_refuses_small_and_unequal_images(metric: LpipsMetric) -> None:
    image, reference = pair("a")
    with pytest.raises(InputError, match="at least 16 pixels, not 20x15"):
        metric(image[:15, :20], reference[:15, :20])
    with pytest.raises(InputError, match="different shape"):
        metric(image[:40], reference)


def test_each_sample_of_a_batch_has_its_own_distance(network: LpipsSqueeze) -> None:
    first, second = (tuple(to_tensor(image) for image in pair(name)) for name in ("a", "b"))
    both = network(torch.cat((first[0], second[0])), torch.cat((first[1], second[1])))
    assert both.tolist() == pytest.approx([EXPECTED["a"], EXPECTED["b"]], rel=1e-5)


def test_gradient_points_uphill(network: LpipsSqueeze) -> None:
    """The directional derivative along the gradient is its norm."""
    x, y = (to_tensor(image)[:, :, :32, :32] for image in pair("b"))
    gradient = gradient_of(network, x, y)
    step = 1e-3 * gradient / gradient.norm()
    slope = (network(x + step, y) - network(x - step, y)).item() / 2e-3
    # ReLU and max-pooling have kinks within the step (0.5 % here); float32 sums add 1e-8 to a difference of 3e-4.
    assert slope == pytest.approx(gradient.norm().item(), rel=1e-2)


def test_written_out_gradient_equals_autograd() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(2, 5, 3, 4, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
    head, weight = torch.rand(5, generator=generator, dtype=torch.float64), torch.tensor([1.0, -2.0])
    unit_a, unit_b = (value / (value.square().sum(1, keepdim=True) + 1e-8).sqrt() for value in (a, b))
    plain = ((unit_a - unit_b).square().mean(dim=(2, 3)) * head).sum(dim=1)
    written = _TapDistance.apply(a, b.detach(), head)
    assert torch.allclose(written, plain, rtol=1e-12)  # float64
    (expected,) = torch.autograd.grad((plain * weight).sum(), a)
    (found,) = torch.autograd.grad((written * weight).sum(), a)
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-14)


def test_gradient_is_finite_where_no_feature_fires(network: LpipsSqueeze) -> None:
    flat, other = torch.full((1, 3, 64, 64), -1.0), to_tensor(pair("a")[0])[:, :, :64, :64]
    assert torch.isfinite(gradient_of(network, flat, other)).all()
    assert gradient_of(network, flat, flat.clone()).abs().max() < 1e-6  # a product and a sum round differently


def gradient_of(network: LpipsSqueeze, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x = x.detach().clone().requires_grad_()
    network(x, y).sum().backward()
    assert x.grad is not None
    return x.grad


def test_autocast_and_channels_last_give_nearly_the_same(network: LpipsSqueeze) -> None:
    x, y = (to_tensor(image).to(memory_format=torch.channels_last) for image in pair("b"))
    with torch.autocast("cpu", torch.bfloat16):
        distance = network(x, y)
    assert distance.dtype == torch.float32
    # bfloat16 keeps 8 bits: activations are off by up to 0.4 %, distances between nearby images by a few per cent.
    assert distance.item() == pytest.approx(EXPECTED["b"], rel=0.05)


def test_weights_are_frozen(network: LpipsSqueeze) -> None:
    assert not [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    assert sum(parameter.numel() for parameter in network.parameters()) == 722496 + 2240  # features, heads


def test_packaged_file_is_what_the_maker_makes(network: LpipsSqueeze) -> None:
    """Round trip: the published state dicts are rebuilt from the packaged weights."""
    state = network.state_dict()
    features = {name.removeprefix("features."): value for name, value in state.items() if name.startswith("features.")}
    heads = {f"lin{i}.model.1.weight": state[f"heads.{i}"].view(1, -1, 1, 1) for i in range(7)}
    packaged = onnx.load_from_string((resources.files("rsd_edge.evaluate") / "lpips_squeeze.onnx").read_bytes())
    assert build_model(gather_weights(features, heads)) == packaged


def test_maker_names_a_missing_weight(network: LpipsSqueeze) -> None:
    features = {name.removeprefix("features."): value for name, value in network.state_dict().items()}
    with pytest.raises(ModelError, match=r"'heads\.0' with 64 values"):
        gather_weights(features, {})


def test_a_graph_without_the_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.onnx"
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], [])), path)
    with pytest.raises(ModelError, match=r"empty\.onnx lacks LPIPS weights"):
        LpipsSqueeze.from_onnx(path)
