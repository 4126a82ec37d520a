"""What of a float graph stays FP32 when the rest becomes FP16: norms, code distances, angles, what overflows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import helper
from onnx_graphs import (
    HALF,
    OPEN,
    SINGLE,
    WIDTH,
    between_convs,
    constant,
    conv,
    fp16,
    input_of,
    make_model,
    relu,
    types_of,
)

from rsd_edge.errors import BackendError
from rsd_edge.export.islands import HALF_MAX, OVERFLOW_SHARE
from rsd_edge.export.rounding import rounded, run_graph
from rsd_edge.export.typed import typed_graph

pytestmark = pytest.mark.usefixtures("typed_within_the_rules")


def test_group_norm_is_an_fp32_island_with_casts_around_it() -> None:
    weights: dict[str, NDArray[Any]] = {
        "groups": np.array([0, 4, -1], np.int64),
        "one": np.ones(4, np.float32),
        "none": np.zeros(4, np.float32),
        "gain": np.full((WIDTH, 1, 1), 2, np.float32),
    }
    nodes = [
        helper.make_node("Reshape", ["first", "groups"], ["grouped"], name="grouped"),
        helper.make_node("InstanceNormalization", ["grouped", "one", "none"], ["normed"], name="normed"),
        helper.make_node("Shape", ["first"], ["sizes"], name="sizes"),
        helper.make_node("Reshape", ["normed", "sizes"], ["ungrouped"], name="ungrouped"),
        helper.make_node("Mul", ["ungrouped", "gain"], ["scaled"], name="scaled"),
    ]
    typed = fp16(between_convs(nodes, "scaled", weights))
    types = types_of(typed.model)
    assert typed.report["fp32_islands"] == {"normed": "normalisation"}
    assert types["normed"] == SINGLE
    assert {types[name] for name in ("grouped", "ungrouped", "scaled")} == {HALF}
    assert constant(typed.model, input_of(typed.model, "normed", 1)).dtype == np.float32
    assert constant(typed.model, input_of(typed.model, "scaled", 1)).dtype == np.float16


@pytest.mark.parametrize(("gain", "island"), [(100.0, False), (1e4, True)])
def test_what_calibration_saw_near_the_limit_stays_fp32(gain: float, island: bool) -> None:
    """Both the node that makes it and the one that reads it."""
    weights: dict[str, NDArray[Any]] = {"up": np.float32(gain), "down": np.float32(1 / gain)}
    nodes = [
        relu("first"),  # without it, the factor would go into the weights before
        helper.make_node("Mul", ["first_r", "up"], ["loud"], name="loud"),
        helper.make_node("Mul", ["loud", "down"], ["quiet"], name="quiet"),
    ]
    typed = fp16(between_convs(nodes, "quiet", weights))
    assert set(typed.report["fp32_islands"]) == ({"loud", "quiet"} if island else set())
    assert types_of(typed.model)["loud"] == (SINGLE if island else HALF)
    limit = OVERFLOW_SHARE * HALF_MAX
    assert (typed.report["largest_activation"] > limit) is island


def test_constants_that_fp16_cannot_hold_stay_fp32() -> None:
    weights: dict[str, NDArray[Any]] = {"huge": np.float32(1e5)}
    nodes = [helper.make_node("Min", ["first", "huge"], ["capped"], name="capped")]
    typed = fp16(between_convs(nodes, "capped", weights))
    assert typed.report["fp32_islands"]["capped"].startswith("has constants beyond")


def test_the_distance_to_codes_is_fp32() -> None:
    """Codes a hundredth apart: FP16 would choose wrong ones."""
    rng = np.random.default_rng(1)
    codes = (3 + 0.01 * rng.standard_normal((32, WIDTH))).astype(np.float32)
    weights: dict[str, NDArray[Any]] = {
        "codes": codes,
        "codes_t": np.ascontiguousarray(codes.T),
        "half_norms": (codes**2).sum(1) / 2,
        "flat": np.array([0, WIDTH, -1], np.int64),
        "after": np.array([0, WIDTH, 8, 8], np.int64),
    }
    nodes = [
        helper.make_node("Reshape", ["x", "flat"], ["columns"], name="columns"),
        helper.make_node("Transpose", ["columns"], ["pixels"], name="pixels", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["pixels", "codes_t"], ["products"], name="products"),
        helper.make_node("Sub", ["half_norms", "products"], ["distances"], name="distances"),
        helper.make_node("ArgMin", ["distances"], ["nearest"], name="nearest", axis=2, keepdims=0),
        helper.make_node("Gather", ["codes", "nearest"], ["chosen"], name="chosen", axis=0),
        helper.make_node("Transpose", ["chosen"], ["latent"], name="latent", perm=[0, 2, 1]),
        helper.make_node("Reshape", ["latent", "after"], ["z"], name="z"),
        conv("last", "z", weights),
    ]
    model = make_model(nodes, weights, {"x": ("n", WIDTH, 8, 8)}, ("last",))
    near = [{"x": codes.T[None, :, :32].repeat(2, axis=2).reshape(1, WIDTH, 8, 8)}]
    typed = typed_graph(model, "fp16", near, peak=None)
    reason = "feeds an index or an angle"
    islands = ("columns", "pixels", "products", "distances", "nearest")
    assert typed.report["fp32_islands"] == dict.fromkeys(islands, reason)
    assert types_of(typed.model)["chosen"] == HALF
    assert typed.report["closeness"]["psnr_db"] > 60  # every pixel has its code


def test_angles_are_fp32() -> None:
    weights: dict[str, NDArray[Any]] = {"rates": np.float32([[1.0, 0.1]]), "last": np.ones((2, 2), np.float32)}
    nodes = [
        helper.make_node("Mul", ["t", "rates"], ["angles"], name="angles"),
        helper.make_node("Cos", ["angles"], ["cosines"], name="cosines"),
        helper.make_node("MatMul", ["cosines", "last"], ["y"], name="y"),
    ]
    model = make_model(nodes, weights, {"t": (1, 1)})
    typed = typed_graph(model, "fp16", [{"t": np.float32([[14]])}], peak=1)
    assert set(typed.report["fp32_islands"]) == {"angles", "cosines"}


def test_rounding_is_that_of_fp16() -> None:
    """ONNX Runtime's CPU provider would compute the typed graph in FP32 and see neither of the two."""
    weights: dict[str, NDArray[Any]] = {"gain": np.float32(100), "third": np.float32(1 / 3)}
    nodes = [
        helper.make_node("Mul", ["x", "third"], ["part"], name="part"),
        helper.make_node("Mul", ["part", "gain"], ["more"], name="more"),
        helper.make_node("Mul", ["more", "gain"], ["y"], name="y"),
    ]
    x = np.float32([1, 7, 10])
    half = x.astype(np.float16) * np.float16(1 / 3)
    expected = ((half * np.float16(100)) * np.float16(100)).astype(np.float32)
    model = make_model(nodes, weights, {"x": (3,)})
    typed = typed_graph(model, "fp16", [{"x": np.float32([0.01, 0.02, 0.03])}], gate=OPEN, peak=1).model
    np.testing.assert_array_equal(run_graph(rounded(typed), [{"x": x}]), expected)
    beyond = run_graph(rounded(typed), [{"x": 10 * x}])
    assert np.isinf(beyond[1:]).all()


