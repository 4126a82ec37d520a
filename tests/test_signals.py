"""What is left when something ends `rsd-edge run` from outside."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from video_clips import Recipe, make

from rsd_edge.cli import main
from rsd_edge.signals import noted_signals
from rsd_edge.stream.images import write_image

SLOW = """
import signal, sys, time
sys.path.insert(0, sys.argv.pop(1))
import test_video_cli as doubles

class Slow(doubles.FakeResolver):
    def __call__(self, *arguments, **options):
        time.sleep(0.05)
        print(".", flush=True)
        return super().__call__(*arguments, **options)

    def bands(self, *arguments, **options):
        print(".", flush=True)
        yield from super().bands(*arguments, **options)
        time.sleep(60)

from rsd_edge.cli import main, run
run.SuperResolver = Slow
main()
"""
"""Of an image, everything but the end."""
KINDS = [(signal.SIGTERM, 143), (signal.SIGHUP, 129)]


def run_and_send(kind: signal.Signals, calls: int, *arguments: str, twice: bool = False) -> tuple[int, str]:
    """The exit code and what was told, where the signal comes after so many calls of the resolver."""
    command = [sys.executable, "-c", SLOW, str(Path(__file__).parent), "run", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        for _ in range(calls):
            run.stdout.readline()
        for _ in range(1 + twice):
            run.send_signal(kind)
        return run.wait(30), run.communicate()[1]


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    paths = [tmp_path / name for name in ("a.png", "b.png")]
    for path in paths:
        write_image(path, np.zeros((8, 8, 3), np.uint8))
    return [str(path) for path in paths]


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize(("kind", "code"), KINDS)
def test_a_signal_leaves_no_half_image_and_a_report(
    photos: list[str], tmp_path: Path, kind: signal.Signals, code: int, twice: bool
) -> None:
    """twice: as `timeout` sends it."""
    into, report = tmp_path / "out", tmp_path / "report.json"
    ended = run_and_send(kind, 1, *photos, "-o", str(into), "--report", str(report), twice=twice)
    assert (ended[0], ended[1].strip()) == (code, "interrupted; finished files are kept")
    assert not into.exists()
    assert [entry["status"] for entry in json.loads(report.read_text())["files"]] == ["interrupted", "not started"]


@pytest.mark.parametrize("io", ["av", "opencv"])
@pytest.mark.parametrize(("kind", "code"), KINDS)
def test_a_signal_leaves_the_beginning_of_a_film(tmp_path: Path, kind: signal.Signals, code: int, io: str) -> None:
    source = make(tmp_path / "a.mp4", Recipe(times=range(0, 60 * 512, 512)))
    ended, told = run_and_send(kind, 10, str(source), "-o", str(tmp_path / "b.mp4"), "--video-io", io)
    assert (ended, "Traceback" in told) == (code, False)
    assert " frames are in " in told
    assert (tmp_path / "b.partial.mp4").is_file()
    assert not list(tmp_path.glob(".rsd-edge-*"))


def test_a_signal_that_is_ignored_stays_so(tmp_path: Path) -> None:
    """As with nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with pytest.raises(SystemExit):
            main(["--version"])
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        source = make(tmp_path / "a.mp4", Recipe(times=range(0, 10 * 512, 512)))
        assert run_and_send(signal.SIGHUP, 3, str(source), "-o", str(tmp_path / "b.mp4"))[0] == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_live_run_is_left_by_a_signal_that_comes_later_and_not_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    before = signal.getsignal(signal.SIGTERM)
    with noted_signals() as came:
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
        now += 1
        with pytest.raises(SystemExit, match="143"):
            signal.raise_signal(signal.SIGTERM)
    assert came == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is before
