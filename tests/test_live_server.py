"""The page for browsers: what it serves, to whom, and that nobody slows the run."""

from __future__ import annotations

import contextlib
import importlib
import json
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import web_driver

from rsd_edge.errors import InputError, MissingDependencyError, OutputError
from rsd_edge.live.address import Address
from rsd_edge.live.frames import LiveFrame, LiveResult
from rsd_edge.live.statistics import Statistics

pytest.importorskip("aiohttp")

from rsd_edge.live import server
from rsd_edge.live.server import PageSink

UPGRADE = (
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


def make_result(index: int, size: tuple[int, int] = (64, 48)) -> LiveResult:
    width, height = size
    small = np.full((height // 4, width // 4, 3), (index * 37) % 256, np.uint8)
    large = np.full((height, width, 3), (index * 37) % 256, np.uint8)
    return LiveResult(LiveFrame(index, time.monotonic(), small), large)


class Feed:
    """Results at 40 a second, and how long each `write` took."""

    def __init__(self, sink: PageSink, statistics: Statistics, size: tuple[int, int] = (64, 48)) -> None:
        self.slowest, self._ended = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._work, args=(sink, statistics, size))
        self._thread.start()

    def _work(self, sink: PageSink, statistics: Statistics, size: tuple[int, int]) -> None:
        statistics.open, index = True, 0
        while not self._ended.wait(0.025):
            result = make_result(index, size)
            statistics.captured(time.monotonic(), 0.001, (size[0] // 4, size[1] // 4))
            began = time.perf_counter()
            sink.write(result)
            self.slowest = max(self.slowest, time.perf_counter() - began)
            statistics.delivered(result.frame.captured, size)
            index += 1

    def end(self) -> None:
        self._ended.set()
        self._thread.join()


@pytest.fixture
def statistics() -> Statistics:
    return Statistics(time.monotonic)


@pytest.fixture
def page(statistics: Statistics) -> Iterator[PageSink]:
    sink = PageSink(Address.parse("0"), "test", statistics, most_clients=3)
    feed = Feed(sink, statistics)
    yield sink
    feed.end()
    sink.close()


def get(url: str, **headers: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def levels_in(answer: Any) -> Iterator[int]:
    """The grey level of each JPEG of an MJPEG stream."""
    while line := answer.readline():
        if line.lower().startswith(b"content-length"):
            answer.readline()
            data = answer.read(int(line.split(b":")[1]))
            yield int(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[5, 5, 0])


def frames_of(url: str, count: int) -> list[int]:
    """So many of these levels."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        return list(islice(levels_in(answer), count))


def test_addresses_are_this_machine_unless_told_otherwise() -> None:
    assert Address.parse("8080") == Address("127.0.0.1", 8080, None)
    assert Address.parse("localhost:80").token is None
    assert Address.parse("[::1]:80").token is None
    for text in ("0.0.0.0:80", "192.168.1.2:80", "camera.local:80", "[::]:80"):
        made = Address.parse(text)
        assert made.token is not None
        assert len(made.token) >= 16
        assert made.token != Address.parse(text).token
        assert f"?token={made.token}" in made.url(80)
    assert Address.parse("0.0.0.0:80", "abcdefgh").token == "abcdefgh"
    for text in ("", "x", "1:2:x", "host:", "70000", ":-1"):
        with pytest.raises(InputError):
            Address.parse(text)
    with pytest.raises(InputError, match="8 or more"):
        Address.parse("0.0.0.0:80", "short")


def test_other_sites_and_wrong_tokens_are_refused() -> None:
    local = Address.parse("8080")
    assert local.admits("127.0.0.1:8080", None, None)
    assert local.admits("localhost:8080", "http://localhost:8080", None)
    assert not local.admits("127.0.0.1:8080", "http://evil.example", None)
    assert not local.admits("evil.example:8080", "http://evil.example:8080", None)  # a name that points here
    assert not local.admits(None, None, None)
    assert not local.admits("127.0.0.1:8080", "null", None)  # a sandboxed frame of any site
    assert not local.admits("127.0.0.1:8080", "http://[::1", None)
    wide = Address.parse("0.0.0.0:8080", "right-token")
    assert wide.admits("10.0.0.5:8080", None, "right-token")
    assert not wide.admits("10.0.0.5:8080", None, None)
    assert not wide.admits("10.0.0.5:8080", None, "wrong-token")
    assert not wide.admits("127.0.0.1:8080", None, None)
    assert not wide.admits("10.0.0.5:8080", "http://evil.example", "right-token")
    assert not wide.admits("10.0.0.5:8080", None, "right-token\udcff")  # a byte that is no text


def test_without_its_library_the_cure_is_told(monkeypatch: pytest.MonkeyPatch, statistics: Statistics) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    monkeypatch.delitem(sys.modules, "rsd_edge.live.server")
    server = importlib.import_module("rsd_edge.live.server")  # as everything is, where only the core is installed
    with pytest.raises(MissingDependencyError, match=r"--serve needs 'aiohttp'; run: pip install 'rsd-edge\[serve\]'"):
        server.PageSink(Address.parse("0"), "test", statistics)


def test_the_page_and_its_numbers_are_served(page: PageSink) -> None:
    for path, start in (("", b"<!doctype html>"), ("live.js", b'"use strict"'), ("live.css", b":root")):
        status, body = get(page.url + path)
        assert (status, body[: len(start)]) == (200, start)
    deadline = time.monotonic() + 10
    while (found := json.loads(get(page.url + "stats.json")[1]))["signal"] != "live" and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (found["camera"], found["signal"], found["result"]) == ("test", "live", [64, 48])
    assert b"rsd_edge_sr_fps " in get(page.url + "metrics")[1]
    status, body = get(page.url + "snapshot.png")
    picture = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (48, 64, 3)
    assert get(page.url + "nothing")[0] == 404
    assert get(page.url, Host="evil.example")[0] == 403


def test_other_programs_get_mjpeg(statistics: Statistics) -> None:
    sink = PageSink(Address.parse("0"), "test", statistics)
    indices = (0, 1, 2, 9, 10)
    try:
        sink.write(make_result(indices[0]))
        with urllib.request.urlopen(sink.url + "stream.mjpg", timeout=10) as answer:
            levels = levels_in(answer)
            shown = [next(levels)]
            for index in indices[1:]:
                sink.write(make_result(index))
                shown.append(next(levels))
    finally:
        sink.close()
    assert shown == pytest.approx([37 * index % 256 for index in indices], abs=1)  # JPEG keeps a flat grey to a level


def test_a_token_opens_everything_and_nothing_opens_without(statistics: Statistics) -> None:
    sink = PageSink(Address("127.0.0.1", 0, "right-token"), "test", statistics)
    try:
        base, _, query = sink.url.partition("?")
        assert query == "token=right-token"
        for path in ("", "ws", "stream.mjpg", "snapshot.png", "stats.json", "metrics", "live.js"):
            assert get(base + path)[0] == 403
        assert get(base + "metrics?token=right-token")[0] == 200
        assert get(base + "metrics", Authorization="Bearer right-token")[0] == 200
        assert get(base + "live.js", Cookie="rsd-edge-token=right-token")[0] == 200
        assert get(base + "metrics?token=wrong-token")[0] == 403
    finally:
        sink.close()


def test_an_address_in_use_is_told(statistics: Statistics) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OutputError, match=r"cannot serve on 127.0.0.1:.*choose another"):
            PageSink(Address("127.0.0.1", taken.getsockname()[1], None), "test", statistics)


@pytest.mark.parametrize("host", ["cam..lan", f"{'x' * 64}.lan"])
def test_a_host_that_is_no_name_is_told(statistics: Statistics, host: str) -> None:
    with pytest.raises(OutputError, match=rf"cannot serve on {host}:8080 \(.*label.*\); choose another address"):
        PageSink(Address(host, 8080, "right-token"), "test", statistics)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_server_that_ends_before_it_serves_is_told(statistics: Statistics, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(site: Any) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(server.web.TCPSite, "start", broken)
    with pytest.raises(OutputError, match=r"cannot serve on 127\.0\.0\.1:0 \(it does not start\); choose another"):
        PageSink(Address.parse("0"), "test", statistics)


def test_clients_that_take_nothing_slow_nobody_and_are_let_go(
    statistics: Statistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_SECONDS_TO_SEND", 3.0)
    sink = PageSink(Address.parse("0"), "test", statistics, most_clients=3)
    feed = Feed(sink, statistics, (1280, 960))
    port = int(sink.url.rsplit(":", 1)[1].strip("/"))
    lazy = []
    try:
        for _ in range(2):
            client = socket.create_connection(("127.0.0.1", port))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.sendall(b"GET /stream.mjpg HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            lazy.append(client)
        deadline = time.monotonic() + 10
        while sink.watching < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(frames_of(sink.url + "stream.mjpg", 12)) == 12  # who takes frames gets them
        deadline = time.monotonic() + 10
        while sink.watching > 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        with urllib.request.urlopen(sink.url + "stream.mjpg", timeout=10):
            assert get(sink.url + "stream.mjpg")[0] == 503
        deadline = time.monotonic() + 20
        while sink.watching and time.monotonic() < deadline:
            time.sleep(0.05)
        assert sink.watching == 0  # the lazy ones are connected and have been given up
    finally:
        feed.end()
        for client in lazy:
            client.close()
        sink.close()
    # Whoever waited for the lazy ones would wait for three seconds; the rest is left to a busy machine.
    assert feed.slowest < 1.5
    assert not sink._thread.is_alive()


def test_a_browser_that_takes_nothing_is_let_go(statistics: Statistics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_SECONDS_TO_SEND", 0.2)
    sink = PageSink(Address.parse("0"), "test", statistics)
    noise = np.random.default_rng(0).integers(0, 256, (1920, 2560, 3), np.uint8)  # as JPEG, more than sockets hold
    large = LiveResult(LiveFrame(0, 0.0, np.zeros((480, 640, 3), np.uint8)), noise)
    try:
        with socket.create_connection(("127.0.0.1", int(sink.url.rsplit(":", 1)[1].strip("/")))) as lazy:
            lazy.sendall(f"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\n{UPGRADE}\r\n".encode())
            assert lazy.recv(12).split()[1] == b"101"
            assert sink.watching == 1
            deadline = time.monotonic() + 10  # long before the heartbeat would miss an answer
            while sink.watching and time.monotonic() < deadline:
                sink.write(large)
                time.sleep(0.05)
            assert sink.watching == 0
    finally:
        sink.close()


@pytest.mark.parametrize("path", ["stream.mjpg", "ws"])
def test_who_leaves_while_there_is_no_signal_keeps_no_seat(statistics: Statistics, path: str) -> None:
    sink = PageSink(Address.parse("0"), "test", statistics, most_clients=2)
    address = ("127.0.0.1", int(sink.url.rsplit(":", 1)[1].strip("/")))
    try:
        for _ in range(3):
            with socket.create_connection(address) as client:
                client.sendall(f"GET /{path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{UPGRADE}\r\n".encode())
                assert client.recv(12).split()[1] in (b"101", b"200")
                assert sink.watching == 1
            deadline = time.monotonic() + 10
            while sink.watching and time.monotonic() < deadline:
                time.sleep(0.02)
            assert sink.watching == 0
    finally:
        sink.close()


def test_snapshots_that_nobody_takes_have_bounded_room(statistics: Statistics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_MOST_SNAPSHOTS", 1)
    sink = PageSink(Address.parse("0"), "test", statistics)
    pixels = np.random.default_rng(0).integers(0, 256, (1920, 2560, 3), np.uint8)  # 15 MB: more than sockets hold
    sink.write(LiveResult(LiveFrame(0, 0.0, np.zeros((480, 640, 3), np.uint8)), pixels))
    address = ("127.0.0.1", int(sink.url.rsplit(":", 1)[1].strip("/")))
    try:
        with socket.create_connection(address) as lazy:
            lazy.sendall(b"GET /snapshot.png HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert lazy.recv(8) == b"HTTP/1.1"
            assert get(sink.url + "snapshot.png")[0] == 503
            assert get(sink.url + "stats.json")[0] == 200
        deadline = time.monotonic() + 10
        while (status := get(sink.url + "snapshot.png")[0]) == 503 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert status == 200
    finally:
        sink.close()


def test_nothing_is_left_after_closing_with_clients(statistics: Statistics) -> None:
    before = threading.active_count()
    sink = PageSink(Address.parse("0"), "test", statistics)
    feed = Feed(sink, statistics)
    with urllib.request.urlopen(sink.url + "stream.mjpg", timeout=10) as watching:
        assert watching.readline()
        feed.end()
        sink.close()
    assert threading.active_count() == before
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(sink.url, timeout=2)
    sink.close()


@pytest.mark.browser
@pytest.mark.skipif(bool(web_driver.missing()), reason=web_driver.missing() or "there is one")
def test_a_browser_shows_frames_and_its_slider_moves(page: PageSink, tmp_path: Path) -> None:
    with web_driver.browser(tmp_path) as browser:
        browser.open(page.url)
        browser.wait_for("return window.shown.frames > 2")
        first = browser.run("return window.shown.index")
        browser.wait_for(f"return window.shown.index > {first} + 2")
        level = "return document.getElementById('after').getContext('2d').getImageData(40, 20, 1, 1).data[0]"
        seen = {browser.run(level)}
        browser.wait_for(f"return window.shown.index > {first} + 10")
        seen.add(browser.run(level))
        assert len(seen) == 2  # what is drawn changes, and not the counter alone
        assert float(browser.run("return document.getElementById('sr-fps').textContent")) > 0
        assert browser.run("return document.getElementById('state-text').textContent") == "live"
        box = browser.run(
            "const box = document.getElementById('stage').getBoundingClientRect();"
            "return [box.left, box.top, box.width, box.height]"
        )
        left, top, width, height = box
        middle = round(top + height / 2)
        browser.drag((round(left + width / 2), middle), (round(left + width / 4), middle))
        assert (
            abs(int(browser.run("return document.getElementById('divider').getAttribute('aria-valuenow')")) - 25) <= 1
        )
        clip = browser.run("return document.getElementById('before').style.clipPath")
        assert float(clip.split()[1].rstrip("%")) == pytest.approx(75, abs=1)
        browser.run("document.getElementById('pause').click()")
        browser.run("return 0")
        stopped = browser.run("return window.shown.index")
        time.sleep(0.5)
        assert browser.run("return window.shown.index") <= stopped + 1  # one may have been on its way
        browser.run("document.getElementById('pause').click()")
        browser.wait_for(f"return window.shown.index > {stopped} + 3")
        assert [entry for entry in browser.console() if entry["level"] == "SEVERE"] == []


def test_eight_may_watch_unless_told_otherwise(statistics: Statistics) -> None:
    sink = PageSink(Address.parse("0"), "test", statistics)
    try:
        with contextlib.ExitStack() as watchers:
            for _ in range(8):
                watchers.enter_context(urllib.request.urlopen(sink.url + "stream.mjpg", timeout=10))
            assert get(sink.url + "stream.mjpg")[0] == 503
    finally:
        sink.close()
