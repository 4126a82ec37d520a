from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rsd_edge import pipeline
from rsd_edge.backends.onnxruntime import OnnxRuntimeEngine
from rsd_edge.errors import BackendError, InputError
from rsd_edge.frames import Frame
from rsd_edge.noise import NoiseField
from rsd_edge.opencv import cv2
from rsd_edge.pipeline import NumpyFramePath
from rsd_edge.specs import EngineSpec, ModelSpec, TileSpec
from rsd_edge.tiling import plan_tiles

Image = NDArray[np.uint8]
Photo = Callable[[int, int], Image]
WHOLE = 1 << 12  # a tile larger than every test image: one tile covers the frame


class NearestEngine:
    """Detail from its own pixel alone: 0.1 * lq + 0.05 * (first noise channel), each repeated 4 x 4 times.

    Works when it is collected, as a device that runs ahead would, and records what it is given.
    """

    def __init__(self, tile: TileSpec) -> None:
        self.spec = EngineSpec(model=ModelSpec(name="nearest"))
        self.tile = tile
        self.threads, self.ahead = 1, 2
        self.submitted: list[tuple[int, ...]] = []
        self.prepared: list[tuple[int, int, int]] = []
        self.most_in_flight = 0
        self.in_flight: list[tuple[NDArray[np.float32], ...]] = []
        self.fail_at: int | None = None

    def prepare(self, n: int, h: int, w: int) -> None:
        self.prepared.append((n, h, w))

    def submit(
        self, lq: NDArray[np.float32], noise: NDArray[np.float32], detail: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], ...]:
        if self.fail_at == len(self.submitted):
            raise BackendError("the device is gone")
        assert all(array.flags.c_contiguous for array in (lq, noise, detail))
        self.submitted.append(lq.shape)
        ticket = (lq, noise, detail)
        self.in_flight.append(ticket)
        self.most_in_flight = max(self.most_in_flight, len(self.in_flight))
        return ticket

    def collect(self, ticket: tuple[NDArray[np.float32], ...]) -> None:
        assert self.in_flight.pop(0) is ticket
        lq, noise, detail = ticket
        small = 0.1 * lq + 0.05 * noise[:, :1]
        detail[...] = small[:, ::-1].repeat(4, axis=2).repeat(4, axis=3).transpose(0, 2, 3, 1)

    def close(self) -> None:
        pass

    def __enter__(self) -> NearestEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def nearest_reference(frame: Frame, *, seed: int, strength: float) -> NDArray[np.float64]:
    """What the frame path makes of NearestEngine, computed on the whole frame at once; before rounding."""
    height, width = frame.shape[:2]
    base = cv2.resize(frame, (4 * width, 4 * height), interpolation=cv2.INTER_CUBIC)
    noise = NoiseField(seed).normal(1, 0, 0, height, width)[0]
    white = np.iinfo(frame.dtype).max
    detail = 0.1 * (2 * frame.astype(np.float64) / white - 1) + 0.05 * noise[..., None]
    return np.clip(base + strength * white / 2 * detail.repeat(4, axis=0).repeat(4, axis=1), 0, white)


@pytest.fixture
def toy_path(toy_graph: Path, toy_spec: EngineSpec) -> Callable[..., NumpyFramePath]:
    def make(**tile: Any) -> NumpyFramePath:
        return NumpyFramePath(OnnxRuntimeEngine(toy_graph, toy_spec, 2, tile=TileSpec(**tile)))

    return make


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (2, 3), (31, 37), (97, 131)])
@pytest.mark.parametrize(
    "tile", [TileSpec(size=64), TileSpec(size=64, batch=4), TileSpec(size=96, batch=3, fixed=True)], ids=str
)
def test_frame_path_equals_the_whole_frame_formula(photo: Photo, shape: tuple[int, int], tile: TileSpec) -> None:
    frame = photo(*shape)
    result = NumpyFramePath(NearestEngine(tile))(frame, seed=11, strength=0.75)
    assert result.dtype == np.uint8
    error = np.abs(result - nearest_reference(frame, seed=11, strength=0.75))
    assert error.max() <= 0.5 + 1e-3  # rounding to the nearest grey level, and float32 below


