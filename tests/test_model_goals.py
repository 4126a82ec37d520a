"""The table of goals says what the reports say, and every goal in it can be missed."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from model_goals import PEER, model_goals

FOLDER = Path(__file__).parents[1] / "benchmarks" / "reports"
REPORTS = {path.stem: json.loads(path.read_text()) for path in FOLDER.glob("*.json")}
Worsen = Callable[[dict[str, Any]], None]


def scores(reports: dict[str, Any], name: str, method: str) -> dict[str, float]:
    row: dict[str, float] = reports["quality"]["sets"][name][method]
    return row


def val_real(reports: dict[str, Any], method: str) -> dict[str, float]:
    return scores(reports, "val_real", method)


def first(report: dict[str, Any], row: str) -> dict[str, float]:
    found: dict[str, float] = report["rows"][row][0]
    return found


@pytest.mark.parametrize(
    ("goal", "worsen"),
    [
        ("LPIPS below", lambda found: val_real(found, "edge-s int8").update(lpips_squeeze=0.9)),
        ("PSNR-Y above", lambda found: val_real(found, PEER).update(psnr_y=50.0)),
        ("NIQE or spectrum", lambda found: val_real(found, "edge-s int8").update(niqe=99.0, spectrum_db=99.0)),
        ("lattice spread", lambda found: val_real(found, "edge-s int8").update(lattice_mean=0.21)),
        ("less arithmetic", lambda found: found["side-by-side"]["rows"]["edge-s int8 onnxruntime"].update(gflop=10.0)),
        ("edge-s int8: less time", lambda found: slower(found["side-by-side"], "edge-s int8 openvino")),
        ("LPIPS within 0.03", lambda found: val_real(found, "edge-n int8").update(lpips_squeeze=0.9)),
        ("under a fifth", lambda found: found["side-by-side"]["rows"]["edge-n int8 onnxruntime"].update(gflop=2.0)),
        ("edge-n: INT8 within", lambda found: val_real(found, "edge-n fp32").update(lpips_squeeze=0.1)),
        ("15 of its teacher", lambda found: scores(found, "kodak24_real", "edge-s fp32").update(lpips_squeeze=0.9)),
        ("edge-s int8: gradients at borders of tiles to those", lambda found: seamed(found["fidelity-edge-s"])),
        ("edge-s int8: the same over", lambda found: seamed(found["fidelity-edge-s"])),
        ("edge-s int8: whole sets within 0.5 levels of the input", lambda found: shifted(found["fidelity-edge-s"])),
        ("edge-s int8: single images within 0.5 levels of the input", lambda found: shifted(found["fidelity-edge-s"])),
        ("edge-n int8, files of video (--temporal blend)", lambda found: flickering(found["temporal"])),
    ],
)  # fmt: skip
def test_every_goal_can_be_missed(goal: str, worsen: Worsen) -> None:
    reports = copy.deepcopy(REPORTS)
    worsen(reports)
    verdicts = {found.name: found.met for found in model_goals(reports) if goal in found.name}
    assert len(verdicts) == 1
    assert not any(verdicts.values())


def slower(report: dict[str, Any], row: str) -> None:
    report["rows"][row]["frame"]["median"] *= 100


def shifted(report: dict[str, Any]) -> None:
    report["sets"]["val_real"] |= {"colour_shift_mean": [0.0, 0.0, -0.51], "colour_shift_mean_of_images": 0.51}


def seamed(report: dict[str, Any]) -> None:
    report["sets"]["val_real"]["seam_ratio"] = 9.0


def flickering(report: dict[str, Any]) -> None:
    report["films"]["intel_bottle"]["methods"]["fixed noise, detail blended"]["warped_error"] = 99.0


def test_and_every_goal_can_be_met() -> None:
    reports = copy.deepcopy(REPORTS)
    for objective in ("rsd, N = 4", "rsd, N = 4 + GAN"):
        first(reports["objectives"], objective)["lpips_squeeze"] = 0.1
    for row in reports["side-by-side"]["rows"].values():
        for part in ("tile", "frame"):
            row[part]["median"] = 1.0
    for part in ("tile", "frame"):
        reports["side-by-side"]["rows"][f"{PEER} ncnn"][part]["median"] = 2.0
    for model in ("edge-s", "edge-n"):
        for row in reports[f"fidelity-{model}"]["sets"].values():
            row |= {"seam_ratio": 1.02, "seam_ratio_in_one_tile": 1.02, "seam_to_all": 1.02}
            row |= {"bias_mean": [0.5, -0.5, 0.0], "result_from_reference": 0.5}
            row |= {"colour_shift_mean_of_images": 0.5, "colour_shift_mean": [0.5, -0.5, 0.0]}
    for name in ("temporal", "temporal-60", "temporal-edge-s", "temporal-edge-s-60"):
        for film in reports[name]["films"].values():
            for row in film["methods"].values():
                row["warped_error"] = 1.0
    assert [goal.name for goal in model_goals(reports) if not goal.met] == []
