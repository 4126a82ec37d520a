"""A float graph in FP16 with explicit FP32 islands: every tensor has one type, and casts stand where two meet."""

from __future__ import annotations

from collections.abc import Container

import numpy as np
import onnx_ir as ir

from rsd_edge.export.typed_prepare import typed_inputs

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def to_half(graph: ir.Graph, fp32_nodes: Container[str]) -> int:
    """Give all nodes but these FP16 types, in place, and return the number of casts that took.

    Inputs and outputs of the graph keep their types. Constants get the type of the node that reads them, so that one
    read by both kinds becomes two. All tensors must know their types before.
    """
    halved = _Halved(graph)
    nodes = list(graph)
    for node in nodes:
        dtype = ir.DataType.FLOAT if node.name in fp32_nodes else ir.DataType.FLOAT16
        for position, value in typed_inputs(node):
            if value.dtype in _FLOATS:
                node.replace_input_with(position, halved.typed(value, dtype))
        # What a node gives is set only now, so that whoever reads it finds its real type.
        for output in node.outputs:
            if output.dtype is ir.DataType.FLOAT:
                output.dtype = dtype
        if node.op_type == "Cast" and node.attributes["to"].as_int() == ir.DataType.FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", dtype)
    halved.restore_outputs()
    for value in list(graph.initializers.values()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[value.name or ""]
    return halved.casts


class _Halved:
    """Finds or makes a value in the type that is asked for."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._made: dict[str, ir.Value] = {}
        """By the name of a value: it has one of two types, so that only the other is ever asked for."""
        self.casts = 0

    def typed(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        if value.dtype is dtype:
            return value
        name = value.name or ""
        if name not in self._made:
            self._made[name] = self._constant(value, dtype) if value.is_initializer() else self._cast(value, dtype)
        return self._made[name]

    def _constant(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        assert value.const_value is not None
        array = value.const_value.numpy().astype(np.float16)
        made = ir.val(f"{value.name}_fp16", const_value=ir.tensor(array, dtype))
        self._graph.register_initializer(made)
        return made

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        suffix = "fp16" if dtype is ir.DataType.FLOAT16 else "fp32"
        cast = ir.node("Cast", [value], {"to": int(dtype)}, name=f"{value.name}_to_{suffix}")
        made = cast.outputs[0]
        made.name, made.dtype, made.shape = f"{value.name}_{suffix}", dtype, value.shape
        producer = value.producer()
        if producer is None:
            self._graph.insert_before(self._graph[0], cast)
        else:
            self._graph.insert_after(producer, cast)
        self.casts += 1
        return made

    def restore_outputs(self) -> None:
        """Outputs that became FP16 are cast to FP32 under their own name."""
        for index, output in enumerate(self._graph.outputs):
            if output.dtype is ir.DataType.FLOAT16:
                name = output.name or ""
                output.name = f"{name}_fp16"
                cast = self._cast(output, ir.DataType.FLOAT)
                cast.name = name
                self._graph.outputs[index] = cast
