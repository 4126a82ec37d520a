"""Latency, drops, reconnections and ends of live runs, on a clock that passes only while everybody waits."""

from __future__ import annotations

import math
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest
from live_doubles import RecordingSink, ScriptedCapture, ScriptedSource, TimedStages
from virtual_clock import VirtualClock

from rsd_edge.errors import CameraError, InputError, VideoReadError
from rsd_edge.live.clock import SystemClock
from rsd_edge.live.frames import Picture
from rsd_edge.live.receiver import Reconnection
from rsd_edge.live.runner import LiveRunner, RunLimits
from rsd_edge.live.statistics import Statistics

PERIOD = 1 / 32
ENDLESS = [1 << 20]


class Run:
    """A run on a virtual clock and what came of it."""

    def __init__(
        self, script: list[int | None], limits: RunLimits, *, sink_seconds: float = 0.0, **stages: Any
    ) -> None:
        self.clock = VirtualClock()
        self.source = ScriptedSource(self.clock, script, PERIOD)
        self.statistics = Statistics(self.clock.now)
        self.stages = TimedStages(self.clock.spend, **stages)
        self.sink = RecordingSink(self.clock, self.clock.spend, sink_seconds)
        self.runner = LiveRunner(self.source, self.stages, [self.sink], self.clock, self.statistics, limits)

    def go(self) -> Run:
        self.runner.run()
        return self


def test_a_slow_engine_gets_the_newest_frame_and_results_are_as_young_as_can_be() -> None:
    engine = 0.1037
    run = Run(ENDLESS, RunLimits(max_frames=60), engine=engine).go()
    expected, free = [], PERIOD
    for _ in range(60):
        newest = math.floor(free / PERIOD + 1e-9)
        expected.append(newest)
        free += engine
    # The first frame comes at one period, and the engine is never idle after it.
    assert [index + 1 for index in run.sink.indices] == expected
    ages = [PERIOD + k * engine - newest * PERIOD + engine for k, newest in enumerate(expected)]
    assert run.sink.ages == pytest.approx(ages, abs=1e-9)
    assert max(run.sink.ages) < PERIOD + engine
    report = run.statistics.report()
    assert report["delivered"] == 60
    # Whatever came until the last frame was taken, and was not enlarged, was dropped.
    assert report["dropped"] == expected[-1] - 60


def test_preparation_overlaps_with_the_engine_and_ends_when_it_does() -> None:
    run = Run(ENDLESS, RunLimits(max_frames=40), pre=0.02, engine=0.1037, post=0.01).go()
    times = run.statistics.results.latest()
    # In step with the engine alone, once its time is known.
    assert list(times[10:] - times[9:-1]) == pytest.approx([0.1037] * 30, abs=1e-9)
    assert max(run.sink.ages[2:]) < PERIOD + 0.02 + 0.1037 + 0.01 + 1e-9


def test_an_engine_whose_time_varies_gets_no_frame_that_has_waited_for_it() -> None:
    run = Run(ENDLESS, RunLimits(max_frames=60), pre=0.004)
    engines = [0.1, 0.1, 0.1, 0.3, 0.12, 0.25] * 10
    left = iter(engines)
    run.stages.infer = lambda job: run.clock.spend(next(left))
    run.go()
    waits = [age - engine for age, engine in zip(run.sink.ages, engines, strict=True)]
    # Of the longest time, a fiftieth of what it exceeds the others by is forgotten in each frame: less than 0.02 s.
    assert max(waits[5:]) < PERIOD + 0.004 + 0.02


def test_a_fast_engine_drops_nothing() -> None:
    run = Run(ENDLESS, RunLimits(max_frames=50), pre=0.001, engine=0.02, post=0.001).go()
    assert run.sink.indices == list(range(50))
    assert run.sink.ages == pytest.approx([0.022] * 50, abs=1e-9)
    assert run.statistics.report()["dropped"] == 0


def test_without_dropping_every_frame_is_delivered_in_order() -> None:
    run = Run(ENDLESS, RunLimits(drop="none", max_frames=30), engine=0.1).go()
    assert run.sink.indices == list(range(30))
    assert run.statistics.dropped == 0


def test_a_slow_sink_bounds_what_is_under_way() -> None:
    run = Run(ENDLESS, RunLimits(max_frames=40), engine=0.01, sink_seconds=0.2).go()
    # Three under way, each waits for those before it.
    assert max(run.sink.ages) <= 3 * 0.2 + PERIOD + 0.01 + 1e-9
    assert run.statistics.dropped > 0


