from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

HERE = Path(__file__).parent


@pytest.mark.parametrize("file", ["interpreted_kernels.py", "interpreted_traffic.py"])
def test_every_kernel_in_tritons_interpreter(file: str) -> None:
    """In a process of its own: whether Triton compiles or interprets is settled when its kernels are imported."""
    result = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / file)]
        if sys.version_info >= (3, 11)
        else [Path(sys.executable).with_name("pytest"), "-q", str(HERE / file)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    assert " passed" in result.stdout
    assert "skipped" not in result.stdout
