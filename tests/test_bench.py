"""Measuring code: what is counted, and in which order things are timed."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rsd_edge.bench import timing
from rsd_edge.bench.cost import convolution_flops
from rsd_edge.bench.peaks import convolution_peak
from rsd_edge.bench.peer import NcnnPeer
from rsd_edge.bench.timing import Effort, Times, take_turns
from rsd_edge.errors import MissingDependencyError


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """lq and noise through a strided 3x3 convolution and a grouped 1x1 one."""
    weights = {"a": np.ones((8, 5, 3, 3), np.float32), "b": np.ones((6, 4, 1, 1), np.float32)}
    nodes = [
        helper.make_node("Concat", ["lq", "noise"], ["x"], axis=1),
        helper.make_node("Conv", ["x", "a"], ["y"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["y", "b"], ["detail"], group=2),
    ]
    inputs = [helper.make_tensor_value_info("lq", TensorProto.FLOAT, ["n", 3, "h", "w"])]
    inputs.append(helper.make_tensor_value_info("noise", TensorProto.FLOAT, ["n", 2, "h", "w"]))
    output = helper.make_tensor_value_info("detail", TensorProto.FLOAT, ["n", 6, "H", "W"])
    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    path = tmp_path / "graph.onnx"
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(
        helper.make_graph(nodes, "g", inputs, [output], initializers), opset_imports=opset, ir_version=8
    )
    onnx.save(model, path)
    return path


def test_two_operations_a_multiply_add(graph: Path) -> None:
    # 2 tiles of 8 x 6: 4 x 3 outputs of 8 channels, 45 products each; then 6 channels, 4 products each.
    assert convolution_flops(graph, 2, 8, 6) == 2 * 2 * 12 * (8 * 45 + 6 * 4)


@pytest.mark.parametrize("integer", [False, True])
def test_the_peak_counts_what_it_runs(integer: bool) -> None:
    run, flops = convolution_peak(1, integer=integer)
    (out,) = run()  # type: ignore[misc]
    assert out.dtype == (np.uint8 if integer else np.float32)
    assert flops == 4 * 2 * 128 * 128 * 9 * 64 * 64


def test_subjects_take_turns_and_warm_up_first(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    clock = iter(range(1000))
    monkeypatch.setattr(timing.time, "sleep", lambda seconds: calls.append("pause"))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: 0.5 * next(clock))
    subjects = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    times = take_turns(subjects, Effort(2), runs=2, warm_up=1)
    assert calls == ["pause", "a", "a", "a", "pause", "b", "b", "b"] * 2
    assert times["a"].seconds == times["b"].seconds == (0.5,) * 4


def test_the_summary_is_in_milliseconds() -> None:
    summary = Times((0.001, 0.002, 0.003, 0.1, 0.002)).summary()
    assert summary["median"] == 2.0
    assert summary["fastest"] == 1.0
    assert summary["runs"] == 5
    assert summary["p10"] < summary["median"] < summary["p90"]


def test_without_ncnn_the_peer_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    original = builtins.__import__

    def blocked(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "ncnn":
            raise ModuleNotFoundError(name=name)
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", blocked)
    with pytest.raises(MissingDependencyError, match=r"pip install .rsd-edge\[peers\]"):
        NcnnPeer(tmp_path / "a.param", tmp_path / "a.bin", 1)
