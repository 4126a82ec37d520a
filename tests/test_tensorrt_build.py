from __future__ import annotations

import fcntl
import logging
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import fake_tensorrt
import numpy as np
import pytest
from fake_tensorrt.cudart import FakeCudart
from fake_tensorrt.network import World
from fake_tensorrt.trtexec import settings_of

from rsd_edge.backends import open_engine
from rsd_edge.backends.tensorrt.library import make_logger
from rsd_edge.bundle import BuildRecord, Bundle, load_bundle
from rsd_edge.cli.build_engine import command as build_engine
from rsd_edge.cli.tensorrt_options import take_tensorrt_options
from rsd_edge.errors import BackendError, InputError, MissingDependencyError, ModelError
from rsd_edge.export import tensorrt_judge
from rsd_edge.export.tensorrt_build import build_bundle
from rsd_edge.export.tensorrt_options import TensorRtOptions, trtexec_line
from rsd_edge.specs import Backend, EngineSpec, Precision, TileSpec

onnx = pytest.importorskip("onnx")

TILE = 48
NETWORK_BITS = {"10.3.0": 0b10, "10.16.1.11": 0b10, "11.4.0.106": 0b1}
"""STRONGLY_TYPED has another number in each; 10.x ignores EXPLICIT_BATCH and 11 does not have it."""


@pytest.fixture(params=fake_tensorrt.VERSIONS)
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> World:
    return fake_tensorrt.install(monkeypatch, request.param)


@pytest.fixture(autouse=True)
def _few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_judge, "_ROUNDS", 1)


@pytest.fixture
def oldest(monkeypatch: pytest.MonkeyPatch) -> World:
    return fake_tensorrt.install(monkeypatch, "10.3.0", FakeCudart(integrated=True))


@pytest.fixture
def build(toy_graph: Path, toy_spec: EngineSpec, tmp_path: Path) -> Callable[..., Bundle]:
    def make(precision: Precision = Precision.FP16, graph: Path = toy_graph, **options: Any) -> Bundle:
        spec = replace(toy_spec, backend=Backend.TENSORRT, precision=precision)
        more = {name: options.pop(name) for name in ("progress", "faster_than", "reference") if name in options}
        return build_bundle(
            {"graph.onnx": graph},
            spec,
            tmp_path / "engines",
            BuildRecord(licence="L", parity={"psnr_db": 88.0}, source={"model": "toy", "digest": "d"}),
            options=TensorRtOptions(**({"tile": TILE} | options)),
            **({"reference": {"graph.onnx": toy_graph}} | more),
        )

    return make


def refused(build: Callable[..., Bundle], tmp_path: Path, match: str, kind: type[Exception], **options: Any) -> None:
    with pytest.raises(kind, match=match) as caught:
        build(**options)
    assert "\n" not in str(caught.value)
    assert [path for path in (tmp_path / "engines").glob("[!.]*") if path.name != "timing.cache"] == []


def test_the_manifest_says_what_was_built_for_what(world: World, build: Callable[..., Bundle]) -> None:
    bundle = build(batch=(1, 2, 3), level=4)
    manifest, target = bundle.manifest, bundle.manifest["target"]
    assert {path.name for path in bundle.path.iterdir()} == {"manifest.json", "graph.onnx", "graph.plan"}
    assert bundle.path.name == f"toy-tensorrt-fp16-{target['key'][:12]}"
    assert bundle.graph_path == bundle.path
    assert bundle.spec.backend is Backend.TENSORRT
    assert (target["tensorrt"], target["gpu"], target["capability"]) == (world.version, "Orin", "8.7")
    assert target["options"]["batch"] == [1, 2, 3]
    assert target["options"]["tile"] == TILE
    assert target["flags"] == {"set": [], "skipped": {}}
    assert manifest["versions"]["tensorrt"] == world.version
    assert manifest["parity"]["psnr_db"] > 100  # the same arithmetic in another order
    assert manifest["parity"]["graph"] == {"psnr_db": 88.0}
    assert manifest["licence"] == "L"
    assert set(manifest["speed"]["median_ms"]) == {"fp16"}
    (built,) = world.built
    assert built["network"] == NETWORK_BITS[world.version]
    assert built["level"] == 4
    assert built["limits"] == {"WORKSPACE": 4 << 30}
    assert world.cudart.live == 0


def test_memory_is_limited_to_what_is_free(oldest: World, build: Callable[..., Bundle]) -> None:
    oldest.cudart.total = 1 << 30
    build()
    assert oldest.built[-1]["limits"] == {"WORKSPACE": 1 << 29, "TACTIC_DRAM": int(0.6 * (1 << 30))}
    build(workspace_mib=64)
    assert oldest.built[-1]["limits"]["WORKSPACE"] == 64 << 20


