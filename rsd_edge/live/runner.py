"""Capture, preparation, engine, finishing and sinks, a thread each, with little between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from rsd_edge.errors import InputError
from rsd_edge.live.channel import Channel
from rsd_edge.live.clock import Clock, Task
from rsd_edge.live.frames import LiveFrame, LiveResult, Picture
from rsd_edge.live.receiver import Receiver, Reconnection, Source
from rsd_edge.live.settings import DROP
from rsd_edge.live.statistics import Statistics
from rsd_edge.stream.images import MAX_PIXELS

GivenT = TypeVar("GivenT")
MadeT = TypeVar("MadeT")

_TICK = 0.1
"""Seconds between two looks of the main thread."""
_MOST_UNDER_WAY = 3
"""Frames between mailbox and sink: behind a sink that is slow, more would only grow old."""
_WAITING = 4
"""Frames that wait for the engine if none may be dropped."""
_SMOOTHING = 0.02
_LONGEST_READ = 6.0
"""Seconds that a source may take to notice that it is not wanted any more."""


class Stages(Protocol):
    """How a frame becomes a result; `LivePath` is the real one."""

    def prepare(self, frame: LiveFrame) -> Any:
        """What `infer` and `finish` take, with the attributes `tiles` and `computed`: how many there are."""

    def infer(self, work: Any) -> None:
        """The long part."""

    def finish(self, work: Any) -> Picture:
        """The result."""


class Sink(Protocol):
    """Takes results. `write` and `close` are called by one thread after the other."""

    name: str

    def write(self, result: LiveResult) -> None:
        """Take the next result. Raises OutputError if that cannot be; the run then ends."""

    def close(self) -> None:
        """Make what was written complete. Raises OutputError."""


@dataclass(frozen=True)
class RunLimits:
    """When frames are dropped and when a run ends."""

    drop: str = "newest"
    """newest: the engine always gets the latest frame, and older ones are dropped. none: all are enlarged."""
    max_frames: int | None = None
    """Results after which the run ends."""
    max_pixels: int = MAX_PIXELS
    """Of the largest frame that is taken; a larger one ends the run with an error."""
    reconnection: Reconnection = field(default_factory=Reconnection)

    def __post_init__(self) -> None:
        if self.drop not in DROP:
            raise InputError(f"drop is '{self.drop}'; it must be one of {', '.join(DROP)}")
        for name in ("max_frames", "max_pixels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name.replace('_', '-')} is {value}; it must be at least 1")


class _Forecast:
    """When the engine will want its next frame, by what it took lately. Read and changed within `Clock.changing`."""

    def __init__(self) -> None:
        self.waiting = False
        """A prepared frame has not been begun."""
        self.busy_since: float | None = None
        self.engine: float | None = None
        """Seconds, rather too many: a frame that is prepared too early grows old, and one that is prepared too late
        costs the engine no more than the time of its preparation."""
        self.preparation: float | None = None

    def wanted_in(self, now: float) -> float | None:
        """Seconds until preparation should begin, so that it ends when the engine does; None while that is unknown."""
        if self.busy_since is None:
            return 0.0
        if self.engine is None or self.preparation is None:
            return None
        return max(0.0, self.busy_since + self.engine - self.preparation - now)


class LiveRunner:
    """One run over one source. With `newest`, a frame is taken from the mailbox only when the engine is about to be
    free, so that it is at most one frame time old when the engine begins with it."""

    def __init__(
        self,
        source: Source,
        stages: Stages,
        sinks: Sequence[Sink],
        clock: Clock,
        statistics: Statistics,
        limits: RunLimits | None = None,
    ) -> None:
        self._stages, self._sinks, self._clock, self._statistics = stages, list(sinks), clock, statistics
        self._limits = limits or RunLimits()
        self._newest = self._limits.drop == "newest"
        self._mailbox: Channel[LiveFrame] = Channel(clock, 1 if self._newest else _WAITING, newest=self._newest)
        self._prepared: Channel[Any] = Channel(clock)
        self._computed: Channel[Any] = Channel(clock)
        self._results: Channel[LiveResult] = Channel(clock)
        self._receiver = Receiver(
            source, self._mailbox, clock, statistics, self._limits.reconnection, self._limits.max_pixels
        )
        self._forecast = _Forecast()
        self._under_way = 0
        self._stopping = False
        self._errors: list[BaseException] = []
        self._running = 0

    def run(self, watch: Callable[[], bool] | None = None, tick: float = _TICK) -> None:
        """Work until the source ends, `max_frames` are delivered, `stop` is called, or watch() returns False.

        watch: called in this thread every `tick` seconds. Results that are under way are delivered, and the sinks are
        closed, whatever ends the run. Raises CameraError, VideoReadError, BackendError, OutputError, the first that
        happened.
        """
        tasks = [self._start(name, work) for name, work in self._work().items()]
        try:
            while not self._ended(tick):
                if watch is not None and not watch():
                    break
            self.stop()
            while not self._ended(tick):
                if watch is not None:
                    watch()
        except BaseException:
            self._abort()
            raise
        finally:
            try:
                self._join(tasks)
            finally:  # a further signal may come while a read that nothing ends is waited for
                self._close_sinks()
        if self._errors:
            raise self._errors[0]

    def stop(self) -> None:
        """Take no more frames, and finish those that are under way."""
        with self._clock.changing():
            self._stopping = True
        self._receiver.stop()
        self._mailbox.close()

    def _work(self) -> dict[str, Callable[[], None]]:
        return {
            "capture": self._receiver.run,
            "prepare": self._prepare,
            "engine": self._infer,
            "finish": self._finish,
            "deliver": self._deliver,
        }

    def _start(self, name: str, work: Callable[[], None]) -> Task:
        def guarded() -> None:
            try:
                work()
            except BaseException as error:  # whatever it is, it belongs to the thread that waits
                with self._clock.changing():
                    self._errors.append(error)
                if name != "capture":  # what came before the end of a source is still delivered
                    self.stop()
            finally:
                with self._clock.changing():
                    self._running -= name != "capture"

        with self._clock.changing():
            self._running += name != "capture"
        return self._clock.start(guarded, name)

    def _ended(self, timeout: float) -> bool:
        with self._clock.changing():
            return self._clock.wait(lambda: self._running == 0, timeout)

    def _abort(self) -> None:
        self.stop()
        for channel in (self._prepared, self._computed, self._results):
            channel.close()

    def _join(self, tasks: Sequence[Task]) -> None:
        self.stop()
        # The capture last: who stops waiting for it then closes sinks that nothing is written to any more.
        for task in reversed(tasks):
            task.join(_LONGEST_READ)

    def _close_sinks(self) -> None:
        for sink in self._sinks:
            try:
                sink.close()
            except Exception as error:
                self._errors.append(error)

    def _timed(self, stage: str, work: Callable[[GivenT], MadeT], given: GivenT) -> tuple[MadeT, float]:
        began = self._clock.now()
        made = work(given)
        seconds = self._clock.now() - began
        self._statistics.stage(stage, seconds)
        return made, seconds

    def _prepare(self) -> None:
        taken = 0
        try:
            while self._limits.max_frames is None or taken < self._limits.max_frames:
                self._await_turn()
                frame = self._mailbox.get()
                if frame is None:
                    return
                with self._clock.changing():
                    self._under_way += 1
                work, seconds = self._timed("pre", self._stages.prepare, frame)
                self._statistics.computed(work.tiles, work.tiles - work.computed)
                taken += 1
                with self._clock.changing():
                    self._forecast.preparation = _smooth(self._forecast.preparation, seconds)
                    self._forecast.waiting = True
                if not self._prepared.put((frame, work)):
                    return
        finally:
            self._receiver.stop()
            self._mailbox.close()
            self._prepared.finish()

    def _await_turn(self) -> None:
        """Until there is room for one more and, if the newest frame counts, the engine is about to be free."""
        with self._clock.changing():
            self._clock.wait(lambda: self._stopping or self._under_way < _MOST_UNDER_WAY)
            if self._newest:
                self._clock.wait(lambda: self._stopping or not self._forecast.waiting)
                wait = self._forecast.wanted_in(self._clock.now())
                self._clock.wait(lambda: self._stopping or self._forecast.busy_since is None, wait)

    def _infer(self) -> None:
        try:
            while (entry := self._prepared.get()) is not None:
                with self._clock.changing():
                    self._forecast.busy_since, self._forecast.waiting = self._clock.now(), False
                _, seconds = self._timed("engine", self._stages.infer, entry[1])
                with self._clock.changing():
                    self._forecast.busy_since = None
                    self._forecast.engine = max(seconds, _smooth(self._forecast.engine, seconds))
                if not self._computed.put(entry):
                    return
        finally:
            self._prepared.close()
            self._computed.finish()

    def _finish(self) -> None:
        try:
            while (entry := self._computed.get()) is not None:
                pixels, _ = self._timed("post", self._stages.finish, entry[1])
                if not self._results.put(LiveResult(entry[0], pixels)):
                    return
        finally:
            self._computed.close()
            self._results.finish()

    def _deliver(self) -> None:
        try:
            while (result := self._results.get()) is not None:
                self._timed("sink", self._write, result)
                height, width = result.pixels.shape[:2]
                self._statistics.delivered(result.frame.captured, (width, height))
                with self._clock.changing():
                    self._under_way -= 1
        finally:
            self._results.close()
            with self._clock.changing():
                self._stopping = True

    def _write(self, result: LiveResult) -> None:
        for sink in self._sinks:
            sink.write(result)


def _smooth(old: float | None, new: float) -> float:
    return new if old is None else old + _SMOOTHING * (new - old)
