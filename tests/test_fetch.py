"""Against a server of our own that cuts connections, lies about sizes and changes its mind."""

from __future__ import annotations

import errno
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rsd_edge.cli import main
from rsd_edge.errors import FetchError
from rsd_edge.models import fetch as module
from rsd_edge.models.fetch import ATTEMPTS, PUBLISHED, Published, fetch

CONTENT = b"PK\x03\x04" + np.random.default_rng(0).bytes(3 << 20)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


class Mirror:
    """What the server sends, and the ranges it was asked for."""

    def __init__(self) -> None:
        self.content = CONTENT
        self.cut_after: int | None = None
        """Bytes after which every connection ends; None for none."""
        self.claims: int | None = None
        """Content-Length that is sent, if not the true one."""
        self.status = 200
        self.content_type = "application/octet-stream"
        self.ranges = True
        self.chunked = False
        """No Content-Length, but parts that each say how long they are."""
        self.open = threading.Event()
        """Until it is set, nothing is sent."""
        self.open.set()
        self.asked: list[str | None] = []

    @property
    def etag(self) -> str:
        return f'"{hashlib.md5(self.content).hexdigest()}"'


@pytest.fixture
def mirror() -> Iterator[tuple[Mirror, Published]]:
    state = Mirror()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers["Range"]
            state.asked.append(asked)
            if state.status != 200:
                self.send_error(state.status)
                return
            valid = self.headers["If-Range"] in (None, state.etag)
            start = int(asked[6:-1]) if asked and valid and state.ranges else 0
            if start >= len(state.content):
                self.send_error(416)
                return
            body = state.content[start:]
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(state.content) - 1}/{len(state.content)}")
            if state.chunked:
                self.send_header("Transfer-Encoding", "chunked")
                body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
            else:
                self.send_header("Content-Length", str(state.claims or len(body)))
            self.send_header("Content-Type", state.content_type)
            self.send_header("ETag", state.etag)
            self.end_headers()
            state.open.wait(20)
            self.wfile.write(body[: state.cut_after])

        def log_message(self, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that hangs up early is part of the tests."""

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_address[1]}/weights.pth"
            yield state, Published("weights.pth", "rsd", url, "https://page")
        finally:
            server.shutdown()
            thread.join()


def files(folder: Path) -> list[str]:
    """All but the lock, which stays: another process may wait for it."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".weights.pth.lock")


def test_a_file_is_downloaded_once_and_pinned(mirror: tuple[Mirror, Published], tmp_path: Path) -> None:
    state, published = mirror
    seen: list[tuple[int, int]] = []
    path = fetch(published, tmp_path / "cache", progress=lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    pin = json.loads((path.parent / "weights.pth.sha256.json").read_text())
    assert pin["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    assert fetch(published, tmp_path / "cache", offline=True) == path
    assert state.asked == [None]
    assert files(path.parent) == ["weights.pth", "weights.pth.sha256.json"]


def test_a_cut_download_goes_on_where_it_stopped(mirror: tuple[Mirror, Published], tmp_path: Path) -> None:
    state, published = mirror
    state.cut_after = 1_000_000
    assert fetch(published, tmp_path).read_bytes() == CONTENT
    assert state.asked == [None, "bytes=1000000-", "bytes=2000000-", "bytes=3000000-"]


def test_a_later_command_goes_on_too(mirror: tuple[Mirror, Published], tmp_path: Path) -> None:
    state, published = mirror
    state.cut_after = 500_000
    with pytest.raises(FetchError, match=f"was cut {ATTEMPTS} times .2500000 of {len(CONTENT)} bytes came.*; run the"):
        fetch(published, tmp_path)
    state.cut_after = None
    assert fetch(published, tmp_path).read_bytes() == CONTENT
    assert state.asked[-1] == "bytes=2500000-"
    assert files(tmp_path) == ["weights.pth", "weights.pth.sha256.json"]


@pytest.mark.parametrize("cut", [700_000, 3 << 20, -5])  # within the only part, and in the end mark behind it
def test_a_cut_download_of_unknown_size_is_not_taken_for_whole(
    mirror: tuple[Mirror, Published], tmp_path: Path, cut: int
) -> None:
    state, published = mirror
    state.chunked, state.cut_after = True, cut
    with pytest.raises(FetchError, match=f"was cut {ATTEMPTS} times"):
        fetch(published, tmp_path)
    assert "weights.pth" not in files(tmp_path)
    assert "weights.pth.sha256.json" not in files(tmp_path)
    state.cut_after = None
    assert fetch(published, tmp_path).read_bytes() == CONTENT


def test_two_at_once_download_once(
    mirror: tuple[Mirror, Published], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state, published = mirror
    state.open.clear()
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(fetch, published, tmp_path) for _ in range(2)]
        deadline = time.monotonic() + 10
        while f"another process fetches {tmp_path / 'weights.pth'}; waiting" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        state.open.set()
        assert [found.result().read_bytes() for found in both] == [CONTENT] * 2
    assert state.asked == [None]
    assert files(tmp_path) == ["weights.pth", "weights.pth.sha256.json"]


def test_a_folder_without_locks_is_written_to_all_the_same(
    mirror: tuple[Mirror, Published], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    assert fetch(mirror[1], tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("content", [CONTENT[:2_600_000:-1] * 7, CONTENT[:3:-1]], ids=["larger", "as large"])
def test_a_file_that_changed_meanwhile_is_sent_whole(
    mirror: tuple[Mirror, Published], tmp_path: Path, content: bytes, ranges: bool
) -> None:
    """Never the beginning of one and the end of another; nor with a server that knows no ranges."""
    state, published = mirror
    state.cut_after = 500_000
    with pytest.raises(FetchError, match="was cut"):
        fetch(published, tmp_path)
    state.cut_after, state.ranges = None, ranges
    state.content = b"PK\x03\x04" + content
    assert fetch(published, tmp_path).read_bytes() == state.content


def test_a_shorter_file_than_what_is_here(mirror: tuple[Mirror, Published], tmp_path: Path) -> None:
    state, published = mirror
    (tmp_path / "weights.pth.part").write_bytes(CONTENT)
    (tmp_path / "weights.pth.part.json").write_text(json.dumps({"etag": None, "total": 9 * len(CONTENT)}))
    state.content = CONTENT[:1000]
    assert fetch(published, tmp_path).read_bytes() == CONTENT[:1000]
    assert state.asked == [f"bytes={len(CONTENT)}-", None]


def test_a_wrong_size_is_no_file(mirror: tuple[Mirror, Published], tmp_path: Path) -> None:
    state, published = mirror
    state.claims, state.content = 5000, CONTENT[:4000]
    with pytest.raises(FetchError, match="was cut 5 times"):
        fetch(published, tmp_path)
    assert "weights.pth" not in files(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"content_type": "text/html; charset=utf-8"},
            r"sent a page \(text/html\) instead of the file; open https://page in a ",
        ),
        ({"content": b"<html>quota exceeded</html>"}, r"sent no checkpoint \(it begins with b'<html>quota "),
        ({"status": 403}, r"was refused \(403 Forbidden\); try later, or download weights\.pth from https://page"),
        ({"status": 404}, r"was refused \(404 Not Found\)"),
        ({"status": 503}, r"was refused \(503 Service Unavailable\)"),
    ],
)
def test_what_a_mirror_sends_instead_is_told(
    change: dict[str, Any], message: str, mirror: tuple[Mirror, Published], tmp_path: Path
) -> None:
    state, published = mirror
    for name, value in change.items():
        setattr(state, name, value)
    with pytest.raises(FetchError, match=message):
        fetch(published, tmp_path)
    assert not [name for name in files(tmp_path) if name.endswith((".pth", ".part"))]


@pytest.mark.parametrize(
    "change", [{"content_type": "text/html"}, {"content": b"<html>log in first</html>"}], ids=["said", "not said"]
)
def test_a_page_in_place_of_the_rest_costs_nothing(
    change: dict[str, Any], mirror: tuple[Mirror, Published], tmp_path: Path
) -> None:
    """As hotels and trains send it. The file itself comes as it did, from where it stopped."""
    state, published = mirror
    state.cut_after = 500_000
    with pytest.raises(FetchError, match="was cut"):
        fetch(published, tmp_path)
    have = (tmp_path / "weights.pth.part").stat().st_size
    state.cut_after, state.ranges = None, False
    before = {name: getattr(state, name) for name in change}
    for name, value in change.items():
        setattr(state, name, value)
    with pytest.raises(FetchError, match="sent"):
        fetch(published, tmp_path)
    for name, value in before.items():
        setattr(state, name, value)
    state.ranges = True
    assert fetch(published, tmp_path).read_bytes() == CONTENT
    assert state.asked[-1] == f"bytes={have}-"


def test_a_file_that_only_lacks_its_name_is_not_asked_for(mirror: tuple[Mirror, Published], tmp_path: Path) -> None:
    state, published = mirror
    (tmp_path / "weights.pth.part").write_bytes(CONTENT)
    (tmp_path / "weights.pth.part.json").write_text(json.dumps({"etag": state.etag, "total": len(CONTENT)}))
    assert fetch(published, tmp_path).read_bytes() == CONTENT
    assert state.asked == []


def test_another_content_later_is_refused(mirror: tuple[Mirror, Published], tmp_path: Path) -> None:
    state, published = mirror
    fetch(published, tmp_path).unlink()
    state.content = CONTENT[:-1] + b"!"
    with pytest.raises(FetchError, match=r"is not what it was the first time .*; delete .*sha256\.json and pass"):
        fetch(published, tmp_path)
    assert "weights.pth" not in files(tmp_path)
    state.content = CONTENT
    assert fetch(published, tmp_path).read_bytes() == CONTENT
    (tmp_path / "weights.pth").write_bytes(CONTENT[:50])  # damaged in the cache
    with pytest.raises(FetchError, match="is not what it was the first time"):
        fetch(published, tmp_path, offline=True)


def test_a_copy_is_taken(tmp_path: Path) -> None:
    source = tmp_path / "downloads" / "ema (1).pth"
    source.parent.mkdir()
    source.write_bytes(CONTENT)
    path = fetch(PUBLISHED["rsd"], tmp_path / "cache", from_file=source)
    assert path.name == "ema_model_2800.pth"
    assert path.read_bytes() == CONTENT
    source.write_bytes(b"<!DOCTYPE html>")
    for bad, message in ((source, "is no checkpoint"), (tmp_path / "none", "does not exist")):
        with pytest.raises(FetchError, match=message):
            fetch(PUBLISHED["rsd"], tmp_path / "cache", from_file=bad)
    assert path.read_bytes() == CONTENT


def test_a_wrong_copy_replaces_nothing(mirror: tuple[Mirror, Published], tmp_path: Path) -> None:
    _, published = mirror
    path = fetch(published, tmp_path / "cache")
    pin = (path.parent / "weights.pth.sha256.json").read_bytes()
    wrong = tmp_path / "wrong.pth"
    wrong.write_bytes(CONTENT[:-1] + b"!")
    with pytest.raises(FetchError, match=r"wrong\.pth is not what weights\.pth was the first time .* nothing was repl"):
        fetch(published, tmp_path / "cache", from_file=wrong)
    assert path.read_bytes() == CONTENT
    assert wrong.is_file()
    assert files(path.parent) == ["weights.pth", "weights.pth.sha256.json"]
    (path.parent / "weights.pth.sha256.json").unlink()  # trusted after all
    assert fetch(published, tmp_path / "cache", from_file=wrong).read_bytes() == wrong.read_bytes()
    assert (path.parent / "weights.pth.sha256.json").read_bytes() != pin


def test_a_wrong_download_never_takes_the_name(
    mirror: tuple[Mirror, Published], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, published = mirror
    fetch(published, tmp_path).unlink()
    state.content = CONTENT[:-1] + b"!"
    placed: list[str] = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, to: (placed.append(Path(to).name), replace(self, to))[1])
    with pytest.raises(FetchError, match="is not what it was the first time"):
        fetch(published, tmp_path)
    assert placed == ["weights.pth.changed"]


def test_what_cannot_be_downloaded_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="is not there and --offline was given"):
        fetch(PUBLISHED["autoencoder"], tmp_path, offline=True)
    nowhere = Published("a.pth", "rsd", "http://127.0.0.1:9/a.pth", "https://page")
    with pytest.raises(FetchError, match=r"cannot be reached \(.*refused\); try later, or download a\.pth"):
        fetch(nowhere, tmp_path)


def test_published_locations_are_complete() -> None:
    names = {"resshift-v1", "resshift-v2", "resshift-v3", "autoencoder", "sinsr-v1", "sinsr-v2", "rsd"}
    assert set(PUBLISHED) == names
    for item in PUBLISHED.values():
        on_drive = item.family == "rsd"
        assert item.url.startswith("https://drive." if on_drive else "https://github.com/")
        assert on_drive or item.url.endswith(f"/{item.file}")


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["fetch", *arguments])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_the_command_prints_the_path(
    mirror: tuple[Mirror, Published],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(module.PUBLISHED, "autoencoder", mirror[1])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert run("autoencoder") == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'rsd-edge' / 'published' / 'weights.pth'}\n"
    assert "weights.pth is under CC BY-NC-SA 4.0: https://creativecommons.org/" in err
    assert run("rsd", "--offline") == 2
    assert "error: " in capsys.readouterr().err


def test_the_command_takes_a_copy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "ema (1).pth"
    source.write_bytes(CONTENT)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert run("rsd", "--from-file", str(source), "--offline") == 0
    path = tmp_path / "cache" / "rsd-edge" / "published" / "ema_model_2800.pth"
    assert capsys.readouterr().out == f"{path}\n"
    assert path.read_bytes() == CONTENT