@pytest.mark.parametrize("shape", [(180, 197), (67, 331)])
@pytest.mark.parametrize("size", [64, 128, 192])
@pytest.mark.parametrize("batch", [1, 4])
def test_tiles_and_batches_do_not_show(
    photo: Photo, toy_path: Callable[..., NumpyFramePath], shape: tuple[int, int], size: int, batch: int
) -> None:
    """A network that sees less than the halo gives the same image however it is cut.

    Float32 sums in another order may flip a rounding: by one grey level, for a value within 1e-4 of a half.
    """
    frame = photo(*shape)
    whole = toy_path(size=WHOLE)(frame, seed=3).astype(int)
    tiled = toy_path(size=size, batch=batch)(frame, seed=3)
    difference = np.abs(tiled - whole)
    assert difference.max() <= 1
    assert np.count_nonzero(difference) <= 1e-3 * difference.size


def test_the_network_matters(photo: Photo, toy_path: Callable[..., NumpyFramePath]) -> None:
    """Guards the test above: the toy's detail is large, and so are seams if the halo is cut off."""
    frame = photo(67, 131)
    path = toy_path(size=64)
    bicubic = path(frame, strength=0.0).astype(int)
    assert np.abs(path(frame) - bicubic).mean() > 5
    narrow = toy_path(size=64, halo=4)(frame).astype(int)
    assert np.abs(narrow - toy_path(size=WHOLE)(frame)).max() > 3


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (33, 2), (61, 67)])
def test_odd_sizes_run_through_a_real_graph(
    photo: Photo, toy_path: Callable[..., NumpyFramePath], shape: tuple[int, int]
) -> None:
    result = toy_path(size=64, batch=2)(photo(*shape))
    assert result.shape == (4 * shape[0], 4 * shape[1], 3)


def test_same_seed_same_bytes_and_other_seed_other_image(photo: Photo, toy_path: Callable[..., NumpyFramePath]) -> None:
    frame, path = photo(61, 67), toy_path(size=64)
    first = path(frame, seed=5)
    path(photo(40, 30), seed=9)
    assert path(frame, seed=5).tobytes() == first.tobytes()
    assert toy_path(size=64)(frame, seed=5).tobytes() == first.tobytes()
    assert np.abs(path(frame, seed=6).astype(int) - first).mean() > 1


def test_strength_zero_is_bicubic_and_runs_nothing(photo: Photo) -> None:
    frame = photo(61, 67)
    engine = NearestEngine(TileSpec(size=64))
    calls: list[tuple[int, int]] = []
    result = NumpyFramePath(engine)(frame, strength=0.0, progress=lambda done, total: calls.append((done, total)))
    np.testing.assert_array_equal(result, cv2.resize(frame, (268, 244), interpolation=cv2.INTER_CUBIC))
    assert engine.submitted == []
    assert calls == [(1, 1)]


def test_the_engine_runs_one_batch_ahead_with_every_tile_once(photo: Photo) -> None:
    engine = NearestEngine(TileSpec(size=64, batch=4))
    NumpyFramePath(engine)(photo(97, 67))
    plan = plan_tiles(97, 67, engine.tile)
    assert [shape[0] for shape in engine.submitted] == [4, 4, 4]
    assert plan.count == 12
    NumpyFramePath(engine)(photo(97, 90))
    assert [shape[0] for shape in engine.submitted[3:]] == [4, 4, 4]
    assert engine.most_in_flight == 2


def test_a_last_batch_is_short_unless_the_engine_is_fixed(photo: Photo) -> None:
    for fixed, expected in ((False, [(4, 3, 64, 64), (2, 3, 64, 64)]), (True, [(4, 3, 64, 64), (4, 3, 64, 64)])):
        engine = NearestEngine(TileSpec(size=64, batch=4, fixed=fixed))
        path = NumpyFramePath(engine)
        path(photo(64, 96))
        assert engine.submitted == expected
        path.prepare(64, 96, np.dtype(np.uint8))
        assert sorted(set(engine.prepared)) == sorted({(n, h, w) for n, _, h, w in expected})


def test_progress_counts_every_tile(photo: Photo) -> None:
    calls: list[tuple[int, int]] = []
    engine = NearestEngine(TileSpec(size=64, batch=4))
    NumpyFramePath(engine)(photo(64, 96), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(i + 1, 6) for i in range(6)]


def test_an_engine_failure_is_raised_and_the_path_recovers(photo: Photo) -> None:
    frame = photo(97, 67)
    engine = NearestEngine(TileSpec(size=64))
    path = NumpyFramePath(engine)
    expected = path(frame, seed=2)
    engine.fail_at = len(engine.submitted) + 5
    with pytest.raises(BackendError, match="the device is gone"):
        path(frame, seed=2)
    assert engine.in_flight == []  # nothing is left writing into the buffers
    engine.fail_at = None
    np.testing.assert_array_equal(path(frame, seed=2), expected)


