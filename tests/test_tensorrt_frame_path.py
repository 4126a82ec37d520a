"""Whole frames on the fake device, with kernels that are NumPy's, against the path over NumPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_tensorrt
import numpy as np
import pytest
from fake_tensorrt.cudart import FakeCudart, cudaError_t
from fake_tensorrt.kernels import FakeDriver, write_pack
from fake_tensorrt.network import World

from rsd_edge import SuperResolver
from rsd_edge.backends import open_engine
from rsd_edge.backends.onnxruntime import OnnxRuntimeEngine
from rsd_edge.backends.tensorrt import frame_path
from rsd_edge.backends.tensorrt.frame_path import DeviceFramePath
from rsd_edge.bundle import BuildRecord, Bundle
from rsd_edge.errors import BackendError, InputError, ModelError
from rsd_edge.export import tensorrt_judge
from rsd_edge.export.tensorrt_build import build_bundle
from rsd_edge.export.tensorrt_options import TensorRtOptions
from rsd_edge.pipeline import NumpyFramePath
from rsd_edge.specs import Backend, EngineSpec, Precision, TileSpec

onnx = pytest.importorskip("onnx")

Photo = Callable[[int, int], np.ndarray]

TILE = 48
LARGE_SEED = (1 << 63) + 11  # its sign bit is set in the kernel's signed argument


@pytest.fixture(params=[False, True], ids=["discrete", "integrated"])
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> World:
    return fake_tensorrt.install(monkeypatch, "10.3.0", FakeCudart(integrated=request.param))


@pytest.fixture(autouse=True)
def _few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rsd_edge.export.tensorrt_judge._ROUNDS", 1)


@pytest.fixture
def driver(world: World, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    made = FakeDriver(world.cudart)
    monkeypatch.setattr(frame_path, "CudaDriver", lambda: made)
    return made


@pytest.fixture
def bundle(world: World, driver: FakeDriver, toy_graph: Path, toy_spec: EngineSpec, tmp_path: Path) -> Bundle:
    spec = replace(toy_spec, backend=Backend.TENSORRT, precision=Precision.FP16)
    graphs = {"graph.onnx": toy_graph}
    options = TensorRtOptions(tile=TILE, batch=(1, 2, 4), kernels=write_pack(tmp_path / "kernels"))
    return build_bundle(graphs, spec, tmp_path / "engines", BuildRecord(), reference=graphs, options=options)


@pytest.fixture
def resolver(bundle: Bundle, world: World) -> SuperResolver:
    engine = open_engine(bundle.graph_path, bundle.spec, tile=TileSpec.of(bundle.spec.model, batch=2))
    return SuperResolver(engine)


def expected(graph: Path, spec: EngineSpec, frame: np.ndarray, **options: float) -> np.ndarray:
    tile = TileSpec(size=TILE, halo=spec.model.halo, fixed=True, batch=2)
    with OnnxRuntimeEngine(graph, spec, 1, tile=tile) as engine:
        return NumpyFramePath(engine)(frame, **options)


def same(found: np.ndarray, wanted: np.ndarray) -> None:
    difference = np.abs(found.astype(int) - wanted.astype(int))
    # Sums in another order differ in their last digit, and a tie then rounds the other way.
    assert difference.max() <= 1
    assert difference.mean() < 1e-3


@pytest.mark.parametrize(("height", "width"), [(21, 50), (40, 16), (3, 5)])
def test_the_frame_is_that_of_the_numpy_path(
    resolver: SuperResolver, toy_graph: Path, toy_spec: EngineSpec, photo: Photo, height: int, width: int
) -> None:
    with resolver:
        for seed, strength in ((0, 1.0), (LARGE_SEED, 0.6), (LARGE_SEED, 1.0)):
            frame = photo(height, width + seed % 3)
            wanted = expected(toy_graph, toy_spec, frame, seed=seed, strength=strength)
            same(resolver(frame, seed=seed, strength=strength), wanted)


def test_int8_races_fp16_in_its_own_layout(
    world: World,
    driver: FakeDriver,
    toy_graph: Path,
    toy_spec: EngineSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Planes have to be turned round for the race, rows have not."""
    opened, open_plans = [], tensorrt_judge.open_plans

    def watched(folder: Path, *rest: Any, **options: Any) -> Any:
        detail = onnx.load(folder / "graph.onnx").graph.output[0].type.tensor_type
        opened.append((detail.elem_type, [length.dim_value or length.dim_param for length in detail.shape.dim]))
        return open_plans(folder, *rest, **options)

    monkeypatch.setattr(tensorrt_judge, "open_plans", watched)
    monkeypatch.setattr(tensorrt_judge, "median_ms", lambda engines, lq, noise: [2.0, 1.5])
    spec = replace(toy_spec, backend=Backend.TENSORRT, precision=Precision.INT8)
    graphs = {"graph.onnx": toy_graph}
    options = TensorRtOptions(tile=TILE, kernels=write_pack(tmp_path / "kernels"))
    build_bundle(
        graphs, spec, tmp_path / "engines", BuildRecord(), reference=graphs, faster_than=graphs, options=options
    )
    assert opened[0][1][1] == 3  # planes
    assert opened == [opened[0]] * 2


