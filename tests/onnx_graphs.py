"""Tiny float graphs for tests of graph surgery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from rsd_edge.export.gate import Gate
from rsd_edge.export.ranges import Method
from rsd_edge.export.typed import TypedGraph, typed_graph

WIDTH = 16
HALF, SINGLE = TensorProto.FLOAT16, TensorProto.FLOAT
OPEN = Gate(0, 0, 0)


def make_model(
    nodes: Sequence[onnx.NodeProto],
    weights: Mapping[str, NDArray[Any]] | None = None,
    inputs: Mapping[str, Sequence[int | str]] | None = None,
    outputs: Sequence[str] = ("y",),
    *,
    opset: int = 20,
    dtype: int = TensorProto.FLOAT,
    output_dtype: int | None = None,
) -> onnx.ModelProto:
    """A model of some nodes; its input is x (n, 16, h, w) unless others are named."""
    shapes = inputs or {"x": ("n", WIDTH, "h", "w")}
    given = [helper.make_tensor_value_info(name, dtype, list(shape)) for name, shape in shapes.items()]
    made = [helper.make_tensor_value_info(name, output_dtype or dtype, None) for name in outputs]
    constants = [numpy_helper.from_array(np.asarray(array), name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(list(nodes), "tiny", given, made, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def conv(name: str, source: str, weights: dict[str, NDArray[Any]], *, inputs: int = WIDTH, kernel: int = 3) -> Any:
    """A convolution with a bias, from `source` to a tensor of its own name; its weights are added to the others."""
    rng = np.random.default_rng(len(weights) + 1)
    scale = 1 / (kernel * np.sqrt(inputs))
    weights[f"{name}_w"] = rng.normal(0, scale, (WIDTH, inputs, kernel, kernel)).astype(np.float32)
    weights[f"{name}_b"] = rng.normal(0, 0.1, WIDTH).astype(np.float32)
    pads = [kernel // 2] * 4
    return helper.make_node("Conv", [source, f"{name}_w", f"{name}_b"], [name], name=name, pads=pads)


def between_convs(
    middle: Sequence[onnx.NodeProto], result: str, weights: dict[str, NDArray[Any]], opset: int = 20
) -> onnx.ModelProto:
    """x -> conv `first` -> middle -> `result` -> conv `last` -> y."""
    nodes = [conv("first", "x", weights), *middle, conv("last", result, weights)]
    nodes[-1].output[0] = "y"
    return make_model(nodes, weights, opset=opset)


def feeds(count: int = 2, side: int = 8) -> list[dict[str, NDArray[np.float32]]]:
    """Batches of two for the input x."""
    rng = np.random.default_rng(7)
    return [{"x": rng.standard_normal((2, WIDTH, side, side), np.float32)} for _ in range(count)]


def node_named(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    """The node of a name."""
    return next(node for node in model.graph.node if node.name == name)


def maker_of(model: onnx.ModelProto, tensor: str) -> onnx.NodeProto | None:
    """The node that computes a tensor; None for inputs and constants."""
    return next((node for node in model.graph.node if tensor in node.output), None)


def quantised_source(model: onnx.ModelProto, tensor: str) -> str | None:
    """What a Q/DQ pair makes this tensor of; None if it comes from no pair."""
    dequantise = maker_of(model, tensor)
    if dequantise is None or dequantise.op_type != "DequantizeLinear":
        return None
    quantise = maker_of(model, dequantise.input[0])
    assert quantise is not None
    assert quantise.op_type == "QuantizeLinear"
    assert list(quantise.input[1:]) == list(dequantise.input[1:])  # both by the same scales
    return quantise.input[0]


def constant(model: onnx.ModelProto, name: str) -> NDArray[Any]:
    """An initialiser as an array."""
    return numpy_helper.to_array(next(item for item in model.graph.initializer if item.name == name))


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    """Element types of all tensors that are not constants."""
    every = [*model.graph.value_info, *model.graph.input, *model.graph.output]
    return {item.name: item.type.tensor_type.elem_type for item in every}


def fp16(model: onnx.ModelProto, **options: Any) -> TypedGraph:
    """The graph typed in FP16, calibrated and judged on `feeds`."""
    return typed_graph(model, "fp16", feeds(), peak=None, **options)


def int8(model: onnx.ModelProto, **options: Any) -> TypedGraph:
    """The graph typed in INT8, whatever its closeness."""
    return typed_graph(model, "int8", feeds(), peak=None, gate=OPEN, methods=(Method.MINMAX,), **options)


def relu(source: str) -> onnx.NodeProto:
    """A Relu whose name and result are those of its source and `_r`."""
    return helper.make_node("Relu", [source], [f"{source}_r"], name=f"{source}_r")


def input_of(model: onnx.ModelProto, node: str, position: int = 0) -> str:
    """The name of what a node reads."""
    return node_named(model, node).input[position]
