"""What an FP16 graph computes, seen with ONNX Runtime's CPU provider.

That provider has no FP16 arithmetic: it runs such a graph in FP32 from end to end, rounds nothing but constants, inputs
and outputs, and overflows nowhere. So the graph is run as an FP32 one in which every FP16 tensor is rounded to FP16 and
back, with casts that the runtime keeps. Sums inside a node stay FP32, as on tensor cores.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from rsd_edge.export.ranges import Array, Feeds
from rsd_edge.ort import ort

_ERRORS = 3
_HALF, _SINGLE = ir.DataType.FLOAT16, ir.DataType.FLOAT


def rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The FP32 graph with explicit roundings that computes what the typed graph means. Its inputs must be FP32."""
    shadow = ir.from_proto(model)
    graph = shadow.graph
    for value in graph.initializers.values():
        if value.dtype is _HALF and value.const_value is not None:
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
            value.dtype = _SINGLE
    for node in list(graph):
        if node.op_type == "Cast" and node.attributes["to"].as_int() == _HALF:
            node.attributes["to"] = ir.AttrInt64("to", _SINGLE)
        for output in node.outputs:
            if output.dtype is _HALF:
                _round(graph, node, output)
    return ir.to_proto(shadow)


def _round(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    value.dtype = _SINGLE
    down = ir.node("Cast", [value], {"to": int(_HALF)})
    up = ir.node("Cast", [down.outputs[0]], {"to": int(_SINGLE)})
    for cast, dtype, suffix in ((down, _HALF, "half"), (up, _SINGLE, "rounded")):
        cast.name = cast.outputs[0].name = f"{value.name}_{suffix}"
        cast.outputs[0].dtype = dtype
    value.replace_all_uses_with(up.outputs[0])
    down.replace_input_with(0, value)
    graph.insert_after(node, [down, up])


def run_by_default(graph: Path, batches: Sequence[Feeds]) -> Array:
    """The first output of a file for all batches, joined, with all that ONNX Runtime does when nothing is asked for.

    It rewrites Q/DQ pairs and biases then, and computes FP16 in FP32.
    """
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS  # it warns of constants that it cannot fold, and there is nothing to mend
    session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    return np.concatenate([np.asarray(session.run(None, dict(feeds))[0]) for feeds in batches])


def run_graph(model: onnx.ModelProto, batches: Sequence[Feeds]) -> Array:
    """The first output for all batches, joined."""
    options = ort.SessionOptions()
    # Integer kernels sum in their own ways, which are not TensorRT's; left alone, Q/DQ pairs round and nothing more.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.concatenate([np.asarray(session.run(None, dict(feeds))[0]) for feeds in batches])
