"""Frames per second of a whole video against those of the engine alone on the same tiles, and memory on the way.

    python benchmarks/video_throughput.py ../shared/data/video/bbb_480p_30s.mp4 --engine edge-n --engine edge-s
        --json benchmarks/reports/video.json

The clip is cut from the film given: its first seconds, 320 pixels wide, H.264. *video* is `VideoUpscaler` from file to
file, *alone* is `submit` and `collect` on the tiles of a frame and nothing around them. They take turns within one run:
after every 12 frames the video stands still, once its encoder has caught up, which counts as its time, and the bare
engine does 12 frames. So whatever else the machine does meets both. Processor time for each frame says more where
neighbours take the processor away. Each engine does so twice: with frames averaged
along what moves, and each by itself.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import click
import numpy as np
from numpy.typing import NDArray
from origin import origin

from rsd_edge import SuperResolver, VideoSettings, VideoUpscaler
from rsd_edge.bundle import shipped_engines
from rsd_edge.frames import SCALE
from rsd_edge.machine import usable_cores
from rsd_edge.specs import Precision
from rsd_edge.stream.atomic import write_json
from rsd_edge.tiling import TileReader, plan_tiles

_TURN = 12
"""Frames of the video between two turns of the bare engine, and of those."""
_POLL_SECONDS = 0.01
_IDLE_SECONDS = 0.001
"""Processor time within a poll that is none."""


def make_clip(film: Path, path: Path, width: int, seconds: float) -> int:
    """The beginning of a film, reduced, in H.264 and without sound; the number of frames."""
    count = 0
    with av.open(str(film)) as source, av.open(str(path), "w") as output:
        video = source.streams.video[0]
        rate = video.average_rate or Fraction(25)
        height = round(width * video.height / video.width / 2) * 2
        stream = output.add_stream("libx264", rate=rate, time_base=1 / rate)
        stream.width, stream.height, stream.pix_fmt, stream.options = width, height, "yuv420p", {"crf": "18"}
        for frame in source.decode(video):
            if count >= seconds * rate:
                break
            small = frame.reformat(width=width, height=height, format="yuv420p", interpolation="AREA")
            small.pts, small.time_base, small.pict_type = count, 1 / rate, 0
            output.mux(stream.encode(small))
            count += 1
        output.mux(stream.encode(None))
    return count


@dataclass
class Pace:
    """What was done, and how long it took."""

    frames: int = 0
    seconds: float = 0.0
    processor_seconds: float = 0.0
    """Of all threads together."""

    def add(self, frames: int, seconds: float, processor_seconds: float) -> None:
        """One turn more."""
        self.frames += frames
        self.seconds += seconds
        self.processor_seconds += processor_seconds

    def record(self) -> dict[str, float]:
        """In numbers that mean something."""
        return {
            "frames": self.frames,
            "frames_per_second": round(self.frames / self.seconds, 3),
            "processor_ms_per_frame": round(1000 * self.processor_seconds / self.frames, 1),
        }


class EngineAlone:
    """The bare engine on the tiles of one frame, with noise that is there already."""

    def __init__(self, resolver: SuperResolver, frame: NDArray[np.uint8]) -> None:
        self._engine = engine = resolver.engine
        plan = plan_tiles(*frame.shape[:2], engine.tile)
        h, w = plan.tile_h, plan.tile_w
        self.tiles = f"{plan.x.count}x{plan.y.count} of {w}x{h}"
        reader = TileReader(plan, frame.dtype)
        reader.load(frame)
        self._inputs = [np.empty((1, 3, h, w), np.float32) for _ in range(plan.count)]
        for index, lq in enumerate(self._inputs):
            reader.read(range(index, index + 1), lq)
        rng = np.random.default_rng(0)
        self._noise = rng.standard_normal((1, engine.spec.model.noise_channels, h, w)).astype(np.float32)
        self._detail = np.empty((1, SCALE * h, SCALE * w, 3), np.float32)

    def run(self, frames: int) -> None:
        """As many frames."""
        for _ in range(frames):
            for lq in self._inputs:
                self._engine.collect(self._engine.submit(lq, self._noise, self._detail))


def first_frame(clip: Path) -> NDArray[np.uint8]:
    """In BGR."""
    with av.open(str(clip)) as opened:
        return np.ascontiguousarray(next(opened.decode(video=0)).to_ndarray(format="bgr24"), np.uint8)


class Turns:
    """Told of each frame of a video; lets it pause for the bare engine, and keeps both clocks and the memory."""

    def __init__(self, engine: EngineAlone, frames: int) -> None:
        self._engine, self._frames = engine, frames
        self.alone, self.video = Pace(), Pace()
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
        self.peak_mb: list[float] = []
        """After a third of the frames and at the end."""
        self._start()

    def __call__(self, done: int, *_: object) -> None:
        """See Progress of VideoUpscaler."""
        if done in (self._frames // 3, self._frames):
            status = Path("/proc/self/status").read_text(encoding="utf-8")
            self.peak_mb.append(round(int(status.partition("VmHWM:")[2].split()[0]) / 1024, 1))
        if done % _TURN == 0 and done < self._frames:
            _wait_for_idle()
            self.stop(_TURN)
            self._engine.run(_TURN)
            self.alone.add(_TURN, *self._passed())
            self._start()

    def stop(self, frames: int) -> None:
        """The video has done that many frames since its last turn."""
        self.video.add(frames, *self._passed())

    def _start(self) -> None:
        self._wall, self._processor = time.perf_counter(), time.process_time()

    def _passed(self) -> tuple[float, float]:
        passed = time.perf_counter() - self._wall, time.process_time() - self._processor
        self._start()
        return passed


def _wait_for_idle() -> None:
    """Until the threads of the video have nothing left to do."""
    while True:
        before = time.process_time()
        time.sleep(_POLL_SECONDS)
        if time.process_time() - before < _IDLE_SECONDS:
            return


def measure(load: Callable[[], SuperResolver], clip: Path, frames: int, settings: VideoSettings) -> dict[str, Any]:
    """What one engine reaches."""
    frame, target = first_frame(clip), clip.with_name("enlarged.mp4")
    with load() as resolver:
        resolver(frame)
        engine, upscaler = EngineAlone(resolver, frame), VideoUpscaler(resolver, settings)
        turns = Turns(engine, frames)
        result = upscaler(clip, target, progress=turns)
        turns.stop(frames - turns.video.frames)
    target.unlink()
    alone, video = turns.alone.record(), turns.video.record()
    spent = alone["processor_ms_per_frame"] / video["processor_ms_per_frame"]
    return {
        "tiles": engine.tiles,
        "encoder": result.encoder,
        "encoder_options": dict(result.encoder_options),
        "output_bytes": result.bytes,
        "alone": alone,
        "video": video,
        "video_to_alone": round(video["frames_per_second"] / alone["frames_per_second"], 3),
        "video_to_alone_by_processor_time": round(spent, 3),
        "peak_memory_mb": {"after a third": turns.peak_mb[0], "at the end": turns.peak_mb[1]},
    }


@click.command()
@click.argument("film", type=click.Path(path_type=Path, exists=True))
@click.option("--engine", "engines", default=("edge-n",), multiple=True, type=click.Choice(shipped_engines()))
@click.option("--precision", default="int8", show_default=True, type=click.Choice([p.value for p in Precision]))
@click.option("--threads", default=2, show_default=True)
@click.option("--width", default=320, show_default=True)
@click.option("--seconds", default=10.0, show_default=True)
@click.option("--codec", default=None)
@click.option("--preset", default=None, help="Of the encoder; the default of rsd-edge if not given.")
@click.option("--note", default="", help="About the machine, such as what else it did.")
@click.option("--json", "json_path", required=True, type=click.Path(path_type=Path))
def main(
    film: Path,
    engines: tuple[str, ...],
    precision: str,
    threads: int,
    width: int,
    seconds: float,
    codec: str | None,
    preset: str | None,
    note: str,
    json_path: Path,
) -> None:
    """Measure, print and store."""
    document: dict[str, Any] = {
        **origin(),
        "cores": usable_cores(),
        "threads": threads,
        "note": note,
        "ffmpeg": av.ffmpeg_version_info,
        "engines": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        frames = make_clip(film, clip, width, seconds)
        height = first_frame(clip).shape[0]
        document["clip"] = {"film": film.name, "size": f"{width}x{height}", "frames": frames, "seconds": seconds}
        for name in engines:

            def load(name: str = name) -> SuperResolver:
                return SuperResolver.load(name, precision=precision, backend="onnxruntime", threads=threads)

            for temporal in ("blend", "fixed"):
                settings = VideoSettings(codec=codec, preset=preset, temporal=temporal)
                found = measure(load, clip, frames, settings)
                document["engines"][f"{name} {precision} onnxruntime, {temporal}"] = found
                click.echo(f"{name}, {temporal}: {json.dumps(found)}")
    write_json(json_path, document)


if __name__ == "__main__":
    main()