def test_the_same_engine_is_built_once(
    oldest: World, build: Callable[..., Bundle], toy_graph_factory: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build()
    assert build().path == first.path
    assert len(oldest.built) == 1
    assert build(level=5).path != first.path  # other options
    oldest.cudart.name = b"Thor"
    assert build().path != first.path  # another GPU
    (first.path / "graph.plan").write_bytes(b"x")
    oldest.cudart.name = b"Orin"
    assert load_bundle(build().path).digest  # a damaged one is made again
    assert len(oldest.built) == 4


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        ("parse", ModelError, r"cannot read graph.onnx: Mystery \(node_of_3\): no importer; Conv .*bad type; export"),
        ("none", BackendError, "builds no engine from graph.onnx: Error Code 10: could not find any implementation"),
        ("out-of-memory", BackendError, r"ran out of memory .*limits: workspace \d+ MiB.*smaller --tile"),
        ("not-finite", BackendError, "the fp16 engine differs from float by"),
        ("context", BackendError, "gives no execution context"),
        ("no-builder", BackendError, r"TensorRT \S+ makes no builder \(.*nullptr\); check 'rsd-edge doctor'"),
        ("no-network", BackendError, r"makes no network \(TensorRT gave no reason\)"),
        ("no-config", BackendError, "makes no builder configuration"),
        ("no-profile", BackendError, "makes no optimization profile"),
        ("no-parser", BackendError, "makes no parser"),
        ("no-runtime", BackendError, "makes no runtime"),
        ("deserialize", ModelError, "is not for TensorRT .* and this GPU"),
    ],
)
def test_failures_are_named_and_leave_nothing(
    world: World, build: Callable[..., Bundle], tmp_path: Path, fault: str, kind: type[Exception], message: str
) -> None:
    world.faults = {fault}
    refused(build, tmp_path, message, kind)
    assert world.cudart.live == 0


def test_an_engine_of_other_numbers_is_refused(
    oldest: World, build: Callable[..., Bundle], tmp_path: Path, toy_graph: Path
) -> None:
    model = onnx.load(toy_graph)
    kernel = onnx.numpy_helper.to_array(model.graph.initializer[2]) * np.float32(1.01)
    model.graph.initializer[2].CopyFrom(onnx.numpy_helper.from_array(kernel, "kernel2"))
    onnx.save(model, tmp_path / "other.onnx")
    # One per cent of the detail is 40 dB below it, and within the gate; a tenth is not.
    build(graph=tmp_path / "other.onnx")
    kernel *= 1.1
    model.graph.initializer[2].CopyFrom(onnx.numpy_helper.from_array(kernel, "kernel2"))
    onnx.save(model, tmp_path / "wrong.onnx")
    with pytest.raises(BackendError, match=r"the fp16 engine differs from float by .* dB on the image"):
        build(graph=tmp_path / "wrong.onnx")


def test_flags_are_set_or_skipped_with_the_reason(
    world: World, build: Callable[..., Bundle], caplog: pytest.LogCaptureFixture
) -> None:
    flags = ("refit", "version-compatible", "hardware-compatible")
    world.cudart.integrated = True
    recorded = build(flags=flags).manifest["target"]["flags"]
    assert world.built[0]["flags"] == {"REFIT", "VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"}
    if world.version == "10.3.0":
        assert recorded["set"] == ["refit", "version-compatible"]
        assert recorded["skipped"] == {"hardware-compatible": "TensorRT 10.3.0 has it for desktop GPUs only"}
        assert "hardware-compatible was left out" in caplog.text
    else:
        assert recorded == {"set": sorted(flags), "skipped": {}}
        assert world.built[0]["compatibility"].name == "SAME_COMPUTE_CAPABILITY"


def test_a_plan_without_weights_is_filled_when_opened(world: World, build: Callable[..., Bundle]) -> None:
    bundle, whole = build(flags=("strip-plan",)), build()
    assert world.built[0]["flags"] == {"STRIP_PLAN", "REFIT_IDENTICAL"}
    assert (bundle.path / "graph.plan").stat().st_size < (whole.path / "graph.plan").stat().st_size / 4
    with open_engine(bundle.graph_path, bundle.spec, tile=TileSpec.of(bundle.spec.model)) as engine:
        detail = np.zeros((1, 4 * TILE, 4 * TILE, 3), np.float32)
        noise = np.random.default_rng(0).standard_normal((1, 5, TILE, TILE), np.float32)
        engine.collect(engine.submit(noise[:, :3], noise, detail))
        assert detail.std() > 0.01


