"""Every rule of TensorRT's parser that is checked, each with a graph that breaks it and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx_graphs import WIDTH, conv, make_model

from rsd_edge.errors import InputError
from rsd_edge.export.lint import lint

HALF, SINGLE, INT8 = TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.INT8
VERSION = "10.3"
ZERO = np.zeros((), np.int8)


def half(weights: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name: array.astype(np.float16) if array.dtype == np.float32 else array for name, array in weights.items()}


def fp16_model(nodes: list[Any], weights: dict[str, NDArray[Any]] | None = None, **options: Any) -> onnx.ModelProto:
    return make_model(nodes, half(weights or {}), dtype=HALF, **options)


def only(model: onnx.ModelProto, version: str = VERSION) -> str:
    (finding,) = lint(model, version)
    return finding


def pair(
    source: str, weights: dict[str, NDArray[Any]], scale: Any = 0.1, zero: Any = ZERO, **attributes: Any
) -> list[Any]:
    """A Q/DQ pair from `source` to `source`_dq."""
    weights[f"{source}_s"], weights[f"{source}_z"] = np.asarray(scale, np.float32), np.asarray(zero)
    parameters = [f"{source}_s", f"{source}_z"]
    return [
        helper.make_node("QuantizeLinear", [source, *parameters], [f"{source}_q"], name=f"{source}_q", **attributes),
        helper.make_node("DequantizeLinear", [f"{source}_q", *parameters], [f"{source}_dq"], name="dq", **attributes),
    ]


def integer_conv(weights: dict[str, NDArray[Any]], *, scales: Any = None, axis: int = 0) -> list[Any]:
    """x -> Q/DQ -> convolution with Q/DQ on its weights."""
    layer = conv("c", "x_dq", weights)
    layer.input[1] = "c_w_dq"
    given = np.full(WIDTH, 0.01) if scales is None else np.asarray(scales)
    kernel = pair("c_w", weights, given, np.zeros(given.shape, np.int8), **({"axis": axis} if given.ndim else {}))
    return [*pair("x", weights), *kernel, layer]


@pytest.mark.parametrize("version", ["10.3", "10.16.1", "11.4.0.106"])
def test_a_graph_by_the_rules_has_no_findings(version: str) -> None:
    weights: dict[str, NDArray[Any]] = {}
    nodes = [*integer_conv(weights), helper.make_node("Relu", ["c"], ["y"], name="r")]
    assert lint(fp16_model(nodes, weights), version) == []


@pytest.mark.parametrize("version", ["8.6", "10.2", "ten", "12.0", "99.0", "10.3beta", "10"])
def test_a_version_that_is_not_known_is_refused(version: str) -> None:
    with pytest.raises(InputError, match=r"name a version from 10\.3 to 11\.x"):
        lint(fp16_model([helper.make_node("Relu", ["x"], ["y"])]), version)


@pytest.mark.parametrize(("opset", "version"), [(21, "10.3"), (23, "10.13"), (24, "10.14"), (26, "11.4")])
def test_opsets_have_an_end(opset: int, version: str) -> None:
    model = fp16_model([helper.make_node("Relu", ["x"], ["y"])])
    model.opset_import[0].version = opset
    assert only(model, version).startswith(f"opset {opset} is newer than ")


def test_operators_of_others_need_plugins() -> None:
    model = fp16_model([helper.make_node("BiasGelu", ["x", "x"], ["y"], name="g", domain="com.microsoft")])
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert any(
        item.startswith("BiasGelu 'g' is of domain 'com.microsoft' and needs a plugin") for item in lint(model, VERSION)
    )


def test_domains_that_are_not_imported_are_named() -> None:
    model = fp16_model([helper.make_node("Fancy", ["x"], ["y"], name="f", domain="my.ops")])
    assert only(model).startswith("Fancy 'f' is of domain 'my.ops', which the graph does not import; it needs a plugin")


def test_graphs_that_cannot_be_inferred_are_a_finding() -> None:
    model = fp16_model([helper.make_node("Relu", ["x"], ["y"], name="r")])
    model.opset_import[0].domain = "ai.onnx.ml"  # whose version says nothing of Relu
    assert only(model).startswith("the types of the graph cannot be inferred (")


@pytest.mark.parametrize(
    ("operator", "options"),
    [("Compress", {}), ("Unique", {"outputs": 1}), ("MaxUnpool", {"kernel_shape": [2, 2]}), ("Det", {})],
)
def test_operators_that_the_parser_does_not_have(operator: str, options: dict[str, Any]) -> None:
    options.pop("outputs", None)
    node = helper.make_node(
        operator, ["x", "x"] if operator in ("Compress", "MaxUnpool") else ["x"], ["y"], name="o", **options
    )
    model = make_model([node])
    assert f"{operator} 'o' is not read by TensorRT's parser; express it with other operators" in lint(model, VERSION)


def test_operators_come_with_versions() -> None:
    weights: dict[str, NDArray[Any]] = {"size": np.int64(8)}
    model = make_model([helper.make_node("HannWindow", ["size"], ["y"], name="w")], weights)
    assert only(model) == "HannWindow 'w' is read from TensorRT 10.4 on; express it with other operators"
    assert lint(model, "10.4") == []


@pytest.mark.parametrize("operator", ["RandomNormalLike", "RandomUniformLike", "Bernoulli"])
def test_random_numbers_are_inputs(operator: str) -> None:
    finding = only(fp16_model([helper.make_node(operator, ["x"], ["y"], name="r")]))
    assert finding == f"{operator} 'r' draws random numbers, whose seed TensorRT ignores; make them an input"


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"antialias": 1, "mode": "linear"}, "antialiases, which TensorRT refuses"),
        ({"mode": "cubic"}, "has mode cubic; TensorRT knows nearest, linear"),
        (
            {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize"},
            "has coordinate_transformation_mode",
        ),
        ({"keep_aspect_ratio_policy": "not_larger"}, "has keep_aspect_ratio_policy not_larger; TensorRT knows stretch"),
    ],
)
def test_resizing_has_limits(attributes: dict[str, Any], message: str) -> None:
    # The scales of a Resize are FP32 whatever it resizes.
    node = helper.make_node("Resize", ["x", "", "scales"], ["y"], name="z", **attributes)
    model = make_model([node], {"scales": np.float32([1, 1, 2, 2])}, dtype=HALF)
    assert only(model).startswith(f"Resize 'z' {message}")


def test_plain_resizing_is_allowed() -> None:
    node = helper.make_node("Resize", ["x", "", "scales"], ["y"], name="z", mode="nearest", nearest_mode="floor")
    assert lint(make_model([node], {"scales": np.float32([1, 1, 2, 2])}, dtype=HALF), VERSION) == []


def test_factors_of_a_resize_are_constants() -> None:
    node = helper.make_node("Resize", ["x", "", "scales"], ["y"], name="z", mode="nearest", nearest_mode="floor")
    nodes = [helper.make_node("Sqrt", ["squares"], ["scales"], name="s"), node]
    model = make_model(nodes, {"squares": np.float32([1, 1, 4, 4])}, dtype=HALF)
    assert only(model) == "Resize 'z' computes its input 2; make it a constant"


@pytest.mark.parametrize("operator", ["ReduceMean", "Squeeze"])
def test_axes_are_constants(operator: str) -> None:
    nodes = [
        helper.make_node("Shape", ["axes_of"], ["axes"], name="s"),
        helper.make_node(operator, ["x", "axes"], ["y"], name="r"),
    ]
    model = fp16_model(nodes, inputs={"x": ("n", 1, 1, 1), "axes_of": (1, 2)})
    assert only(model) == f"{operator} 'r' computes its input 1; make it a constant"


@pytest.mark.parametrize("operator", ["Add", "Mul", "Pow", "Min", "MatMul"])
def test_nothing_is_cast_between_fp32_and_fp16(operator: str) -> None:
    node = helper.make_node(operator, ["x", "k"], ["y"], name="o")
    model = make_model([node], {"k": np.ones((8, 8), np.float32)}, {"x": ("n", 8, 8)}, dtype=HALF)
    assert f"{operator} 'o' mixes FP32 and FP16 inputs; cast one of them" in lint(model, VERSION)


def test_the_weights_of_a_convolution_have_its_type() -> None:
    weights: dict[str, NDArray[Any]] = {}
    node = conv("c", "x", weights)
    weights["c_b"] = weights["c_b"].astype(np.float16)
    node.output[0] = "y"
    assert only(make_model([node], weights, dtype=HALF)) == "Conv 'c' mixes FP32 and FP16 inputs; cast one of them"


def test_scales_have_the_type_of_what_they_scale() -> None:
    weights: dict[str, NDArray[Any]] = {}
    nodes = integer_conv(weights)
    given = half(weights)
    given["x_s"] = given["x_s"].astype(np.float32)
    nodes[-1].output[0] = "y"
    assert any(
        "'x_q' mixes FP32 and FP16 inputs" in item for item in lint(make_model(nodes, given, dtype=HALF), VERSION)
    )


def test_constants_are_stored_as_they_are_read() -> None:
    nodes = [
        helper.make_node("Cast", ["k"], ["k16"], name="c", to=HALF),
        helper.make_node("Mul", ["x", "k16"], ["y"], name="m"),
    ]
    model = make_model(nodes, {"k": np.float32(2)}, dtype=HALF)
    assert only(model) == "Cast 'c' casts the constant 'k'; store it in the type that is read"


def test_constants_are_finite() -> None:
    with np.errstate(over="ignore"):
        model = fp16_model([helper.make_node("Min", ["x", "k"], ["y"], name="m")], {"k": np.float32(1e5)})
    assert only(model) == "constant 'k' is not finite in FP16; keep its reader in FP32"


@pytest.mark.parametrize("kind", [TensorProto.DOUBLE, TensorProto.UINT8])
def test_engines_compute_with_few_types(kind: int) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["other"], name="there", to=kind),
        helper.make_node("Cast", ["other"], ["y"], name="back", to=HALF),
    ]
    found = lint(fp16_model(nodes), VERSION)
    assert len(found) == 2
    assert all(
        "'other' of type" in item and item.endswith("which engines do not compute with; cast it") for item in found
    )


def test_inputs_are_of_few_types_too() -> None:
    model = make_model(
        [helper.make_node("Cast", ["x"], ["y"], name="c", to=HALF)], dtype=TensorProto.DOUBLE, output_dtype=HALF
    )
    assert any(item.startswith("'x' enters or leaves the graph as DOUBLE") for item in lint(model, VERSION))


def test_graphs_within_graphs_are_not_checked() -> None:
    branch = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["z"])], "b", [], [helper.make_tensor_value_info("z", HALF, None)]
    )
    node = helper.make_node("If", ["c"], ["y"], name="i", then_branch=branch, else_branch=branch)
    model = fp16_model([node], {"c": np.array(True)})
    assert only(model) == "If 'i' has a graph inside, which is not checked; unroll it"


def test_integers_pass_from_q_to_dq_only() -> None:
    weights: dict[str, NDArray[Any]] = {}
    quantise, dequantise = pair("x", weights)
    dequantise.input[0] = "through"
    nodes = [quantise, helper.make_node("Relu", ["x_q"], ["through"], name="r"), dequantise, *integer_conv({})[-1:]]
    found = lint(fp16_model(nodes[:3], weights, outputs=("x_dq",)), VERSION)
    assert "QuantizeLinear 'x_q' is read by another operator than DequantizeLinear; put one between" in found
    assert "Relu 'r' reads 'x_q' as int8, which only DequantizeLinear may" in found


def test_graphs_end_in_float() -> None:
    weights: dict[str, NDArray[Any]] = {}
    model = fp16_model(pair("x", weights)[:1], weights, outputs=("x_q",), output_dtype=INT8)
    assert "QuantizeLinear 'x_q' makes an output of the graph integer; end in float" in lint(model, VERSION)


@pytest.mark.parametrize(
    ("scale", "zero", "message"),
    [
        (0.1, np.int8(3), "has a zero point other than 0; quantise symmetrically"),
        (0.1, np.uint8(0), "has integers of type uint8; TensorRT takes int8"),
        (-0.1, ZERO, "has a scale that is not positive and finite; calibrate again"),
        (0.0, ZERO, "has a scale that is not positive and finite; calibrate again"),
    ],
)
def test_quantisation_is_symmetric_s8(scale: float, zero: Any, message: str) -> None:
    weights: dict[str, NDArray[Any]] = {}
    nodes = integer_conv(weights)
    weights["x_s"], weights["x_z"] = np.float32(scale), np.asarray(zero)
    nodes[-1].output[0] = "y"
    found = [item for item in lint(fp16_model(nodes, weights), VERSION) if "of type UINT8" not in item]
    assert found == [f"QuantizeLinear 'x_q' {message}", f"DequantizeLinear 'dq' {message}"]


def test_scales_are_constants() -> None:
    weights: dict[str, NDArray[Any]] = {}
    nodes = integer_conv(weights)
    del weights["x_s"]
    nodes.insert(0, helper.make_node("ReduceMax", ["x"], ["x_s"], name="m", keepdims=0))
    nodes[-1].output[0] = "y"
    assert any("computes its scale; make it a constant" in item for item in lint(fp16_model(nodes, weights), VERSION))


@pytest.mark.parametrize("operator", ["Softmax", "Sigmoid", "Relu"])
def test_what_runs_in_float_reads_no_rounded_values(operator: str) -> None:
    weights: dict[str, NDArray[Any]] = {}
    nodes = [*pair("x", weights), helper.make_node(operator, ["x_dq"], ["y"], name="s")]
    finding = only(fp16_model(nodes, weights))
    assert (
        finding
        == f"DequantizeLinear 'dq' is read by {operator} 's', which runs in float; let it read the tensor itself"
    )


def test_biases_are_not_quantised() -> None:
    weights: dict[str, NDArray[Any]] = {}
    nodes = integer_conv(weights)
    nodes[-1:-1] = pair("c_b", weights, 0.01)
    nodes[-1].input[2] = "c_b_dq"
    nodes[-1].output[0] = "y"
    assert only(fp16_model(nodes, weights)).endswith(
        "dequantises a constant for input 2 of Conv 'c'; only weights may be"
    )


def test_activations_have_one_scale() -> None:
    weights: dict[str, NDArray[Any]] = {}
    nodes = [*pair("x", weights, np.full(WIDTH, 0.1), np.zeros(WIDTH, np.int8), axis=1), *integer_conv(weights)[2:]]
    weights["x_s"], weights["x_z"] = np.full(WIDTH, 0.1, np.float32), np.zeros(WIDTH, np.int8)
    nodes[-1].output[0] = "y"
    assert only(fp16_model(nodes, weights)).endswith("has several scales for an activation; TensorRT takes one")


def test_attention_stays_fp16() -> None:
    weights: dict[str, NDArray[Any]] = {}
    nodes = [*pair("x", weights), helper.make_node("MatMul", ["x_dq", "x_dq"], ["y"], name="p")]
    model = fp16_model(nodes, weights, inputs={"x": ("n", 8, 8)})
    assert only(model) == "MatMul 'p' multiplies two activations in integers; leave attention in FP16"


@pytest.mark.parametrize("part", ["activation", "weights"])
def test_layers_are_integer_as_a_whole(part: str) -> None:
    weights: dict[str, NDArray[Any]] = {}
    nodes = integer_conv(weights)
    kept = nodes[:2] if part == "activation" else nodes[2:4]
    nodes[-1].input[0 if part == "weights" else 1] = "x" if part == "weights" else "c_w"
    nodes[-1].output[0] = "y"
    assert (
        only(fp16_model([*kept, nodes[-1]], weights))
        == f"Conv 'c' is integer in its {part} only; quantise both or none"
    )


@pytest.mark.parametrize(("scales", "axis"), [(0.01, 0), (np.full(WIDTH, 0.01), 1)])
def test_weights_have_a_scale_for_each_output_channel(scales: Any, axis: int) -> None:
    weights: dict[str, NDArray[Any]] = {}
    nodes = integer_conv(weights, scales=scales, axis=axis)
    nodes[-1].output[0] = "y"
    assert (
        only(fp16_model(nodes, weights))
        == "Conv 'c' has weights without one scale a channel on axis 0; quantise them so"
    )


def test_of_a_residual_sum_one_input_is_quantised() -> None:
    weights: dict[str, NDArray[Any]] = {}
    nodes = [
        *integer_conv(weights),
        *pair("c", weights),
        helper.make_node("Add", ["x_dq", "c_dq"], ["y"], name="a"),
    ]
    finding = only(fp16_model(nodes, weights))
    assert finding == "Add 'a' has both inputs quantised, the output of Conv 'c' too; leave that one as it is"


def test_what_is_joined_has_one_scale() -> None:
    weights: dict[str, NDArray[Any]] = {}
    inputs = {"x": ("n", WIDTH, "h", "w"), "z": ("n", WIDTH, "h", "w")}
    nodes = [
        *pair("x", weights, 0.1),
        *pair("z", weights, 0.2),
        helper.make_node("Concat", ["x_dq", "z_dq"], ["y"], name="j", axis=1),
    ]
    assert (
        only(fp16_model(nodes, weights, inputs=inputs))
        == "Concat 'j' joins integers of different scales; give its inputs one"
    )
    weights["z_s"] = weights["x_s"]
    assert lint(fp16_model(nodes, weights, inputs=inputs), VERSION) == []


def test_integers_are_not_joined_with_floats() -> None:
    weights: dict[str, NDArray[Any]] = {}
    inputs = {"x": ("n", WIDTH, "h", "w"), "z": ("n", WIDTH, "h", "w")}
    nodes = [*pair("x", weights), helper.make_node("Concat", ["x_dq", "z"], ["y"], name="j", axis=1)]
    found = only(fp16_model(nodes, weights, inputs=inputs))
    assert found == "Concat 'j' joins integers and floats; quantise all of its inputs, by one scale, or none"


@pytest.mark.parametrize(("position", "what"), [(1, "scale"), (2, "zero point")])
def test_a_pair_has_one_scale_and_one_zero_point(position: int, what: str) -> None:
    weights: dict[str, NDArray[Any]] = {"other_1": np.float32(0.2), "other_2": np.int8(1)}
    nodes = integer_conv(weights)
    nodes[1].input[position] = f"other_{position}"
    nodes[-1].output[0] = "y"
    found = lint(fp16_model(nodes, weights), VERSION)
    assert f"DequantizeLinear 'dq' has another {what} than QuantizeLinear 'x_q' before it; give both the same" in found


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize(("least", "findings"), [(-127, 0), (-128, 1)])
def test_integer_weights_end_at_127(stored: bool, least: int, findings: int) -> None:
    weights: dict[str, NDArray[Any]] = {}
    nodes = integer_conv(weights)
    weights["c_w"] = np.clip(weights["c_w"], -1, 1)
    weights["c_w"][3, 0, 0, 0] = 0.01 * least
    if stored:
        weights["c_w_q"] = np.rint(weights.pop("c_w") / 0.01).astype(np.int8)
        del nodes[2]
    nodes[-1].output[0] = "y"
    found = lint(fp16_model(nodes, weights), VERSION)
    assert len(found) == findings
    assert all("has integers below -127, which TensorRT's symmetric range ends at" in item for item in found)