def test_an_error_in_the_progress_callback_stops_the_frame(photo: Photo) -> None:
    engine = NearestEngine(TileSpec(size=64))
    path = NumpyFramePath(engine)

    def cancel(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        path(photo(97, 67), progress=cancel)
    assert engine.in_flight == []
    assert len(engine.submitted) == 2


def test_out_is_filled_and_buffers_are_reused(photo: Photo) -> None:
    frame = photo(61, 67)
    path = NumpyFramePath(NearestEngine(TileSpec(size=64)))
    out = np.empty((244, 268, 3), np.uint8)
    assert path(frame, out=out) is out
    space = path._workspace
    np.testing.assert_array_equal(path(frame), out)
    assert path._workspace is space
    wide = frame.astype(np.uint16) * 257
    np.testing.assert_array_equal(path(wide), NumpyFramePath(NearestEngine(TileSpec(size=64)))(wide))
    path(photo(30, 30))
    assert path._workspace is not space


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("tile", [TileSpec(size=64), TileSpec(size=64, batch=3, fixed=True)], ids=str)
def test_noise_is_kept_while_size_and_seed_stay(
    photo: Photo, monkeypatch: pytest.MonkeyPatch, tile: TileSpec, kept: bool
) -> None:
    drawn = []
    normal = NoiseField.normal
    monkeypatch.setattr(NoiseField, "normal", lambda self, *a, **k: drawn.append(self.seed) or normal(self, *a, **k))
    frame, count = photo(97, 131), plan_tiles(97, 131, tile).count
    assert count == 20  # more rounds than are in flight, and for batches of three a last one that is not full
    if not kept:
        monkeypatch.setattr(pipeline, "_NOISE_BYTES_KEPT", 0)
    path = NumpyFramePath(NearestEngine(tile))
    for seed, fresh in ((1, True), (1, False), (2, True), (1, True), (1, False)):
        drawn.clear()
        result = path(frame, seed=seed)
        assert drawn == [seed] * (count if fresh or not kept else 0)
        error = np.abs(result - nearest_reference(frame, seed=seed, strength=1.0))
        assert error.max() <= 0.5 + 1e-3  # rounding to the nearest grey level, and float32 below


@pytest.mark.parametrize("index", [1, 6])  # in the middle of the first batch, and of the second
def test_noise_whose_drawing_was_interrupted_is_not_used(
    photo: Photo, monkeypatch: pytest.MonkeyPatch, index: int
) -> None:
    frame, tile = photo(97, 131), TileSpec(size=64, batch=4)
    path = NumpyFramePath(NearestEngine(tile))
    expected = path(frame, seed=1)
    normal, origin = NoiseField.normal, plan_tiles(97, 131, tile).origin(index)

    def interrupted(self: NoiseField, channels: int, *place: int, **options: Any) -> NDArray[np.float32]:
        if place[:2] == origin:
            raise KeyboardInterrupt
        return normal(self, channels, *place, **options)

    with monkeypatch.context() as patch:
        patch.setattr(NoiseField, "normal", interrupted)
        with pytest.raises(KeyboardInterrupt):
            path(frame, seed=2)
    np.testing.assert_array_equal(path(frame, seed=1), expected)


def test_the_noise_of_a_huge_frame_is_not_kept() -> None:
    for shape, expected in (((180, 320), 6), ((1080, 1920), 135), ((2000, 3000), 2)):
        plan = plan_tiles(*shape, TileSpec(size=160))
        noise = pipeline.TileNoise(plan, plan.count, 2, (1, 5, plan.tile_h, plan.tile_w))
        assert len(noise._batches) == expected
        assert noise._batches.nbytes < 80e6


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_as_many_threads_as_the_engine_has_give_the_same_bytes(photo: Photo, threads: int) -> None:
    frame = photo(200, 97)
    expected = NumpyFramePath(NearestEngine(TileSpec(size=256)))(frame, seed=3)
    engine = NearestEngine(TileSpec(size=256))
    engine.threads = threads
    path = NumpyFramePath(engine)
    for _ in range(3):
        np.testing.assert_array_equal(path(frame, seed=3), expected)
    assert path._workspace is not None
    assert len(path._workspace.compositor._compositors) == min(threads, 5)  # of 200 rows, at least 40 each


def test_the_hot_path_allocates_no_frame(photo: Photo) -> None:
    """After the first frame of a size, the most that is held at any moment is far below one enlarged frame."""
    import tracemalloc

    frame = photo(240, 300)
    path = NumpyFramePath(NearestEngine(TileSpec(size=64)))
    out = np.empty((960, 1200, 3), np.uint8)
    path(frame, out=out)
    tracemalloc.start()
    try:
        path(frame, out=out)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < out.nbytes / 2  # one tile of temporaries: 1.0 MB, nearly all of it in NearestEngine


def test_threads_share_a_path_one_after_the_other(photo: Photo) -> None:
    path = NumpyFramePath(NearestEngine(TileSpec(size=64)))
    frames = [photo(97, 67 + i) for i in range(4)]
    expected = [NumpyFramePath(NearestEngine(TileSpec(size=64)))(frame) for frame in frames]
    results: dict[int, Image] = {}

    def work(i: int) -> None:
        results[i] = path(frames[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        np.testing.assert_array_equal(results[i], expected[i])


@pytest.mark.parametrize("strength", [-0.01, 1.01, float("nan"), float("inf")])
def test_strength_outside_0_to_1_is_refused(photo: Photo, strength: float) -> None:
    with pytest.raises(InputError, match=r"strength is .*between 0 \(bicubic\) and 1"):
        NumpyFramePath(NearestEngine(TileSpec(size=64)))(photo(4, 4), strength=strength)


def test_flipped_and_read_only_input(photo: Photo) -> None:
    frame = photo(40, 50)
    frame.flags.writeable = False
    path = NumpyFramePath(NearestEngine(TileSpec(size=64)))
    for strength in (0.0, 1.0):
        flipped = path(frame[:, :, ::-1], strength=strength)
        np.testing.assert_array_equal(flipped, path(np.ascontiguousarray(frame[:, :, ::-1]), strength=strength))
        assert path(frame, strength=strength).shape == (160, 200, 3)


@pytest.mark.parametrize("strength", [0.0, 0.75])
def test_sixteen_bits_stay_sixteen(photo: Photo, strength: float) -> None:
    """A frame of 257 times the grey levels, plus what 8 bits cannot hold, gives 257 times the result, plus its part."""
    frame = photo(61, 67)
    fine = np.random.default_rng(0).integers(0, 200, frame.shape, dtype=np.uint16)
    wide = (frame // 2).astype(np.uint16) * 257 + fine
    path = NumpyFramePath(NearestEngine(TileSpec(size=64)))
    result = path(wide, seed=2, strength=strength)
    assert result.dtype == np.uint16
    exact = nearest_reference(wide, seed=2, strength=strength)
    assert np.abs(result - exact).max() <= 1.5  # the base rounded, the sum rounded, and float32 at 65535
    assert np.ptp(result.astype(np.int64) - 257 * path(frame // 2, seed=2, strength=strength).astype(np.int64)) > 150


@pytest.mark.parametrize("strength", [0.75, 0.0])
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_bands_are_the_rows_of_the_whole(photo: Photo, strength: float, batch: int, dtype: type) -> None:
    """More than one band each, and rows of tiles that end within a batch."""
    frame = photo(217, 90).astype(dtype) * (np.iinfo(dtype).max // 255)
    path = NumpyFramePath(NearestEngine(TileSpec(size=64, batch=batch)))
    whole = path(frame, seed=3, strength=strength)
    calls: list[tuple[int, int]] = []
    bands = path.bands(frame, seed=3, strength=strength, progress=lambda done, total: calls.append((done, total)))
    parts = [band.copy() for band in bands]
    assert len(parts) > 1
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert calls[-1][0] == calls[-1][1]


def test_bands_take_turns_in_one_small_buffer(photo: Photo) -> None:
    path = NumpyFramePath(NearestEngine(TileSpec(size=64)))
    frame = photo(600, 40)
    buffers = {band.__array_interface__["data"][0] for band in path.bands(frame)}
    assert len(buffers) == 1
    assert max(len(band) for band in path.bands(frame)) < 4 * 64


def test_bands_that_are_given_up_release_the_path(photo: Photo) -> None:
    engine = NearestEngine(TileSpec(size=64, batch=2))
    path = NumpyFramePath(engine)
    frame = photo(217, 90)
    bands = path.bands(frame)
    next(bands)
    assert path.alone._lock.locked()
    bands.close()
    assert not path.alone._lock.locked()
    np.testing.assert_array_equal(path(frame), NumpyFramePath(NearestEngine(TileSpec(size=64)))(frame))


def test_bands_check_their_arguments_at_once(photo: Photo) -> None:
    path = NumpyFramePath(NearestEngine(TileSpec(size=64)))
    with pytest.raises(InputError, match="strength is 2"):
        path.bands(photo(4, 4), strength=2)
    with pytest.raises(InputError, match="COLOR_GRAY2BGR"):
        path.bands(photo(4, 4)[..., 0])
