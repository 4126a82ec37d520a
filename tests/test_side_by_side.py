"""The published networks beside the edge models: what is timed how often, ratios, goals and the table of them."""

from __future__ import annotations

import copy
import json
import math
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import side_by_side
import tables
from processes import Subject
from sleeping import sleeping

from rsd_edge.bench import environment
from rsd_edge.bench.quality import METRICS, SET
from rsd_edge.bundle import resolve_engine
from rsd_edge.specs import Precision

BENCHMARKS = str(Path(__file__).parents[1] / "benchmarks")
REPORTS = Path(BENCHMARKS) / "reports"


def method(seconds: float, *, slow: bool = False, precision: str | None = None) -> side_by_side.Method:
    return side_by_side.Method(Subject(sleeping, {"seconds": seconds}), 1.0, precision, slow=slow)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    compared = {
        side_by_side.PUBLISHED: method(0.2, slow=True),
        f"{side_by_side.FULL}, torch": method(0.15, slow=True),
        f"{side_by_side.FULL}, openvino bf16": method(0.1, slow=True),
        "peer ncnn": method(0.05),
    }
    for model in ("edge-n", "edge-s"):
        for precision, seconds in (("fp32", 0.002), ("int8", 0.001)):
            compared[f"{model} {precision} onnxruntime"] = method(seconds, precision=precision)
            compared[f"{model} {precision} openvino"] = method(10 * seconds, precision=precision)
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)  # the processes import what this module imports
        return side_by_side.measure(compared, 1, 3, 2, folder), folder


def test_slow_methods_take_fewer_turns_and_shorter_bursts(found: tuple[dict, Path]) -> None:
    rows, folder = found[0]["rows"], found[1]
    assert [rows[name]["tile"]["rounds"] for name in rows] == [2, 2, 2] + [3] * 9
    # Two turns of one run to warm up and three that count; their frames run once a turn, and nothing warms them up.
    assert len((folder / "tile-0.2").read_text()) == 2 * (1 + 3)
    assert len((folder / "frame-0.2").read_text()) == 2
    assert len((folder / "tile-0.05").read_text()) == 3 * (5 + 5)
    assert len((folder / "frame-0.05").read_text()) == 3 * (1 + 3)


def test_every_run_that_counts_is_kept(found: tuple[dict, Path]) -> None:
    document = found[0]
    slow, quick = (document["rows"][name] for name in (side_by_side.PUBLISHED, "peer ncnn"))
    assert [len(turn) for turn in slow["tile"]["seconds"]] == [3, 3]
    assert [len(turn) for turn in slow["frame"]["seconds"]] == [1, 1]
    assert [len(turn) for turn in quick["tile"]["seconds"]] == [5, 5, 5]
    assert [len(turn) for turn in document["peak_seconds"]["int8"]] == [5, 5, 5]
    assert (slow["tile"]["runs"], quick["frame"]["runs"]) == (6, 9)
    assert (slow["tile"]["warm_up_runs"], slow["frame"]["warm_up_runs"], quick["tile"]["warm_up_runs"]) == (1, 0, 5)
    assert all(seconds >= 0.05 for turn in quick["tile"]["seconds"] for seconds in turn)


def test_figures_are_of_all_runs_that_count() -> None:
    found = side_by_side.summary([[1.0, 9.0, 2.0], [3.0, 4.0, 50.0], [6.0, 6.0, 6.0]], side_by_side.Burst(1, 3))
    assert (found["median"], found["fastest"]) == (6000, 1000)
    assert (found["rounds"], found["runs"], found["warm_up_runs"]) == (3, 9, 1)


def test_a_run_says_where_it_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["/anywhere/python3.11", "benchmarks/side_by_side.py", "--peer", "a file.param", "--rounds", "3"]
    monkeypatch.setattr(sys, "orig_argv", words)
    found = side_by_side.origin()
    assert found["command"] == "python benchmarks/side_by_side.py --peer 'a file.param' --rounds 3"
    assert datetime.fromisoformat(found["date"]).utcoffset() == timedelta(0)
    assert found["versions"] == environment.versions()


def test_goals_are_those_of_the_faster_runtime_and_can_be_missed(found: tuple[dict, Path]) -> None:
    document = found[0]
    goals = {goal["name"]: goal for goal in document["goals"]}
    assert len(goals) == 8
    for part in ("tile", "frame"):
        rows = {name: row[part]["median"] for name, row in document["rows"].items()}
        against = goals[f"edge-s int8 against the full network as published, {part}"]
        assert against["measured"] == rows[side_by_side.PUBLISHED] / rows["edge-s int8 onnxruntime"]
        assert not against["met"], "200 times at most"
        fastest = goals[f"edge-s int8 against the full network at its fastest, {part}"]
        assert fastest["measured"] == rows["full network, openvino bf16"] / rows["edge-s int8 onnxruntime"]
    share = goals["edge-n fp32, share of the convolutions' peak, tile"]
    expected = document["rows"]["edge-n fp32 onnxruntime"]["gflop_per_s"] / document["peaks"]["fp32"]
    assert math.isclose(share["measured"], expected)


def test_the_table_names_everything_with_its_ratios(found: tuple[dict, Path]) -> None:
    report = {**copy.deepcopy(found[0]), "tile": "64x64", "frame": "320x180"}
    report["rows"][side_by_side.PUBLISHED]["frame"]["median"] *= 2  # or it could stand for that of the tile
    scores = {"edge-s": {"psnr_y": 1.0}, "edge-s int8": {"psnr_y": 24.0}, "peer": {"psnr_y": 23.0}}
    makers = tables.speed_tables(report, {"tiles": {}}, {"sets": {SET: scores}})
    lines = makers["speed"]().splitlines()
    assert lines[0].startswith("| method | 64x64 tile ms | published / it | peer / it | 320x180 frame ms |")
    assert len(lines) == 2 + 12
    peer = next(line for line in lines if line.startswith("| peer ncnn")).split(" | ")
    assert peer[3] == "1"
    assert peer[-2] == "23.00"
    assert [line.split(" | ")[-2] for line in lines if " edge-s int8 " in line] == ["24.00"] * 2
    assert {line.split(" | ")[-2] for line in lines if "full network" in line} == {""}
    for column, part in ((2, "tile"), (5, "frame")):
        published, it = (report["rows"][name][part]["median"] for name in (side_by_side.PUBLISHED, "peer ncnn"))
        assert peer[column] == f"{published / it:.3g}"
    verdicts = [line.split(" | ")[-1] for line in makers["goals"]().splitlines()[2:]]
    assert verdicts.count("missed |") == sum(not goal["met"] for goal in report["goals"])


def test_the_report_shows_the_same_quality_as_its_own_table() -> None:
    """Both copies must be as exact as the record: one of four digits, rounded again, made 23.86 of 23.85498.

    Engines whose weights have been replaced since the report was made had scores of their own.
    """
    recorded = json.loads((REPORTS / "quality.json").read_text())["sets"][SET]
    report = json.loads((REPORTS / "bench" / "report.json").read_text())
    shown = {name: scores for name, scores in report["quality"]["scores"].items() if scores is not None}
    assert len(shown) == 10
    for name, engine in report["engines"].items():
        if engine["digest"] != resolve_engine(engine["model"], Precision(engine["precision"])).digest:
            del shown[name]
    assert shown.keys() >= {"bicubic", "realesr-general-x4v3"}
    for name, scores in shown.items():
        expected = recorded[" ".join(name.split()[:2]) if name.startswith("edge-") else name]
        assert scores == {metric: expected[metric] for metric in METRICS}
