"""The frame path of the GPU, with the reference implementation on the CPU, against NumpyFramePath."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rsd_edge.backends.onnxruntime import OnnxRuntimeEngine
from rsd_edge.bundle import load_bundle
from rsd_edge.errors import BackendError, InputError
from rsd_edge.frames import bicubic_x4
from rsd_edge.kernels import reference_frames
from rsd_edge.kernels.frame_ops import frame_tiles, merge_tiles
from rsd_edge.kernels.frame_path import CudaFramePath
from rsd_edge.opencv import cv2
from rsd_edge.pipeline import NumpyFramePath
from rsd_edge.specs import TileSpec
from rsd_edge.tiling import TileReader, plan_tiles
from rsd_edge.zoo import __file__ as zoo_file

Photo = Callable[[int, int], NDArray[np.uint8]]
TILE = TileSpec(size=48, halo=16, feather=4, batch=2)


class Engine(OnnxRuntimeEngine):
    """With what a frame path on a device asks for."""

    def check_open(self) -> None:
        pass

    def before_close(self, work: Callable[[], None]) -> None:
        pass


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """edge-n, as it ships."""
    bundle = load_bundle(Path(zoo_file).parent / "edge-n" / "fp32")
    with Engine(bundle.graph_path, bundle.spec, 1, tile=TILE) as opened:
        yield opened  # type: ignore[misc]


def as_network(engine: Engine) -> Callable[[Tensor, Tensor], Tensor]:
    """The engine in the shape of a torch network: RGB planes instead of BGR pixels."""

    def network(lq: Tensor, noise: Tensor) -> Tensor:
        n, _, h, w = lq.shape
        detail = np.empty((n, 4 * h, 4 * w, 3), np.float32)
        engine.collect(engine.submit(lq.contiguous().numpy(), noise.contiguous().numpy(), detail))
        return torch.from_numpy(detail).flip(3).permute(0, 3, 1, 2)

    return network


@pytest.fixture(scope="module")
def path(engine: Engine) -> CudaFramePath:
    return CudaFramePath(engine, as_network(engine), implementation="reference", device="cpu")


@pytest.mark.parametrize(("height", "width"), [(21, 50), (40, 16)])
@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_the_frame_is_that_of_the_numpy_path(
    path: CudaFramePath, engine: Engine, photo: Photo, height: int, width: int, strength: float
) -> None:
    frame = photo(height, width)
    got = path(frame, seed=2**63 + 11, strength=strength)
    expected = NumpyFramePath(engine)(frame, seed=2**63 + 11, strength=strength)
    differences = np.abs(got.astype(int) - expected.astype(int))
    # Sums at a tie round by the order of addition, and OpenCV's vectors round cubic sums their way: one level, rarely.
    assert differences.max() <= 1
    assert differences.mean() < 1e-3


def test_the_noise_and_the_detail_matter(path: CudaFramePath, photo: Photo) -> None:
    frame = photo(21, 50)
    assert (path(frame, seed=1) != path(frame, seed=2)).mean() > 0.01
    # A wrong gain of 1 % would show: it moves the result where the detail is large.
    assert (path(frame, strength=1.0) != path(frame, strength=0.99)).mean() > 0.005


def test_strength_0_is_bicubic_and_out_is_filled(path: CudaFramePath, photo: Photo) -> None:
    frame = photo(12, 18)
    expected = np.empty((48, 72, 3), np.uint8)
    bicubic_x4(frame, expected)
    assert np.array_equal(path(frame, strength=0.0), expected)
    out, calls = np.empty((48, 72, 3), np.uint8), []
    assert path(frame, out=out, progress=lambda done, total: calls.append((done, total))) is out
    assert np.array_equal(out, path(frame))
    assert calls == [(2, 2)]


def test_bands_are_those_of_the_whole(path: CudaFramePath, photo: Photo) -> None:
    frame, calls = photo(40, 50), []
    bands = [
        band.copy() for band in path.bands(frame, seed=3, progress=lambda done, total: calls.append((done, total)))
    ]
    np.testing.assert_array_equal(np.concatenate(bands), path(frame, seed=3))
    assert len(bands) == len(calls) == 3
    assert calls[-1] == (12, 12)


def test_what_the_device_does_not_do_goes_over_numpy(
    path: CudaFramePath, engine: Engine, photo: Photo, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Frames of 16 bits, and those that do not fit into memory at once."""
    deep, frame, numpy = photo(8, 8).astype(np.uint16) * 257, photo(8, 9), NumpyFramePath(engine)
    np.testing.assert_array_equal(path(deep), numpy(deep))
    monkeypatch.setattr(path, "memory", lambda plan: (7 << 20, 11 << 20))  # 64 % of what is free
    for _ in range(2):
        np.testing.assert_array_equal(path(frame), numpy(frame))
    assert caplog.messages == [
        "frames of 9x8 take 7 MiB of the GPU at once and 11 are free: they are done tile by tile"
    ]  # once


