"""Counts, rates and quantiles of live runs, and queues."""

from __future__ import annotations

import numpy as np
import pytest
from virtual_clock import VirtualClock

from rsd_edge.live.channel import Channel
from rsd_edge.live.clock import SystemClock
from rsd_edge.live.statistics import Series, Statistics, prometheus


def test_series_keep_the_latest_values_and_the_sum_of_all() -> None:
    series = Series()
    for value in range(70000):
        series.add(float(value))
    assert (series.count, series.total) == (70000, 70000 * 69999 / 2)
    assert list(series.latest(3)) == [69997.0, 69998.0, 69999.0]
    assert len(series.latest()) == 1 << 16
    found = series.quantiles(101)
    assert found == {"p50": 69949.0, "p95": 69994.0, "p99": 69998.0, "max": 69999.0}
    assert Series().quantiles() is None


def test_rates_are_those_of_the_last_frames_and_fall_when_nothing_comes() -> None:
    series = Series()
    assert series.rate(0.0) == 0.0
    for k in range(200):
        series.add(k / 25)
    last = 199 / 25
    assert series.rate(last) == pytest.approx(25.0)
    assert series.rate(last + 1 / 25) == pytest.approx(25.0)
    # 89 intervals of 1/25 s, and ten seconds more of which two intervals are forgiven.
    assert series.rate(last + 10) == pytest.approx(89 / (89 / 25 + 10 - 2 / 25))


def test_a_short_run_is_no_faster_than_the_wait_for_its_first_result_allows() -> None:
    clock = VirtualClock()
    statistics = Statistics(clock.now)
    for k in range(6):
        clock.time = 10 + 0.1 * k
        statistics.captured(clock.time, 0.0, (16, 9))
    statistics.dropped = 1
    for _ in range(4):
        clock.time += 0.125
        statistics.delivered(10.0, (64, 36))
    report = statistics.report()
    assert report["capture_fps"] == pytest.approx(10.0, abs=1e-3)
    assert report["sr_fps"] == 4.0  # in the second since the first frame; 8 between the first result and the last
    assert report["not_finished"] == 1


def test_a_run_is_counted_exactly() -> None:
    clock = VirtualClock()
    statistics = Statistics(clock.now)
    assert statistics.signal == "no signal"
    statistics.open = True
    for k in range(5):
        clock.time = k * 0.5
        statistics.captured(clock.time, 0.02, (160, 90))
        statistics.stage("engine", 0.1 * (k + 1))
        clock.time += 0.2
        statistics.delivered(k * 0.5, (640, 360))
        statistics.computed(4, k)
    report = statistics.report()
    assert report["seconds"] == 2.2
    assert report["capture_fps"] == report["sr_fps"] == 2.0
    assert report["latency_ms"] == {"p50": 200.0, "p95": 200.0, "p99": 200.0, "max": 200.0}
    assert report["stages_ms"]["engine"] == {"p50": 300.0, "p95": 480.0, "p99": 496.0, "max": 500.0}
    assert report["stages_ms"]["pre"] is None
    assert (report["tiles"], report["tiles_reused"]) == (20, 0.5)
    assert statistics.signal == "live"
    clock.time = 3.4  # 1.4 s after the last frame, and three times the usual interval is 1.5 s
    assert statistics.signal == "live"
    clock.time = 3.6
    assert statistics.signal == "no signal"
    statistics.captured(clock.time, 0.02, (160, 90))
    statistics.open = False
    assert statistics.signal == "no signal"


def test_silence_is_told_after_a_second() -> None:
    clock = VirtualClock()
    statistics = Statistics(clock.now)
    statistics.open = True
    for _ in range(3):
        clock.time += 0.25
        statistics.captured(clock.time, 0.02, (8, 8))
    clock.time += 0.99
    assert statistics.signal == "live"
    clock.time += 0.02
    assert statistics.signal == "no signal"


def test_prometheus_gets_valid_text() -> None:
    clock = VirtualClock()
    statistics = Statistics(clock.now)
    statistics.open = True
    for _ in range(3):
        clock.time += 0.25
        statistics.captured(clock.time, 0.02, (8, 8))
        statistics.stage("engine", 0.125)
        statistics.delivered(clock.time - 0.125, (32, 32))
    statistics.dropped = 1234567
    text = prometheus(statistics)
    assert "\nrsd_edge_frames_dropped_total 1234567\n" in text
    values = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            values[name] = float(value)
    assert values["rsd_edge_signal"] == 1.0
    assert values["rsd_edge_frames_captured_total"] == 3.0
    assert values["rsd_edge_capture_fps"] == 4.0
    assert values['rsd_edge_latency_seconds{quantile="0.99"}'] == 0.125
    assert values["rsd_edge_latency_seconds_sum"] == 0.375
    assert values['rsd_edge_stage_seconds{stage="engine",quantile="0.50"}'] == 0.125
    assert values['rsd_edge_stage_seconds_count{stage="engine"}'] == 3.0
    types = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(types) == len(set(types)) == 10


def test_a_mailbox_keeps_the_newest_and_counts_the_others() -> None:
    mailbox: Channel[int] = Channel(SystemClock(), 1, newest=True)
    assert [mailbox.put(k) for k in range(5)] == [True] * 5
    assert (mailbox.get(), mailbox.dropped) == (4, 4)
    mailbox.put(7)
    mailbox.finish()
    assert not mailbox.put(8)
    assert (mailbox.get(), mailbox.get()) == (7, None)


def test_a_queue_waits_for_room_and_lets_go_when_closed() -> None:
    clock = SystemClock()
    queue: Channel[int] = Channel(clock, 2)
    taken: list[int | None] = []
    put: list[bool] = []

    def produce() -> None:
        put.extend(queue.put(k) for k in range(4))
        put.append(queue.put(99))
        put.append(queue.put(100))

    producer = clock.start(produce, "test")
    taken.extend(queue.get() for _ in range(3))
    producer.join(0.05)
    assert producer.is_alive()  # waits for room
    queue.close()
    producer.join(5)
    assert not producer.is_alive()
    assert taken == [0, 1, 2]
    assert put[:4] == [True] * 4
    assert put[-1] is False
    assert queue.get() is None
    assert np.all(put[:4])
