"""What bench_start.py runs: Python programs in fresh processes, from their start to their end."""

from __future__ import annotations

import subprocess
import sys

from turns import Job, scratch

from rsd_edge.errors import BackendError

IMPORT = "import rsd_edge"
LOAD = IMPORT + "; r = rsd_edge.SuperResolver.load({model!r}, precision={precision!r}, backend={backend!r})"
FIRST_FRAME = LOAD + "; import numpy; r(numpy.zeros((64, 64, 3), numpy.uint8))"


def program(code: str) -> Job:
    """`python -c`. Files are in the system's cache from the second run on."""
    return Job(lambda: _finish("-c", code))


def build(model: str, precision: str, threads: int) -> Job:
    """`rsd-edge build-engine`, into a new folder each time."""
    words = ("build-engine", "--model", model, "--precision", precision, "--backend", "onnxruntime")
    return Job(lambda: _finish("-m", "rsd_edge", *words, "--threads", str(threads), "-o", str(scratch())))


def _finish(*words: str) -> None:
    done = subprocess.run([sys.executable, *words], check=False, capture_output=True, text=True, cwd=scratch())
    if done.returncode:
        raise BackendError(f"'python {' '.join(words)}' ended with {done.returncode}: {done.stderr.strip()[-500:]}")