@pytest.mark.parametrize("tile", range(6))
def test_a_tile_with_a_value_that_is_not_finite_becomes_bicubic(
    engine: Engine, photo: Photo, caplog: pytest.LogCaptureFixture, tile: int
) -> None:
    sound, calls = as_network(engine), [0]

    def network(lq: Tensor, noise: Tensor) -> Tensor:
        detail = sound(lq, noise)
        if calls[0] <= tile < calls[0] + len(lq):
            detail[tile - calls[0], 1, 64 + tile, 70] = torch.nan
        calls[0] += len(lq)
        return detail

    frame, (row, column) = photo(40, 30), divmod(tile, 2)
    found = CudaFramePath(engine, network, implementation="reference", device="cpu")(frame)
    core = np.s_[56 * row + 16 : min(56 * row + 40, 160), 64 * column + 16 : min(64 * column + 48, 120)]
    np.testing.assert_array_equal(found[core], reference_frames.bicubic_x4(torch.tensor(frame))[core])
    assert "1 of 6 tiles from edge-n were not finite" in caplog.text


class OperatorCount(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.calls[str(func).rpartition(".")[0]] += func.namespace == "rsd_edge"
        return func(*args, **(kwargs or {}))


def test_three_operators_of_ours_a_frame(path: CudaFramePath, photo: Photo) -> None:
    """Each is one launch on a GPU, however many tiles there are."""
    counter = OperatorCount()
    with counter:
        path(photo(40, 50))
    ours = {name: count for name, count in counter.calls.items() if count}
    assert ours == {"rsd_edge.frame_tiles": 1, "rsd_edge.noise_field": 1, "rsd_edge.merge_tiles": 1}


def test_what_cannot_run_is_refused(path: CudaFramePath, engine: Engine, photo: Photo) -> None:
    with pytest.raises(InputError, match="strength is nan"):
        path(photo(8, 8), strength=float("nan"))
    pytest.importorskip("triton")
    with pytest.raises(BackendError, match="needs tensors on a CUDA device"):
        CudaFramePath(engine, as_network(engine), implementation="triton", device="cpu")


@pytest.mark.parametrize("implementation", ["triton", "reference"])
def test_a_machine_without_a_gpu_is_told_when_the_path_is_made(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, implementation: str
) -> None:
    make = partial(CudaFramePath, engine, as_network(engine), implementation=implementation)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendError, match="device 'cuda' was asked for, but this machine has no GPU"):
        make()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(BackendError, match="device 'cuda:1' was asked for, but this machine has 1 of them"):
        make(device="cuda:1")


@pytest.mark.parametrize(
    ("height", "width", "spec"),
    [
        (1, 1, TileSpec(size=20, halo=4, feather=2)),
        (17, 40, TileSpec(size=32, halo=8, feather=3)),
        (13, 29, TileSpec(size=20, halo=6, feather=4, fixed=True)),
    ],
)
def test_tiles_and_base_are_those_of_the_runtime(photo: Photo, height: int, width: int, spec: TileSpec) -> None:
    frame, plan = photo(height, width), plan_tiles(height, width, spec)
    expected = np.empty((plan.count, 3, plan.tile_h, plan.tile_w), np.float32)
    reader = TileReader(plan, frame.dtype)
    reader.load(frame)
    reader.read(range(plan.count), expected)
    np.testing.assert_array_equal(frame_tiles(torch.tensor(frame), plan, implementation="reference"), expected)
    enlarged = cv2.resize(frame, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    differences = np.abs(reference_frames.bicubic_x4(torch.tensor(frame)).numpy().astype(int) - enlarged)
    assert differences.max() <= 1  # OpenCV's vectors round some sums near a tie the other way
    assert differences.mean() < 1e-4


def test_opcheck_of_frame_operators(photo: Photo) -> None:
    frame = torch.tensor(photo(9, 14))
    plan = plan_tiles(9, 14, TileSpec(size=20, halo=4, feather=2))
    numbers = [9, 14, plan.y.stride, plan.x.stride, 4, 2]
    detail, flag = torch.zeros(plan.count, 3, 4 * plan.tile_h, 4 * plan.tile_w), torch.zeros(1, dtype=torch.int32)
    ops = torch.ops.rsd_edge
    torch.library.opcheck(ops.frame_tiles, (frame, numbers, torch.float16, "reference"))
    torch.library.opcheck(ops.merge_tiles, (detail, frame, torch.ones(1), flag, numbers, "reference"))
    with pytest.raises(InputError, match="detail is"):
        merge_tiles(detail[:, :2], frame, torch.ones(1), flag, plan, implementation="reference")
    with pytest.raises(InputError, match="not_finite is"):
        merge_tiles(detail, frame, torch.ones(1), flag.long(), plan, implementation="reference")
    with pytest.raises(InputError, match="frame is"):
        frame_tiles(frame[1:], plan, implementation="reference")
