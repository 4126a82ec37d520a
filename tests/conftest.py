"""Toy engines for tests that need some network but not a trained one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from rsd_edge.bundle import BuildRecord, write_bundle
from rsd_edge.specs import EngineSpec, ModelSpec

TOY_DILATION = 7  # receptive radius 1 + 7 + 1, below halo - feather = 12 of the default tiles


def make_toy_graph(path: Path, *, noise_channels: int = 5, input_name: str = "lq", fixed: bool = False) -> Path:
    """An ONNX graph with the contract of an engine: three random convolutions, a pixel shuffle; detail about +-0.3."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(5)
    n, h, w = (1, 48, 48) if fixed else ("n", "h", "w")
    nodes = [helper.make_node("Concat", [input_name, "noise"], ["x0"], axis=1)]
    weights = []
    layers = [(3 + noise_channels, 12, 1), (12, 12, TOY_DILATION), (12, 48, 1)]
    for i, (inputs, outputs, dilation) in enumerate(layers):
        kernel = rng.normal(0, 0.35 / np.sqrt(inputs), (outputs, inputs, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, f"kernel{i}"))
        nodes.append(
            helper.make_node("Conv", [f"x{i}", f"kernel{i}"], [f"y{i}"], dilations=[dilation] * 2, pads=[dilation] * 4)
        )
        if i + 1 < len(layers):
            nodes.append(helper.make_node("Relu", [f"y{i}"], [f"x{i + 1}"]))
    nodes.append(helper.make_node("DepthToSpace", [f"y{len(layers) - 1}"], ["detail"], blocksize=4, mode="CRD"))
    graph = helper.make_graph(
        nodes,
        "toy",
        [
            helper.make_tensor_value_info(input_name, TensorProto.FLOAT, [n, 3, h, w]),
            helper.make_tensor_value_info("noise", TensorProto.FLOAT, [n, noise_channels, h, w]),
        ],
        [helper.make_tensor_value_info("detail", TensorProto.FLOAT, [n, 3, None, None])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture(scope="session")
def toy_graph_factory(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a toy graph in a folder of its own; keyword arguments make graphs that break the contract."""
    return lambda **options: make_toy_graph(tmp_path_factory.mktemp("toy") / "graph.onnx", **options)


@pytest.fixture(scope="session")
def toy_graph(toy_graph_factory: Callable[..., Path]) -> Path:
    return toy_graph_factory()


@pytest.fixture(scope="session")
def toy_spec() -> EngineSpec:
    return EngineSpec(model=ModelSpec(name="toy"))


@pytest.fixture(scope="session")
def toy_bundle(toy_graph: Path, toy_spec: EngineSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles"), toy_spec, toy_graph, BuildRecord()).path


@pytest.fixture(scope="session")
def photo() -> Callable[[int, int], NDArray[np.uint8]]:
    """Makes uint8 BGR images with smooth areas, edges and texture, and with pixels at both ends of the range."""

    def make(height: int, width: int) -> NDArray[np.uint8]:
        rng = np.random.default_rng(height * 10007 + width)
        y, x = np.mgrid[:height, :width].astype(np.float64)
        planes = [128 + 90 * np.sin(x / (7 + 3 * c)) * np.cos(y / (11 - 2 * c)) for c in range(3)]
        image = np.stack(planes, axis=-1) + rng.normal(0, 12, (height, width, 3)) * (x > width / 2)[..., None]
        image[height // 3 : height // 2, width // 4 : width // 2] = (0, 255, 128)
        return np.clip(image, 0, 255).astype(np.uint8)

    return make
