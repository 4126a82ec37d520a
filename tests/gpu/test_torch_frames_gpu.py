"""Frames of a checkpoint on a real GPU, through the kernels and without them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

pytest.importorskip("triton")

from rsd_edge import SuperResolver
from rsd_edge.backends.torch import TorchEngine
from rsd_edge.kernels.frame_path import CudaFramePath
from rsd_edge.models.checkpoint import Checkpoint, save_checkpoint
from rsd_edge.specs import FramePathKind, Precision, TileSpec

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: frames were not made on a GPU"),
]

Photo = Callable[[int, int], NDArray[np.uint8]]


# Convolutions of other batches may add in another order: in fp32 a sum at a tie then rounds the other way; fp16 keeps
# 10 bits of a detail, which may be off by one unit, hence a level, of the largest.
@pytest.mark.parametrize(("precision", "most", "mean"), [("fp32", 1, 1e-2), ("fp16", 2, 0.1)])
def test_run_gives_the_same_frames_with_the_kernels_and_without(
    tiny_weights: Checkpoint, photo: Photo, tmp_path: Path, precision: str, most: int, mean: float
) -> None:
    save_checkpoint(tmp_path / "tiny.safetensors", tiny_weights)
    options = {"device": "cuda", "precision": precision, "tile": 64, "batch": 4}
    frames = [(photo(90, 70), 1, 1.0), (255 - photo(90, 70), 2**63 + 5, 0.6), (photo(31, 33), 3, 1.0)]
    results: dict[str, list[NDArray[np.uint8]]] = {}
    for kind in (None, "reference", "numpy"):
        with SuperResolver.load(tmp_path / "tiny.safetensors", frame_path=kind, **options) as enlarge:
            assert enlarge.record()["frame_path"] == (kind or "triton")
            results[kind or "triton"] = [enlarge(frame, seed=seed, strength=by) for frame, seed, by in frames]
    for kind in ("reference", "numpy"):
        for got, expected in zip(results["triton"], results[kind], strict=True):
            difference = np.abs(got.astype(int) - expected)
            assert difference.max() <= most, kind
            assert difference.mean() < mean, kind
    assert (results["numpy"][0] != results["numpy"][1]).mean() > 0.5


def test_a_single_value_that_is_not_finite_is_found_in_a_replayed_graph(
    tiny_weights: Checkpoint, photo: Photo, caplog: pytest.LogCaptureFixture
) -> None:
    """A network that cannot stand one grey level: in one pixel of the frame, and so in the tiles that see it."""
    tile = TileSpec(size=48, halo=16, feather=4, batch=4)
    with TorchEngine(
        tiny_weights, Precision.FP32, 1, tile=tile, device="cuda", frame_path=FramePathKind.NUMPY
    ) as engine:
        network = engine.network.tile
        assert network is not None

        def fragile(lq: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
            poisoned = torch.where(lq[:, :1] == 1.0, torch.nan, 0.0).repeat_interleave(4, 2).repeat_interleave(4, 3)
            detail: torch.Tensor = network(lq, noise) + poisoned
            return detail

        path = CudaFramePath(engine, fragile, implementation="triton")
        frame = np.minimum(photo(60, 50), 254)
        sound = path(frame)
        assert not caplog.text
        for row, column in ((0, 0), (17, 33), (59, 49)):
            bad = frame.copy()
            bad[row, column, 2] = 255  # red comes first in a tile
            caplog.clear()
            found, bicubic = path(bad), path(bad, strength=0.0)
            assert "were not finite and became plain bicubic" in caplog.text
            at = np.s_[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            assert np.abs(found[at].astype(int) - bicubic[at]).max() <= 1  # OpenCV's vectors round their way
        caplog.clear()
        np.testing.assert_array_equal(path(frame), sound)
        assert not caplog.text