def test_a_graph_that_overflows_misses_its_gate() -> None:
    """Held-out values a hundred times those of calibration."""
    weights: dict[str, NDArray[Any]] = {"up": np.float32(300), "down": np.float32(1 / 300)}
    nodes = [
        helper.make_node("Mul", ["x", "up"], ["loud"], name="loud"),
        helper.make_node("Mul", ["loud", "down"], ["y"], name="y"),
    ]
    model = make_model(nodes, weights, {"x": (4,)})
    quiet, loud = ({"x": np.float32([1, -2, 3, 4]) * gain} for gain in (1, 100))
    with pytest.raises(BackendError, match=r"FP16 stays outside its gate .* use --backend onnxruntime"):
        typed_graph(model, "fp16", [quiet], held_out=[loud], peak=800)


def test_nodes_that_fp16_is_too_coarse_for_become_fp32() -> None:
    """At 1000 a step of FP16 is a half: what is lost there is missing when the thousand is gone."""
    weights: dict[str, NDArray[Any]] = {"high": np.float32(1000)}
    nodes = [
        relu("first"),
        helper.make_node("Add", ["first_r", "high"], ["lifted"], name="lifted"),
        helper.make_node("Sub", ["lifted", "high"], ["dropped"], name="dropped"),
    ]
    typed = fp16(between_convs(nodes, "dropped", weights))
    assert set(typed.report["layers_in_float"]) == {"lifted", "dropped"}
    assert types_of(typed.model)["lifted"] == SINGLE
    assert typed.report["closeness"]["psnr_db"] >= 60
