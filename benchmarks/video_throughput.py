"""Frames per second of the whole video path against those of the engine alone on the same tiles, and memory over time.

    python -P benchmarks/video_throughput.py --engine edge-n --engine edge-s --json benchmarks/reports/video.json

The clip is made here: a photograph that a window of 320x180 moves over, H.264. Path and engine take turns, so that
whatever else the machine does meets both. *alone* is `submit` and `collect` on the tiles of a frame and nothing around
them; *resolver* is the frame path, with nothing decoded or encoded. Where neighbours take the processor away, frames
per second say little, and processor time for each frame more.
"""

from __future__ import annotations

import importlib.metadata
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import click
import numpy as np

from rsd_edge import SuperResolver, VideoSettings, VideoUpscaler, __version__
from rsd_edge.bundle import shipped_engines
from rsd_edge.machine import cpu_name, usable_cores
from rsd_edge.opencv import cv2
from rsd_edge.specs import Precision
from rsd_edge.stream.images import read_image
from rsd_edge.tiling import plan_tiles

PHOTO = Path(__file__).parents[1] / "assets" / "face.png"
_RATE = 24


def make_clip(path: Path, width: int, height: int, frames: int) -> None:
    """A window that wanders over a photograph, in H.264."""
    photo = cv2.resize(read_image(PHOTO), (width + 64, height + 64), interpolation=cv2.INTER_CUBIC)
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=_RATE, time_base=Fraction(1, _RATE))
        stream.width, stream.height, stream.pix_fmt, stream.options = width, height, "yuv420p", {"crf": "20"}
        for index in range(frames):
            x, y = (round(32 + 31 * f(index / 9)) for f in (np.sin, np.cos))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(photo[y:, x:][:height, :width]), format="bgr24")
            frame.pts, frame.time_base = index, Fraction(1, _RATE)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


Pace = tuple[float, float]
"""Frames per second, and milliseconds of processor time for each frame, all threads together."""


@contextmanager
def pace_of(frames: int, paces: list[Pace]) -> Iterator[None]:
    """Append the pace of what is done while this is open."""
    wall, processor = time.perf_counter(), time.process_time()
    yield
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    paces.append((frames / wall, 1000 * processor / frames))


def engine_alone(resolver: SuperResolver, width: int, height: int, frames: int) -> None:
    """The bare engine on the tiles of such frames, its noise given."""
    engine = resolver.engine
    plan = plan_tiles(height, width, engine.tile)
    rng = np.random.default_rng(0)
    lq = rng.uniform(-1, 1, (1, 3, plan.tile_h, plan.tile_w)).astype(np.float32)
    noise = rng.standard_normal((1, engine.spec.model.noise_channels, plan.tile_h, plan.tile_w)).astype(np.float32)
    detail = np.empty((1, 4 * plan.tile_h, 4 * plan.tile_w, 3), np.float32)
    for _ in range(frames * plan.count):
        engine.collect(engine.submit(lq, noise, detail))


def resolver_alone(resolver: SuperResolver, width: int, height: int, frames: int) -> None:
    """The frame path."""
    frame = cv2.resize(read_image(PHOTO), (width, height), interpolation=cv2.INTER_CUBIC)
    out = np.empty((4 * height, 4 * width, 3), np.uint8)
    for _ in range(frames):
        resolver(frame, out=out)


@contextmanager
def memory_watch(every: float) -> Iterator[list[float]]:
    """Resident memory in MB, sampled while this is open."""
    samples: list[float] = []
    stopped = threading.Event()

    def watch() -> None:
        while not stopped.wait(every):
            status = Path("/proc/self/status").read_text(encoding="utf-8")
            samples.append(round(int(status.partition("VmRSS:")[2].split()[0]) / 1024, 1))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        stopped.set()
        thread.join()


def measure(
    name: str, precision: str, threads: int, clip: Path, settings: VideoSettings, rounds: int
) -> dict[str, Any]:
    """What one engine reaches, in turns of bare engine, frame path and whole video."""
    with av.open(str(clip)) as opened:
        stream = opened.streams.video[0]
        width, height, frames = stream.width, stream.height, stream.frames
    paces: dict[str, list[Pace]] = {"alone": [], "resolver": [], "video": []}
    with SuperResolver.load(name, precision=precision, backend="onnxruntime", threads=threads) as resolver:
        resolver.warm_up(height, width)
        upscaler = VideoUpscaler(resolver, settings)
        with memory_watch(0.5) as memory:
            for turn in range(rounds):
                share = max(1, frames // 2)
                with pace_of(share, paces["alone"]):
                    engine_alone(resolver, width, height, share)
                with pace_of(share, paces["resolver"]):
                    resolver_alone(resolver, width, height, share)
                with pace_of(frames, paces["video"]):
                    result = upscaler(clip, clip.with_name(f"{name}-{turn}.mp4"))
        tile = resolver.engine.tile.size
    middle = {kind: statistics.median(speed for speed, _ in turns) for kind, turns in paces.items()}
    processor = {kind: statistics.median(spent for _, spent in turns) for kind, turns in paces.items()}
    return {
        "engine": f"{name} {precision} onnxruntime",
        "tile": tile,
        "encoder": result.encoder,
        "frames_per_second": {kind: round(value, 3) for kind, value in middle.items()},
        "processor_ms_per_frame": {kind: round(value, 1) for kind, value in processor.items()},
        "every_turn": {kind: [[round(value, 3) for value in turn] for turn in turns] for kind, turns in paces.items()},
        "video_to_alone": round(middle["video"] / middle["alone"], 3),
        "video_to_alone_by_processor_time": round(processor["alone"] / processor["video"], 3),
        "memory_mb": memory,
    }


@click.command()
@click.option("--engine", "engines", default=("edge-n",), multiple=True, type=click.Choice(shipped_engines()))
@click.option("--precision", default="int8", show_default=True, type=click.Choice([p.value for p in Precision]))
@click.option("--threads", default=2, show_default=True)
@click.option("--frame", default="320x180", show_default=True, help="WIDTHxHEIGHT of the clip.")
@click.option("--frames", default=48, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--codec", default=None)
@click.option("--preset", default="veryfast", show_default=True)
@click.option("--note", default="", help="About the machine, such as what else it did.")
@click.option("--json", "json_path", required=True, type=click.Path(path_type=Path))
def main(
    engines: tuple[str, ...],
    precision: str,
    threads: int,
    frame: str,
    frames: int,
    rounds: int,
    codec: str | None,
    preset: str,
    note: str,
    json_path: Path,
) -> None:
    """Measure, print and store."""
    width, height = map(int, frame.split("x"))
    settings = VideoSettings(codec=codec, preset=preset)
    document: dict[str, Any] = {
        "machine": cpu_name(),
        "cores": usable_cores(),
        "threads": threads,
        "note": note,
        "versions": {name: importlib.metadata.version(name) for name in ("numpy", "onnxruntime", "opencv-python", "av")}
        | {"rsd_edge": __version__, "ffmpeg": av.ffmpeg_version_info},
        "clip": {"size": frame, "frames": frames},
        "preset": preset,
        "results": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        make_clip(clip, width, height, frames)
        for name in engines:
            found = measure(name, precision, threads, clip, settings, rounds)
            document["results"].append(found)
            click.echo(json.dumps(found))
    json_path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