def test_timings_are_kept_between_builds(
    oldest: World, build: Callable[..., Bundle], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build()
    cache = tmp_path / "engines" / "timing.cache"
    first = cache.read_bytes()
    second = build(level=1)
    assert second.manifest["target"]["timing_cache"] == {"graph.onnx": "used"}
    assert cache.read_bytes() == first + b"+timings"
    oldest.faults.add("timing-cache")
    assert build(level=2).manifest["target"]["timing_cache"] == {"graph.onnx": "begun again"}
    assert "timings of another TensorRT or GPU" in caplog.text


@pytest.mark.parametrize(("fault", "told"), [("no-cache", "gives no timing cache"), ("no-timings", "no timings back")])
def test_an_engine_needs_no_timings(
    oldest: World, build: Callable[..., Bundle], tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: str, told: str
) -> None:
    oldest.faults = {fault}
    assert build().spec.precision is Precision.FP16
    assert told in caplog.text
    assert not (tmp_path / "engines" / "timing.cache").exists()


def test_weights_cannot_be_filled_in_without_a_refitter(
    oldest: World, build: Callable[..., Bundle], tmp_path: Path
) -> None:
    oldest.faults = {"no-refitter"}
    refused(build, tmp_path, "makes no refitter", BackendError, flags=("strip-plan",))


def test_weakly_typed_networks_are_not_what_is_built(oldest: World, toy_graph: Path) -> None:
    """What the fake says of them, so that leaving the flag out would be found."""
    trt = oldest.trt
    logger = make_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    trt.OnnxParser(network, logger).parse_from_file(str(toy_graph))
    assert builder.build_serialized_network(network, builder.create_builder_config()) is None
    assert "not strongly typed" in logger.tail()


class Told:
    def __init__(self, interrupt: bool = False) -> None:
        self.events: list[tuple[Any, ...]] = []
        self._interrupt = interrupt

    def begin(self, phase: str, parent: str | None, steps: int) -> None:
        self.events.append(("begin", phase, parent, steps))

    def step(self, phase: str, step: int) -> None:
        self.events.append(("step", phase, step))
        if self._interrupt:
            raise KeyboardInterrupt

    def end(self, phase: str) -> None:
        self.events.append(("end", phase))


def test_progress_is_told_and_ctrl_c_stops(world: World, build: Callable[..., Bundle], tmp_path: Path) -> None:
    refused(build, tmp_path, "^$", KeyboardInterrupt, progress=Told(interrupt=True))
    told = Told()
    build(progress=told)
    assert told.events[0] == ("begin", "Building Engine", None, 2)
    assert ("step", "Tactics", 4) in told.events
    assert told.events[-1] == ("end", "Building Engine")


def test_int8_is_kept_only_if_faster(
    oldest: World, build: Callable[..., Bundle], tmp_path: Path, toy_graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(build, tmp_path, "pass the FP16 graphs as well", InputError, precision=Precision.INT8)
    rival = {"graph.onnx": toy_graph}
    monkeypatch.setattr(tensorrt_judge, "median_ms", lambda engines, lq, noise: [2.0, 2.0])
    refused(
        build, tmp_path, r"int8 is not faster than fp16 on this GPU \(2.00 against 2.00 ms", BackendError,
        precision=Precision.INT8, faster_than=rival,
    )  # fmt: skip
    monkeypatch.setattr(tensorrt_judge, "median_ms", lambda engines, lq, noise: [2.0, 1.5])
    bundle = build(precision=Precision.INT8, faster_than=rival)
    assert bundle.manifest["speed"]["median_ms"] == {"fp16": 2.0, "int8": 1.5}
    assert oldest.cudart.live == 0


def test_another_process_is_waited_for(
    oldest: World, build: Callable[..., Bundle], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = build().path
    lock = path.parent / f".{path.name}.lock"
    with caplog.at_level(logging.INFO), lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        found: list[Bundle] = []
        thread = threading.Thread(target=lambda: found.append(build()))
        thread.start()
        deadline = time.monotonic() + 20
        while "another process builds" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert not found
        fcntl.flock(file, fcntl.LOCK_UN)
        thread.join(20)
    assert [bundle.path for bundle in found] == [path]
    assert "was built before" in caplog.text


def test_graphs_of_another_tile_are_refused(
    oldest: World, build: Callable[..., Bundle], tmp_path: Path, toy_graph_factory: Callable[..., Path]
) -> None:
    fixed = toy_graph_factory(fixed=True)  # one tile of 48
    assert build(graph=fixed).spec.precision is Precision.FP16
    with pytest.raises(ModelError, match="takes lq of 48x48, not of 64x64; leave"):
        build(graph=fixed, tile=64)
    with pytest.raises(ModelError, match="takes one batch only"):
        build(graph=fixed, batch=(1, 2, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": (2, 1, 3)}, r"batch is \(2, 1, 3\)"),
        ({"level": 6}, "level is 6"),
        ({"flags": ("fast",)}, "engine flag 'fast' is unknown"),
        ({"compiler": "gcc"}, "compiler is 'gcc'"),
        ({"workspace_mib": 0}, "workspace is 0 MiB"),
        ({"tile": 20}, "tile size 20 is too small"),
    ],
)
def test_bad_options_are_refused(
    oldest: World, build: Callable[..., Bundle], tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    refused(build, tmp_path, message, InputError, **options)


def test_without_tensorrt_the_graphs_are_offered(
    build: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    refused(build, tmp_path, "TensorRT is not installed here .*; or write the graphs .* --onnx-only",
            MissingDependencyError)  # fmt: skip
    fake_tensorrt.install(monkeypatch, "10.3.0")
    sys.modules["tensorrt"].__version__ = "8.6.1"  # type: ignore[attr-defined]
    refused(build, tmp_path, "TensorRT 8.6.1 is not served; install one from 10.3 to 11.x", BackendError)
    fake_tensorrt.install(monkeypatch, "10.3.0")
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    refused(build, tmp_path, "need cuda-python", MissingDependencyError)


def test_options_as_the_command_line_takes_them(tmp_path: Path) -> None:
    """Every field has its word: one that is added must not be forgotten where an engine is built again."""
    assert TensorRtOptions().words == []
    options = TensorRtOptions(
        tile=128,
        batch=(1, 2, 4),
        workspace_mib=512,
        level=5,
        timing_cache=Path("a cache"),
        flags=("refit", "strip-plan"),
        compiler="torch-tensorrt",
        kernels=tmp_path,
        threads=3,
    )
    usual = asdict(TensorRtOptions())
    assert all(value != usual[name] for name, value in asdict(options).items())
    with build_engine.make_context("build-engine", ["--backend", "tensorrt", *options.words]) as context:
        asked = take_tensorrt_options(dict(context.params))
    assert TensorRtOptions(tile=context.params["tile"], threads=context.params["threads"], **asked.fields) == options


def test_trtexec_is_spelled_for_its_version() -> None:
    shapes = {"lq": (1, 3, 48, 48), "t": (1,)}
    options = TensorRtOptions(batch=(1, 2, 4), level=4, workspace_mib=512, flags=("strip-plan",))
    line = trtexec_line(Path("a b/graph.onnx"), shapes, options)
    assert line == (
        "trtexec '--onnx=a b/graph.onnx' '--saveEngine=a b/graph.plan' --skipInference --stronglyTyped "
        "--minShapes=lq:1x3x48x48,t:1 --optShapes=lq:2x3x48x48,t:1 --maxShapes=lq:4x3x48x48,t:1 --noTF32 "
        "--builderOptimizationLevel=4 --memPoolSize=workspace:512 --profilingVerbosity=detailed "
        "--timingCacheFile=timing.cache --stripWeights"
    )
    assert "--stronglyTyped" not in trtexec_line(Path("graph.onnx"), shapes, options, tensorrt="11.4")


@pytest.mark.parametrize("integrated", [False, True])
@pytest.mark.parametrize("flags", [(), ("hardware-compatible", "version-compatible"), ("strip-plan",), ("refit",)])
@pytest.mark.parametrize("workspace", [None, 96])
def test_trtexec_is_told_what_the_builder_does(
    world: World, build: Callable[..., Bundle], integrated: bool, flags: tuple[str, ...], workspace: int | None
) -> None:
    world.cudart.integrated, world.cudart.total = integrated, 64 << 30
    options: dict[str, Any] = {"batch": (1, 2, 3), "level": 2, "flags": flags, "workspace_mib": workspace}
    build(**options)
    built = {name: value for name, value in world.built[0].items() if name != "cache"}
    dram = built["limits"].pop("TACTIC_DRAM", None)
    assert (dram is not None) is integrated  # trtexec has no word for it, as graphs.json says
    shapes = {"lq": (1, 3, TILE, TILE), "noise": (1, 5, TILE, TILE)}
    line = trtexec_line(
        Path("graph.onnx"), shapes, TensorRtOptions(**options), tensorrt=world.version, integrated=integrated
    )
    assert settings_of(line, world.trt) == built
