from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fake_tensorrt
import numpy as np
import pytest
from fake_tensorrt.cudart import FakeCudart, cudaError_t
from fake_tensorrt.network import World

from rsd_edge.backends import open_engine
from rsd_edge.backends.onnxruntime import OnnxRuntimeEngine
from rsd_edge.backends.tensorrt.engine import TensorRtEngine
from rsd_edge.bundle import BuildRecord, Bundle
from rsd_edge.errors import BackendError, ModelError
from rsd_edge.export.tensorrt_build import build_bundle
from rsd_edge.export.tensorrt_options import TensorRtOptions
from rsd_edge.pipeline import NumpyFramePath
from rsd_edge.specs import Backend, EngineSpec, Precision, TileSpec

pytest.importorskip("onnx")

TILE = 48
OPTIONS = TensorRtOptions(tile=TILE, batch=(1, 2, 3))


@pytest.fixture(params=fake_tensorrt.VERSIONS)
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> World:
    return fake_tensorrt.install(monkeypatch, request.param)


@pytest.fixture
def newest(monkeypatch: pytest.MonkeyPatch) -> World:
    return fake_tensorrt.install(monkeypatch, fake_tensorrt.VERSIONS[-1])


@pytest.fixture(params=[False, True], ids=["discrete", "integrated"])
def either_memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> World:
    cudart = FakeCudart(integrated=request.param)
    return fake_tensorrt.install(monkeypatch, fake_tensorrt.VERSIONS[0], cudart)


@pytest.fixture
def build(toy_graph: Path, toy_spec: EngineSpec, tmp_path: Path) -> Callable[..., Bundle]:
    spec = replace(toy_spec, backend=Backend.TENSORRT, precision=Precision.FP16)
    graphs = {"graph.onnx": toy_graph}

    def make(options: TensorRtOptions = OPTIONS) -> Bundle:
        record = BuildRecord(source={"model": "my/toy.safetensors", "digest": "0f3a"})
        return build_bundle(graphs, spec, tmp_path / "engines", record, reference=graphs, options=options)

    return make


def open_bundle(bundle: Bundle, batch: int = 1) -> TensorRtEngine:
    engine = open_engine(bundle.graph_path, bundle.spec, tile=TileSpec.of(bundle.spec.model, batch=batch))
    assert isinstance(engine, TensorRtEngine)
    return engine


