"""Rules that a graph must keep for TensorRT to build a strongly typed engine of it, checked without TensorRT."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import numpy as np
import onnx
import onnx_ir as ir

from rsd_edge.errors import InputError
from rsd_edge.export.lint_operators import NEWEST_MAJOR, OLDEST, RANDOM, Version, known_since, newest_opset
from rsd_edge.export.lint_qdq import QDQ_RULES

_ONNX = ("", "ai.onnx")
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
_TYPES = (*_FLOATS, ir.DataType.BFLOAT16, ir.DataType.INT8, ir.DataType.INT32, ir.DataType.INT64, ir.DataType.BOOL)
_RESIZE = {
    "mode": ("nearest", "linear"),
    "coordinate_transformation_mode": (
        "half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners",
    ),
    "nearest_mode": ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil"),
    "keep_aspect_ratio_policy": ("stretch",),
}  # fmt: skip
_CONSTANT_INPUTS = {"CumSum": 1, "OneHot": 1, "Resize": 2, "Squeeze": 1, "Unsqueeze": 1}
"""Position of the input that the parser wants to know when the engine is built, as of all reductions."""
_OWN_TYPES = {"Where": 1, "Cast": 0, "CastLike": 0, "Resize": 0, "Gather": 0, "DequantizeLinear": 0}
"""Operators with inputs of several types by nature, and where those begin that must agree; for 0 none need to."""


def lint(model: onnx.ModelProto, version: str) -> list[str]:
    """What TensorRT of that version, such as 10.3, would refuse or silently do otherwise; empty if nothing.

    Each finding names the node and the cure. Raises InputError for a version that this knows nothing of.
    """
    number = _version(version)
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    findings = [*_opsets(bare, number), *_domains(bare)]
    if findings:
        return findings  # types cannot be inferred by rules that are not known
    del bare.graph.value_info[:]
    try:
        graph = ir.from_proto(onnx.shape_inference.infer_shapes(bare)).graph
    except onnx.shape_inference.InferenceError as error:
        reason = str(error).strip().partition("\n")[0]
        return [f"the types of the graph cannot be inferred ({reason}); mend it until onnx.checker takes it"]
    for node in graph:
        for rule in _NODE_RULES:
            findings += [f"{node.op_type} '{node.name}' {problem}" for problem in rule(node, number)]
    for name, value in graph.initializers.items():
        findings += [f"constant '{name}' {problem}" for problem in _constant(value)]
    for value in (*graph.inputs, *graph.outputs):
        if value.dtype not in (*_FLOATS, ir.DataType.INT32, ir.DataType.INT64, ir.DataType.BOOL):
            findings.append(f"'{value.name}' enters or leaves the graph as {value.dtype}; cast it")
    return findings


def _version(text: str) -> Version:
    match = re.fullmatch(r"(\d+)\.(\d+)(\.\d+)*", text)
    number = (int(match[1]), int(match[2])) if match else (0, 0)
    if not OLDEST <= number < (NEWEST_MAJOR + 1, 0):
        raise InputError(
            f"TensorRT '{text}' is unknown here; name a version from {OLDEST[0]}.{OLDEST[1]} to {NEWEST_MAJOR}.x"
        )
    return number


def _opsets(model: onnx.ModelProto, version: Version) -> Iterator[str]:
    for item in model.opset_import:
        if item.domain in _ONNX and item.version > newest_opset(version):
            yield f"opset {item.version} is newer than {newest_opset(version)}, the last that it reads; convert to that"


def _domains(model: onnx.ModelProto) -> Iterator[str]:
    imported = {item.domain for item in model.opset_import} | set(_ONNX)
    for node in model.graph.node:
        if node.domain not in imported:
            yield (
                f"{node.op_type} '{node.name}' is of domain '{node.domain}', which the graph does not import; it needs "
                "a plugin, or to be expressed with ONNX's own operators"
            )


def _operator(node: ir.Node, version: Version) -> Iterator[str]:
    since = known_since(node.op_type)
    if node.domain not in _ONNX:
        yield f"is of domain '{node.domain}' and needs a plugin; express it with ONNX's own operators"
    elif node.op_type in RANDOM:
        yield "draws random numbers, whose seed TensorRT ignores; make them an input"
    elif since is None:
        yield "is not read by TensorRT's parser; express it with other operators"
    elif version < since:
        yield f"is read from TensorRT {since[0]}.{since[1]} on; express it with other operators"


def _resize(node: ir.Node, _: Version) -> Iterator[str]:
    if node.op_type != "Resize":
        return
    antialias = node.attributes.get("antialias")
    if antialias is not None and antialias.as_int():
        yield "antialiases, which TensorRT refuses; resize outside the graph"
    for name, allowed in _RESIZE.items():
        attribute = node.attributes.get(name)
        if attribute is not None and attribute.as_string() not in allowed:
            yield f"has {name} {attribute.as_string()}; TensorRT knows {', '.join(allowed)}"


def _constant_inputs(node: ir.Node, _: Version) -> Iterator[str]:
    position = 1 if node.op_type.startswith("Reduce") else _CONSTANT_INPUTS.get(node.op_type)
    if position is None or position >= len(node.inputs):
        return
    value = node.inputs[position]
    if value is not None and not value.is_initializer():
        yield f"computes its input {position}; make it a constant"


def _known_types(node: ir.Node, _: Version) -> Iterator[str]:
    for value in (*node.inputs, *node.outputs):
        if value is not None and value.dtype is None:
            yield f"has '{value.name}', whose type cannot be inferred; check its inputs"
        elif value is not None and value.dtype not in _TYPES:
            yield f"has '{value.name}' of type {value.dtype}, which engines do not compute with; cast it"


def _one_float_type(node: ir.Node, _: Version) -> Iterator[str]:
    """Strongly typed networks cast nothing by themselves, not even a scalar."""
    start = _OWN_TYPES.get(node.op_type)
    if start == 0:
        return
    floats = {value.dtype for value in node.inputs[start or 0 :] if value is not None and value.dtype in _FLOATS}
    if len(floats) > 1:
        yield "mixes FP32 and FP16 inputs; cast one of them"


def _subgraphs(node: ir.Node, _: Version) -> Iterator[str]:
    if any(attribute.type is ir.AttributeType.GRAPH for attribute in node.attributes.values()):
        yield "has a graph inside, which is not checked; unroll it"


def _cast_constant(node: ir.Node, _: Version) -> Iterator[str]:
    value = node.inputs[0] if node.op_type == "Cast" and node.inputs else None
    if value is not None and value.is_initializer():
        yield f"casts the constant '{value.name}'; store it in the type that is read"


def _constant(value: ir.Value) -> Iterator[str]:
    tensor = value.const_value
    if tensor is None or value.dtype not in _FLOATS:
        return
    if not np.isfinite(tensor.numpy()).all():
        yield f"is not finite in {'FP16' if value.dtype is ir.DataType.FLOAT16 else 'FP32'}; keep its reader in FP32"


_NODE_RULES: tuple[Callable[[ir.Node, Version], Iterator[str]], ...] = (
    _operator,
    _resize,
    _constant_inputs,
    _known_types,
    _one_float_type,
    _subgraphs,
    _cast_constant,
    *QDQ_RULES,
)
