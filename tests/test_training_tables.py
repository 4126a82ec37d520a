"""Tables of what was trained to be compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from training_tables import seeds_table, training_tables

REPORTS = Path(__file__).parents[1] / "benchmarks" / "reports"


def load(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("name", list(training_tables(REPORTS, load)))
def test_the_report_has_the_table_of_its_file(name: str) -> None:
    assert training_tables(REPORTS, load)[name]() in (REPORTS / "README.md").read_text(encoding="utf-8")


def test_seeds_are_compared_in_pairs() -> None:
    def runs(*values: float) -> list[dict[str, float]]:
        return [
            {
                "seed": seed,
                "lpips_squeeze": value,
                "psnr_y": 27.0,
                "lattice8_mean": 0.5,
                "sets": {"real": scores(value)},
            }
            for seed, value in enumerate(values, 1)
        ]

    def scores(value: float) -> dict[str, float]:
        return {"lpips_squeeze": value + 0.1, "psnr_y": 24.0, "niqe": 4.5, "lattice_spread": 0.7}

    lines = seeds_table({"rows": {"regression": runs(0.26, 0.25), "rsd": runs(0.258, 0.249)}}).splitlines()
    assert lines[2].startswith("| regression | 0.2550 (0.2600, 0.2500) |")
    assert lines[3].endswith("| -0.0015 (deviation 0.0007) | 0.3535 / 24.00 / 4.50 / 0.70 |")
