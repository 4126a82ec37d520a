"""What a frame costs outside the engine: the whole path with an engine that does nothing, stage by stage.

    python -P benchmarks/frame_breakdown.py --threads 2 --json benchmarks/reports/frame-breakdown.json

Times are milliseconds for each megapixel of output. Every seed is used for two frames: the first one draws the noise,
the second one finds it drawn, and all other times are those of second frames.
"""

from __future__ import annotations

import importlib.metadata
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any
from unittest.mock import patch

import click
import numpy as np
from numpy.typing import NDArray

from rsd_edge import __version__
from rsd_edge.bench.timing import Times
from rsd_edge.frames import SCALE, ParallelCompositor, bicubic_x4
from rsd_edge.machine import cpu_name
from rsd_edge.opencv import cv2
from rsd_edge.pipeline import NumpyFramePath, _TileNoise
from rsd_edge.specs import EngineSpec, ModelSpec, TileSpec
from rsd_edge.tiling import TileMerger, TilePlan, TileReader, plan_tiles

Clock = defaultdict[str, float]

STAGES = {
    "gather": ((TileReader, "load"), (TileReader, "read")),
    "noise": ((_TileNoise, "batch"),),
    "merge": ((TileMerger, "merge"),),
    "bicubic and add": ((ParallelCompositor, "add"),),
}
FRAMES = ("320x180", "640x360", "1280x720")


class IdleEngine:
    """Takes tiles and leaves the detail as it finds it, once it is idle."""

    ahead = 1

    def __init__(self, tile: TileSpec, threads: int) -> None:
        self.spec = EngineSpec(ModelSpec(name="idle"))
        self.tile = tile
        self.threads = threads
        self.idle = False

    def prepare(self, n: int, h: int, w: int) -> None: ...

    def submit(self, lq: NDArray[np.float32], noise: NDArray[np.float32], detail: NDArray[np.float32]) -> None:
        # Memory that nobody wrote is one page of zeros many times over, which some processors read slowly.
        if not self.idle:
            detail.fill(0.1)

    def collect(self, ticket: None) -> None: ...

    def close(self) -> None: ...

    def __enter__(self) -> IdleEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@contextmanager
def stage_clock() -> Iterator[Clock]:
    """Seconds spent in each stage, by its name, while this is open."""
    clock: Clock = defaultdict(float)

    def timed(stage: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            began = time.perf_counter()
            try:
                return method(*arguments)
            finally:
                clock[stage] += time.perf_counter() - began

        return call

    with ExitStack() as stack:
        for stage, methods in STAGES.items():
            for owner, name in methods:
                stack.enter_context(patch.object(owner, name, timed(stage, getattr(owner, name))))
        yield clock


def measure(width: int, height: int, tile: TileSpec, threads: int, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds a megapixel of every stage, of the whole path, and of OpenCV's own enlargement in 8 bits."""
    small = np.random.default_rng(0).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    frame = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    out = np.empty((SCALE * height, SCALE * width, 3), np.uint8)
    engine = IdleEngine(tile, threads)
    path = NumpyFramePath(engine)
    path(frame, out=out, seed=rounds)
    engine.idle = True
    seconds: dict[str, list[float]] = {}
    with stage_clock() as clock:
        for seed in range(rounds):
            clock.clear()
            path(frame, out=out, seed=seed)
            seconds.setdefault("noise, first frame", []).append(clock["noise"])
            clock.clear()
            began = time.perf_counter()
            path(frame, out=out, seed=seed)
            whole = time.perf_counter() - began
            for stage in STAGES:
                seconds.setdefault(stage, []).append(clock[stage])
            seconds.setdefault("everything, later frames", []).append(whole)
            began = time.perf_counter()
            bicubic_x4(frame, out)
            seconds.setdefault("for comparison: bicubic in 8 bits", []).append(time.perf_counter() - began)
    megapixels = SCALE**2 * height * width / 1e6
    return {stage: Times(tuple(taken / megapixels for taken in every)).summary() for stage, every in seconds.items()}


def describe(plan: TilePlan) -> dict[str, Any]:
    """The tiles of a frame, and how much more than the frame they cover with their halos."""
    area = plan.count * plan.tile_h * plan.tile_w / (plan.y.length * plan.x.length)
    return {"tiles": f"{plan.x.count}x{plan.y.count}", "tile": f"{plan.tile_w}x{plan.tile_h}", "area": round(area, 2)}


@click.command()
@click.option("--threads", default=2, show_default=True)
@click.option("--tile", default=TileSpec.size, show_default=True, help="Largest tile side, halo included.")
@click.option("--halo", default=12, show_default=True, help="As of edge-s.")
@click.option("--frame", "frames", default=FRAMES, multiple=True, help="WIDTHxHEIGHT; may be repeated.")
@click.option("--rounds", default=50, show_default=True)
@click.option("--json", "json_path", required=True, type=click.Path(path_type=Path))
def main(threads: int, tile: int, halo: int, frames: tuple[str, ...], rounds: int, json_path: Path) -> None:
    """Measure, print and store."""
    cv2.setNumThreads(threads)  # of its own, for the comparison and for tall shares of a tile
    spec = TileSpec(size=tile, halo=halo)
    document: dict[str, Any] = {
        "machine": cpu_name(),
        "threads": threads,
        "versions": {name: importlib.metadata.version(name) for name in ("numpy", "opencv-python")}
        | {"rsd_edge": __version__},
        "frames": {},
    }
    for name in frames:
        width, height = map(int, name.split("x"))
        stages = measure(width, height, spec, threads, rounds)
        document["frames"][name] = describe(plan_tiles(height, width, spec)) | {"ms_per_output_megapixel": stages}
        click.echo(f"{name}: {json.dumps(document['frames'][name], indent=1)}")
    json_path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
