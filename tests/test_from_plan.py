"""Graphs written in one place, compiled by trtexec on another, and made a bundle there."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_tensorrt
import numpy as np
import pytest
from fake_tensorrt.cudart import FakeCudart
from fake_tensorrt.network import World

from rsd_edge.backends import open_engine
from rsd_edge.bundle import GRAPH, BuildRecord, load_bundle
from rsd_edge.cli import main
from rsd_edge.errors import BackendError, InputError, MissingDependencyError, ModelError, RsdEdgeError
from rsd_edge.export import tensorrt_judge
from rsd_edge.export.from_plan import bundle_plans
from rsd_edge.export.graphs_only import MANIFEST, REFERENCE, GraphsOnly, write_graphs
from rsd_edge.export.tensorrt_judge import made_by_float
from rsd_edge.export.tensorrt_network import compile_graph
from rsd_edge.export.tensorrt_options import REPORT, TensorRtOptions
from rsd_edge.specs import Backend, EngineSpec, Precision, TileSpec

onnx = pytest.importorskip("onnx")

TILE = 48
BATCH = (1, 2, 3)

Write = Callable[..., GraphsOnly]


@pytest.fixture(params=fake_tensorrt.VERSIONS)
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> World:
    return fake_tensorrt.install(monkeypatch, request.param)


@pytest.fixture
def oldest(monkeypatch: pytest.MonkeyPatch) -> World:
    return fake_tensorrt.install(monkeypatch, "10.3.0", FakeCudart(integrated=True))


@pytest.fixture(autouse=True)
def _few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_judge, "_ROUNDS", 1)


@pytest.fixture
def write(toy_graph: Path, toy_spec: EngineSpec, tmp_path: Path) -> Write:
    """What `--onnx-only` writes, of a graph that is FP32 throughout: typing it is tested elsewhere."""

    def make(precision: Precision = Precision.FP16, **options: Any) -> GraphsOnly:
        settings = TensorRtOptions(**{"tile": TILE, "batch": BATCH, "threads": 1, **options})
        spec = EngineSpec(toy_spec.model, Backend.TENSORRT, precision)
        io = {
            "inputs": {
                "lq": {"dtype": "float32", "shape": [-1, 3, TILE, TILE]},
                "noise": {"dtype": "float32", "shape": [-1, toy_spec.model.noise_channels, TILE, TILE]},
            },
            "outputs": {"detail": {"dtype": "float32", "shape": [-1, 4 * TILE, 4 * TILE, 3]}},
        }
        record = BuildRecord(licence="L", parity={"psnr_db": 88.0}, source={"model": "toy", "digest": "d"})
        graphs = {GRAPH: toy_graph}
        reference = made_by_float(graphs, spec, settings)
        return write_graphs(
            tmp_path / "graphs", spec, graphs, {GRAPH: io}, record, settings, reference, {GRAPH: {"gate": {}}}
        )

    return make


def compiled(world: World, made: GraphsOnly, **options: Any) -> GraphsOnly:
    """What trtexec leaves in the folder."""
    from rsd_edge.backends.tensorrt.cuda import Cuda

    settings = TensorRtOptions(**({"tile": TILE, "batch": BATCH, "flags": made.options.flags} | options))
    cuda = Cuda()
    plan = compile_graph(world.trt, cuda, made.graphs[GRAPH], settings, settings.tile or TILE).plan
    cuda.close()
    (made.path / "graph.plan").write_bytes(plan)
    return made


def test_graphs_that_are_written_again_keep_their_plans(
    write: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = write()
    (made.path / "graph.plan").write_bytes(b"an hour of trtexec")
    assert write() == made
    assert (made.path / "graph.plan").read_bytes() == b"an hour of trtexec"
    assert caplog.messages == []
    (made.path / GRAPH).write_bytes(b"x")
    assert write() == made
    assert not (made.path / "graph.plan").exists()
    assert "graph.onnx is not the file that graphs.json names; write the graphs again" in caplog.text


def test_other_options_are_another_folder(write: Write) -> None:
    folders = {
        write(**options).path for options in ({}, {"level": 5}, {"batch": (1, 2, 4)}, {"timing_cache": Path("t")})
    }
    assert len(folders) == 4
    assert all((folder / MANIFEST).is_file() for folder in folders)


def refused(made: GraphsOnly, output: Path, kind: type[RsdEdgeError], match: str, **options: Any) -> None:
    with pytest.raises(kind, match=match) as caught:
        bundle_plans(made.path, output, **options)
    assert "\n" not in str(caught.value)
    assert not list(output.glob("[!.]*"))


def test_graph_and_plan_become_a_bundle(world: World, write: Write, tmp_path: Path, toy_spec: EngineSpec) -> None:
    made = compiled(world, write())
    bundle = bundle_plans(made.path, tmp_path / "engines")
    manifest, target = bundle.manifest, bundle.manifest["target"]
    assert {path.name for path in bundle.path.iterdir()} == {"manifest.json", REPORT, GRAPH, "graph.plan"}
    assert (target["compiled_by"], target["tensorrt"], target["gpu"]) == ("trtexec", world.version, "Orin")
    assert (target["options"]["batch"], target["options"]["tile"]) == ([1, 2, 3], TILE)
    assert manifest["parity"]["psnr_db"] > 100  # the same arithmetic in another order
    assert manifest["parity"]["reference"] == "fp32 in ONNX Runtime, on held-out crops"
    assert manifest["parity"]["graph"] == {"psnr_db": 88.0}
    assert (manifest["licence"], manifest["source"]["model"]) == ("L", "toy")
    assert set(manifest["speed"]["median_ms"]) == {"fp16"}
    assert world.cudart.live == 0
    given = np.load(made.path / REFERENCE)
    detail = np.empty_like(given["detail"])
    with open_engine(bundle.graph_path, bundle.spec, tile=TileSpec.of(toy_spec.model, TILE, 2)) as engine:
        engine.collect(engine.submit(given["lq"], given["noise"], detail))
    np.testing.assert_allclose(detail, given["detail"], atol=1e-5)  # sums in another order
    assert bundle_plans(made.path, tmp_path / "engines").path == bundle.path  # known already


def test_a_plan_without_weights_is_filled(oldest: World, write: Write, tmp_path: Path) -> None:
    bundle = bundle_plans(compiled(oldest, write(flags=("strip-plan",))).path, tmp_path / "engines")
    assert bundle.manifest["target"]["flags"]["set"] == ["strip-plan"]
    assert bundle.manifest["parity"]["psnr_db"] > 100


def test_a_plan_that_is_tied_to_its_gpu_is_not_said_to_be_free(world: World, write: Write, tmp_path: Path) -> None:
    made = compiled(world, write(flags=("hardware-compatible",)), flags=())
    flags = bundle_plans(made.path, tmp_path / "engines").manifest["target"]["flags"]
    assert flags == {"set": [], "skipped": {"hardware-compatible": "the plan was built without it"}}


def test_int8_has_to_outrun_fp16(oldest: World, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, int8, half = tmp_path / "engines", write(Precision.INT8), write()
    compiled(oldest, int8)
    refused(int8, output, InputError, "kept only where it is faster than FP16; add --rival")
    refused(int8, output, InputError, r"graph\.plan is missing; make it with the trtexec command in", rival=half.path)
    refused(int8, output, InputError, "in FP16: model, tile and batch must be the same", rival=int8.path)
    compiled(oldest, half)
    refused(half, output, InputError, "--rival is for INT8 plans", rival=int8.path)
    monkeypatch.setattr(tensorrt_judge, "median_ms", lambda engines, lq, noise: [2.0, 2.0])
    refused(int8, output, BackendError, "int8 is not faster than fp16 on this GPU", rival=half.path)
    monkeypatch.setattr(tensorrt_judge, "median_ms", lambda engines, lq, noise: [2.0, 1.5])
    bundle = bundle_plans(int8.path, output, rival=half.path)
    assert bundle.manifest["speed"]["median_ms"] == {"fp16": 1.0, "int8": 0.75}  # a tile, of two in a batch


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (("inputs", "lq", "dtype"), "float16", "has 'lq' of type float32 and not float16"),
        (("inputs", "lq", "shape"), [-1, 3, 64, 64], r"has 'lq' of shape .* and not \(-1, 3, 64, 64\)"),
        (("inputs", "t"), {"dtype": "int64", "shape": [1]}, r"has inputs \['lq', 'noise'\] and not"),
        (("outputs", "rgb"), {"dtype": "float32", "shape": [-1]}, r"has outputs \['detail'\] and not"),
    ],
)  # fmt: skip
def test_plans_of_other_graphs_are_refused(
    oldest: World, write: Write, tmp_path: Path, key: tuple[str, ...], value: Any, message: str
) -> None:
    made = compiled(oldest, write())
    manifest = json.loads((made.path / MANIFEST).read_text())
    entry = manifest["io"][GRAPH]
    for name in key[:-1]:
        entry = entry[name]
    entry[key[-1]] = value
    (made.path / MANIFEST).write_text(json.dumps(manifest))
    refused(made, tmp_path / "engines", ModelError, f"{message}.*make it again with the trtexec command")


def test_plans_for_other_batches_are_refused(oldest: World, write: Write, tmp_path: Path) -> None:
    made = compiled(oldest, write(), batch=(1, 1, 2))
    refused(made, tmp_path / "engines", ModelError, r"takes \(1, 1, 2\) tiles in 'lq' and not \(1, 2, 3\)")


def test_plans_of_other_devices_and_damaged_folders_are_refused(
    oldest: World, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, made = tmp_path / "engines", compiled(oldest, write())
    (made.path / REFERENCE).write_bytes(b"x")
    refused(made, output, ModelError, r"reference\.npz is not the file that graphs\.json names")
    shutil.rmtree(made.path)
    made = compiled(oldest, write())
    with (made.path / GRAPH).open("ab") as file:
        file.write(b"x")
    refused(made, output, ModelError, r"graph\.onnx is not the file that graphs\.json names; write the graphs again")
    shutil.rmtree(made.path)
    made = compiled(oldest, write())
    fake_tensorrt.install(monkeypatch, "11.4.0.106")
    refused(made, output, ModelError, "is not for TensorRT 11.4.0.106 and this GPU")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    refused(made, output, MissingDependencyError, "TensorRT is not installed here .*; plans are opened where they run")
    (made.path / MANIFEST).write_text('{"format": 1}')
    refused(made, output, ModelError, "is not of format 2")


def test_a_plan_that_computes_something_else_is_refused(oldest: World, write: Write, tmp_path: Path) -> None:
    made = write()
    other = onnx.load(made.graphs[GRAPH])
    kernel = other.graph.initializer[2]
    kernel.CopyFrom(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(kernel), kernel.name))
    sound = made.graphs[GRAPH].read_bytes()
    onnx.save(other, made.graphs[GRAPH])
    compiled(oldest, made)
    made.graphs[GRAPH].write_bytes(sound)
    refused(made, tmp_path / "engines", BackendError, "the fp16 engine differs from float by")


def test_the_command_takes_all_from_the_folder(
    oldest: World, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = compiled(oldest, write())
    words = ["build-engine", "--backend", "tensorrt", "--from-plan", str(made.path), "-o", str(tmp_path / "engines")]
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 0
    (folder,) = (path for path in (tmp_path / "engines").iterdir() if path.is_dir())
    assert load_bundle(folder).spec.precision is Precision.FP16
    assert capsys.readouterr().out.startswith(f"{folder}: ")


def test_neither_torch_nor_onnx_is_needed(tmp_path: Path) -> None:
    """Of a Jetson with JetPack's TensorRT, cuda-python and the core dependencies."""
    code = """
import sys
for name in ("torch", "onnx", "onnx_ir", "onnxscript", "safetensors"):
    sys.modules[name] = None
import rsd_edge.cli.build_engine, rsd_edge.export.from_plan
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=tmp_path)
