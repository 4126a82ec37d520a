from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from rsd_edge.export.planes import with_planes

pytest.importorskip("onnx")


def test_planes_hold_the_same_numbers(toy_graph: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    feeds = {
        "lq": rng.uniform(-1, 1, (2, 3, 8, 10)).astype(np.float32),
        "noise": rng.standard_normal((2, 5, 8, 10), np.float32),
    }
    rows, planes = (
        ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(["detail"], feeds)[0]
        for path in (toy_graph, with_planes(toy_graph, tmp_path / "planes.onnx"))
    )
    np.testing.assert_array_equal(planes, rows[..., ::-1].transpose(0, 3, 1, 2))