def test_a_lost_source_is_asked_again_after_growing_pauses() -> None:
    run = Run([2, None, None, None, None, None, None, 3, 1, *ENDLESS], RunLimits(max_frames=12)).go()
    lost = 3 * PERIOD
    pauses = [0.25, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0]
    expected = [0.0]
    for at, pause in zip([lost, *[0.0] * 6], pauses, strict=True):
        expected.append((at or expected[-1]) + pause)
    # After the frames of a good opening the pauses begin anew.
    expected.append(expected[-1] + 4 * PERIOD + 0.25)
    expected.append(expected[-1] + 2 * PERIOD + 0.25)
    assert run.source.attempts == pytest.approx(expected, abs=1e-9)
    assert run.statistics.reconnects == 3
    assert run.sink.indices == list(range(12))
    assert run.sink.epochs == [0] * 2 + [1] * 3 + [2] + [3] * 6
    assert run.source.open_now == 0


def test_an_outage_ends_the_run_at_its_limit_after_everything_was_delivered() -> None:
    run = Run([5, None], RunLimits(reconnection=Reconnection(max_outage=7.0)), engine=0.1)
    with pytest.raises(CameraError, match=r"scripted: no signal for 7 s \(refused\).*--max-outage"):
        run.go()
    assert run.clock.now() == pytest.approx(5 * PERIOD + 7.0, abs=0.1)  # found out within a tick of the main thread
    assert run.sink.indices[-1] == 4
    assert (run.sink.closed, run.source.open_now) == (1, 0)


def test_stopping_while_a_source_is_asked_is_no_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run([2, None], RunLimits(reconnection=Reconnection(max_outage=7.0)))

    def ask_slowly() -> ScriptedCapture:
        if run.source.attempts:
            run.clock.spend(5.0)
        return ScriptedSource.open(run.source)

    monkeypatch.setattr(run.source, "open", ask_slowly)
    run.runner.run(lambda: run.clock.now() < 6.5)
    # Lost in the third period, asked a quarter of a second later, and again half a second after that had failed.
    assert run.clock.now() == pytest.approx(3 * PERIOD + 0.25 + 5.0 + 0.5 + 5.0, abs=1e-9)


def test_a_source_that_opens_and_sends_nothing_is_away_too() -> None:
    run = Run([5, 0], RunLimits(reconnection=Reconnection(max_outage=3.0)), engine=0.01)
    with pytest.raises(CameraError, match=r"no signal for 3 s \(it opens and sends nothing\)"):
        run.go()
    last, seen = 5 * PERIOD, [0.0]
    for pause in (0.25, 0.5, 1.0):
        # Each opening ends with a read that takes a period and gives nothing.
        seen.append((seen[-1] or last) + PERIOD + pause)
    seen.append(last + 3.0)
    assert run.source.attempts == pytest.approx(seen, abs=1e-9)
    assert run.statistics.reconnects == 0


def test_a_source_that_does_not_open_at_first_is_an_error_at_once() -> None:
    run = Run([None], RunLimits())
    with pytest.raises(CameraError, match="refused"):
        run.go()
    assert run.source.attempts == [0.0]
    assert run.sink.closed == 1


def test_a_frame_of_too_many_pixels_ends_the_run_after_what_came_before_it() -> None:
    run = Run(ENDLESS, RunLimits(drop="none", max_pixels=96), engine=0.1)
    run.source.shapes = [(8, 12), (8, 12), (9, 12)]
    told = "scripted has frames of 12x9 = 108 pixels, more than the limit of 96; .* raise it with --max-pixels 108"
    with pytest.raises(VideoReadError, match=told):
        run.go()
    assert run.sink.indices == [0, 1]
    assert (run.sink.closed, run.source.open_now) == (1, 0)


def test_a_change_of_size_is_told_once_and_each_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    run = Run([3, *ENDLESS], RunLimits(drop="none", max_frames=8))
    run.source.shapes = [(8, 12)] * 3 + [(8, 8)] * 2 + [(8, 12)]
    run.go()
    assert (report := run.statistics.report())["size_changes"] == 2
    assert report["source_size"] == (12, 8)
    assert [record.getMessage() for record in caplog.records] == [
        "scripted changes from 12x8 to 8x8; a film keeps the size that it began with, images each have their own"
    ]


@pytest.mark.parametrize("part", ["sink", "engine"])
def test_a_failure_does_not_wait_for_a_source_that_is_away(part: str) -> None:
    run = Run([5, None], RunLimits(reconnection=Reconnection(max_outage=50.0)), engine=0.01)
    if part == "sink":
        run.sink.fails_at = 4
    else:
        run.stages.fails_at = 4
    with pytest.raises((OSError, CameraError)):
        run.go()
    assert run.clock.now() < 1  # five frames take 0.16 s


