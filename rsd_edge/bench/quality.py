"""How good what is measured is: the scores that ship with the package, by what was scored."""

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


def scores_of(bundle: Bundle) -> dict[str, float] | None:
    """Mean scores over SET of exactly this graph, whatever it is called; None if it was not scored."""
    identity = bundle.manifest.get("files", {}).get(GRAPH, {}).get("sha256")
    return next((_metrics(row) for row in _rows().values() if identity and row.get("identity") == identity), None)


def scores_of_peer(name: str) -> dict[str, float] | None:
    """Mean scores over SET of a method by its name; None if it was not scored."""
    row = _rows().get(name)
    return None if row is None else _metrics(row)


def _rows() -> Mapping[str, Mapping[str, Any]]:
    rows: Mapping[str, Mapping[str, Any]] = json.loads(RECORD.read_text(encoding="utf-8"))["sets"][SET]
    return rows


def _metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """As they were recorded: a figure that is rounded here, and again where it is shown, may come out one too high."""
    return {metric: float(row[metric]) for metric in METRICS if row.get(metric) is not None}
