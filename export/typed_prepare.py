"""Float graphs made ready for surgery: one opset, constants folded and named apart, the type of every tensor known."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx import version_converter
from onnx_ir.passes import common

from rsd_edge.errors import BackendError, InputError
from rsd_edge.ort import ort

OPSET = 20
"""FP16 scales of Q/DQ need 19; TensorRT 10.3, on the boards of the installed base, reads up to 20."""
_ROUNDS = 2
"""Shapes that the first one makes constant tell the second one more."""
_UNWANTED = ["GeluFusionL1", "MatMulAddFusion"]
"""Of ONNX Runtime's: TensorRT knows attention by its plain products, and Gelu not in every version."""
_IR_VERSION = 9
"""Of ONNX 1.15, which brought opset 20: readers of that age refuse later ones."""


def prepared(part: onnx.ModelProto) -> onnx.ModelProto:
    """The same function in opset 20, without constant nodes. Raises BackendError for a graph with control flow."""
    loops = sorted({node.op_type for node in part.graph.node for item in node.attribute if item.HasField("g")})
    if loops:
        raise BackendError(
            f"the graph has control flow ({', '.join(loops)}), whose types cannot be set; export it without"
        )
    before = next(item.version for item in part.opset_import if item.domain in ("", "ai.onnx"))
    model = part if before == OPSET else version_converter.convert_version(part, OPSET)
    for _ in range(_ROUNDS):
        model = _folded(model)
    return model


def _folded(model: onnx.ModelProto) -> onnx.ModelProto:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "folded.onnx"
        options.optimized_model_filepath = str(path)
        ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"], disabled_optimizers=_UNWANTED
        )
        folded = ir.from_proto(onnx.load(path))
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(folded)
    for index, node in enumerate(folded.graph):
        node.name = node.name or f"{node.op_type}_{index}"  # layers are chosen by name, and ONNX lets it be empty
    common.NameFixPass()(folded)
    for domain in [name for name in folded.opset_imports if name]:
        del folded.opset_imports[domain]  # ONNX Runtime imports all that it knows
    folded.ir_version = _IR_VERSION
    return _with_constant_shapes(inferred(ir.to_proto(folded)))


def inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """With the type, and as far as it is known the shape, of every tensor. Those stated before are forgotten."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(bare, check_type=True, strict_mode=True, data_prop=True)


def with_sizes(model: onnx.ModelProto, sizes: Mapping[str, int]) -> onnx.ModelProto:
    """The graph with these symbolic dimensions of its inputs fixed, and the arithmetic on shapes that follows folded.

    Shapes that only lack the batch become constants; nothing else is touched. Raises InputError for a dimension that no
    input has.
    """
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    dims = [dim for item in fixed.graph.input for dim in item.type.tensor_type.shape.dim]
    unknown = sorted(set(sizes) - {dim.dim_param for dim in dims})
    if unknown:
        raise InputError(f"the graph has no symbolic dimension {', '.join(unknown)}; fix only what its inputs have")
    for dim in dims:
        if dim.dim_param in sizes:
            dim.dim_value = sizes[dim.dim_param]
    for item in fixed.graph.output:  # they say what the inputs were, and inference only adds to that
        item.type.tensor_type.ClearField("shape")
    return _with_constant_shapes(inferred(fixed))


def _with_constant_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    shaped = ir.from_proto(model)
    graph = shaped.graph
    for node in list(graph):
        if node.op_type != "Reshape" or node.inputs[1] is None or node.inputs[1].is_initializer():
            continue
        shape = node.outputs[0].shape
        sizes = [size if isinstance(size, int) else -1 for size in shape.dims] if shape is not None else [-1, -1]
        if sizes.count(-1) <= 1:
            value = ir.val(f"{node.name}_shape", const_value=ir.tensor(sizes, ir.DataType.INT64))
            graph.register_initializer(value)
            node.replace_input_with(1, value)
    common.RemoveUnusedNodesPass()(shaped)
    return inferred(ir.to_proto(shaped))


def float_activations(model: onnx.ModelProto) -> list[str]:
    """Names of the float tensors that nodes compute, in the order of the nodes."""
    known = [*model.graph.value_info, *model.graph.output]
    floats = {item.name for item in known if item.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    return [name for node in model.graph.node for name in node.output if name in floats]


def typed_inputs(node: ir.Node) -> Iterator[tuple[int, ir.Value]]:
    """Position and value of the inputs whose float type is the node's own to choose; scales of Resize are not."""
    schema = onnx.defs.get_schema(node.op_type, OPSET, node.domain)
    free = {item.type_param_str for item in schema.type_constraints}
    for position, value in enumerate(node.inputs):
        formal = schema.inputs[min(position, len(schema.inputs) - 1)]
        if value is not None and formal.type_str in free:
            yield position, value


def takes_half(node: ir.Node) -> bool:
    """True if ONNX defines the operator for float16 too, wherever it takes or gives float."""
    schema = onnx.defs.get_schema(node.op_type, OPSET, node.domain)
    floats = [item for item in schema.type_constraints if "tensor(float)" in item.allowed_type_strs]
    return all("tensor(float16)" in item.allowed_type_strs for item in floats)
