"""`rsd-edge bench` on TensorRT engines, behind whose bindings ONNX Runtime computes here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fake_tensorrt
import pytest

from rsd_edge.bench import opening
from rsd_edge.bench.opening import BenchSettings
from rsd_edge.bench.peaks import Peak
from rsd_edge.bench.session import measure
from rsd_edge.bench.subjects import Wish
from rsd_edge.bench.timing import Effort
from rsd_edge.bundle import BuildRecord
from rsd_edge.export import tensorrt_judge
from rsd_edge.export.tensorrt_build import build_bundle
from rsd_edge.export.tensorrt_options import TensorRtOptions
from rsd_edge.specs import Backend, EngineSpec, Precision

pytest.importorskip("onnx")

TILE = 48


def test_an_engine_of_one_tile_is_counted_and_held_against_no_peak_of_the_processor(
    toy_graph_factory: Callable[..., Path],
    toy_spec: EngineSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tensorrt_judge, "median_ms", lambda engines, lq, noise: [2.0, 1.5])
    found = {f"convolution {name}": Peak(lambda: None, 25e9, "GFLOP/s") for name in ("fp32", "int8")}
    monkeypatch.setattr(opening, "peaks", lambda threads: found)
    fake_tensorrt.install(monkeypatch, "10.3.0")
    spec = replace(toy_spec, backend=Backend.TENSORRT, precision=Precision.INT8)
    typed, float_graphs = {"graph.onnx": toy_graph_factory(fixed=True)}, {"graph.onnx": toy_graph_factory()}
    bundle = build_bundle(
        typed,
        spec,
        tmp_path,
        BuildRecord(),
        reference=float_graphs,
        options=TensorRtOptions(tile=TILE),
        faster_than=typed,
    )
    document = measure(BenchSettings((Wish(str(bundle.path)),), ((40, 24),), effort=Effort(3), memory=False), "command")
    # The toy's convolutions: 8 -> 12, 12 -> 12, 12 -> 48 channels of 3x3.
    of_tile = 2 * TILE**2 * 9 * (8 * 12 + 12 * 12 + 12 * 48) / 1e9
    (tile,) = document["tiles"]
    assert (tile["width"], tile["gflop"]) == (TILE, pytest.approx(of_tile, abs=1e-4))
    (frame,) = document["frames"]
    assert frame["tile"] == f"{TILE}x{TILE}"
    columns, rows = map(int, frame["tiles"].split("x"))
    assert frame["gflop"] == pytest.approx(columns * rows * of_tile, abs=1e-4)
    assert tile["share_of_peak"] is frame["share_of_peak"] is None
