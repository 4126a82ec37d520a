from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click.testing
import fake_tensorrt
import pytest

from rsd_edge.bench.cost import Convolution, convolution_flops, convolutions
from rsd_edge.bench.devices import DEVICES, Device, estimate, memory_mib
from rsd_edge.bundle import BuildRecord
from rsd_edge.export.tensorrt_build import build_bundle
from rsd_edge.export.tensorrt_options import TensorRtOptions
from rsd_edge.specs import Backend, EngineSpec, ModelSpec, Precision

pytest.importorskip("onnx")

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "device_estimates.py"
MODEL = ModelSpec("m", halo=12)


def test_layers_are_counted(toy_graph: Path) -> None:
    first, second, third = convolutions(toy_graph, 2, 10, 12)
    pixels = 2 * 10 * 12
    assert first == Convolution(8 * pixels, 12 * pixels, 12 * 8 * 9, 8 * 9)
    assert second.inputs == second.outputs == 12 * pixels
    assert third.flops == 2 * 48 * pixels * 12 * 9
    assert convolution_flops(toy_graph, 2, 10, 12) == first.flops + second.flops + third.flops


def test_a_layer_takes_the_longer_of_arithmetic_and_memory() -> None:
    device = Device("d", fp16=10, int8=20, bandwidth=100)
    heavy = Convolution(1000, 1000, 1000, 1_000_000)  # 2e9 operations at 0.3 * 10e12 a second, and a launch
    found = estimate([heavy], device, Precision.FP16, MODEL)
    assert found.tile_ms == pytest.approx(1e3 * (2e9 / 3e12 + 4e-6))
    assert found.frame_ms == pytest.approx(8 * found.tile_ms)  # 640 and 360 in strides of 184
    assert found.bound == "arithmetic"
    assert estimate([heavy], device, Precision.INT8, MODEL).tile_ms == pytest.approx(1e3 * (2e9 / 6e12 + 4e-6))
    wide = Convolution(10**7, 10**7, 0, 1)  # 4e7 bytes at 0.6 * 100e9 a second
    assert estimate([wide], device, Precision.FP16, MODEL).tile_ms == pytest.approx(1e3 * (4e7 / 6e10 + 4e-6))
    assert estimate([wide], device, Precision.FP16, MODEL).bound == "memory"


def test_memory_is_weights_scratch_and_ring() -> None:
    layer = Convolution(1 << 20, 1 << 20, 1 << 20, 1)
    ring = 3 * 4 * 208 * 208 * (3 + 5 + 48) / (1 << 20)
    assert memory_mib([layer], Precision.FP16, MODEL) == pytest.approx(2 + 8 + ring)
    assert memory_mib([layer], Precision.INT8, MODEL) == pytest.approx(1 + 4 + ring)


def test_a_measured_row_takes_the_place_of_a_computed_one(
    toy_graph: Path, toy_spec: EngineSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rsd_edge.export.tensorrt_judge._ROUNDS", 1)
    fake_tensorrt.install(monkeypatch, "10.3.0")
    spec = replace(toy_spec, model=replace(toy_spec.model, name="edge-n"), backend=Backend.TENSORRT)
    spec = replace(spec, precision=Precision.FP16)
    graphs, options = {"graph.onnx": toy_graph}, TensorRtOptions(tile=128)
    bundle = build_bundle(graphs, spec, tmp_path / "e", BuildRecord(), reference=graphs, options=options)
    script: dict[str, Any] = runpy.run_path(str(SCRIPT))
    reports = tmp_path / "reports"
    reports.mkdir()
    for path in (SCRIPT.parent / "reports").glob("*.json"):
        (reports / path.name).write_text(path.read_text())
    (reports / "README.md").write_text("<!-- table devices -->\n<!-- end -->\n")
    computed = {"tile_ms": 1.0, "frame_ms": 8.0, "memory_mib": 50, "bound": "memory", "source": "computed"}
    rows = {"edge-n": {"AGX Orin 64 GB": {"fp16": computed, "int8": computed}}}
    (reports / "devices.json").write_text(json.dumps({"frame": "640x360", "models": rows}))
    globals_of: dict[str, Any] = script["measured"].__globals__
    monkeypatch.setitem(globals_of, "_FRAMES", 1)
    monkeypatch.setitem(globals_of, "FRAME", (40, 60))
    words = ["--measure", str(bundle.path), "--board", "AGX Orin 64 GB", "--reports", str(reports)]
    done = click.testing.CliRunner().invoke(script["main"], words, catch_exceptions=False)
    assert done.exit_code == 0
    table = (reports / "README.md").read_text()
    assert table.count("| computed |") == 1
    assert table.count("| AGX Orin 64 GB | edge-n fp16 |") == table.count("| measured |") == 1
    row = json.loads((reports / "devices.json").read_text())["models"]["edge-n"]["AGX Orin 64 GB"]["fp16"]
    assert row["target"]["gpu"] == "Orin"
    keep: Callable[[dict[str, Any]], dict[str, Any]] = script["computed"]
    monkeypatch.setitem(keep.__globals__, "shipped_engines", lambda: ["edge-n"])
    monkeypatch.setitem(keep.__globals__, "estimates", lambda graph, model: {"AGX Orin 64 GB": {"fp16": computed}})
    assert keep({"edge-n": {"AGX Orin 64 GB": {"fp16": row}}})["edge-n"]["AGX Orin 64 GB"]["fp16"] == row


def test_what_cannot_be_measured_is_one_line(
    toy_graph: Path, toy_spec: EngineSpec, toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rsd_edge.export.tensorrt_judge._ROUNDS", 1)
    fake_tensorrt.install(monkeypatch, "10.3.0")
    spec = replace(toy_spec, backend=Backend.TENSORRT, precision=Precision.FP16)
    graphs, options = {"graph.onnx": toy_graph}, TensorRtOptions(tile=128)
    bundle = build_bundle(graphs, spec, tmp_path / "e", BuildRecord(), reference=graphs, options=options)
    script: dict[str, Any] = runpy.run_path(str(SCRIPT))

    def told(folder: Path) -> str:
        words = ["--measure", str(folder), "--board", "X", "--reports", str(tmp_path)]
        done = click.testing.CliRunner().invoke(script["main"], words)
        assert done.exit_code == 1
        assert isinstance(done.exception, SystemExit)
        assert done.output.count("\n") == 1
        assert not (tmp_path / "devices.json").exists()
        return done.output

    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    assert "need cuda-python" in told(bundle.path)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert "Error: TensorRT is not installed here" in told(bundle.path)
    assert "is an engine for onnxruntime; measure one of 'rsd-edge build-engine" in told(toy_bundle)
    assert "is not an engine bundle" in told(tmp_path)


def test_the_report_holds_all_devices() -> None:
    models = json.loads((SCRIPT.parent / "reports" / "devices.json").read_text())["models"]
    assert set(models) == {"edge-n", "edge-s"}
    for boards in models.values():
        assert set(boards) >= {device.name for device in DEVICES}
