"""Live runs on the machine at hand: real time at 160x90, larger sizes, tile reuse on films, latency of a slow engine.

    python -P benchmarks/live.py --json benchmarks/reports/live.json --films ../shared/data/video

The sizes run on the moving test pattern at 24 fps, without reuse, into nothing. Latency is from the moment at which the
source hands a frame over until all sinks have its result. The films are read ahead of the measurement, reduced to
`--width`, and enlarged without dropping, with and without reuse.
"""

from __future__ import annotations

import importlib.metadata
import json
import time
from pathlib import Path
from typing import Any

import av
import click
import numpy as np
from numpy.typing import NDArray

from rsd_edge import SuperResolver, __version__
from rsd_edge.live.clock import SystemClock
from rsd_edge.live.frames import LiveFrame
from rsd_edge.live.path import LivePath
from rsd_edge.live.pattern import PatternSource
from rsd_edge.live.runner import LiveRunner, RunLimits
from rsd_edge.live.settings import StreamSettings
from rsd_edge.live.sinks import NullSink
from rsd_edge.live.statistics import Statistics
from rsd_edge.machine import cpu_name, usable_cores
from rsd_edge.opencv import cv2

Image = NDArray[np.uint8]
SIZES = ((160, 90), (240, 134), (320, 180), (480, 270), (640, 360))
RATE = 24.0
SLOW = "edge-s"
"""In fp32, several times too slow for 30 fps."""
FILMS = ("intel_bottle", "intel_one-by-one-person")
THRESHOLDS = (0.0, 3.0, 6.0)


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


def read_film(path: Path, width: int, start: int, most: int) -> list[Image]:
    """Frames `start` to `start + most - 1` of a film, reduced."""
    frames: list[Image] = []
    with av.open(str(path)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index < start:
                continue
            height = round(width * frame.height / frame.width / 2) * 2
            image = cv2.resize(frame.to_ndarray(format="bgr24"), (width, height), interpolation=cv2.INTER_AREA)
            frames.append(np.asarray(image, np.uint8))
            if len(frames) == most:
                break
    return frames


class Contender:
    """One way to enlarge a film, frame by frame, with what it cost."""

    def __init__(self, resolver: SuperResolver, settings: StreamSettings, height: int, width: int) -> None:
        self.threshold = settings.reuse_threshold
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


def reuse(resolver: SuperResolver, film: list[Image]) -> list[dict[str, Any]]:
    """Speed-up and difference at several thresholds, against the same path without reuse, in turns at each frame."""
    size = film[0].shape[:2]
    plain = Contender(resolver, StreamSettings(reuse=False), *size)
    others = [Contender(resolver, StreamSettings(reuse_threshold=threshold), *size) for threshold in THRESHOLDS]
    differences: list[list[Image]] = [[] for _ in others]
    for index, image in enumerate(film):
        reference = plain(index, image)
        for other, found in zip(others, differences, strict=True):
            found.append(np.asarray(cv2.absdiff(other(index, image), reference), np.uint8))
    return [_reuse_row(other, plain, found) for other, found in zip(others, differences, strict=True)]


def _reuse_row(other: Contender, plain: Contender, differences: list[Image]) -> dict[str, Any]:
    squared = float(np.mean([np.mean(np.square(item, dtype=np.float32)) for item in differences]))
    return {
        "threshold": other.threshold,
        "tiles_computed": round(other.computed / other.tiles, 4),
        "times_as_fast": round(plain.seconds / other.seconds, 2),
        "mean_difference": round(float(np.mean([item.mean() for item in differences])), 4),
        "largest_difference": int(max(item.max() for item in differences)),
        "psnr_db": None if squared == 0 else round(float(10 * np.log10(255**2 / squared)), 2),
        "ms_per_frame": round(1000 * other.seconds / len(differences), 2),
        "ms_per_frame_without": round(1000 * plain.seconds / len(differences), 2),
    }


@click.command()
@click.option("--engine", default="edge-n", show_default=True)
@click.option("--precision", default="int8", show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--seconds", default=8.0, show_default=True, help="Of each live run.")
@click.option("--films", type=click.Path(path_type=Path, exists=True), help="The folder of the films.")
@click.option("--width", default=240, show_default=True, help="Of the films when reduced.")
@click.option("--start", default=160, show_default=True, help="First frame of each film.")
@click.option("--frames", default=80, show_default=True, help="Of each film.")
@click.option("--tile", default=64, show_default=True, help="Of the films: smaller tiles rest more often.")
@click.option("--note", default="", help="About the machine, such as what else it did.")
@click.option("--json", "json_path", required=True, type=click.Path(path_type=Path))
def main(
    engine: str,
    precision: str,
    threads: int,
    seconds: float,
    films: Path | None,
    width: int,
    start: int,
    frames: int,
    tile: int,
    note: str,
    json_path: Path,
) -> None:
    """Measure, print and store."""
    document: dict[str, Any] = {
        "machine": cpu_name(),
        "cores": usable_cores(),
        "threads": threads,
        "engine": f"{engine} {precision} onnxruntime",
        "note": note,
        "versions": {name: importlib.metadata.version(name) for name in ("numpy", "onnxruntime", "opencv-python", "av")}
        | {"rsd_edge": __version__},
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
        document["reuse_tile"] = tile
        with SuperResolver.load(engine, tile=tile, **options) as resolver:
            for name in FILMS:
                film = read_film(films / f"{name}.mp4", width, start, frames)
                rows = reuse(resolver, film)
                document["reuse"][name] = {"size": film[0].shape[1::-1], "frames": len(film), "rows": rows}
                click.echo(json.dumps(document["reuse"][name]))
    json_path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
