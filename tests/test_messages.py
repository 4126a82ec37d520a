"""`rsd-edge run` where nobody listens to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from video_clips import Recipe, make

from rsd_edge.stream.images import write_image

COMMAND = [sys.executable, "-c", "from rsd_edge.cli import main; main()", "run"]


@pytest.fixture
def inputs(tmp_path: Path) -> list[str]:
    """Two films, which are told of when they are done, and an image that is told to be damaged."""
    write_image(tmp_path / "a.jpg", np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8))
    jpeg = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(jpeg[: jpeg.index(b"\xff\xda") + 60] + b"\xff\xd9")
    films = [str(make(tmp_path / name, Recipe(times=range(0, 3 * 512, 512)))) for name in ("b.mp4", "c.mp4")]
    return [str(tmp_path / "a.jpg"), *films]


@pytest.mark.parametrize("opened", [os.pipe, os.openpty])
def test_a_reader_that_ends_stops_nothing(
    inputs: list[str], tmp_path: Path, toy_bundle: Path, opened: Callable[[], tuple[int, int]]
) -> None:
    """A pipe to `head`, or the terminal of a connection that dropped."""
    listens, writes = opened()
    os.close(listens)
    engine = ("--engine", str(toy_bundle), "--threads", "1")
    words = [*inputs, "-o", str(tmp_path / "out"), "--report", str(tmp_path / "report.json"), *engine]
    ended = subprocess.run([*COMMAND, *words], stderr=writes, check=False, timeout=60)
    os.close(writes)
    assert ended.returncode == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.mp4", "c.mp4"]
    assert [entry["status"] for entry in json.loads((tmp_path / "report.json").read_text())["files"]] == ["done"] * 3


def test_a_mistake_has_its_exit_code_where_nobody_hears_of_it(tmp_path: Path) -> None:
    listens, writes = os.pipe()
    os.close(listens)
    words = [str(tmp_path / "missing.png"), "-o", str(tmp_path / "out.png")]
    ended = subprocess.run([*COMMAND, *words], stderr=writes, check=False, timeout=60)
    os.close(writes)
    assert ended.returncode == 2


def test_who_listens_hears_all(inputs: list[str], tmp_path: Path, toy_bundle: Path) -> None:
    words = [*inputs, "-o", str(tmp_path / "out"), "--engine", str(toy_bundle), "--threads", "1"]
    ended = subprocess.run([*COMMAND, *words], capture_output=True, text=True, check=True, timeout=60)
    assert ended.stderr.startswith(f"warning: {inputs[0]}: its data is damaged")
    assert ended.stderr.count("3 frames, 64x48 to 256x192") == 2
