"""Strongly typed graphs for TensorRT: FP16, or INT8 where it is close enough, with all types and scales written out.

TensorRT reads precision from such a graph and changes nothing of it; the one file serves 10.3 to 11.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from rsd_edge.errors import BackendError
from rsd_edge.export.gate import Closeness, Gate, Search, closeness
from rsd_edge.export.half import to_half
from rsd_edge.export.islands import fp32_islands
from rsd_edge.export.placement import Placement, place
from rsd_edge.export.qdq import insert_qdq
from rsd_edge.export.ranges import Activations, Feeds, Method, bounds, collect
from rsd_edge.export.rounding import rounded, run_graph
from rsd_edge.export.typed_prepare import OPSET, float_activations, inferred, prepared

FP16_GATE = Gate(psnr_db=60, detail_snr_db=34, lpips=0)
"""The detail as far below the image as INT8's gate has it."""
INT8_GATE = Gate()
_RANK_BATCHES = 4
"""Of those for calibration: layers are ranked on them."""
_INSTEAD = {"int8": "--precision fp16", "fp16": "--backend onnxruntime"}
_ONLY_MOVE = {"Concat", "Expand", "Gather", "Relu", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
"""Their results are as exact as what they are given."""
_FP16_METHODS = (Method.MINMAX,)
"""FP16 has no ranges to choose."""


@dataclass(frozen=True)
class TypedGraph:
    """A graph that a strongly typed engine can be built of, and what was found out about it."""

    model: onnx.ModelProto
    """Opset 20; inputs and outputs as they were, FP32."""
    precision: Literal["fp16", "int8"]
    report: dict[str, Any]
    """JSON: gate and closeness to the FP32 graph, FP32 islands, integer layers and those left out, with reasons."""


def typed_graph(
    part: onnx.ModelProto,
    precision: Literal["fp16", "int8"],
    calibration: Iterable[Feeds],
    *,
    held_out: Iterable[Feeds] | None = None,
    gate: Gate | None = None,
    peak: float | None = 2.0,
    methods: tuple[Method, ...] = tuple(Method),
) -> TypedGraph:
    """Type a float graph of one output, and prove it close to what it was.

    calibration: inputs of the graph, batch by batch, of the kind that the engine will see. held_out: others, which
    judge the result; None judges by those of the calibration. peak: what values of the output span, 2 for images in
    [-1, 1]; None takes the span that the float graph gives. methods: of choosing INT8 ranges.
    Raises BackendError if the gate cannot be held or the graph cannot be typed.
    """
    source, seen = prepared(part), list(calibration)
    activations = collect(source, float_activations(source), seen)
    make = _Int8(source, activations) if precision == "int8" else _Fp16(source, activations)
    judge = _Judge(source, list(held_out) if held_out is not None else seen, peak)
    compare, rank = (_Judge(source, batches, peak) for batches in (seen, seen[:_RANK_BATCHES]))
    search = Search(make, judge, compare, rank=rank, precision=precision, instead=_INSTEAD[precision])
    default = INT8_GATE if precision == "int8" else FP16_GATE
    found = search.run(gate or default, methods if precision == "int8" else _FP16_METHODS)
    report = {
        "precision": precision,
        "opset": OPSET,
        **found.report,
        "gate": {name: bound for name, bound in found.report["gate"].items() if name != "lpips"},  # not judged here
        "fp32_islands": make.islands,
        "left_out": make.left_out,
        "integer_layers": make.integer_layers(found.report["layers_in_float"]),
        "operators": dict(sorted(Counter(node.op_type for node in found.graph.graph.node).items())),
        "largest_activation": max(float(np.abs(pair).max()) for pair in activations.extremes.values()),
        "calibration_batches": len(seen),
    }
    return TypedGraph(found.graph, precision, report)


class _Fp16:
    """Makes FP16 graphs; a layer "in float" is one more FP32 island."""

    left_out: dict[str, str] = {}  # noqa: RUF012  # never changed

    def __init__(self, source: onnx.ModelProto, activations: Activations) -> None:
        self._source = source
        graph = ir.from_proto(source).graph
        self.islands = fp32_islands(graph, activations.extremes)
        floats = [node for node in graph if any(value.dtype is ir.DataType.FLOAT for value in node.outputs)]
        candidates = [node for node in floats if node.op_type not in _ONLY_MOVE and node.name not in self.islands]
        self.layers = tuple(node.name or "" for node in candidates)

    def __call__(self, method: Method, keep_float: Sequence[str] = ()) -> onnx.ModelProto:
        return halved(ir.from_proto(self._source), {*self.islands, *keep_float})

    def integer_layers(self, keep_float: Sequence[str]) -> list[str]:
        return []


class _Int8:
    """Makes graphs with Q/DQ pairs around layers, the rest FP16."""

    def __init__(self, source: onnx.ModelProto, activations: Activations) -> None:
        self._source, self._activations = source, activations
        self.islands = fp32_islands(ir.from_proto(source).graph, activations.extremes)
        placement = place(source)
        self.left_out = placement.excluded | {
            name: "an FP32 island" for name in placement.layers if name in self.islands
        }
        self.layers = tuple(name for name in placement.layers if name not in self.islands)
        if not self.layers:
            raise BackendError("the network has no layer that INT8 could serve; use --precision fp16")
        self._placement = Placement(self.layers, placement.excluded, placement.skips)

    def __call__(self, method: Method, keep_float: Sequence[str] = ()) -> onnx.ModelProto:
        model = ir.from_proto(self._source)
        insert_qdq(model.graph, self._placement, bounds(self._activations, method), keep_float)
        return halved(model, self.islands.keys())

    def integer_layers(self, keep_float: Sequence[str]) -> list[str]:
        return [name for name in self.layers if name not in keep_float]


def halved(model: ir.Model, fp32_nodes: Iterable[str]) -> onnx.ModelProto:
    """A prepared graph in FP16 but for these nodes, with the type of every tensor stated. Changes the model."""
    to_half(model.graph, frozenset(fp32_nodes))
    common.TopologicalSortPass()(model)
    return inferred(ir.to_proto(model))


class _Judge:
    """Compares typed graphs with the float one on the same inputs, with every FP16 tensor rounded."""

    def __init__(self, source: onnx.ModelProto, batches: Sequence[Feeds], peak: float | None) -> None:
        self._batches = batches
        self._reference = run_graph(source, batches)
        self._peak = float(np.ptp(self._reference)) if peak is None else peak

    def __call__(self, model: onnx.ModelProto) -> Closeness:
        return closeness(run_graph(rounded(model), self._batches), self._reference, self._peak)
