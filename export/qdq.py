"""Explicit Q/DQ pairs for TensorRT: symmetric S8 with zero points 0, one scale a tensor, one a channel of weights.

A tensor has one pair, which its integer readers share; all others read the tensor as it was. Tensors that are joined
share one scale, so that no integers have to be scaled anew. Scales are numbers that FP16 has, before anything is
rounded by them. Biases stay as they are, and are never more than `_BIAS_STEPS` integer steps of their layer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from rsd_edge.export.placement import Placement, channel_axis, weights_of

_MOST = 127
_LEAST_SCALE = float(np.finfo(np.float16).tiny)
"""Below it FP16 loses digits; what is that small is nothing to its layer."""
_BIAS_STEPS = 1 << 15
"""ONNX Runtime turns biases of integer layers into integers, and does so in FP16, which ends at 65504: a larger one
becomes infinite. Half of that, since the step itself is rounded."""


def insert_qdq(
    graph: ir.Graph,
    placement: Placement,
    ranges: Mapping[str, tuple[np.float32, np.float32]],
    keep_float: Collection[str] = (),
) -> None:
    """Put Q/DQ pairs around the layers of a prepared FP32 graph, in place, except around those kept in float."""
    layers = {name for name in placement.layers if name not in keep_float}
    readers: dict[str, list[tuple[ir.Node, int]]] = {}
    for node in list(graph):
        if node.name not in layers:
            continue
        position = placement.skips.get(node.name, 0)
        if node.name in placement.skips and not _integer_branch(node, position, layers):
            continue
        readers.setdefault(_name(node.inputs[position]), []).append((node, position))
    groups = _joined(graph, readers)
    peaks = {name: _peak(ranges, groups.get(name, {name})) for name in readers}
    steps = {name: _scales(np.float32(peak)) for name, peak in peaks.items()}
    for node in list(graph):
        if node.name in layers and node.name not in placement.skips:
            _quantise_weights(graph, node, steps[_name(node.inputs[0])])
    for name in readers:
        value = readers[name][0][0].inputs[readers[name][0][1]]
        assert value is not None
        _pair(graph, value, steps[name], readers[name])


def _peak(ranges: Mapping[str, tuple[np.float32, np.float32]], group: Collection[str]) -> float:
    return max(abs(float(bound)) for member in group for bound in ranges[member])


def _name(value: ir.Value | None) -> str:
    return (value.name or "") if value is not None else ""


def _integer_branch(node: ir.Node, skip: int, layers: Collection[str]) -> bool:
    """True if the other input of a residual sum comes from an integer layer, with or without a bias between."""
    value = node.inputs[1 - skip]
    producer = value.producer() if value is not None else None
    while producer is not None and producer.op_type == "Add":
        value = next(item for item in producer.inputs if item is not None and not item.is_initializer())
        producer = value.producer()
    return producer is not None and producer.name in layers


def _joined(graph: ir.Graph, readers: dict[str, list[tuple[ir.Node, int]]]) -> dict[str, set[str]]:
    """Tensors that meet in a concatenation whose result is quantised share a range, whatever else reads them.

    If nothing but integer layers reads the result, and all its inputs are computed, they get pairs too, and `readers`
    is extended by them.
    """
    groups: dict[str, set[str]] = {}
    for node in reversed(list(graph)):
        result = node.outputs[0]
        if node.op_type != "Concat" or _name(result) not in readers:
            continue
        computed = [value for value in node.inputs if value is not None and value.producer() is not None]
        group = set[str]().union(*(groups.get(_name(value), {_name(value)}) for value in (*computed, result)))
        groups.update(dict.fromkeys(group, group))
        # Inputs and constants have no pairs, and integers are not joined with floats.
        if len(result.uses()) == len(readers[_name(result)]) and len(computed) == len(node.inputs):
            for position, value in enumerate(node.inputs):
                if value is not None:
                    readers.setdefault(_name(value), []).append((node, position))
    return groups


def _scales(peaks: NDArray[np.float32] | np.float32) -> NDArray[np.float32]:
    steps = np.maximum(np.asarray(peaks, np.float32) / _MOST, _LEAST_SCALE)
    return steps.astype(np.float16).astype(np.float32)


def _quantise_weights(graph: ir.Graph, node: ir.Node, step: NDArray[np.float32]) -> None:
    """step: of the activation that the layer reads."""
    weights = weights_of(node)
    assert weights is not None
    assert weights.const_value is not None
    axis, array = channel_axis(node), weights.const_value.numpy()
    others = tuple(index for index in range(array.ndim) if index != axis)
    least = _MOST * np.abs(_bias_of(node)) / (_BIAS_STEPS * step)
    _pair(graph, weights, _scales(np.maximum(np.abs(array).max(axis=others), least)), [(node, 1)], axis)


def _bias_of(node: ir.Node) -> NDArray[np.float32]:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None or bias.const_value is None:
        return np.zeros((), np.float32)
    return np.asarray(bias.const_value.numpy(), np.float32)


def _pair(
    graph: ir.Graph,
    value: ir.Value,
    scales: NDArray[np.float32],
    readers: list[tuple[ir.Node, int]],
    axis: int | None = None,
) -> None:
    name = f"{value.name}_of_{readers[0][0].name}" if axis is not None else value.name  # weights may be shared
    scale = ir.val(f"{name}_scale", const_value=ir.tensor(scales))
    zero = ir.val(f"{name}_zero_point", const_value=ir.tensor(np.zeros_like(scales, np.int8)))
    graph.register_initializer(scale)
    graph.register_initializer(zero)
    attributes = {} if axis is None else {"axis": axis}
    quantise = ir.node("QuantizeLinear", [value, scale, zero], attributes, name=f"{name}_quantise")
    dequantise = ir.node("DequantizeLinear", [quantise.outputs[0], scale, zero], attributes, name=f"{name}_dequantise")
    for made, dtype, suffix in ((quantise, ir.DataType.INT8, "int8"), (dequantise, ir.DataType.FLOAT, "dequantised")):
        output = made.outputs[0]
        output.name, output.dtype, output.shape = f"{name}_{suffix}", dtype, value.shape
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], [quantise, dequantise])
    else:
        graph.insert_after(producer, [quantise, dequantise])
    for reader, position in readers:
        reader.replace_input_with(position, dequantise.outputs[0])
