"""Which nodes stay in FP32 in an FP16 graph, and why. Strongly typed engines raise no precision by themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from rsd_edge.export.typed_prepare import takes_half, typed_inputs

HALF_MAX = 65504.0
OVERFLOW_SHARE = 1 / 8
"""A tensor beyond this share of FP16's range stays FP32: unseen content may be eight times what calibration saw."""

_NORMS = {
    "BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization", "LpNormalization",
    "MeanVarianceNormalization", "Pow", "ReduceL2", "ReduceMean", "ReduceSum", "ReduceSumSquare", "Sqrt",
}  # fmt: skip
"""Normalisations whole or in pieces: variances square their input, which overflows from 256."""
_SOFTMAX = {"LogSoftmax", "Softmax"}
_EXACT = {"ArgMax", "ArgMin", "Cos", "Sin", "TopK"}
"""What flips on a rounding: the nearest code is chosen among near ones, and an angle of 14 is coarse in FP16."""
_LAYERS = {"Conv", "ConvTranspose", "Gemm"}


def fp32_islands(graph: ir.Graph, extremes: Mapping[str, tuple[np.float32, np.float32]]) -> dict[str, str]:
    """Names of the nodes that stay in FP32, each with its reason.

    extremes: least and greatest value of every float activation, from calibration.
    """
    limit = OVERFLOW_SHARE * HALF_MAX
    largest = {name: float(max(-least, most)) for name, (least, most) in extremes.items()}
    upstream = {id(node) for root in graph if root.op_type in _EXACT for node in _before(root)}
    islands: dict[str, str] = {}
    for node in graph:
        touched = [value for _, value in typed_inputs(node)] + list(node.outputs)
        peak = max((largest.get(value.name or "", 0.0) for value in touched), default=0.0)
        reason = ""
        if node.op_type in _NORMS:
            reason = "normalisation"
        elif node.op_type in _SOFTMAX:
            reason = "softmax"
        elif node.op_type in _EXACT or id(node) in upstream:
            reason = "feeds an index or an angle"
        elif not peak <= limit:
            reason = f"calibration saw {peak:.4g}, more than {limit:.0f}"
        elif any(_beyond(value, limit) for value in touched):
            reason = f"has constants beyond {limit:.0f}"
        elif not takes_half(node) or node.op_type == "ConstantOfShape":
            reason = "has no FP16 form"
        if reason and any(value.dtype is ir.DataType.FLOAT for value in touched):
            islands[node.name or ""] = reason
    return islands


def _before(node: ir.Node) -> Iterator[ir.Node]:
    """The nodes that a node depends on, back to layers, normalisations and inputs."""
    for value in node.inputs:
        producer = value.producer() if value is not None else None
        if producer is not None and producer.op_type not in _LAYERS | _NORMS | _SOFTMAX:
            yield producer
            yield from _before(producer)


def _beyond(value: ir.Value, limit: float) -> bool:
    constant = value.const_value
    if constant is None or constant.dtype is not ir.DataType.FLOAT:
        return False
    array = constant.numpy()
    return bool(array.size) and not float(np.abs(array).max()) <= limit
