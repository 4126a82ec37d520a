"""Which report of `rsd-edge bench` is kept for the forecast of `rsd-edge doctor`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bench_doubles import report

from rsd_edge.bench import environment, others
from rsd_edge.bench.compare import LEAST_RUNS
from rsd_edge.bench.kept import keep_report, kept_path, outdated, read_kept
from rsd_edge.bench.latency import LatencyModel
from rsd_edge.errors import InputError

LABEL = "edge-t int8 onnxruntime"
COSTS = {"start": 0.0, "per_tile": 1e-3, "per_tile_pixel": 1e-6, "per_pixel": 0.0}
QUIET, BUSY = {"before": 0.1, "after": 2.0, "others": 0.02}, {"before": 3.0, "after": 4.0, "others": 1.2}
Document = dict[str, Any]


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(others, "usable_cores", lambda: 2)
    return tmp_path / "rsd-edge"


def document(
    date: str, *, threads: tuple[int, ...] = (1, 2), width: int = 640, runs: int = 15, **more: Any
) -> Document:
    """Of one engine, made here and now."""
    made = report(runs=runs)
    frames = [
        {**row, "width": width, "height": 360} for row in made["frames"] if row["threads"] in threads or "peer" in row
    ]
    held = [
        {"name": f"{n} threads", "threads": n, "measured_ms": 1.0, "predicted_ms": 1.0, "error": n / 10}
        | {"error_of_runs": n / 5}
        for n in threads
    ]
    latency = {"seconds": {str(n): COSTS for n in threads}, "fitted_to": 9, "held_out": held}
    return {
        **made,
        "date": date,
        "frames": frames,
        "machine": environment.machine(),
        "versions": environment.versions(),
        "load": QUIET,
        "latency": {LABEL: latency},
        **more,
    }


def kept(threads: int, tile: int = 208) -> Document:
    return read_kept(kept_path({**report()["engines"][LABEL], "tile": tile}, threads))


def test_each_number_of_threads_is_kept_by_itself(cache: Path) -> None:
    assert keep_report(document("first")) == []
    assert keep_report(document("second", threads=(1,))) == []
    assert (kept(1)["date"], kept(2)["date"]) == ("second", "first")
    assert [path.name for path in sorted(cache.iterdir())] == [
        f"bench-{'0f3a' * 4}-onnxruntime-208-{n}.json" for n in (1, 2)
    ]
    model = LatencyModel.from_json(kept(2)["latency"])
    assert list(model.seconds) == [2]
    assert (model.error, model.error_of_runs) == (0.2, 0.4)  # of its own threads


def test_other_tiles_take_nothing_away() -> None:
    keep_report(document("first"))
    engines = {LABEL: {**report()["engines"][LABEL], "tile": 64}}
    assert keep_report(document("second", engines=engines)) == []
    assert (kept(2)["date"], kept(2, tile=64)["date"]) == ("first", "second")


FEW = LEAST_RUNS - 1


@pytest.mark.parametrize(
    ("earlier", "later", "advantage"),
    [
        ({}, {}, None),  # the newer of two that tell as much
        ({}, {"width": 64}, "has larger frames"),
        ({"width": 64}, {}, None),
        ({}, {"runs": FEW}, "has more runs"),
        ({"runs": FEW}, {}, None),
        ({"runs": FEW, "width": 1920}, {}, None),
        ({}, {"runs": LEAST_RUNS}, None),  # enough is enough
        ({}, {"load": BUSY}, "no other program disturbed"),
        ({"load": BUSY}, {}, None),
        ({"load": BUSY}, {"load": BUSY}, None),
        ({"load": BUSY}, {"width": 64}, None),  # small frames at rest are better than large ones in a crowd
        ({}, {"width": 1920, "load": BUSY}, "no other program disturbed"),
    ],
)
def test_what_tells_less_does_not_take_the_place_of_what_tells_more(
    cache: Path, earlier: Document, later: Document, advantage: str | None
) -> None:
    keep_report(document("earlier", threads=(2,), **earlier))
    notes = keep_report(document("later", threads=(2,), **later))
    assert kept(2)["date"] == ("later" if advantage is None else "earlier")
    path = cache / f"bench-{'0f3a' * 4}-onnxruntime-208-2.json"
    said = (
        f"'rsd-edge doctor' stays with the report of earlier for {LABEL} on 2 threads, which {advantage}; remove {path}"
    )
    assert notes == ([] if advantage is None else [f"{said} to forget it"])


@pytest.mark.parametrize(
    "stale", [{"machine": {**environment.machine(), "power": "another"}}, {"versions": {"onnxruntime": "0"}}]
)
def test_what_is_outdated_makes_room(stale: Document) -> None:
    keep_report(document("earlier", **stale))
    assert outdated(kept(2)) == ("power changed" if "machine" in stale else "versions changed")
    assert keep_report(document("later", width=64)) == []
    assert kept(2)["date"] == "later"


@pytest.mark.parametrize(
    "damage",
    [{"format": 7}, {"latency": {}}, {"load": None}, {"runs": None}, {"machine": 3}, {"versions": []}, {"date": None}],
)
def test_what_cannot_be_read_makes_room(damage: Document) -> None:
    keep_report(document("earlier", threads=(2,)))
    path = kept_path(report()["engines"][LABEL], 2)
    path.write_text(json.dumps({**json.loads(path.read_text()), **damage}))
    with pytest.raises(InputError, match=r"cannot be read \(.*\); measure again"):
        read_kept(path)
    assert keep_report(document("later", threads=(2,), width=64)) == []
    assert kept(2)["date"] == "later"


def test_without_room_nothing_is_kept_and_nothing_fails(cache: Path) -> None:
    cache.write_text("")
    assert keep_report(document("first")) == []
