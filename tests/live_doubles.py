"""Sources, stages and sinks for tests of live runs, which take the time that they are told to take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsd_edge.errors import CameraError
from rsd_edge.live.clock import Clock, sleep
from rsd_edge.live.frames import LiveFrame, LiveResult, Picture
from rsd_edge.specs import EngineSpec, ModelSpec, TileSpec


@dataclass
class ScriptedSource:
    """Opens as the script says: a number of frames until it is lost, or None for a refusal."""

    clock: Clock
    script: Sequence[int | None]
    period: float = 1 / 32
    name: str = "scripted"
    shapes: Sequence[tuple[int, int]] = ((8, 12),)
    """(height, width) of the frames in their order; all that follow have the last one."""
    given: int = 0
    attempts: list[float] = field(default_factory=list)
    open_now: int = 0

    def open(self) -> ScriptedCapture:
        self.attempts.append(self.clock.now())
        step = self.script[min(len(self.attempts), len(self.script)) - 1]
        if step is None:
            raise CameraError("refused")
        self.open_now += 1
        return ScriptedCapture(self, step)


@dataclass
class ScriptedCapture:
    source: ScriptedSource
    left: int
    damaged: int = 0
    closed: bool = False
    woken: bool = False

    def read(self) -> Picture | None:
        if not sleep(self.source.clock, self.source.period, lambda: self.woken) or not self.left:
            return None
        self.left -= 1
        self.source.given += 1
        height, width = self.source.shapes[min(self.source.given, len(self.source.shapes)) - 1]
        return np.full((height, width, 3), self.left % 256, np.uint8)

    def interrupt(self) -> None:
        with self.source.clock.changing():
            self.woken = True

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.source.open_now -= 1


@dataclass
class Job:
    frame: LiveFrame
    tiles: int = 2
    computed: int = 1


@dataclass
class TimedStages:
    """Each part takes its time on the clock; the result is the frame."""

    spend: Callable[[float], None]
    pre: float = 0.0
    engine: float = 0.0
    post: float = 0.0
    fails_at: int | None = None

    def prepare(self, frame: LiveFrame) -> Job:
        self._take(self.pre)
        return Job(frame)

    def infer(self, job: Job) -> None:
        if self.fails_at is not None and job.frame.index >= self.fails_at:
            raise CameraError("the engine failed")
        self._take(self.engine)

    def finish(self, job: Job) -> Picture:
        self._take(self.post)
        return job.frame.pixels

    def _take(self, seconds: float) -> None:
        if seconds:
            self.spend(seconds)


@dataclass
class RecordingSink:
    """Remembers which frames came, when, and how old they were."""

    clock: Clock
    spend: Callable[[float], Any] | None = None
    seconds: float = 0.0
    fails_at: int | None = None
    name: str = "recording"
    indices: list[int] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    ages: list[float] = field(default_factory=list)
    closed: int = 0

    def write(self, result: LiveResult) -> None:
        if self.spend is not None and self.seconds:
            self.spend(self.seconds)
        if len(self.indices) == self.fails_at:
            raise OSError("the sink failed")
        self.indices.append(result.frame.index)
        self.epochs.append(result.frame.epoch)
        self.ages.append(self.clock.now() - result.frame.captured)

    def close(self) -> None:
        self.closed += 1


class WholeTileEngine:
    """Detail that depends on all of its tile, so that neighbours disagree where they overlap and any slip shows."""

    ahead = 1
    threads = 1

    def __init__(self, tile: TileSpec) -> None:
        self.spec, self.tile = EngineSpec(model=ModelSpec(name="double")), tile
        self.runs = 0

    def prepare(self, n: int, h: int, w: int) -> None:
        pass

    def submit(self, lq: NDArray[np.float32], noise: NDArray[np.float32], detail: NDArray[np.float32]) -> Any:
        self.runs += len(lq)
        for image, samples, out in zip(lq, noise, detail, strict=True):
            level = 0.2 * np.sin(1000 * image.mean(dtype=np.float64) + 100 * samples.mean(dtype=np.float64))
            fine = (0.1 * image + 0.05 * samples[:3]).transpose(1, 2, 0)
            out[:] = np.repeat(np.repeat(fine, 4, axis=0), 4, axis=1) + level

    def collect(self, ticket: Any) -> None:
        pass

    def close(self) -> None:
        pass

    def __enter__(self) -> WholeTileEngine:
        return self

    def __exit__(self, *_: object) -> None:
        pass
