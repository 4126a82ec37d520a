"""Live runs on the machine at hand: real time at 160x90, larger sizes, tile reuse on films, latency of a slow engine.

    python benchmarks/live.py --json benchmarks/reports/live.json --films ../shared/data/video

The sizes run on the moving test pattern at 24 fps, without reuse, into nothing. Latency is from the moment at which the
source hands a frame over until all sinks have its result. The films are read ahead of the measurement and enlarged
without dropping, with and without reuse, in the tiles that a run has by itself and in smaller ones.
"""

from __future__ import annotations

import json
import os
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import av
import click
import numpy as np
from numpy.typing import NDArray
from origin import origin

from rsd_edge import SuperResolver
from rsd_edge.live.clock import SystemClock
from rsd_edge.live.frames import LiveFrame
from rsd_edge.live.path import LivePath
from rsd_edge.live.pattern import PatternSource
from rsd_edge.live.runner import LiveRunner, RunLimits
from rsd_edge.live.settings import StreamSettings
from rsd_edge.live.sinks import NullSink
from rsd_edge.live.statistics import Statistics
from rsd_edge.machine import usable_cores
from rsd_edge.opencv import cv2
from rsd_edge.stream.atomic import write_json

Image = NDArray[np.uint8]
SIZES = ((160, 90), (240, 134), (320, 180), (480, 270), (640, 360))
RATE = 24.0
SLOW = "edge-s"
"""In fp32, several times too slow for 30 fps."""
FILMS = ("intel_bottle", "intel_one-by-one-person")
THRESHOLDS = (0.0, 3.0, 6.0)
SMALLER = 128
"""A side of the smaller tiles."""


def live_run(
    resolver: SuperResolver, width: int, height: int, seconds: float, rate: float = RATE, drop: str = "newest"
) -> dict[str, Any]:
    """The report of a run over the test pattern."""
    clock = SystemClock()
    statistics = Statistics(clock.now)
    path = LivePath(resolver.engine, StreamSettings(reuse=False))
    path.warm_up(height, width)
    source = PatternSource(clock, width, height, rate)
    runner = LiveRunner(source, path, [NullSink()], clock, statistics, RunLimits(drop=drop))
    end = clock.now() + seconds
    processor = time.process_time()
    runner.run(lambda: clock.now() < end)
    report = statistics.report()
    keys = ("source_size", "result_size", "capture_fps", "sr_fps", "captured", "delivered", "dropped", "latency_ms")
    found = {key: report[key] for key in keys}
    found["stages_p50_ms"] = {name: times["p50"] for name, times in report["stages_ms"].items() if times}
    found["engine_p99_ms"] = report["stages_ms"]["engine"]["p99"]
    found["processor_ms_per_frame"] = round(1000 * (time.process_time() - processor) / max(1, report["delivered"]), 1)
    return found


def read_film(path: Path, start: int, most: int) -> list[Image]:
    """Frames `start` to `start + most - 1` of a film."""
    with av.open(str(path)) as container:
        frames = islice(container.decode(video=0), start, start + most)
        return [np.asarray(frame.to_ndarray(format="bgr24"), np.uint8) for frame in frames]


class Contender:
    """One way to enlarge a film, frame by frame, with what it cost."""

    def __init__(self, resolver: SuperResolver, settings: StreamSettings, height: int, width: int) -> None:
        self.threshold = settings.reuse_threshold if settings.reuse else None
        self.tile = resolver.engine.tile.size
        self._path = LivePath(resolver.engine, settings)
        self._path.warm_up(height, width)
        self.seconds = 0.0
        self.computed = self.tiles = 0

    def __call__(self, index: int, image: Image) -> Image:
        began = time.perf_counter()
        work = self._path.prepare(LiveFrame(index, 0.0, image))
        self._path.infer(work)
        result = self._path.finish(work)
        self.seconds += time.perf_counter() - began
        self.computed, self.tiles = self.computed + work.computed, self.tiles + work.tiles
        return result


