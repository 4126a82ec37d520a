"""Where the time of a frame goes: engine, each stage around it, and files.

    python benchmarks/frame_breakdown.py --engine edge-n --threads 2 --json benchmarks/reports/frame-breakdown.json

Times are milliseconds for each megapixel of output. Every seed is used for two frames: the first one draws the noise,
the second one finds it drawn, and all other times are those of second frames. The stages run while the engine's memory
is still in the caches, as they do in use.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from origin import origin

from rsd_edge import SuperResolver
from rsd_edge.bench.stages import AROUND, ENGINE, stage_clock
from rsd_edge.bench.timing import Times, time_runs
from rsd_edge.bundle import shipped_engines
from rsd_edge.frames import SCALE, bicubic_x4
from rsd_edge.opencv import cv2
from rsd_edge.specs import Precision
from rsd_edge.stream.atomic import write_json
from rsd_edge.stream.images import read_image, write_image
from rsd_edge.tiling import TilePlan, plan_tiles

FRAMES = ("320x180", "640x360", "1280x720")
PHOTO = Path(__file__).parents[1] / "assets" / "face.png"


def measure(resolver: SuperResolver, width: int, height: int, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds a megapixel of every stage, of all but the engine, of files, and of OpenCV's bicubic alone."""
    frame = np.asarray(cv2.resize(read_image(PHOTO), (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)
    out = np.empty((SCALE * height, SCALE * width, 3), np.uint8)
    resolver(frame, out=out, seed=rounds)
    seconds: dict[str, list[float]] = defaultdict(list)
    with stage_clock(resolver.engine) as clock:
        for seed in range(rounds):
            clock.clear()
            resolver(frame, out=out, seed=seed)
            seconds["noise, first frame"].append(clock["noise"])
            clock.clear()
            (whole,) = time_runs(partial(resolver, frame, out=out, seed=seed), 1)
            for stage in (ENGINE, *AROUND):
                seconds[stage].append(clock[stage])
            seconds["all but the engine, later frames"].append(whole - clock[ENGINE])
    _time_files(frame, out, seconds)
    seconds["for comparison: bicubic alone"] += time_runs(lambda: bicubic_x4(frame, out), rounds)
    megapixels = SCALE**2 * height * width / 1e6
    return {stage: Times(tuple(taken / megapixels for taken in every)).summary() for stage, every in seconds.items()}


def _time_files(frame: NDArray[np.uint8], result: NDArray[np.uint8], seconds: dict[str, list[float]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for suffix in ("png", "jpg"):
            small, large = Path(folder) / f"small.{suffix}", Path(folder) / f"large.{suffix}"
            write_image(small, frame)
            for _ in range(5):
                seconds[f"read {suffix}"] += time_runs(lambda: read_image(small), 1)  # noqa: B023 (called at once)
                seconds[f"write {suffix}"] += time_runs(lambda: write_image(large, result), 1)  # noqa: B023


def describe(plan: TilePlan) -> dict[str, Any]:
    """The tiles of a frame, and how much more than the frame they cover with their halos."""
    area = plan.count * plan.tile_h * plan.tile_w / (plan.y.length * plan.x.length)
    return {"tiles": f"{plan.x.count}x{plan.y.count}", "tile": f"{plan.tile_w}x{plan.tile_h}", "area": round(area, 2)}


@click.command()
@click.option("--engine", default="edge-n", show_default=True, type=click.Choice(shipped_engines()))
@click.option("--precision", default="int8", show_default=True, type=click.Choice([p.value for p in Precision]))
@click.option("--threads", default=2, show_default=True)
@click.option("--tile", default=None, type=int, help="Largest tile side, halo included.")
@click.option("--frame", "frames", default=FRAMES, multiple=True, help="WIDTHxHEIGHT; may be repeated.")
@click.option("--rounds", default=30, show_default=True)
@click.option("--json", "json_path", required=True, type=click.Path(path_type=Path))
def main(
    engine: str,
    precision: str,
    threads: int,
    tile: int | None,
    frames: tuple[str, ...],
    rounds: int,
    json_path: Path,
) -> None:
    """Measure, print and store."""
    cv2.setNumThreads(threads)  # of its own, for the comparison and for tall shares of a tile
    document: dict[str, Any] = {
        **origin(),
        "engine": f"{engine} {precision} onnxruntime",
        "threads": threads,
        "frames": {},
    }
    with SuperResolver.load(engine, precision=precision, backend="onnxruntime", threads=threads, tile=tile) as resolver:
        for name in frames:
            width, height = map(int, name.split("x"))
            plan = plan_tiles(height, width, resolver.engine.tile)
            stages = measure(resolver, width, height, rounds)
            document["frames"][name] = describe(plan) | {"ms_per_output_megapixel": stages}
            click.echo(f"{name}: {json.dumps(document['frames'][name], indent=1)}")
    write_json(json_path, document)


if __name__ == "__main__":
    main()
