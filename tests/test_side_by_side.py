"""The published networks beside the edge models: what is timed how often, ratios, goals and the table of them."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
from sleeping import sleeping

BENCHMARKS = str(Path(__file__).parents[1] / "benchmarks")
sys.path.insert(0, BENCHMARKS)
import side_by_side  # noqa: E402
import tables  # noqa: E402
from processes import Subject  # noqa: E402

sys.path.remove(BENCHMARKS)


def method(seconds: float, *, slow: bool = False, precision: str | None = None) -> side_by_side.Method:
    return side_by_side.Method(Subject(sleeping, {"seconds": seconds}), 1.0, precision, slow=slow)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    compared = {
        side_by_side.PUBLISHED: method(0.4, slow=True),
        f"{side_by_side.FULL}, torch": method(0.3, slow=True),
        f"{side_by_side.FULL}, openvino bf16": method(0.2, slow=True),
        "peer ncnn": method(0.1),
    }
    for model in ("edge-n", "edge-s"):
        for precision, seconds in (("fp32", 0.004), ("int8", 0.002)):
            compared[f"{model} {precision} onnxruntime"] = method(seconds, precision=precision)
            compared[f"{model} {precision} openvino"] = method(10 * seconds, precision=precision)
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)  # the processes import what this module imports
        return side_by_side.measure(compared, 1, 3, 2, folder), folder


def test_slow_methods_take_fewer_turns_and_only_their_tile_is_warmed_up(found: tuple[dict, Path]) -> None:
    rows, folder = found[0]["rows"], found[1]
    assert [rows[name]["tile"]["runs"] for name in rows] == [2, 2, 2] + [3] * 9
    assert len((folder / "tile-0.4").read_text()) == 3
    assert len((folder / "frame-0.4").read_text()) == 2
    assert len((folder / "tile-0.1").read_text()) == 6


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
    assert math.isclose(share["measured"], expected, rel_tol=0.02), "what rounding of rates and shares leaves"


def test_the_table_names_everything_with_its_ratios(found: tuple[dict, Path]) -> None:
    report = {**found[0], "tile": "64x64", "frame": "320x180"}
    makers = tables.speed_tables(report, {"tiles": {}})
    lines = makers["speed"]().splitlines()
    assert lines[0].startswith("| method | 64x64 tile ms | published / it | peer / it | 320x180 frame ms |")
    assert len(lines) == 2 + 12
    peer = next(line for line in lines if line.startswith("| peer ncnn")).split(" | ")
    assert peer[3] == "1"
    assert 3 < float(peer[2]) < 4.2, "0.4 s against 0.1 s, each late by some milliseconds"
    verdicts = [line.split(" | ")[-1] for line in makers["goals"]().splitlines()[2:]]
    assert verdicts.count("missed |") == sum(not goal["met"] for goal in report["goals"])
