from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from rsd_edge.backends import open_engine
from rsd_edge.backends.onnxruntime import OnnxRuntimeEngine
from rsd_edge.errors import BackendError, InputError, ModelError
from rsd_edge.machine import usable_cores
from rsd_edge.specs import EngineSpec, TileSpec

Buffers = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]


def buffers(n: int, h: int, w: int) -> Buffers:
    rng = np.random.default_rng(n * h * w)
    lq = rng.uniform(-1, 1, (n, 3, h, w)).astype(np.float32)
    noise = rng.normal(size=(n, 5, h, w)).astype(np.float32)
    return lq, noise, np.full((n, 4 * h, 4 * w, 3), np.nan, np.float32)


@pytest.fixture
def engine(toy_graph: Path, toy_spec: EngineSpec) -> OnnxRuntimeEngine:
    return OnnxRuntimeEngine(toy_graph, toy_spec, 1)


@pytest.mark.parametrize(("n", "h", "w"), [(1, 48, 48), (3, 34, 50)])
def test_detail_is_written_into_the_callers_buffer(
    engine: OnnxRuntimeEngine, toy_graph: Path, n: int, h: int, w: int
) -> None:
    lq, noise, detail = buffers(n, h, w)
    engine.collect(engine.submit(lq, noise, detail))
    plain = ort.InferenceSession(str(toy_graph), providers=["CPUExecutionProvider"])
    (expected,) = plain.run(["detail"], {"lq": lq, "noise": noise})
    # The same kernels on other shapes and threads may sum in another order: a few roundings of values near 1.
    np.testing.assert_allclose(detail, expected, rtol=0, atol=2e-6)


def test_repeating_a_run_gives_identical_bytes(engine: OnnxRuntimeEngine) -> None:
    lq, noise, first = buffers(2, 40, 40)
    second = np.empty_like(first)
    engine.collect(engine.submit(lq, noise, first))
    engine.collect(engine.submit(lq, noise, second))
    assert first.tobytes() == second.tobytes()


