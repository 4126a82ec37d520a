from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bench_doubles import PER_TILE, PER_TILE_PIXEL, FakeTime, fake_load, report

from rsd_edge.bench import environment, forecast, timing
from rsd_edge.bench.calibration import grid
from rsd_edge.bench.forecast import calibrate, choose_plan, keep_report
from rsd_edge.bench.subjects import Subject, Wish
from rsd_edge.cli import main
from rsd_edge.errors import ModelError
from rsd_edge.resolver import SuperResolver
from rsd_edge.specs import TileSpec
from rsd_edge.tiling import plan_tiles

LABEL = "toy fp32 onnxruntime"
COSTS = {"start": 0.0, "per_tile": 2e-3, "per_tile_pixel": 1e-6, "per_pixel": 0.0}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, toy_bundle: Path, tmp_path: Path) -> FakeTime:
    made = FakeTime()
    for module in (timing, forecast):
        monkeypatch.setattr(module, "time", made)
    monkeypatch.setattr(SuperResolver, "load", fake_load(made, toy_bundle))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(environment, "load", lambda: 9.5)
    return made


@pytest.mark.parametrize("tile", [TileSpec(), TileSpec(64, 12), TileSpec(48, 12, multiple_of=4), TileSpec(128, 16)])
def test_the_grid_tells_every_term_apart(tile: TileSpec) -> None:
    points = grid(tile)
    plans = [plan_tiles(p.height, p.width, TileSpec(p.tile, tile.halo, multiple_of=tile.multiple_of)) for p in points]
    pixels = [plan.count * plan.tile_h * plan.tile_w for plan in plans]
    assert min(pixels) == pixels[0] < max(pixels) / 2
    assert len({plan.count for plan in plans}) >= 3
    assert max(plan.tile_h for plan in plans) <= tile.size


def test_a_fixed_tile_has_a_grid_too() -> None:
    tile = TileSpec(128, 16, fixed=True)
    assert [plan_tiles(p.height, p.width, tile).count for p in grid(tile)] == [1, 2, 4]
    assert choose_plan(tile, 100.0) == ((0, 2), 1)


def test_a_slow_machine_gets_a_smaller_plan() -> None:
    # A tile of 64 x 64 is followed by 27 times its pixels, 11 times or 5 times, each seven times over, in 2 s at most.
    tile = TileSpec(halo=12)
    assert [choose_plan(tile, seconds)[1] for seconds in (0.0105, 0.0109, 0.026, 0.028, 9.0)] == [8, 4, 4, 3, 3]


@pytest.mark.parametrize("tile", [TileSpec(halo=10), TileSpec()])  # doctor looks at the default size alone
def test_every_plan_tells_tiles_from_pixels(tile: TileSpec) -> None:
    """What is held out is larger than what most of the fit sees, as the frames are that the forecast is for."""
    points = grid(tile)
    for places, held in forecast._PLANS:
        cut = [TileSpec(points[place].tile, tile.halo, multiple_of=tile.multiple_of) for place in (*places, held)]
        plans = [
            plan_tiles(points[place].height, points[place].width, spec)
            for place, spec in zip((*places, held), cut, strict=True)
        ]
        sizes = [plan.tile_h * plan.tile_w for plan in plans]
        assert len(set(sizes[:-1])) > 1
        assert plans[-1].count * sizes[-1] > sorted(sizes[:-1])[len(places) // 2]


def test_calibration_finds_what_the_engine_costs(clock: FakeTime) -> None:
    model = calibrate(Subject.of(Wish("toy"), 2), 2)
    assert model.seconds[2] == pytest.approx({"per_tile": PER_TILE, "per_tile_pixel": PER_TILE_PIXEL[2]}, rel=1e-6)
    assert len(model.held_out) == 1
    assert model.error == pytest.approx(0, abs=1e-6)
    assert clock.now < 3  # of the engine's own seconds


def test_without_a_report_it_is_measured(clock: FakeTime) -> None:
    found = forecast.forecast("toy", 2)
    # Tiles of a halo of 16: 320 x 180 in 2 x 2 of 160 x 90.
    assert found["fps"]["320x180"] == pytest.approx(1 / (4 * (PER_TILE + 192 * 122 * PER_TILE_PIXEL[2])), rel=5e-3)
    assert found["source"].startswith("measured just now in ")
    assert found["error"] == pytest.approx(0, abs=1e-6)
    assert (found["engine"], found["threads"], found["load"]) == (LABEL, 2, 9.5)


def kept(clock: FakeTime, tile: int = 208, **changes: Any) -> None:
    """A report of the toy engine, made here and now."""
    subject = Subject.of(Wish("toy"), 2)
    held = {"name": "a", "measured_ms": 1.0, "predicted_ms": 1.0, "error": 0.1, "error_of_runs": 0.25}
    latency = {"seconds": {"2": COSTS}, "fitted_to": 6, "held_out": [held], "error": 0.1, "error_of_runs": 0.25}
    facts = {"machine": environment.machine(), "versions": environment.versions()}
    engines = {LABEL: {**subject.record, "tile": tile}}
    keep_report({**report(), **facts, "engines": engines, "latency": {LABEL: latency}, **changes})
    clock.log.clear()


def test_a_report_of_this_engine_here_is_used(clock: FakeTime) -> None:
    kept(clock)
    found = forecast.forecast("toy", 2)
    assert found["source"] == "report of 'rsd-edge bench' of 2026-11-21T12:00:00+00:00"
    assert found["error"] == 0.25
    assert found["fps"]["160x90"] == pytest.approx(1 / (2e-3 + 192 * 122 * 1e-6), rel=5e-3)
    assert "pause" not in clock.log  # nothing was measured


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"machine": {**environment.machine(), "cpu": "another"}}, "is not used: cpu changed"),
        ({"versions": {"onnxruntime": "0"}}, "is not used: versions changed"),
        ({"tile": 64}, "is not used: it was made with other tiles"),
        ({"format": 7}, "cannot be read"),
    ],
)
def test_a_report_from_elsewhere_is_not(clock: FakeTime, changes: dict[str, Any], why: str) -> None:
    kept(clock, **changes)
    found = forecast.forecast("toy", 2)
    assert found["source"].startswith("measured just now in ")
    assert found["source"].endswith(why)


def test_other_threads_are_measured(clock: FakeTime) -> None:
    kept(clock)
    assert forecast.forecast("toy", 1)["source"].endswith("is not used: it has nothing on 1 threads")


def test_a_report_that_cannot_be_kept_is_no_failure(clock: FakeTime, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    kept(clock)
    assert forecast.forecast("toy", 2)["source"].startswith("measured just now in ")


def doctor(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["doctor", *arguments])
    return int(stop.value.code or 0)


@pytest.mark.usefixtures("clock")
def test_doctor_says_what_to_expect(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor() == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("speed ")]
    assert line.startswith(f"speed       {LABEL}, ")
    assert ", 320x180 " in line
    assert "(off by up to 0% on sizes held out; measured just now in " in line
    assert line.endswith("; but the machine is busy: load 9.5)")
    assert doctor("--json") == 0
    assert json.loads(capsys.readouterr().out)["speed"]["problem"] is None


def test_doctor_says_no_number_without_a_measurement(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise ModelError("edge-s is damaged; install again")

    monkeypatch.setattr(SuperResolver, "load", fail)
    assert doctor() == 0
    assert "speed       edge-s is damaged; install again" in capsys.readouterr().out.splitlines()
    assert doctor("--no-speed", "--json") == 0
    assert json.loads(capsys.readouterr().out)["speed"] is None
