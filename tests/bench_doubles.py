"""A clock that moves only when something is said to take time, engines that take a known time, and a whole report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsd_edge.bench.timing import Times
from rsd_edge.bundle import load_bundle
from rsd_edge.resolver import SuperResolver
from rsd_edge.selection import Candidate, Choice
from rsd_edge.specs import TileSpec

PER_TILE = 2e-3
PER_TILE_PIXEL = {1: 4e-7, 2: 2.5e-7}


@dataclass
class FakeTime:
    """In the place of the module `time`."""

    now: float = 0.0
    log: list[str] = field(default_factory=list)

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.log.append("pause")

    def spend(self, seconds: float, what: str = "") -> None:
        self.now += seconds
        self.log.append(what)

    def taking(self, seconds: float, what: str) -> Callable[[], None]:
        return lambda: self.spend(seconds, what)


class FakeEngine:
    """Computes nothing, and takes PER_TILE and PER_TILE_PIXEL for it."""

    ahead = 1

    def __init__(self, clock: FakeTime, bundle: Path, tile: TileSpec, threads: int) -> None:
        self.spec = load_bundle(bundle).spec
        self.tile, self.threads, self._clock = tile, threads, clock

    def prepare(self, n: int, h: int, w: int) -> None:
        pass

    def submit(self, lq: NDArray[np.float32], noise: NDArray[np.float32], detail: NDArray[np.float32]) -> None:
        n, _, h, w = lq.shape
        detail.fill(0)
        self._clock.spend(n * (PER_TILE + h * w * PER_TILE_PIXEL[self.threads]), f"{w}x{h}, {self.threads} threads")

    def collect(self, ticket: object) -> None:
        pass

    def close(self) -> None:
        self._clock.log.append("closed")


def fake_load(clock: FakeTime, bundle: Path) -> Callable[..., SuperResolver]:
    """In the place of `SuperResolver.load`."""

    def load(
        model: str,
        *,
        precision: str | None,
        backend: str | None,
        threads: int,
        tile: int | None,
        batch: int,
        device: str | None,
    ) -> SuperResolver:
        found = load_bundle(bundle)
        engine = FakeEngine(clock, bundle, TileSpec.of(found.spec.model, tile, batch), threads)
        resolver = SuperResolver(engine)
        resolver.choice = Choice(Candidate(found, found.spec), {})
        return resolver

    return load


def row(name: str, milliseconds: list[float], **more: Any) -> dict[str, Any]:
    times = Times(tuple(1e-3 * value for value in milliseconds))
    return {"name": name, "ms": times.summary(), "seconds": list(times.seconds), **more}


def report(factor: float = 1.0, runs: int = 9) -> dict[str, Any]:
    """Of one engine on two sizes and two numbers of threads, a peer, tiles and peaks. factor: of the engine's times."""

    def times(middle: float) -> list[float]:
        return [middle * (1 + 0.004 * (place - runs // 2)) for place in range(runs)]

    engine = "edge-t int8 onnxruntime"
    frames = []
    for threads in (1, 2):
        for width, height, ms in ((160, 90, 20.0), (320, 180, 80.0)):
            about = {"engine": engine, "width": width, "height": height, "threads": threads}
            known = {"tiles": "2x1", "tile": "184x114", "gflop": 4.0, "gflop_per_s": 50.0, "share_of_peak": 0.5}
            name = f"{engine} {width}x{height}, {threads} threads"
            taken = times(factor * ms / threads)
            frames.append(row(name, taken, **about, **known, per_second=1e3 * threads / ms / factor, peak_mb=120))
    about = {"engine": "bicubic", "width": 320, "height": 180, "threads": 2, "peer": True}
    frames.append(row("bicubic 320x180, 2 threads", times(1.0), **about, per_second=1e3, peak_mb=80))
    tile = {"engine": engine, "width": 64, "height": 64, "threads": 2, "gflop_per_s": 60.0, "share_of_peak": 0.6}
    held = {"name": "320x180 in tiles up to 208, 2 threads", "threads": 2, "measured_ms": 40.0, "predicted_ms": 42.0}
    costs = {"start": 0.0, "per_tile": 1e-3, "per_tile_pixel": 1e-6, "per_pixel": 0.0}
    return {
        "format": 1,
        "made_by": "rsd-edge bench",
        "date": "2026-11-21T12:00:00+00:00",
        "command": "rsd-edge bench --model '<b>edge-t'",
        "machine": {
            "cpu": "A <fast> CPU", "cores": 2, "features": ["avx2"], "architecture": "x86_64", "l4t": None,
            "power": {"governor": "performance", "boost": None}, "memory_mb": 8000,
        },
        "load": {"before": 0.1, "after": None, "others": 0.05},
        "versions": {"rsd-edge": "0.1.0", "onnxruntime": "1.31.1"},
        "engines": {engine: {"model": "edge-t", "digest": "0f3a" * 16, "backend": "onnxruntime", "tile": 208}},
        "memory_method": "peak resident memory",
        "frames": frames,
        "tiles": [row(f"{engine} tile 64x64, 2 threads", times(5.0 * factor), **tile, operations_per_byte=200.0)],
        "peaks": [
            row("convolution int8, 2 threads", times(2.0), peak="convolution int8", threads=2, unit="GOP/s", rate=1e2),
            row("memory copy, 2 threads", times(3.0), peak="memory copy", threads=2, unit="GB/s", rate=10.0),
        ],
        "stages": {f"{engine} 320x180, 2 threads": {"engine": 38.0, "gather": 0.5, "merge": 0.7, "rest": 0.8}},
        "quality": {"set": "kodak24_real", "scores": {
            engine: {"psnr_y": 24.1, "ssim_y": 0.59, "lpips_squeeze": 0.33, "niqe": 3.9},
            "bicubic": {"psnr_y": 23.8, "ssim_y": 0.58, "lpips_squeeze": 0.73},
        }},
        "latency": {engine: {
            "seconds": {"2": costs}, "fitted_to": 6, "error": 0.05, "error_of_runs": 0.07,
            "held_out": [{**held, "error": 0.05, "error_of_runs": 0.07}],
        }},
        "notes": ["something was <left> out"],
    }  # fmt: skip
