"""How good what is measured is: the scores that ship with the package, by what was scored.

They were made with ONNX Runtime; another runtime rounds its own way, which shows in the fourth digit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rsd_edge.bundle import GRAPH, ZOO, Bundle

RECORD = ZOO / "quality.json"
"""What benchmarks/score_engine.py wrote; a copy of benchmarks/reports/quality.json."""
SET = "kodak24_real"
"""Shown beside speed: photographs that took no part in training, degraded as cameras and networks do."""
METRICS = ("psnr_y", "ssim_y", "lpips_squeeze", "niqe")
BICUBIC = "bicubic"
BICUBIC_IDENTITY = "OpenCV INTER_CUBIC"


def scores_of(bundle: Bundle) -> dict[str, float] | None:
    """Mean scores over SET of exactly this graph with these halos, whatever it is called; None if it was not scored."""
    identity = identity_of(bundle)
    return None if identity is None else scores_by_identity(identity)


def identity_of(bundle: Bundle) -> str | None:
    """What results follow from, but for the runtime: the graph, and the halo of its tiles. None without one graph."""
    graph = bundle.manifest.get("files", {}).get(GRAPH, {}).get("sha256")
    return None if graph is None else f"{graph}, halo {bundle.spec.model.halo}"


def scores_by_identity(identity: str) -> dict[str, float] | None:
    """Mean scores over SET of what the record identifies so; None if it was not scored."""
    return next((_metrics(row) for row in _rows().values() if row.get("identity") == identity), None)


def _rows() -> Mapping[str, Mapping[str, Any]]:
    rows: Mapping[str, Mapping[str, Any]] = json.loads(RECORD.read_text(encoding="utf-8"))["sets"][SET]
    return rows


def _metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """As they were recorded: a figure that is rounded here, and again where it is shown, may come out one too high."""
    return {metric: float(row[metric]) for metric in METRICS if row.get(metric) is not None}
