"""Float graphs to strongly typed ones: what becomes FP16, stays FP32 or becomes integer, and how close it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import helper
from onnx_graphs import (
    HALF,
    SINGLE,
    WIDTH,
    between_convs,
    constant,
    conv,
    feeds,
    fp16,
    input_of,
    int8,
    make_model,
    maker_of,
    node_named,
    quantised_source,
    relu,
    types_of,
)

from rsd_edge.errors import BackendError, InputError
from rsd_edge.export import qdq
from rsd_edge.export.calibration import calibration_samples, held_out_samples
from rsd_edge.export.deploy import DeployedTile
from rsd_edge.export.gate import Gate
from rsd_edge.export.lint import lint
from rsd_edge.export.onnx_export import export_tile
from rsd_edge.export.quantize import batches_of
from rsd_edge.export.rounding import rounded, run_graph
from rsd_edge.export.typed import TypedGraph, typed_graph
from rsd_edge.export.typed_prepare import OPSET, prepared, with_sizes
from rsd_edge.models.checkpoint import Checkpoint
from rsd_edge.models.edge_tile import edge_tile

pytestmark = pytest.mark.usefixtures("typed_within_the_rules")


def test_convolutions_compute_in_fp16_between_fp32_ends() -> None:
    weights: dict[str, NDArray[Any]] = {}
    typed = fp16(between_convs([relu("first")], "first_r", weights))
    types = types_of(typed.model)
    assert (types["x"], types["y"]) == (SINGLE, SINGLE)
    assert {types[name] for name in ("first", "first_r")} == {HALF}
    assert {constant(typed.model, item.name).dtype for item in typed.model.graph.initializer} == {np.dtype(np.float16)}
    assert [node.op_type for node in typed.model.graph.node] == ["Cast", "Conv", "Relu", "Conv", "Cast"]
    assert typed.model.opset_import[0].version == OPSET
    assert typed.report["fp32_islands"] == {}
    assert typed.report["closeness"]["psnr_db"] > 60  # eleven bits


def test_an_integer_convolution_reads_pairs_and_fuses_with_what_follows() -> None:
    weights: dict[str, NDArray[Any]] = {}
    nodes = [relu("first"), conv("middle", "first_r", weights), relu("middle")]
    typed = int8(between_convs(nodes, "middle_r", weights))
    model = typed.model
    assert quantised_source(model, input_of(model, "middle")) == "first_r"
    assert quantised_source(model, input_of(model, "middle", 1)) == "middle_w_fp16"
    assert node_named(model, "middle").input[2] == "middle_b_fp16"  # biases are added as they are
    assert node_named(model, "middle_r").input[0] == "middle"  # nothing between, or they would not fuse
    for end in ("first", "last"):
        assert [quantised_source(model, name) for name in node_named(model, end).input] == [None] * 3
    assert typed.report["integer_layers"] == ["middle"]
    assert set(typed.report["left_out"]) == {"first", "last"}


def test_scales_are_fp16_symmetric_and_by_channel_for_weights() -> None:
    weights: dict[str, NDArray[Any]] = {}
    nodes = [relu("first"), conv("middle", "first_r", weights), relu("middle")]
    model = int8(between_convs(nodes, "middle_r", weights)).model
    (activation,) = [node for node in model.graph.node if node.op_type == "QuantizeLinear" and not node.attribute]
    (kernel,) = [node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.attribute]
    for node, shape in ((activation, ()), (kernel, (WIDTH,))):
        scale, zero = (constant(model, name) for name in node.input[1:])
        assert (scale.shape, scale.dtype) == (shape, np.float16)
        assert (zero.shape, zero.dtype) == (shape, np.int8)
        assert not zero.any()
    assert kernel.attribute[0].i == 0
    largest = np.abs(weights["middle_w"]).max(axis=(1, 2, 3))
    np.testing.assert_allclose(constant(model, kernel.input[1]), largest / 127, rtol=1e-3)  # FP16 rounds by 2^-11


def test_scales_are_numbers_that_fp16_has_in_full() -> None:
    scales = qdq._scales(np.float32([0, 1e-4, 1, 1000]))
    assert np.array_equal(scales, scales.astype(np.float16).astype(np.float32))
    assert scales.min() == np.finfo(np.float16).tiny
    np.testing.assert_allclose(scales[2:], np.float32([1, 1000]) / 127, rtol=2**-11)


def test_biases_fit_the_integers_that_a_default_session_makes_of_them() -> None:
    """ONNX Runtime computes them in FP16: a bias of more than 65504 steps would become infinite."""
    weights: dict[str, NDArray[Any]] = {}
    nodes = [relu("first"), conv("middle", "first_r", weights), relu("middle"), conv("after", "middle_r", weights)]
    weights["middle_w"][0] *= np.float32(1e-3)  # all that this channel gives is its bias
    weights["middle_b"][0] = 3
    model, batch = int8(between_convs(nodes, "after", weights)).model, feeds(1)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    plain, meant = np.asarray(session.run(None, batch[0])[0]), run_graph(rounded(model), batch)
    assert 20 * np.log10(meant.std() / np.abs(plain - meant).std()) > 40  # roundings
    kernel = maker_of(model, input_of(model, "middle", 1))
    assert kernel is not None
    scales, step = constant(model, kernel.input[1]).astype(np.float32), float(constant(model, "first_r_scale_fp16"))
    assert 3 / (step * scales[0]) < 33000  # 32768, but for the rounding of the scales
    np.testing.assert_allclose(scales[1:], np.abs(weights["middle_w"][1:]).max(axis=(1, 2, 3)) / 127, rtol=1e-3)


def test_of_a_residual_sum_the_skip_is_quantised_and_the_convolution_is_not() -> None:
    weights: dict[str, NDArray[Any]] = {}
    nodes = [
        relu("first"),
        conv("inner", "first_r", weights),
        relu("inner"),
        conv("outer", "inner_r", weights, kernel=1),
        helper.make_node("Add", ["first_r", "outer"], ["sum"], name="sum"),
        relu("sum"),
    ]
    model = int8(between_convs(nodes, "sum_r", weights)).model
    assert quantised_source(model, input_of(model, "sum")) == "first_r"
    assert input_of(model, "sum", 1) == "outer"
    assert input_of(model, "sum") == input_of(model, "inner")  # one pair serves both
    assert input_of(model, "last") == "sum_r"  # the last convolution reads what it always did


def test_a_skip_stays_float_where_its_convolution_does() -> None:
    """Thin convolutions are not worth integers; then nor is the sum."""
    weights: dict[str, NDArray[Any]] = {}
    nodes = [
        conv("narrow", "first", weights),
        conv("wide", "narrow", weights, inputs=12, kernel=1),
        helper.make_node("Add", ["first", "wide"], ["sum"], name="sum"),
        conv("after", "sum", weights),
    ]
    weights["narrow_w"], weights["narrow_b"] = weights["narrow_w"][:12], weights["narrow_b"][:12]
    typed = int8(between_convs(nodes, "after", weights))
    assert list(node_named(typed.model, "sum").input) == ["first", "wide"]
    assert typed.report["left_out"]["narrow"] == "fewer than 16 channels"
    assert typed.report["integer_layers"] == ["after"]


def test_the_narrow_convolution_of_a_shortcut_stays_float_and_is_the_skip() -> None:
    weights: dict[str, NDArray[Any]] = {}
    nodes = [
        relu("first"),
        conv("long", "first_r", weights),
        conv("shortcut", "first_r", weights, kernel=1),
        helper.make_node("Add", ["shortcut", "long"], ["sum"], name="sum"),
        conv("after", "sum", weights),
    ]
    typed = int8(between_convs(nodes, "after", weights))
    assert typed.report["left_out"]["shortcut"] == "1x1 convolution of a shortcut"
    assert [quantised_source(typed.model, name) for name in node_named(typed.model, "sum").input] == ["shortcut", None]


@pytest.mark.parametrize("read_twice", [False, True])
def test_what_is_joined_shares_a_scale(read_twice: bool) -> None:
    """Also with another float reader, which must not see rounded values."""
    weights: dict[str, NDArray[Any]] = {"gain": np.float32(5)}
    nodes = [
        relu("first"),
        conv("small", "first_r", weights),
        conv("other", "first_r", weights),
        relu("other"),
        helper.make_node("Mul", ["other_r", "gain"], ["large"], name="large"),
        conv("reader", "large", weights),  # alone it would have a scale of its own
        helper.make_node("Concat", ["small", "large"], ["joined"], name="joined", axis=1),
        conv("merge", "joined", weights, inputs=2 * WIDTH),
        helper.make_node("Add", ["merge", "reader"], ["sum"], name="sum"),
        conv("after", "sum", weights),
    ]
    if read_twice:
        nodes += [
            helper.make_node("Sigmoid", ["joined"], ["opened"], name="opened"),
            conv("float_reader", "after", weights),
        ]
    model = between_convs(nodes, "float_reader" if read_twice else "after", weights)
    if read_twice:
        model.graph.output.append(helper.make_tensor_value_info("opened", SINGLE, None))
    typed = int8(model).model
    scales = {node.input[1] for node in typed.graph.node if node.op_type == "QuantizeLinear" and not node.attribute}
    values = {name: float(constant(typed, name)) for name in scales}
    assert values["joined_scale_fp16"] == values["large_scale_fp16"]
    sources = [quantised_source(typed, name) for name in node_named(typed, "joined").input]
    if read_twice:
        assert sources == [None, None]
        assert input_of(typed, "opened") == "joined"
    else:
        assert sources == ["small", "large"]
        assert values["small_scale_fp16"] == values["joined_scale_fp16"]


def test_what_is_joined_with_an_input_stays_float() -> None:
    """Inputs have no pairs; the result has one for the layer that reads it."""
    weights: dict[str, NDArray[Any]] = {}
    nodes = [
        conv("small", "first", weights),
        helper.make_node("Concat", ["small", "x"], ["joined"], name="joined", axis=1),
        conv("merge", "joined", weights, inputs=2 * WIDTH),
        relu("merge"),
        conv("after", "merge_r", weights),
    ]
    model = int8(between_convs(nodes, "after", weights)).model
    assert [quantised_source(model, name) for name in node_named(model, "joined").input] == [None, None]
    assert quantised_source(model, input_of(model, "merge")) == "joined"


def attention(weights: dict[str, NDArray[Any]]) -> list[onnx.NodeProto]:
    """From (n, 16, h, w) `first` to the same shape `mixed`, with a residual-free head of 16."""
    rng = np.random.default_rng(0)
    for name in "qkv":
        weights[f"{name}_w"] = rng.normal(0, 0.3, (WIDTH, WIDTH)).astype(np.float32)
    weights["tokens_shape"] = np.array([0, WIDTH, -1], np.int64)
    return [
        helper.make_node("Reshape", ["first", "tokens_shape"], ["flat"], name="flat"),
        helper.make_node("Transpose", ["flat"], ["tokens"], name="tokens", perm=[0, 2, 1]),
        *(helper.make_node("MatMul", ["tokens", f"{name}_w"], [name], name=name) for name in "qkv"),
        helper.make_node("Transpose", ["k"], ["k_t"], name="k_t", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "k_t"], ["scores"], name="scores"),
        helper.make_node("Softmax", ["scores"], ["shares"], name="shares", axis=-1),
        helper.make_node("MatMul", ["shares", "v"], ["values"], name="values"),
        helper.make_node("Transpose", ["values"], ["back"], name="back", perm=[0, 2, 1]),
        helper.make_node("Shape", ["first"], ["sizes"], name="sizes"),
        helper.make_node("Reshape", ["back", "sizes"], ["mixed"], name="mixed"),
    ]


def test_attention_keeps_its_products_in_fp16_and_its_softmax_in_fp32() -> None:
    weights: dict[str, NDArray[Any]] = {}
    typed = int8(between_convs(attention(weights), "mixed", weights))
    model, types = typed.model, types_of(typed.model)
    for product in ("scores", "values"):
        assert [quantised_source(model, name) for name in node_named(model, product).input] == [None, None]
        assert types[product] == HALF
    assert types["shares"] == SINGLE
    for position, node in ((0, "shares"), (0, "values")):
        caster = maker_of(model, input_of(model, node, position))
        assert caster is not None
        assert caster.op_type == "Cast"
    assert typed.report["fp32_islands"] == {"shares": "softmax"}
    for name in "qkv":
        assert quantised_source(model, input_of(model, name)) == "tokens"
        kernel = maker_of(model, input_of(model, name, 1))
        assert kernel is not None
        assert kernel.attribute[0].i == 1  # the columns of a matrix are its output channels


def terrible(weights: dict[str, NDArray[Any]]) -> onnx.ModelProto:
    """Three integer layers, of which the middle one spends its integers on a channel that is always zero."""
    names = ("harmless", "terrible", "fine")
    nodes, source = [relu("first")], "first_r"
    for name in names:
        nodes += [conv(name, source, weights), relu(name)]
        source = f"{name}_r"
    weights["harmless_w"][0] = 0
    weights["harmless_b"][0] = -1
    weights["terrible_w"][:, 0] = 30
    return between_convs(nodes, source, weights)


def test_the_worst_layer_is_left_out_until_the_gate_holds() -> None:
    model = terrible({})
    gate = Gate(psnr_db=30, detail_snr_db=30, lpips=0)
    typed = typed_graph(model, "int8", feeds(4), held_out=feeds(1, side=12), peak=None, gate=gate)
    report = json.loads(json.dumps(typed.report, allow_nan=False))
    assert report["layers_in_float"] == ["terrible"]
    assert report["integer_layers"] == ["harmless", "fine"]
    alone = report["detail_snr_db_of_each_layer_alone"]
    assert next(iter(alone)) == "terrible"
    assert alone["terrible"] < 20 < min(alone["harmless"], alone["fine"])
    assert report["closeness"]["detail_snr_db"] >= 30
    assert input_of(typed.model, "terrible", 1) == "terrible_w_fp16"


def test_a_gate_that_nothing_passes_is_an_error() -> None:
    with pytest.raises(BackendError, match="stays outside its gate"):
        typed_graph(terrible({}), "int8", feeds(1), peak=None, gate=Gate(200, 200, 0))


def test_a_network_without_integer_layers_is_refused() -> None:
    with pytest.raises(BackendError, match="no layer that INT8 could serve; use --precision fp16"):
        int8(between_convs([relu("first")], "first_r", {}))


def test_control_flow_is_refused() -> None:
    branch = helper.make_graph([], "branch", [], [helper.make_tensor_value_info("x", SINGLE, None)])
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    with pytest.raises(BackendError, match=r"control flow \(If\)"):
        prepared(make_model([node]))


def test_older_opsets_are_converted_and_nameless_nodes_named() -> None:
    weights: dict[str, NDArray[Any]] = {}
    model = between_convs([relu("first")], "first_r", weights, opset=17)
    for node in model.graph.node:
        node.name = ""
    ready = prepared(model)
    assert ready.opset_import[0].version == OPSET
    names = [node.name for node in ready.graph.node]
    assert len(set(names)) == len(names)
    assert all(names)
    batch = feeds(1)
    np.testing.assert_allclose(run_graph(ready, batch), run_graph(model, batch), rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def tile(tiny_weights: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    path = tmp_path_factory.mktemp("typed") / "graph.onnx"
    export_tile(DeployedTile(edge_tile(tiny_weights)), path)
    return onnx.load(path)


@pytest.fixture(scope="module")
def typed_tiles(tile: onnx.ModelProto, tiny_weights: Checkpoint) -> dict[str, TypedGraph]:
    calibration = batches_of(calibration_samples(tiny_weights.spec).first(8), 8)
    held_out = batches_of(held_out_samples(tiny_weights.spec).first(2), 2)
    # Random weights: nine integer layers in a row leave less than trained ones would.
    gates = {"fp16": None, "int8": Gate(30, 14, 0)}
    return {name: typed_graph(tile, name, calibration, held_out=held_out, gate=gate) for name, gate in gates.items()}


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_edge_tile_can_be_typed(typed_tiles: dict[str, TypedGraph], precision: str, tmp_path: Path) -> None:
    typed = typed_tiles[precision]
    model = with_sizes(typed.model, {"h": 32, "w": 32})
    for version in ("10.3", "10.16", "11.4"):
        assert lint(model, version) == []
    sizes = {
        item.name: [dim.dim_param or dim.dim_value for dim in item.type.tensor_type.shape.dim]
        for item in (*model.graph.input, *model.graph.output)
    }
    assert sizes == {"lq": ["n", 3, 32, 32], "noise": ["n", 5, 32, 32], "detail": ["n", 128, 128, 3]}
    assert not [node for node in model.graph.node if node.op_type in ("Shape", "Gather", "Unsqueeze")]
    onnx.save(model, tmp_path / "typed.onnx")
    rng = np.random.default_rng(2)
    batch = {
        "lq": rng.uniform(-1, 1, (2, 3, 32, 32)).astype(np.float32),
        "noise": rng.standard_normal((2, 5, 32, 32), np.float32),
    }
    whole = run_graph(rounded(typed.model), [batch])
    np.testing.assert_array_equal(run_graph(rounded(model), [batch]), whole)  # the same graph, other bookkeeping
    session = ort.InferenceSession(str(tmp_path / "typed.onnx"), providers=["CPUExecutionProvider"])
    detail = np.asarray(session.run(None, batch)[0])
    assert detail.dtype == np.float32
    # ONNX Runtime rounds less than the real thing, so it is near it and not equal.
    assert 20 * np.log10(whole.std() / np.abs(detail - whole).std()) > (40 if precision == "fp16" else 25)


def test_the_edge_tile_is_close_and_mostly_integer(typed_tiles: dict[str, TypedGraph]) -> None:
    half, integer = (typed_tiles[name].report for name in ("fp16", "int8"))
    assert half["closeness"]["psnr_db"] >= 60
    assert half["closeness"]["detail_snr_db"] >= integer["closeness"]["detail_snr_db"] + 10
    assert integer["closeness"]["detail_snr_db"] >= 14
    assert len(integer["integer_layers"]) >= 6


def test_a_size_that_no_input_has_is_refused(tile: onnx.ModelProto) -> None:
    with pytest.raises(InputError, match="no symbolic dimension q"):
        with_sizes(tile, {"q": 3})
