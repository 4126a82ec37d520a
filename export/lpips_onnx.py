"""Build `rsd_edge/evaluate/lpips_squeeze.onnx` from the two published weight files.

    python -P -m rsd_edge.export.lpips_onnx squeezenet1_1_features.pth lpips_squeeze_v0.1.pth -o lpips_squeeze.onnx

The first file holds torchvision's SqueezeNet 1.1 `features` (BSD-3-Clause), the second the linear heads of LPIPS 0.1
(BSD-2-Clause). The graph is written node by node, so that the file depends on the weights alone and not on a version of
an exporter: the same inputs give the same bytes.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from rsd_edge.distill.perceptual import TAPS, LpipsSqueeze
from rsd_edge.errors import ModelError

Array: TypeAlias = npt.NDArray[Any]

_OPSET = 18
_EPSILON = 1e-10
"""Added to the norm of a feature vector, as in the published metric."""
_LICENCE = "weights: SqueezeNet 1.1 of torchvision (BSD-3-Clause), LPIPS 0.1 linear heads (BSD-2-Clause)"


def gather_weights(features: Mapping[str, torch.Tensor], heads: Mapping[str, torch.Tensor]) -> dict[str, Array]:
    """Both published state dicts under the names of `LpipsSqueeze`, as float32.

    Raises ModelError if a tensor is missing or has another shape.
    """
    network = LpipsSqueeze()
    weights: dict[str, Array] = {}
    for name, expected in network.state_dict().items():
        group, _, rest = name.partition(".")
        if group == "features":
            source = features.get(rest)
        elif group == "heads":
            source = heads.get(f"lin{rest}.model.1.weight")
        else:
            source = expected
        if source is None or source.numel() != expected.numel():
            wanted = f"'{name}' with {expected.numel()} values"
            raise ModelError(f"the weight files lack {wanted}; pass those of SqueezeNet 1.1 and LPIPS 0.1")
        weights[name] = source.detach().to("cpu", torch.float32).reshape(expected.shape).numpy()
    return weights


class _Graph:
    """Nodes and constants in the making; every method returns the name of its result."""

    def __init__(self, weights: Mapping[str, Array]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants = [numpy_helper.from_array(value, name) for name, value in weights.items()]

    def constant(self, name: str, value: Array) -> str:
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def conv(self, value: str, layer: str, kernel: int, stride: int = 1, pad: int = 0) -> str:
        inputs = [value, f"{layer}.weight", f"{layer}.bias"]
        kernel_shape, strides, pads = [kernel] * 2, [stride] * 2, [pad] * 4
        out = self.node("Conv", inputs, f"{layer}/conv", kernel_shape=kernel_shape, strides=strides, pads=pads)
        return self.node("Relu", [out], f"{layer}/relu")

    def fire(self, value: str, layer: str) -> str:
        value = self.conv(value, f"{layer}.squeeze", 1)
        one = self.conv(value, f"{layer}.expand1x1", 1)
        three = self.conv(value, f"{layer}.expand3x3", 3, pad=1)
        return self.node("Concat", [one, three], f"{layer}/out", axis=1)


def build_model(weights: Mapping[str, Array]) -> onnx.ModelProto:
    """The metric as ONNX: x, y (n, 3, h, w) float32 RGB in [-1, 1] -> distance (n,) float32.

    Both images pass the network as one batch, so that the weights are stored and the convolutions planned once.
    """
    graph = _Graph(weights)
    value = graph.node("Concat", ["x", "y"], "pair", axis=0)
    value = graph.node("Sub", [value, "shift"], "shifted")
    value = graph.node("Mul", [value, "inverse_scale"], "scaled")
    terms: list[str] = []
    for index in range(13):
        layer = f"features.{index}"
        if index == 0:
            value = graph.conv(value, layer, 3, stride=2)
        elif f"{layer}.squeeze.weight" in weights:
            value = graph.fire(value, layer)
        elif index != 1:
            value = graph.node("MaxPool", [value], f"{layer}/pool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
        if index in TAPS:
            terms.append(_head(graph, value, len(terms), weights[f"heads.{len(terms)}"]))
    graph.node("Sum", terms, "distance")
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, "h", "w"]) for name in ("x", "y")]
    outputs = [helper.make_tensor_value_info("distance", TensorProto.FLOAT, ["n"])]
    body = helper.make_graph(graph.nodes, "lpips_squeeze", inputs, outputs, graph.constants, doc_string=_LICENCE)
    opsets = [helper.make_opsetid("", _OPSET)]
    model = helper.make_model(body, opset_imports=opsets, producer_name="rsd_edge.export.lpips_onnx", ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def _head(graph: _Graph, value: str, index: int, head: Array) -> str:
    """Unit-normalise over channels, subtract the two halves of the batch, weight by channel, average over space."""
    prefix = f"heads.{index}"
    shared: dict[str, Array] = {
        "channel_axis": np.array([1], np.int64),
        "space_axes": np.array([2, 3], np.int64),
        "epsilon": np.array(_EPSILON, np.float32),
    }
    if index == 0:
        for name, array in shared.items():
            graph.constant(name, array)
    norm = graph.node("ReduceL2", [value, "channel_axis"], f"{prefix}/norm", keepdims=1)
    norm = graph.node("Add", [norm, "epsilon"], f"{prefix}/norm_floor")
    unit = graph.node("Div", [value, norm], f"{prefix}/unit")
    halves = [f"{prefix}/x", f"{prefix}/y"]
    graph.nodes.append(helper.make_node("Split", [unit], halves, name=f"{prefix}/split", axis=0, num_outputs=2))
    difference = graph.node("Sub", halves, f"{prefix}/difference")
    square = graph.node("Mul", [difference, difference], f"{prefix}/square")
    mean = graph.node("ReduceMean", [square, "space_axes"], f"{prefix}/mean", keepdims=0)
    return graph.node("MatMul", [mean, f"{prefix}"], f"{prefix}/term")


def main(arguments: list[str] | None = None) -> None:
    """Command line of the module; see its docstring."""
    parser = argparse.ArgumentParser(prog="rsd_edge.export.lpips_onnx", description="Build the packaged LPIPS graph.")
    parser.add_argument("features", type=Path, help="squeezenet1_1_features.pth")
    parser.add_argument("linear", type=Path, help="lpips_squeeze_v0.1.pth")
    parser.add_argument("-o", "--output", type=Path, required=True, help="ONNX file to write")
    options = parser.parse_args(arguments)
    load = [torch.load(path, map_location="cpu", weights_only=True) for path in (options.features, options.linear)]
    data = build_model(gather_weights(*load)).SerializeToString(deterministic=True)
    partial = options.output.with_name(options.output.name + ".part")
    partial.write_bytes(data)
    partial.replace(options.output)


if __name__ == "__main__":
    main()