def test_only_the_frame_and_the_result_cross_the_bus(
    resolver: SuperResolver, world: World, driver: FakeDriver, photo: Photo
) -> None:
    frame = photo(40, 50)
    with resolver:
        resolver.warm_up(40, 50)
        world.cudart.calls.clear()
        driver.launched.clear()
        for _ in range(3):
            resolver(frame)
        assert world.cudart.calls.count("cudaGraphLaunch") == 3
        assert "cudaMemcpyAsync" not in world.cudart.calls  # copies are in the graph
        assert "cudaMalloc" not in world.cudart.calls
        assert driver.launched == []
        resolver(frame, seed=1)
        assert driver.launched == ["noise_field"]
    assert world.cudart.live == 0


def test_bands_and_scales_are_those_of_the_whole(resolver: SuperResolver, photo: Photo) -> None:
    frame, told = photo(50, 40), []
    with resolver:
        whole = resolver(frame, seed=5)
        bands = [
            band.copy()
            for band in resolver.bands(frame, seed=5, progress=lambda done, total: told.append((done, total)))
        ]
        halved = resolver(frame, seed=5, scale=2.0)
    np.testing.assert_array_equal(np.concatenate(bands), whole)
    assert told[-1][0] == told[-1][1]
    assert halved.shape == (100, 80, 3)


def test_what_the_kernels_do_not_know_goes_over_numpy(
    resolver: SuperResolver, driver: FakeDriver, toy_graph: Path, toy_spec: EngineSpec, photo: Photo, world: World
) -> None:
    deep = photo(20, 30).astype(np.uint16) * 257
    with resolver:
        found = resolver(deep)
        assert driver.launched == []
        np.testing.assert_array_equal(resolver(photo(8, 9), strength=0.0)[::32, ::36].shape, (1, 1, 3))
        assert driver.launched == []
        world.cudart.total = world.cudart.used + (4 << 20)  # the tiles of a frame want more than this
        frame = photo(60, 70)
        same(resolver(frame), expected(toy_graph, toy_spec, frame))
        assert driver.launched == []
    wanted = expected(toy_graph, toy_spec, deep)
    assert np.abs(found.astype(int) - wanted.astype(int)).max() <= 2  # of 65535, by the order of sums


def test_tiles_that_are_not_finite_become_bicubic(
    resolver: SuperResolver, world: World, photo: Photo, caplog: pytest.LogCaptureFixture
) -> None:
    frame = photo(40, 16)  # three tiles, one below the other
    with resolver:
        sound = resolver(frame)
        caplog.clear()
        world.faults.add("not-finite")  # in the first of each batch
        resolver.engine.prepare(2, TILE, TILE)
        found = resolver(frame)
        bicubic = resolver(frame, strength=0.0)
    assert "2 of 3 tiles" in caplog.text  # the first of each batch of two
    np.testing.assert_array_equal(found[:32], bicubic[:32])  # inside the first tile's core, before the seam
    assert (sound[:32] != bicubic[:32]).any()


