"""What side_by_side.py runs: the published networks, the edge models, what people use today, the machine's peaks."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from processes import Runs
from published_networks import FULL_SIZE, as_published, random_checkpoint

from rsd_edge.backends.onnx_parts import PartsEngine
from rsd_edge.bench.peaks import convolution_peak
from rsd_edge.bench.peer import NcnnPeer, bicubic_run, peer_run
from rsd_edge.bench.subjects import Wish, frame_run, tile_run
from rsd_edge.bundle import DECODER, ENCODER, GENERATOR
from rsd_edge.resolver import SuperResolver
from rsd_edge.specs import Backend, EngineSpec, Precision, TileSpec

TILE, FRAME = "tile", "frame"
SIDE = 64
SIZE = (320, 180)
CHOPPED = TileSpec(SIDE, halo=4, feather=4, fixed=True)
"""For frames of the full networks, a tile every 56 pixels: with the default halo of 16 they would compute two and a
half times as much; whole, as the published code takes them, they would form scores of 15 GB in each attention of the
autoencoder."""


def checkpoint_runs(
    threads: int, folder: Path, *, precision: Precision = Precision.FP32, published: bool = False
) -> Runs:
    """The full networks on torch."""
    import torch

    from rsd_edge.backends.torch import TorchEngine
    from rsd_edge.models import detail

    torch.set_num_threads(threads)
    plain = mock.patch.object(detail, "channels_last", lambda network: network) if published else nullcontext()
    with plain:
        engine = TorchEngine(random_checkpoint(), precision, threads, tile=CHOPPED)
    runs = {TILE: tile_run(engine, SIDE), FRAME: frame_run(SuperResolver(engine), *SIZE)}

    def as_they_were(name: str) -> object:
        with as_published():
            return runs[name]()

    return {name: lambda name=name: as_they_were(name) for name in runs} if published else runs  # type: ignore[misc]


class OpenVinoParts(PartsEngine):
    """The three graphs, in bfloat16 inside."""

    def __init__(self, folder: Path, threads: int) -> None:
        import openvino

        core = openvino.Core()
        settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "bf16", "PERFORMANCE_HINT": "LATENCY"}
        self._requests = {}
        for name in (ENCODER, GENERATOR, DECODER):
            model = core.read_model(folder / name)
            shapes = np.load(folder / f"{name}.npz")
            model.reshape({port.any_name: list(shapes[port.any_name].shape) for port in model.inputs})
            self._requests[name] = core.compile_model(model, "CPU", settings).create_infer_request()
        super().__init__(EngineSpec(FULL_SIZE, Backend.OPENVINO, Precision.BF16), threads, CHOPPED, takes_noise=False)

    def _run(self, part: str, **inputs: NDArray[Any]) -> NDArray[np.float32]:
        result = self._requests[part].infer(inputs)
        return np.array(next(iter(result.values())), np.float32)


def openvino_runs(threads: int, folder: Path) -> Runs:
    """The full networks as graphs."""
    engine = OpenVinoParts(folder, threads)
    return {TILE: tile_run(engine, SIDE), FRAME: frame_run(SuperResolver(engine), *SIZE)}


def edge_runs(threads: int, folder: Path, *, wish: Wish) -> Runs:
    """A shipped engine; each size has one of its own."""
    tile = Wish(wish.model, wish.precision, wish.backend, tile=SIDE).load(threads)
    return {TILE: tile_run(tile.engine, SIDE), FRAME: frame_run(wish.load(threads), *SIZE)}


def ncnn_runs(threads: int, folder: Path, *, param: Path) -> Runs:
    """A published model in ncnn's format."""
    tile = np.random.default_rng(0).random((3, SIDE, SIDE), np.float32)
    network = NcnnPeer(param, param.with_suffix(".bin"), threads).network(tile)
    return {TILE: network, FRAME: peer_run(param, *SIZE, threads)}


def bicubic_runs(threads: int, folder: Path) -> Runs:
    """OpenCV's."""
    return {TILE: bicubic_run(SIDE, SIDE, threads), FRAME: bicubic_run(*SIZE, threads)}


def peak_runs(threads: int, folder: Path) -> Runs:
    """What the machine computes at best, by precision."""
    return {name: convolution_peak(threads, integer=name == "int8")[0] for name in ("fp32", "int8")}
