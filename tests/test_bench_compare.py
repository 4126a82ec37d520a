from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_doubles import report, row

from rsd_edge.bench.compare import compare, differences, ratio_interval
from rsd_edge.bench.reading import read_report
from rsd_edge.errors import InputError
from rsd_edge.evaluate.bootstrap import CONFIDENCE


def changed(**parts: Any) -> dict[str, Any]:
    """A report with further keys in some of its parts."""
    made = report()
    for name, keys in parts.items():
        made[name] = {**made[name], **keys}
    return made


def test_a_slower_engine_is_slower() -> None:
    found = compare(report(), report(1.2), 0.05)
    assert {change.name.split()[0] for change in found.slower} == {"edge-t"}
    assert len(found.slower) == 5  # four frames and a tile; neither peer nor peaks
    for change in found.slower:
        assert change.ratio == pytest.approx(1.2)
        # Runs spread over 3.2 %: so does the interval at most.
        assert 1.2 / 1.033 < change.low <= change.ratio <= change.high < 1.2 * 1.033
    assert {change.name for change in found.changes if not change.judged} == {
        "bicubic 320x180, 2 threads", "convolution int8, 2 threads", "memory copy, 2 threads"
    }  # fmt: skip


@pytest.mark.parametrize(("factor", "threshold"), [(1.0, 0.05), (0.8, 0.05), (1.05, 0.05), (1.2, 0.25)])
def test_what_the_threshold_allows_is_not(factor: float, threshold: float) -> None:
    assert compare(report(), report(factor), threshold).slower == []


def test_the_whole_interval_must_lie_above() -> None:
    """A median far above the threshold is not enough where the runs do not agree."""
    old, new = report(), report()
    old["frames"] = [row("edge-t frame", [10, 10, 10, 10, 10, 10])]
    new["frames"] = [row("edge-t frame", [10, 10, 10, 20, 20, 20])]
    (change, *_) = compare(old, new, 0.05).changes
    assert change.ratio == 1.5
    assert change.low == 1.0
    assert not change.slower


def test_few_runs_are_not_judged() -> None:
    assert compare(report(runs=3), report(2.0, runs=9), 0.05).slower == []
    assert compare(report(runs=5), report(2.0, runs=5), 0.05).slower != []


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held, trials = 0, 120
    for _ in range(trials):
        old, new = (np.exp(0.1 * rng.standard_normal(15)) for _ in range(2))
        low, high = ratio_interval(old, 1.3 * new, rng)
        held += low <= 1.3 <= high
    # Percentile intervals of medians of 15 are a little wide; four standard deviations of 120 draws are 8 %.
    assert CONFIDENCE - 0.08 < held / trials <= 1


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"machine": {"cpu": "Another CPU"}}, "cpu was A <fast> CPU and is Another CPU"),
        ({"machine": {"power": {"governor": "powersave"}}}, "power was governor performance and is governor powersave"),
        ({"machine": {"cores": None}}, "cores was 2 and is unknown"),
        (
            {"engines": {"edge-t int8 onnxruntime": {"digest": "beef" * 16}}},
            "edge-t int8 onnxruntime was 0f3a0f3a0f3a and is beefbeefbeef",
        ),
        ({"engines": {"edge-t fp32 onnxruntime": {}}}, "edge-t fp32 onnxruntime was not measured before"),
    ],
)
def test_what_does_not_compare_is_refused_by_name(parts: dict[str, Any], reason: str) -> None:
    new = changed(**parts)
    assert differences(report(), new) == [reason]
    with pytest.raises(InputError) as caught:
        compare(report(), new, 0.05)
    assert str(caught.value) == f"the reports do not compare: {reason}; add --force to compare them all the same"
    assert compare(report(), new, 0.05, force=True).forced == (reason,)


def test_free_memory_and_versions_do_not_matter() -> None:
    new = changed(machine={"memory_free_mb": 1}, versions={"onnxruntime": "1.32.0", "numpy": "2.0"})
    assert compare(report(), new, 0.05).versions == ("numpy none -> 2.0", "onnxruntime 1.31.1 -> 1.32.0")


def test_rows_of_one_report_alone_are_named() -> None:
    new = report()
    gone = new["frames"].pop(0)
    assert compare(report(), new, 0.05).unmatched == (gone["name"],)
    with pytest.raises(InputError, match="no row in common; measure the same --sizes"):
        compare(report(), {**report(), "frames": [], "tiles": [], "peaks": []}, 0.05)


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text(json.dumps(report()))
    assert read_report(tmp_path / "old.json") == report()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        ("{", r"cannot be read \("),
        ("[]", "is no report of 'rsd-edge bench'"),
        ('{"made_by": "another"}', "is no report of 'rsd-edge bench'"),
        (json.dumps({**report(), "format": 9}), "has format 9 and this version reads 1"),
        (json.dumps({**report(), "frames": None}), "is damaged: it has no frames"),
        (json.dumps({**report(), "frames": [{"name": "a", "seconds": [0]}]}), "has rows without times"),
        (json.dumps({**report(), "peaks": [{"name": "a"}]}), "has rows without times"),
        (json.dumps({**report(), "peaks": [{"seconds": [1]}]}), "has rows without times"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "old.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        read_report(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
