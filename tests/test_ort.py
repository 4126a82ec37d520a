from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_onnx_runtime_writes_nothing_into_the_cache(tmp_path: Path) -> None:
    """Version 1.31 would write a device id and a database there when it is imported."""
    code = "import rsd_edge.backends.onnxruntime as engine; engine.ort.SessionOptions()"
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        check=True,
    )
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
