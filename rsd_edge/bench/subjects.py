"""What is measured: engines on whole frames and on bare tiles, named so that two reports can be laid side by side."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsd_edge.backends.base import TileEngine
from rsd_edge.bench.cost import Convolution, convolutions
from rsd_edge.bench.peaks import CONVOLUTION
from rsd_edge.bench.timing import Run
from rsd_edge.bundle import Bundle, graphs_of
from rsd_edge.frames import SCALE
from rsd_edge.noise import NoiseField
from rsd_edge.resolver import CHECKPOINT_SUFFIX, SuperResolver
from rsd_edge.specs import Backend, Precision, TileSpec
from rsd_edge.versions import installed

COUNTED_SIDE = 64
"""LR pixels on a side of the tile whose operations are counted, where a graph takes tiles of any size."""
_BYTES = {Precision.FP32: 4, Precision.INT8: 1}


@dataclass(frozen=True)
class Wish:
    """An engine as it is asked for; None leaves a choice open, as in `SuperResolver.load`."""

    model: str
    precision: str | None = None
    backend: str | None = None
    device: str | None = None
    tile: int | None = None
    batch: int = 1

    def load(self, threads: int) -> SuperResolver:
        """Raises what `SuperResolver.load` raises."""
        return SuperResolver.load(
            self.model,
            precision=self.precision,
            backend=self.backend,
            threads=threads,
            tile=self.tile,
            batch=self.batch,
            device=self.device,
        )


@dataclass(frozen=True)
class Subject:
    """A settled wish, with what is known of it."""

    wish: Wish
    label: str
    """Such as `edge-s int8 onnxruntime`."""
    record: dict[str, Any]
    """Of `SuperResolver.record`, with the tile's halo."""
    tile: TileSpec
    bundle: Bundle | None

    @classmethod
    def of(cls, wish: Wish, threads: int) -> Subject:
        """Nothing is left open any more; loads it once. Raises what `SuperResolver.load` raises."""
        with wish.load(threads) as resolver:
            spec, tile, choice = resolver.engine.spec, resolver.engine.tile, resolver.choice
            record = {**resolver.record(), "tile": tile.size, "halo": tile.halo}
        settled = replace(wish, precision=spec.precision.value, backend=spec.backend.value)
        if choice is not None and spec.backend is Backend.TENSORRT:
            settled = replace(settled, model=str(choice.candidate.bundle.path))
        device = "" if wish.device is None else f" {wish.device}"
        label = f"{spec.model.name} {spec.precision.value} {spec.backend.value}{device}"
        return cls(settled, label, record, tile, choice.candidate.bundle if choice else None)

    @property
    def peak(self) -> str | None:
        """The peak of the processor that it is held against; None if it has none or runs elsewhere."""
        on_cpu = self.record["backend"] != Backend.TENSORRT.value and self.wish.device in (None, "cpu")
        return CONVOLUTION.get(self.record["precision"]) if on_cpu else None

    @property
    def is_graph(self) -> bool:
        """An edge engine, whose one graph can be counted and whose tiles are small enough to fit a model to."""
        return self.bundle is not None and len(graphs_of(self.bundle.spec)) == 1

    def operations(self, tiles: int, h: int, w: int) -> float | None:
        """Operations of all convolutions for tiles of h x w; None where they cannot be counted."""
        layers = self._layers()
        return None if layers is None else sum(layer.flops for layer in layers) * tiles * h * w / self._counted_side**2

    def intensity(self) -> float | None:
        """Operations for each byte that the layers of a tile read and write, were each of them run by itself."""
        layers = self._layers()
        size = _BYTES.get(Precision(self.record["precision"]))
        if layers is None or size is None:
            return None
        return sum(layer.flops for layer in layers) / sum(
            size * (layer.inputs + layer.outputs + layer.weights) for layer in layers
        )

    @property
    def _counted_side(self) -> int:
        return self.tile.size if self.tile.fixed else COUNTED_SIDE

    def _layers(self) -> list[Convolution] | None:
        if self.bundle is None or not self.is_graph or not installed("onnx"):
            return None
        return _counted(self.bundle.path / graphs_of(self.bundle.spec)[0], self._counted_side)


@lru_cache(maxsize=16)
def _counted(graph: Path, side: int) -> list[Convolution]:
    return convolutions(graph, 1, side, side)


def is_checkpoint(model: str) -> bool:
    """Runs on torch, in minutes rather than milliseconds."""
    return model.endswith(CHECKPOINT_SUFFIX)


def picture(width: int, height: int) -> NDArray[np.uint8]:
    """A frame, uint8 BGR (h, w, 3); what is on it does not matter to any engine's time."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def frame_run(resolver: SuperResolver, width: int, height: int) -> Run:
    """A whole frame through the path of `rsd-edge run` but for files: halo, noise, engine, merge, bicubic base."""
    frame = picture(width, height)
    out = np.empty((SCALE * height, SCALE * width, 3), np.uint8)
    resolver.warm_up(height, width)
    return lambda: resolver(frame, out=out)


def tile_run(engine: TileEngine, side: int) -> Run:
    """One tile of side x side through an engine, and nothing else."""
    channels = engine.spec.model.noise_channels
    noise = NoiseField(0).normal(channels, 0, 0, side, side)[None]
    lq = np.clip(NoiseField(1).normal(3, 0, 0, side, side)[None] / np.float32(2), -1, 1)
    detail = np.empty((1, SCALE * side, SCALE * side, 3), np.float32)
    engine.prepare(1, side, side)
    return lambda: engine.collect(engine.submit(lq, noise, detail))


def load_and_run(wish: Wish, width: int, height: int, threads: int) -> Run:
    """For `peak_megabytes`: everything that a frame needs, in this process."""
    return frame_run(wish.load(threads), width, height)
