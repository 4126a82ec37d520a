"""Reports of `rsd-edge bench` as files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rsd_edge.errors import InputError

FORMAT = 1
MADE_BY = "rsd-edge bench"
_TIMED = ("frames", "tiles", "peaks")
_PARTS = {
    "machine": dict, "load": dict, "versions": dict, "engines": dict, "frames": list, "tiles": list, "peaks": list,
    "stages": dict, "quality": dict, "latency": dict, "notes": list, "date": str, "command": str,
}  # fmt: skip


def read_report(path: Path) -> dict[str, Any]:
    """A document of `rsd-edge bench`. Raises InputError for anything else."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"report {path} does not exist; give a report.json of 'rsd-edge bench'") from None
    except (OSError, ValueError) as error:
        raise InputError(f"report {path} cannot be read ({error}); give a report.json of 'rsd-edge bench'") from error
    if not isinstance(document, dict) or document.get("made_by") != MADE_BY:
        raise InputError(f"{path} is no report of 'rsd-edge bench'; give its report.json")
    if document.get("format") != FORMAT:
        raise InputError(
            f"report {path} has format {document.get('format')} and this version reads {FORMAT}; measure again"
        )
    damaged = [name for name, kind in _PARTS.items() if not isinstance(document.get(name), kind)]
    if damaged:
        raise InputError(f"report {path} is damaged: it has no {', '.join(damaged)}; measure again")
    if not all(_is_row(row) for kind in _TIMED for row in document[kind]):
        raise InputError(f"report {path} is damaged: it has rows without times; measure again")
    return document


def timed_rows(report: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """All rows with times, by name: frames, tiles and peaks."""
    return {row["name"]: row for kind in _TIMED for row in report[kind]}


def _is_row(row: Any) -> bool:
    if not isinstance(row, dict) or "name" not in row or not isinstance(row.get("seconds"), list):
        return False
    return bool(row["seconds"]) and all(isinstance(taken, (int, float)) and taken > 0 for taken in row["seconds"])
