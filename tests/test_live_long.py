"""Long and real runs: a slow engine, sources that die and come back, twenty thousand frames."""

from __future__ import annotations

import gc
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stream_server
from live_doubles import RecordingSink, TimedStages

from rsd_edge import SuperResolver
from rsd_edge.live.clock import SystemClock
from rsd_edge.live.devices import StreamSource
from rsd_edge.live.frames import LiveResult
from rsd_edge.live.path import LivePath
from rsd_edge.live.pattern import PatternSource
from rsd_edge.live.receiver import Reconnection
from rsd_edge.live.runner import LiveRunner, RunLimits
from rsd_edge.live.statistics import Statistics

pytestmark = pytest.mark.slow

Account = Callable[[Mapping[str, Any]], None]
RATE = 30.0


def resident_mb() -> float:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def handles() -> int:
    return len(os.listdir("/proc/self/fd"))


def standing() -> dict[str, Any]:
    """What a leak would make grow."""
    gc.collect()
    return {"threads": threading.active_count(), "handles": handles(), "resident_mb": round(resident_mb(), 2)}


def test_a_slow_engine_keeps_latency_within_two_frames_and_its_own_time(account: Account) -> None:
    clock = SystemClock()
    statistics = Statistics(clock.now)
    stages = TimedStages(time.sleep, pre=0.002, engine=0.15, post=0.002)
    sink = RecordingSink(clock)
    source = PatternSource(clock, 64, 48, RATE)
    LiveRunner(source, stages, [sink], clock, statistics, RunLimits(max_frames=120)).run()
    report = statistics.report()
    engine = report["stages_ms"]["engine"]["p99"]
    assert report["latency_ms"]["p99"] <= 2 * 1000 / RATE + engine
    assert report["dropped"] > 300  # 120 x 0.15 s at 30 fps are 540 frames
    account({name: report[name] for name in ("captured", "delivered", "dropped", "latency_ms")} | {"engine_ms": engine})


@pytest.mark.parametrize("kind", ["mjpeg", "ts"])
def test_a_source_that_dies_and_revives_two_hundred_times_leaves_nothing_behind(kind: str, account: Account) -> None:
    port = stream_server.free_port()
    url = f"http://127.0.0.1:{port}/" if kind == "mjpeg" else f"tcp://127.0.0.1:{port}"
    clock = SystemClock()
    statistics = Statistics(clock.now)
    sink = RecordingSink(clock)
    rules = RunLimits(reconnection=Reconnection(first=0.01, longest=0.1, max_outage=60.0))
    runner = LiveRunner(StreamSource(url), TimedStages(time.sleep), [sink], clock, statistics, rules)
    server = stream_server.start(kind, port, 0)
    threads, seen = threading.active_count(), {}
    failures: list[BaseException] = []

    def run() -> None:
        try:
            runner.run()
        except BaseException as error:
            failures.append(error)

    running = threading.Thread(target=run)
    running.start()
    try:
        for death in range(200):
            _await_frames(statistics, statistics.captures.count + 3, failures)
            server.kill()
            server.wait()
            server = stream_server.start(kind, port, 0)
            if death in (20, 199):
                _await_frames(statistics, statistics.captures.count + 3, failures)
                seen[death + 1] = standing()
    finally:
        runner.stop()
        running.join(30)
        server.kill()
        server.wait()
    assert not failures
    assert statistics.reconnects >= 200
    account({"revivals": statistics.reconnects, "frames": statistics.results.count, "after": seen})
    early, late = seen.values()
    assert late["threads"] == early["threads"]
    assert late["handles"] <= early["handles"]
    assert late["resident_mb"] - early["resident_mb"] < 8.0  # 180 leaks of a decoder would be 50 and more
    assert threading.active_count() == threads


def _await_frames(statistics: Statistics, count: int, failures: list[BaseException]) -> None:
    deadline = time.monotonic() + 30
    while statistics.captures.count < count:
        assert not failures, failures
        assert time.monotonic() < deadline, "the source did not come back"
        time.sleep(0.005)


class WatchingSink:
    """Notes the memory at a tenth of the run and at its end."""

    name = "watching"

    def __init__(self) -> None:
        self.count = 0
        self.standing: dict[int, dict[str, Any]] = {}

    def write(self, result: LiveResult) -> None:
        self.count += 1
        if self.count in (2000, 19000):  # later, the first threads have nothing left to do
            self.standing[self.count] = standing()

    def close(self) -> None:
        pass


@pytest.mark.parametrize("temporal", ["fixed", "flow", "blend"])
def test_twenty_thousand_frames_take_no_more_memory_than_two_thousand(
    toy_bundle: Path, temporal: str, account: Account
) -> None:
    from rsd_edge.live.settings import StreamSettings

    clock = SystemClock()
    statistics = Statistics(clock.now)
    sink = WatchingSink()
    with SuperResolver.load(toy_bundle, threads=1) as resolver:
        path = LivePath(resolver.engine, StreamSettings(temporal=temporal))
        source = PatternSource(clock, 24, 18, 1000.0)
        limits = RunLimits(drop="none", max_frames=20000)
        LiveRunner(source, path, [sink], clock, statistics, limits).run()
    account({"frames": sink.count, "fps": statistics.report()["sr_fps"], "after": sink.standing})
    early, late = sink.standing.values()
    assert sink.count == 20000
    assert late["resident_mb"] - early["resident_mb"] < 4.0  # one result that is kept for each frame would be 370
    assert (late["handles"], late["threads"]) == (early["handles"], early["threads"])
    assert np.isfinite(statistics.report()["latency_ms"]["p99"])


def test_a_vanished_client_of_the_page_is_let_go() -> None:
    pytest.importorskip("aiohttp")
    from rsd_edge.live.address import Address
    from rsd_edge.live.server import PageSink

    clock = SystemClock()
    statistics = Statistics(clock.now)
    page = PageSink(Address.parse("0"), "test", statistics)
    port = int(page.url.rsplit(":", 1)[1].strip("/"))
    source = PatternSource(clock, 64, 48, 60.0)
    runner = LiveRunner(source, TimedStages(time.sleep), [page], clock, statistics, RunLimits(max_frames=900))
    counts = []

    def watch() -> bool:
        if statistics.results.count // 10 > len(counts):
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(b"GET /stream.mjpg HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
                client.recv(1000)
            counts.append(page.watching)
        return True

    before = handles()
    runner.run(watch, 0.02)
    assert len(counts) > 50
    assert max(counts) < 8
    assert statistics.dropped < 90
    assert handles() <= before