def spoil(world: World, tile: int, place: tuple[int, int, int]) -> None:
    """One value of a tile of the next frame, counted through its batches, becomes no number."""
    done = [0]

    def touch(detail: np.ndarray) -> None:
        if done[0] <= tile < done[0] + len(detail):
            detail[(tile - done[0], *place)] = np.nan
        done[0] += len(detail)

    world.touch = touch


@pytest.mark.parametrize("tile", range(6))
def test_a_single_value_that_is_not_finite_is_found(
    resolver: SuperResolver, world: World, photo: Photo, caplog: pytest.LogCaptureFixture, tile: int
) -> None:
    frame, (row, column) = photo(40, 30), divmod(tile, 2)  # cores of 16 pixels, the last of 8 rows or 14 columns
    with resolver:
        resolver.warm_up(40, 30)
        sound, bicubic = resolver(frame), resolver(frame, strength=0.0)
        core = np.s_[64 * row + 16 : min(64 * row + 48, 160), 64 * column + 16 : min(64 * column + 48, 120)]
        for y in range(64, 64 + (32 if row == 2 else 64)):
            caplog.clear()
            spoil(world, tile, (y % 3, y, 64 + 7 * y % (56 if column else 64)))
            found = resolver(frame)
            assert "1 of 6 tiles" in caplog.text, y
            np.testing.assert_array_equal(found[core], bicubic[core])
            changed = (found != sound).any(axis=2)
            assert changed.mean() < 0.45  # at most a core with its seams: the others keep their detail
        world.touch = None
        caplog.clear()
        np.testing.assert_array_equal(resolver(frame), sound)
        spoil(world, tile, (0, 0, 0))  # in the halo, of which nothing is in the picture
        np.testing.assert_array_equal(resolver(frame), sound)
        assert not caplog.text


def test_a_frame_without_a_graph(
    resolver: SuperResolver, world: World, toy_graph: Path, toy_spec: EngineSpec, photo: Photo,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    world.cudart.faults["cudaGraphInstantiate"] = cudaError_t.cudaErrorStreamCaptureUnsupported
    frame = photo(20, 30)
    with resolver:
        same(resolver(frame), expected(toy_graph, toy_spec, frame))
    assert "frames run without a CUDA graph" in caplog.text


def test_what_cannot_be_is_refused(resolver: SuperResolver, bundle: Bundle, photo: Photo, world: World) -> None:
    with resolver:
        with pytest.raises(InputError, match="strength is nan"):
            resolver(photo(8, 8), strength=float("nan"))
        with pytest.raises(InputError, match="out is"):
            resolver(photo(8, 8), out=np.empty((8, 8, 3), np.uint8))
    with pytest.raises(BackendError, match="is closed"):
        resolver(photo(8, 8))
    engine = open_engine(bundle.graph_path, bundle.spec, tile=TileSpec.of(bundle.spec.model))
    with engine, pytest.raises(ModelError, match="has format 3, this version reads 2"):
        DeviceFramePath(engine, bundle.path)


def test_a_pack_for_another_gpu_is_refused(
    world: World, driver: FakeDriver, toy_graph: Path, toy_spec: EngineSpec, tmp_path: Path
) -> None:
    spec = replace(toy_spec, backend=Backend.TENSORRT, precision=Precision.FP16)
    graphs = {"graph.onnx": toy_graph}
    options = TensorRtOptions(tile=TILE, kernels=write_pack(tmp_path / "kernels", sm=90))
    with pytest.raises(ModelError, match=r"has no frame_tiles, merge_tiles-x128, .*, noise_field for sm_87"):
        build_bundle(graphs, spec, tmp_path / "engines", BuildRecord(), reference=graphs, options=options)
    assert not list((tmp_path / "engines").glob("toy*"))


def test_an_engine_whose_kernels_fail_gives_its_memory_back(
    world: World, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing() -> None:
        raise BackendError("the driver is gone")

    monkeypatch.setattr(frame_path, "CudaDriver", failing)
    with pytest.raises(BackendError, match="the driver is gone"):
        SuperResolver.load(bundle.path)
    assert world.cudart.live == 0