class Difference:
    """Between results and those of the same tiles without reuse, in grey levels of 8 bits."""

    def __init__(self) -> None:
        self._means: list[float] = []
        self._squares: list[float] = []
        self._largest = 0

    def add(self, result: Image, reference: Image) -> None:
        """One frame more."""
        difference = np.asarray(cv2.absdiff(result, reference), np.uint8)
        self._means.append(float(difference.mean()))
        self._squares.append(float(np.mean(np.square(difference, dtype=np.float32))))
        self._largest = max(self._largest, int(difference.max()))

    def figures(self) -> dict[str, Any]:
        """Over all frames; no PSNR if there is no difference."""
        squared = float(np.mean(self._squares))
        psnr = None if squared == 0 else round(float(10 * np.log10(255**2 / squared)), 2)
        mean = round(float(np.mean(self._means)), 4)
        return {"mean_difference": mean, "largest_difference": self._largest, "psnr_db": psnr}


def reuse(resolvers: list[SuperResolver], film: list[Image]) -> list[dict[str, Any]]:
    """Speed-up and difference at several thresholds, in turns at each frame. Everything is as fast as it is beside the
    first engine without reuse: that is what a user would have otherwise."""
    size = film[0].shape[:2]
    ways = [StreamSettings(reuse=False), *(StreamSettings(reuse_threshold=threshold) for threshold in THRESHOLDS)]
    groups = [[Contender(resolver, way, *size) for way in ways] for resolver in resolvers]
    differences = [[Difference() for _ in ways] for _ in groups]
    for index, image in enumerate(film):
        for group, found in zip(groups, differences, strict=True):
            results = [contender(index, image) for contender in group]
            for result, difference in zip(results, found, strict=True):
                difference.add(result, results[0])
    baseline = groups[0][0].seconds
    return [
        {
            "tile": contender.tile,
            "threshold": contender.threshold,
            "tiles_computed": round(contender.computed / contender.tiles, 4),
            "times_as_fast": round(baseline / contender.seconds, 2),
            "ms_per_frame": round(1000 * contender.seconds / len(film), 2),
            **difference.figures(),
        }
        for group, found in zip(groups, differences, strict=True)
        for contender, difference in zip(group, found, strict=True)
    ]


@click.command()
@click.option("--engine", default="edge-n", show_default=True)
@click.option("--precision", default="int8", show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--seconds", default=20.0, show_default=True, help="Of each live run.")
@click.option("--films", type=click.Path(path_type=Path, exists=True), help="The folder of the films.")
@click.option("--start", default=160, show_default=True, help="First frame of each film.")
@click.option("--frames", default=32, show_default=True, help="Of each film.")
@click.option("--note", default="", help="About the machine, such as what else it did.")
@click.option("--json", "json_path", required=True, type=click.Path(path_type=Path))
def main(
    engine: str,
    precision: str,
    threads: int,
    seconds: float,
    films: Path | None,
    start: int,
    frames: int,
    note: str,
    json_path: Path,
) -> None:
    """Measure, print and store."""
    document: dict[str, Any] = {
        **origin(),
        "cores": usable_cores(),
        "threads": threads,
        "engine": f"{engine} {precision} onnxruntime",
        "note": note,
        "load_before": round(os.getloadavg()[0], 2),
        "command": " ".join(["python", "-P", "benchmarks/live.py", *sys.argv[1:]]),
        "rate": RATE,
        "sizes": [],
        "reuse": {},
    }
    options: dict[str, Any] = {"precision": precision, "backend": "onnxruntime", "threads": threads}
    with SuperResolver.load(engine, **options) as resolver:
        for wide, high in SIZES:
            document["sizes"].append(live_run(resolver, wide, high, seconds))
            click.echo(json.dumps(document["sizes"][-1]))
        document["without_dropping"] = live_run(resolver, *SIZES[0], seconds, drop="none")
        click.echo(json.dumps(document["without_dropping"]))
    with SuperResolver.load(SLOW, precision="fp32", backend="onnxruntime", threads=threads) as resolver:
        document["slow_engine"] = {"engine": f"{SLOW} fp32", **live_run(resolver, *SIZES[0], seconds, rate=30.0)}
        click.echo(json.dumps(document["slow_engine"]))
    if films is not None:
        with (
            SuperResolver.load(engine, **options) as usual,
            SuperResolver.load(engine, tile=SMALLER, **options) as smaller,
        ):
            for name in FILMS:
                film = read_film(films / f"{name}.mp4", start, frames)
                rows = reuse([usual, smaller], film)
                document["reuse"][name] = {"size": film[0].shape[1::-1], "frames": len(film), "rows": rows}
                click.echo(json.dumps(document["reuse"][name]))
    write_json(json_path, document)


if __name__ == "__main__":
    main()
