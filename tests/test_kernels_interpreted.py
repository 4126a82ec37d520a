from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("triton")

HERE = Path(__file__).parent
FILES = ("interpreted_kernels.py", "interpreted_traffic.py")


def start(file: str) -> subprocess.Popen[str]:
    tests = [str(HERE / file), "-q", "-p", "no:cacheprovider"]
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", *tests],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=HERE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def processes() -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Side by side, each in a process of its own: whether Triton interprets is settled when kernels are imported."""
    started = {file: start(file) for file in FILES}
    yield started
    for process in started.values():
        process.kill()
        process.wait()


@pytest.mark.parametrize("file", FILES)
def test_every_kernel_in_tritons_interpreter(file: str, processes: dict[str, subprocess.Popen[str]]) -> None:
    said, _ = processes[file].communicate(timeout=600)
    assert processes[file].returncode == 0, said[-8000:]
    assert " passed" in said
    assert "skipped" not in said
