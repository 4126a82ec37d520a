"""Where TensorRT takes Q/DQ pairs, and where they cost a fusion."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from rsd_edge.export.lint_operators import Version
from rsd_edge.export.placement import channel_axis, weights_behind

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_LEAST = -127
"""TensorRT's integers are symmetric: -128 is cut to this."""
_READERS = (*_LAYERS, "Add", "Concat")
"""What runs on integers here; anything else would be computed on rounded values for no gain."""


def _quantise(node: ir.Node, _: Version) -> Iterator[str]:
    if node.op_type != "QuantizeLinear":
        return
    if any(use.node.op_type != "DequantizeLinear" for use in node.outputs[0].uses()):
        yield "is read by another operator than DequantizeLinear; put one between"
    if node.outputs[0].is_graph_output():
        yield "makes an output of the graph integer; end in float"


def _parameters(node: ir.Node, _: Version) -> Iterator[str]:
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        return
    scale = _array(node.inputs[1])
    zero = _array(node.inputs[2]) if len(node.inputs) > 2 else np.zeros((), np.int8)
    if scale is None:
        yield "computes its scale; make it a constant"
    elif not (np.isfinite(scale).all() and (scale > 0).all()):
        yield "has a scale that is not positive and finite; calibrate again"
    if zero is None or zero.any():
        yield "has a zero point other than 0; quantise symmetrically"
    elif zero.dtype != np.int8:
        yield f"has integers of type {zero.dtype}; TensorRT takes int8"


def _dequantise(node: ir.Node, _: Version) -> Iterator[str]:
    if node.op_type != "DequantizeLinear":
        return
    scale, source = _array(node.inputs[1]), _source(node.outputs[0])
    constant = source is not None and source.is_initializer()
    for use in node.outputs[0].uses():
        reader, position = use.node, use.idx
        if reader.op_type not in _READERS:
            yield f"is read by {reader.op_type} '{reader.name}', which runs in float; let it read the tensor itself"
        elif constant and (reader.op_type not in _LAYERS or position != 1):
            what = f"input {position} of {reader.op_type} '{reader.name}'"
            yield f"dequantises a constant for {what}; only weights may be"
    if scale is not None and scale.ndim and not constant:
        yield "has several scales for an activation; TensorRT takes one"


def _pair(node: ir.Node, _: Version) -> Iterator[str]:
    """What is dequantised by other numbers than it was quantised by is another tensor."""
    quantise = node.inputs[0].producer() if node.op_type == "DequantizeLinear" and node.inputs[0] is not None else None
    if quantise is None or quantise.op_type != "QuantizeLinear":
        return
    for position, what in ((1, "scale"), (2, "zero point")):
        ours, theirs = (_parameter(item, position) for item in (node, quantise))
        if not np.array_equal(ours, theirs):
            yield f"has another {what} than QuantizeLinear '{quantise.name}' before it; give both the same"


def _parameter(node: ir.Node, position: int) -> NDArray[Any]:
    """Zero for a zero point that is left out, and for a scale that is computed, which another rule tells of."""
    array = _array(node.inputs[position]) if len(node.inputs) > position else None
    return np.zeros((), np.int8) if array is None else array


def _weights(node: ir.Node, _: Version) -> Iterator[str]:
    """Integers of constants, stored or made of floats when the engine is built."""
    source = _array(node.inputs[0]) if node.op_type in ("QuantizeLinear", "DequantizeLinear") else None
    if source is None:
        return
    if node.op_type == "QuantizeLinear":
        scale, axis = _array(node.inputs[1]), node.attributes.get("axis")
        if scale is None or not (scale > 0).all():
            return  # told by another rule
        if scale.ndim:
            shape = [1] * source.ndim
            shape[axis.as_int() if axis is not None else 1] = -1
            scale = scale.reshape(shape)
        source = np.rint(source.astype(np.float32) / scale.astype(np.float32))
    if source.size and source.min() < _LEAST:
        yield "has integers below -127, which TensorRT's symmetric range ends at; use larger scales"


def _layer(node: ir.Node, _: Version) -> Iterator[str]:
    if node.op_type not in _LAYERS:
        return
    integer = [_source(value) is not None for value in node.inputs[:2]]
    weights = weights_behind(node)
    if any(integer) and weights is None:
        yield "multiplies two activations in integers; leave attention in FP16"
    elif integer[0] != integer[1]:
        yield f"is integer in its {'activation' if integer[0] else 'weights'} only; quantise both or none"
    elif all(integer) and weights is not None:
        yield from _channels(node, weights)


def _channels(node: ir.Node, weights: ir.Value) -> Iterator[str]:
    pair = node.inputs[1].producer() if node.inputs[1] is not None else None
    scale = _array(pair.inputs[1]) if pair is not None else None
    if pair is None or scale is None or weights.shape is None:
        return
    axis, given = channel_axis(node), pair.attributes.get("axis")
    if scale.ndim != 1 or scale.size != weights.shape[axis] or given is None or given.as_int() != axis:
        yield f"has weights without one scale a channel on axis {axis}; quantise them so"


def _residual(node: ir.Node, _: Version) -> Iterator[str]:
    if node.op_type != "Add":
        return
    sources = [_source(value) for value in node.inputs]
    for source in sources:
        layer = source.producer() if source is not None else None
        if all(item is not None for item in sources) and layer is not None and layer.op_type in _LAYERS:
            name = f"{layer.op_type} '{layer.name}'"
            yield f"has both inputs quantised, the output of {name} too; leave that one as it is"
            return


def _concat(node: ir.Node, _: Version) -> Iterator[str]:
    if node.op_type != "Concat":
        return
    pairs = [value.producer() for value in node.inputs if value is not None and _source(value) is not None]
    if pairs and len(pairs) < len(node.inputs):
        yield "joins integers and floats; quantise all of its inputs, by one scale, or none"
    scales = [_array(pair.inputs[1]) for pair in pairs if pair is not None]
    if any(scale is None or scales[0] is None or not np.array_equal(scale, scales[0]) for scale in scales):
        yield "joins integers of different scales; give its inputs one"


def _integers(node: ir.Node, _: Version) -> Iterator[str]:
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return
    for value in node.inputs:
        if value is not None and value.dtype is ir.DataType.INT8:
            yield f"reads '{value.name}' as int8, which only DequantizeLinear may"


def _source(value: ir.Value | None) -> ir.Value | None:
    """What was quantised to become this value; None if it does not come from a Q/DQ pair or an integer constant."""
    dequantise = value.producer() if value is not None else None
    if dequantise is None or dequantise.op_type != "DequantizeLinear" or dequantise.inputs[0] is None:
        return None
    quantise = dequantise.inputs[0].producer()
    return quantise.inputs[0] if quantise is not None and quantise.op_type == "QuantizeLinear" else dequantise.inputs[0]


def _array(value: ir.Value | None) -> NDArray[Any] | None:
    constant = value.const_value if value is not None else None
    return constant.numpy() if constant is not None else None


QDQ_RULES: tuple[Callable[[ir.Node, Version], Iterator[str]], ...] = (
    _quantise,
    _parameters,
    _pair,
    _weights,
    _dequantise,
    _layer,
    _residual,
    _concat,
    _integers,
)