def tiles(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return (
        rng.uniform(-1, 1, (n, 3, TILE, TILE)).astype(np.float32),
        rng.standard_normal((n, 5, TILE, TILE), np.float32),
    )


def detail_of(graph: Path, spec: EngineSpec, lq: np.ndarray, noise: np.ndarray) -> np.ndarray:
    detail = np.empty((len(lq), 4 * TILE, 4 * TILE, 3), np.float32)
    with OnnxRuntimeEngine(graph, spec, 1) as engine:
        engine.collect(engine.submit(lq, noise, detail))
    return detail


def test_every_version_gives_the_numbers_of_onnx_runtime(
    world: World, build: Callable[..., Bundle], toy_graph: Path, toy_spec: EngineSpec
) -> None:
    lq, noise = tiles(2, 1)
    detail = np.full((2, 4 * TILE, 4 * TILE, 3), np.nan, np.float32)
    with open_bundle(build(), batch=2) as engine:
        assert engine.tile.fixed
        assert (engine.tile.size, engine.tile.batch) == (TILE, 2)
        engine.collect(engine.submit(lq, noise, detail))
    # ONNX Runtime behind the fake adds up in another order: other optimisations.
    np.testing.assert_allclose(detail, detail_of(toy_graph, toy_spec, lq, noise), atol=1e-5)
    assert world.cudart.live == 0


def test_slots_in_flight_do_not_mix(
    either_memory: World, build: Callable[..., Bundle], toy_graph: Path, toy_spec: EngineSpec
) -> None:
    with open_bundle(build()) as engine:
        assert engine.ahead == 3
        given = [tiles(1, seed) for seed in range(7)]
        details = [np.empty((1, 4 * TILE, 4 * TILE, 3), np.float32) for _ in given]
        waiting = []
        for (lq, noise), detail in zip(given, details, strict=True):
            if len(waiting) == engine.ahead:
                engine.collect(waiting.pop(0))
            taken = lq.copy(), noise.copy()
            waiting.append(engine.submit(*taken, detail))
            taken[0][:] = taken[1][:] = np.nan  # the engine has a copy of its own
        with pytest.raises(BackendError, match="all 3 slots are in use"):
            engine.submit(*given[0], details[0])
        while waiting:
            engine.collect(waiting.pop(0))
    for (lq, noise), detail in zip(given, details, strict=True):
        np.testing.assert_allclose(detail, detail_of(toy_graph, toy_spec, lq, noise), atol=1e-5)
    copies = either_memory.cudart.calls.count("cudaMemcpyAsync")
    assert (copies == 0) is either_memory.cudart.integrated
    assert either_memory.cudart.live == 0


def test_a_frame_is_that_of_onnx_runtime(
    newest: World, build: Callable[..., Bundle], toy_graph: Path, toy_spec: EngineSpec, photo: Callable[..., np.ndarray]
) -> None:
    frame = photo(40, 61)
    with open_bundle(build(), batch=3) as engine:
        found = NumpyFramePath(engine)(frame, seed=3)
        tile = engine.tile
    with OnnxRuntimeEngine(toy_graph, toy_spec, 1, tile=tile) as reference:
        wanted = NumpyFramePath(reference)(frame, seed=3)
    assert np.abs(found.astype(int) - wanted).max() <= 1  # rounding, where sums differ in their last digit


def test_each_slot_is_recorded_once_and_replayed(newest: World, build: Callable[..., Bundle]) -> None:
    bundle = build()
    newest.cudart.calls.clear()
    lq, noise = tiles(1, 1)
    detail = np.empty((1, 4 * TILE, 4 * TILE, 3), np.float32)
    with open_bundle(bundle) as engine:
        engine.prepare(1, TILE, TILE)
        engine.prepare(1, TILE, TILE)
        for _ in range(5):
            engine.collect(engine.submit(lq, noise, detail))
    calls = newest.cudart.calls
    assert calls.count("cudaGraphInstantiate") == 3
    assert calls.count("cudaGraphLaunch") == 5


def test_without_a_graph_it_runs_and_says_so(
    newest: World, build: Callable[..., Bundle], caplog: pytest.LogCaptureFixture, toy_graph: Path, toy_spec: EngineSpec
) -> None:
    bundle = build()
    newest.cudart.faults["cudaGraphInstantiate"] = cudaError_t.cudaErrorStreamCaptureUnsupported
    lq, noise = tiles(1, 1)
    detail = np.empty((1, 4 * TILE, 4 * TILE, 3), np.float32)
    with open_bundle(bundle) as engine:
        for _ in range(4):
            engine.collect(engine.submit(lq, noise, detail))
    np.testing.assert_allclose(detail, detail_of(toy_graph, toy_spec, lq, noise), atol=1e-5)
    assert len([record for record in caplog.records if "without a CUDA graph" in record.message]) == 3
    assert newest.cudart.live == 0


def test_a_tile_that_is_not_finite_becomes_bicubic(
    newest: World, build: Callable[..., Bundle], caplog: pytest.LogCaptureFixture, toy_graph: Path, toy_spec: EngineSpec
) -> None:
    bundle = build()
    newest.faults.add("not-finite")  # in the first tile of each batch
    lq, noise = tiles(2, 1)
    detail = np.empty((2, 4 * TILE, 4 * TILE, 3), np.float32)
    with open_bundle(bundle, batch=2) as engine:
        engine.collect(engine.submit(lq, noise, detail))
    assert not detail[0].any()
    np.testing.assert_allclose(detail[1], detail_of(toy_graph, toy_spec, lq, noise)[1], atol=1e-5)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "1 of 2 tiles" in record.message
    assert "plain bicubic" in record.message


def refused(bundle: Bundle, match: str, kind: type[Exception] = ModelError, batch: int = 1) -> None:
    with pytest.raises(kind, match=match):
        open_bundle(bundle, batch)


def test_what_does_not_fit_is_refused(newest: World, build: Callable[..., Bundle]) -> None:
    bundle = build()
    refused(bundle, r"batch is 4 and .* takes 1 to 3 tiles at once", BackendError, batch=4)
    lq, noise = tiles(2, 1)
    engine = open_bundle(bundle)
    with pytest.raises(BackendError, match=r"opened for 1 tiles of 48x48, not 2 of 48x48"):
        engine.submit(lq, noise, np.empty((2, 4 * TILE, 4 * TILE, 3), np.float32))
    engine.close()
    with pytest.raises(BackendError, match="is closed"):
        engine.submit(lq[:1], noise[:1], np.empty((1, 4 * TILE, 4 * TILE, 3), np.float32))
    engine.close()
    for fault, message, kind in (
        ("deserialize", "is not for TensorRT 11.4.0.106 and this GPU .*version mismatch.*; build it again", ModelError),
        ("context", "gives no execution context", BackendError),
        ("wrong-shape", r"takes lq of \(1, 3, 48, 48\) to \(3, 3, 48, 48\), not \(1, 3, 48, 48\)", BackendError),
    ):
        newest.faults = {fault}
        refused(bundle, message, kind)
    assert newest.cudart.live == 0  # nothing stays behind


def test_a_failing_device_is_an_error(newest: World, build: Callable[..., Bundle]) -> None:
    bundle = build()
    lq, noise = tiles(1, 1)
    detail = np.empty((1, 4 * TILE, 4 * TILE, 3), np.float32)
    with open_bundle(bundle) as engine:
        newest.faults.add("execute")
        with pytest.raises(BackendError, match=r"graph\.plan failed"):
            engine.submit(lq, noise, detail)
        newest.faults.clear()
    with open_bundle(bundle) as engine:
        newest.cudart.faults["cudaEventSynchronize"] = cudaError_t.cudaErrorLaunchFailure
        ticket = engine.submit(lq, noise, detail)
        with pytest.raises(BackendError, match="cudaEventSynchronize failed: cudaErrorLaunchFailure"):
            engine.collect(ticket)
    assert newest.cudart.live == 0


def test_device_memory_runs_out_in_words(newest: World, build: Callable[..., Bundle]) -> None:
    bundle = build()
    newest.cudart.total = 100_000
    refused(bundle, "the GPU is out of memory: an allocation of [0-9]+ bytes failed; close other", BackendError)
    assert newest.cudart.live == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": b"Thor"}, "the GPU was Orin and is Thor"),
        ({"capability": (11, 0)}, "compute capability was 8.7 and is 11.0"),
    ],
)
def test_another_gpu_is_refused(
    monkeypatch: pytest.MonkeyPatch, build: Callable[..., Bundle], change: dict[str, object], message: str
) -> None:
    world = fake_tensorrt.install(monkeypatch, "10.3.0")
    bundle = build()
    for name, value in change.items():
        setattr(world.cudart, name, value)
    refused(
        bundle,
        f"was built for another device: {message}; run 'rsd-edge build-engine --model my/toy.safetensors --backend "
        "tensorrt --precision fp16'$",
    )


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch, build: Callable[..., Bundle]) -> None:
    fake_tensorrt.install(monkeypatch, "10.3.0")
    bundle = build()
    fake_tensorrt.install(monkeypatch, "11.4.0.106")
    refused(bundle, "TensorRT was 10.3.0 and is 11.4.0.106")


def test_another_driver_is_told(
    newest: World, build: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = build()
    monkeypatch.setattr("rsd_edge.backends.tensorrt.device.l4t_release", lambda: "R36.4.3")
    open_bundle(bundle).close()
    assert "may not be the fastest any more: Jetson Linux was unknown and is R36.4.3" in caplog.text


@pytest.fixture(autouse=True)
def _plain_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rsd_edge.export.tensorrt_judge._ROUNDS", 1)
    monkeypatch.setattr("rsd_edge.backends.tensorrt.device.l4t_release", lambda: "")
    monkeypatch.setattr("rsd_edge.backends.tensorrt.device.nvidia_driver", lambda: "")
