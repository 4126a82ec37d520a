"""Which layers TensorRT should run in INT8, and which of their inputs carry Q/DQ pairs.

- The first and last convolutions stay in FP16, and so does all that depends on no convolution (a step's embedding).
- Products of two activations (attention) stay in FP16: TensorRT fuses them with the softmax between.
- Thin convolutions stay in FP16: integer kernels pad their channels to 16 or more.
- The 1x1 convolution of a shortcut stays in FP16, as in NVIDIA's own recipe for diffusion networks.
- Of a residual sum, the input that is not the convolution's is quantised, the convolution's own output is not, so that
  convolution, sum and activation become one integer kernel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from rsd_edge.export.quantize import near_ends

_AXIS = {"Conv": 0, "ConvTranspose": 1, "MatMul": 1}
"""Axis of the output channels in the weights; of Gemm it depends on transB."""
_FEW_CHANNELS = 16
_CHANNEL_GROUP = 8


@dataclass(frozen=True)
class Placement:
    """Layers that may become integer, and those that may not with the reason. Names are those of nodes."""

    layers: tuple[str, ...]
    excluded: dict[str, str]
    skips: dict[str, int]
    """Residual sums among the layers, and the position of the input that is quantised."""


def place(model: onnx.ModelProto) -> Placement:
    """Sort the layers of a prepared graph."""
    ends = set(near_ends(model.graph))
    graph = ir.from_proto(model).graph
    excluded: dict[str, str] = {}
    weighted = [node for node in graph if weights_of(node) is not None]
    for node in weighted:
        if node.name in ends:
            excluded[node.name or ""] = "first, last, or before any convolution"
        elif _thin(node):
            excluded[node.name or ""] = "fewer than 16 channels"
    order = {id(node): index for index, node in enumerate(graph)}
    skips: dict[str, int] = {}
    for node in graph:
        branch = _branch(node, order)
        if branch is None:
            continue
        position, layer = branch
        other = _layer_behind(node.inputs[1 - position])
        if other is not None and _kernel(other) == 1 and _kernel(layer) > 1:
            excluded.setdefault(other.name or "", "1x1 convolution of a shortcut")
        if layer.name not in excluded:
            skips[node.name or ""] = 1 - position
    names = {node.name or "" for node in weighted} - excluded.keys()
    layers = [node.name or "" for node in graph if node.name in names or node.name in skips]
    return Placement(tuple(layers), excluded, skips)


def weights_of(node: ir.Node) -> ir.Value | None:
    """The constant weights of a layer; None for any other node, such as a product of two activations."""
    if node.op_type not in (*_AXIS, "Gemm") or node.inputs[0] is None or node.inputs[0].is_initializer():
        return None
    weights = node.inputs[1]
    return weights if weights is not None and weights.is_initializer() else None


def weights_behind(node: ir.Node) -> ir.Value | None:
    """The constant weights of a layer, be they quantised or not."""
    value = node.inputs[1]
    while value is not None and (maker := value.producer()) is not None:
        if maker.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            return None
        value = maker.inputs[0]
    return value if value is not None and value.is_initializer() else None


def channel_axis(node: ir.Node) -> int:
    """The axis of a layer's weights along which every output channel has a scale of its own."""
    if node.op_type == "Gemm":
        transposed = node.attributes.get("transB")
        return 0 if transposed is not None and transposed.as_int() else 1
    return _AXIS[node.op_type]


def _thin(node: ir.Node) -> bool:
    weights = weights_of(node)
    if weights is None or weights.shape is None or node.op_type not in ("Conv", "ConvTranspose"):
        return False
    channels = weights.shape.numpy()[:2]
    return any(count < _FEW_CHANNELS and count % _CHANNEL_GROUP for count in channels)


def _kernel(node: ir.Node) -> int:
    """Pixels of a kernel; 1 for a matrix."""
    weights = weights_of(node)
    if weights is None or weights.shape is None or node.op_type not in ("Conv", "ConvTranspose"):
        return 1
    return math.prod(weights.shape.numpy()[2:])


def _layer_behind(value: ir.Value | None) -> ir.Node | None:
    """The layer that computes a value, with or without a bias of its own, if nothing else reads it on the way."""
    producer = value.producer() if value is not None else None
    if value is None or producer is None or len(value.uses()) != 1:
        return None
    if weights_of(producer) is not None:
        return producer
    if producer.op_type == "Add":
        for position in (0, 1):
            bias = producer.inputs[1 - position]
            if bias is not None and bias.is_initializer():
                return _layer_behind(producer.inputs[position])
    return None


def _branch(node: ir.Node, order: dict[int, int]) -> tuple[int, ir.Node] | None:
    """Of a sum of two activations: position and layer of the convolution's branch, the later one if there are two."""
    values = list(node.inputs)
    if node.op_type != "Add" or any(value is None or value.is_initializer() for value in values):
        return None
    if None in (values[0].shape, values[1].shape) or len(values[0].shape) != len(values[1].shape):  # type: ignore[union-attr, arg-type]
        return None
    behind = [(position, _layer_behind(value)) for position, value in enumerate(values)]
    found = [(position, layer) for position, layer in behind if layer is not None]
    # A 1x1 convolution beside a wider one is the shortcut, whichever of them was written first.
    return max(found, key=lambda item: (_kernel(item[1]) > 1, order[id(item[1])]), default=None)