def test_stopping_delivers_what_is_under_way() -> None:
    run = Run(ENDLESS, RunLimits(), engine=0.5)
    run.runner.run(lambda: run.clock.now() < 1.0)
    # Begun at 1/32 and a half second each: the third was under way when the run was stopped, just after one second.
    assert len(run.sink.indices) == 3
    assert run.clock.now() == pytest.approx(PERIOD + 1.5, abs=0.1)
    assert (run.sink.closed, run.source.open_now) == (1, 0)


def test_stopping_interrupts_a_read_that_waits_for_a_picture() -> None:
    run = Run(ENDLESS, RunLimits())
    run.source.period = 5.0
    run.runner.run(lambda: run.clock.now() < 1.0)
    assert run.clock.now() == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("part", ["sink", "engine", "watch"])
def test_a_failure_anywhere_ends_all_threads_and_closes_all_sinks(part: str) -> None:
    before = threading.active_count()
    run = Run(ENDLESS, RunLimits(max_frames=200), engine=0.05)
    other = RecordingSink(run.clock)
    run.runner._sinks.append(other)
    if part == "sink":
        run.sink.fails_at = 4
    elif part == "engine":
        run.stages.fails_at = 8

    def watch() -> bool:
        if part == "watch" and run.clock.now() > 1:
            raise KeyboardInterrupt
        return True

    expected = {"sink": OSError, "engine": CameraError, "watch": KeyboardInterrupt}[part]
    with pytest.raises(expected):
        run.runner.run(watch)
    assert (run.sink.closed, other.closed, run.source.open_now) == (1, 1, 0)
    assert run.runner._running == 0
    for _ in range(100):
        if threading.active_count() == before:
            break
        threading.Event().wait(0.01)
    assert threading.active_count() == before


class StuckSource:
    """One picture, and then a read that nothing interrupts, as OpenCV's are."""

    name = "stuck"
    damaged = 0

    def __init__(self) -> None:
        self.free = threading.Event()
        self._given = False

    def open(self) -> StuckSource:
        return self

    def read(self) -> Picture | None:
        if self._given:
            self.free.wait(60)
            return None
        self._given = True
        return np.zeros((8, 12, 3), np.uint8)

    def interrupt(self) -> None:
        pass

    def close(self) -> None:
        pass


def test_a_signal_while_a_read_is_waited_for_closes_the_sinks_all_the_same() -> None:
    clock, source = SystemClock(), StuckSource()
    sink = RecordingSink(clock)
    runner = LiveRunner(source, TimedStages(time.sleep), [sink], clock, Statistics(clock.now))
    main = threading.get_ident()

    def signal_in_the_end() -> None:
        while not sink.indices or runner._running:  # then only the capture is left
            time.sleep(0.01)
        time.sleep(0.2)
        signal.pthread_kill(main, signal.SIGINT)

    # It may be ignored here, and inherited so, where the tests run in the background of a script.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=signal_in_the_end, daemon=True).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            runner.run(lambda: not sink.indices)
    finally:
        signal.signal(signal.SIGINT, before)
        source.free.set()
        for thread in threading.enumerate():
            if thread.name == "rsd-edge-capture":
                thread.join()
    assert sink.closed == 1


def test_what_a_sink_fails_with_at_its_end_is_told() -> None:
    run = Run(ENDLESS, RunLimits(max_frames=2))

    def close() -> None:
        raise OSError("no room")

    run.sink.close = close
    with pytest.raises(OSError, match="no room"):
        run.go()


def test_of_several_failures_the_first_is_told_and_the_other_sinks_are_closed() -> None:
    run = Run(ENDLESS, RunLimits())
    other = RecordingSink(run.clock)
    run.runner._sinks.append(other)
    run.stages.fails_at = 0

    def close() -> None:
        raise ValueError("a mistake")

    run.sink.close = close
    with pytest.raises(CameraError, match="the engine failed"):
        run.go()
    assert other.closed == 1


def test_bad_limits_are_told() -> None:
    for make in (
        lambda: RunLimits(drop="oldest"),
        lambda: RunLimits(max_frames=0),
        lambda: RunLimits(max_pixels=0),
        lambda: Reconnection(max_outage=0),
        lambda: Reconnection(max_outage=math.nan),
    ):
        with pytest.raises(InputError):
            make()