def test_a_session_is_opened_once_for_each_shape_and_few_are_kept(
    engine: OnnxRuntimeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    original = ort.InferenceSession

    def counting(*args: object, **options: object) -> object:
        opened.append(args)
        return original(*args, **options)

    monkeypatch.setattr(ort, "InferenceSession", counting)
    for _ in range(2):
        for side in (34, 36):
            engine.submit(*buffers(1, side, side))
    assert len(opened) == 2
    for side in (38, 40, 34, 42):  # 42 is one too many; 36 was used least recently
        engine.submit(*buffers(1, side, side))
    engine.submit(*buffers(1, 34, 34))
    assert len(opened) == 5
    engine.submit(*buffers(1, 36, 36))
    assert len(opened) == 6


def test_sessions_are_configured_for_bounded_memory_and_short_layers(
    engine: OnnxRuntimeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}
    original = ort.InferenceSession

    def recording(path: str, options: ort.SessionOptions, **rest: object) -> object:
        seen["options"] = options
        return original(path, options, **rest)

    monkeypatch.setattr(ort, "InferenceSession", recording)
    engine.prepare(2, 36, 44)
    options = seen["options"]
    assert options.enable_cpu_mem_arena is False
    assert options.intra_op_num_threads == 1
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "1"
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


def test_prepare_leaves_nothing_to_open(engine: OnnxRuntimeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.prepare(2, 36, 44)
    monkeypatch.setattr(ort, "InferenceSession", None)
    lq, noise, detail = buffers(2, 36, 44)
    engine.submit(lq, noise, detail)
    assert np.isfinite(detail).all()


def test_noise_channels_must_match(toy_graph_factory: Callable[..., Path], toy_spec: EngineSpec) -> None:
    with pytest.raises(BackendError, match=r"'noise': \['n', 6, 'h', 'w'\].*needs.*'noise': \['n', 5, 'h', 'w'\]"):
        OnnxRuntimeEngine(toy_graph_factory(noise_channels=6), toy_spec, 1)


def test_input_names_must_match(toy_graph_factory: Callable[..., Path], toy_spec: EngineSpec) -> None:
    with pytest.raises(BackendError, match=r"'image'.*export it with 'rsd-edge build-engine'"):
        OnnxRuntimeEngine(toy_graph_factory(input_name="image"), toy_spec, 1)


def test_sizes_must_be_free(toy_graph_factory: Callable[..., Path], toy_spec: EngineSpec) -> None:
    with pytest.raises(BackendError, match=r"\[1, 3, 48, 48\]"):
        OnnxRuntimeEngine(toy_graph_factory(fixed=True), toy_spec, 1)


@pytest.mark.parametrize("content", [None, b"", b"not a graph"])
def test_a_graph_that_cannot_be_read(tmp_path: Path, toy_spec: EngineSpec, content: bytes | None) -> None:
    path = tmp_path / "graph.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=r"graph\.onnx cannot be loaded by ONNX Runtime") as caught:
        OnnxRuntimeEngine(path, toy_spec, 1)
    assert "\n" not in str(caught.value)


def test_a_missing_provider_is_named(toy_graph: Path, toy_spec: EngineSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["QNNExecutionProvider"])
    with pytest.raises(BackendError, match=r"no CPUExecutionProvider.*QNNExecutionProvider.*pip install"):
        OnnxRuntimeEngine(toy_graph, toy_spec)


def test_threads_below_one_are_refused(toy_graph: Path, toy_spec: EngineSpec) -> None:
    with pytest.raises(InputError, match="threads is 0"):
        OnnxRuntimeEngine(toy_graph, toy_spec, 0)


def test_tiles_of_a_wrong_shape_fail_with_the_graphs_name(engine: OnnxRuntimeEngine) -> None:
    lq, noise, detail = buffers(1, 36, 36)
    with pytest.raises(BackendError, match=r"graph\.onnx failed on 1 tiles of 36 x 36"):
        engine.submit(lq, noise[:, :4].copy(), detail)


def test_too_little_memory_names_the_tiles_and_the_cure(
    engine: OnnxRuntimeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> object:
        raise RuntimeError("Non-zero status code returned while running Conv node. Status Message: std::bad_alloc")

    monkeypatch.setattr(ort.InferenceSession, "run_with_iobinding", full)
    with pytest.raises(BackendError, match=r"^not enough memory for 1 tiles of 36 x 40; give a smaller --tile"):
        engine.submit(*buffers(1, 36, 40))
    monkeypatch.setattr(ort, "InferenceSession", full)
    with pytest.raises(BackendError, match=r"^not enough memory to load .*graph\.onnx; close other programs, or give"):
        engine.submit(*buffers(1, 36, 44))


def test_a_closed_engine_says_so(toy_graph: Path, toy_spec: EngineSpec) -> None:
    with OnnxRuntimeEngine(toy_graph, toy_spec, 1) as engine:
        engine.submit(*buffers(1, 36, 36))
    engine.close()
    with pytest.raises(BackendError, match="is closed"):
        engine.submit(*buffers(1, 36, 36))


def test_default_tiles_follow_the_model_and_threads_the_cores(toy_graph: Path, toy_spec: EngineSpec) -> None:
    engine = OnnxRuntimeEngine(toy_graph, toy_spec)
    assert engine.tile == TileSpec(halo=16, multiple_of=2)
    assert engine.threads == usable_cores()


def test_open_engine_picks_the_backend_of_the_spec(toy_graph: Path, toy_spec: EngineSpec) -> None:
    tile = TileSpec(size=96)
    engine = open_engine(toy_graph, toy_spec, tile=tile, threads=1)
    assert isinstance(engine, OnnxRuntimeEngine)
    assert (engine.tile, engine.threads, engine.spec) == (tile, 1, toy_spec)
