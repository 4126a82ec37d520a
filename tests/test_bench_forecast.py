from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bench_doubles import PER_TILE, PER_TILE_PIXEL, FakeTime, fake_load, report

from rsd_edge.bench import environment, forecast, others, timing
from rsd_edge.bench.calibration import grid
from rsd_edge.bench.forecast import calibrate, choose_plan
from rsd_edge.bench.kept import keep_report
from rsd_edge.bench.latency import Measured
from rsd_edge.bench.others import Watch
from rsd_edge.bench.subjects import Subject, Wish
from rsd_edge.bench.timing import Times
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
    monkeypatch.setattr(environment, "load", lambda: 1.5)
    monkeypatch.setattr(others, "usable_cores", lambda: 2)
    monkeypatch.setattr(others, "GLANCE_SECONDS", 0.0)
    monkeypatch.setattr(Watch, "others", lambda self: 0.1)
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
    # A tile of 64 x 64 is followed by 26.6 times its pixels, 15.6 or 7.5 times, each ten times over, in 4 s at most.
    tile = TileSpec(halo=12)
    plans = [choose_plan(tile, seconds) for seconds in (0.0149, 0.0151, 0.0256, 0.0258, 9.0)]
    assert plans == [((2, 3, 5), 8), ((2, 5), 6), ((2, 5), 6), ((0, 3), 6), ((0, 3), 6)]


@pytest.mark.parametrize("tile", [TileSpec(halo=10), TileSpec()])  # doctor looks at the default size alone
def test_every_plan_tells_tiles_from_pixels(tile: TileSpec) -> None:
    """The largest tile has many times the pixels of the smallest, and what is held out has several tiles."""
    points = grid(tile)
    for places, held in forecast._PLANS:
        cut = [TileSpec(points[place].tile, tile.halo, multiple_of=tile.multiple_of) for place in (*places, held)]
        plans = [
            plan_tiles(points[place].height, points[place].width, spec)
            for place, spec in zip((*places, held), cut, strict=True)
        ]
        sizes = [plan.tile_h * plan.tile_w for plan in plans]
        assert max(sizes[:-1]) >= 7 * min(sizes[:-1])
        assert held not in places
        assert plans[-1].count > max(plan.count for plan in plans[:-1])


def test_calibration_finds_what_the_engine_costs(clock: FakeTime) -> None:
    model = calibrate(Subject.of(Wish("toy"), 2), 2)
    assert model.seconds[2] == pytest.approx({"per_tile": PER_TILE, "per_tile_pixel": PER_TILE_PIXEL[2]}, rel=1e-6)
    assert len(model.held_out) == 1
    assert model.error == pytest.approx(0, abs=1e-6)
    assert clock.now < 4  # of the engine's own seconds


def test_without_a_report_it_is_measured(clock: FakeTime) -> None:
    found = forecast.forecast("toy", 2)
    # Tiles of a halo of 16: 320 x 180 in 2 x 2 of 160 x 90.
    assert found["fps"]["320x180"] == pytest.approx(1 / (4 * (PER_TILE + 192 * 122 * PER_TILE_PIXEL[2])), rel=5e-3)
    assert found["source"].startswith("measured just now in ")
    assert found["error"] == pytest.approx(0, abs=1e-6)
    assert (found["engine"], found["threads"], found["warning"]) == (LABEL, 2, None)
    assert found["load"] == {"before": 1.5, "others": 0.1}


def kept(clock: FakeTime, tile: int = 208, **changes: Any) -> None:
    """A report of the toy engine, made here and now."""
    subject = Subject.of(Wish("toy"), 2)
    held = {"name": "a", "threads": 2, "measured_ms": 1.0, "predicted_ms": 1.0, "error": 0.1, "error_of_runs": 0.25}
    latency = {"seconds": {"2": COSTS}, "fitted_to": 6, "held_out": [held], "error": 0.1, "error_of_runs": 0.25}
    facts = {"machine": environment.machine(), "versions": environment.versions()}
    made = report()
    parts = {"engines": {LABEL: {**subject.record, "tile": tile}}, "latency": {LABEL: latency}}
    parts["frames"] = [{**row, "engine": LABEL} for row in made["frames"]]
    keep_report({**made, **facts, **parts, **changes})
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
        ({"versions": []}, "cannot be read"),
    ],
)
def test_a_report_from_elsewhere_is_not(clock: FakeTime, changes: dict[str, Any], why: str) -> None:
    kept(clock, **changes)
    found = forecast.forecast("toy", 2)
    assert found["source"].startswith("measured just now in ")
    assert found["source"].endswith(why)


def test_other_threads_and_other_tiles_are_measured(clock: FakeTime) -> None:
    kept(clock)
    assert forecast.forecast("toy", 1)["source"].startswith("measured just now in ")
    kept(clock, tile=64)  # which takes nothing away
    assert forecast.forecast("toy", 2)["source"].startswith("report of 'rsd-edge bench' of ")


BUSY = {"before": 3.0, "after": 3.0, "others": 1.4}


def test_a_report_measured_beside_other_programs_is_used_and_told_as_such(clock: FakeTime) -> None:
    kept(clock, load=BUSY)
    found = forecast.forecast("toy", 2)
    assert found["source"].startswith("report of 'rsd-edge bench' of ")
    assert found["warning"] == (
        "other programs kept 1.4 of 2 processors busy (load average 3) while the report was measured: its rates are "
        "too low; end what else runs here, then measure again with 'rsd-edge bench'"
    )


def test_a_good_report_on_a_busy_machine(clock: FakeTime, monkeypatch: pytest.MonkeyPatch) -> None:
    kept(clock)
    assert forecast.forecast("toy", 2)["warning"] is None
    monkeypatch.setattr(Watch, "others", lambda self: 1.9)
    assert forecast.forecast("toy", 2)["warning"] == (
        "other programs kept 1.9 of 2 processors busy (load average 1.5) just now: frames will be slower than this "
        "until other programs have ended"
    )


def test_measuring_beside_other_programs_is_warned_of(clock: FakeTime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watch, "others", lambda self: 1.4)
    assert forecast.forecast("toy", 2)["warning"] == (
        "other programs kept 1.4 of 2 processors busy (load average 1.5) while this was measured: the rates are too "
        "low, maybe several times, and will differ next time; end what else runs here, then call this again"
    )
    assert forecast.forecast("toy", 1)["warning"] is not None  # 0.4 more than the processor that one thread leaves


def rows(tile: TileSpec, factors: dict[int, tuple[float, ...]]) -> list[Measured]:
    """Points of the grid with what PER_TILE and PER_TILE_PIXEL make of them, each run that much longer."""
    points = grid(tile)
    found = []
    for place, slower in factors.items():
        spec = TileSpec(points[place].tile, tile.halo)
        plan = plan_tiles(points[place].height, points[place].width, spec)
        seconds = plan.count * (PER_TILE + plan.tile_h * plan.tile_w * PER_TILE_PIXEL[2])
        taken = Times(tuple(seconds * factor for factor in slower))
        found.append(Measured(points[place].width, points[place].height, spec, 2, taken))
    return found


def test_a_disturbed_half_of_the_runs_moves_nothing() -> None:
    """Four runs of six, or three, took several times as long; a median would follow them, a quartile does not."""
    slowed = {2: (1.0, 1.0, 1.0, 4.0, 5.0, 3.0), 3: (1.0, 6.0, 1.0, 5.0, 1.0, 2.0), 5: (1.0, 1.0, 9.0, 2.0, 3.0, 1.0)}
    model = forecast._fit(rows(TileSpec(), slowed), TileSpec())
    assert model.seconds[2] == pytest.approx({"per_tile": PER_TILE, "per_tile_pixel": PER_TILE_PIXEL[2]}, rel=1e-6)


def test_pixels_never_cost_nothing() -> None:
    """The small tile was held up so long that a large one seems quicker: a rate by tiles alone would be absurd."""
    small, large = rows(TileSpec(), {0: (20.0,), 3: (1.0,)})
    assert small.times.median > large.times.median
    model = forecast._fit([small, large], TileSpec())
    assert list(model.seconds[2]) == ["per_tile_pixel"]
    fixed = TileSpec(128, 16, fixed=True)
    alike = [Measured(*size, fixed, 2, Times((0.01 * n,))) for n, size in ((1, (96, 96)), (4, (384, 96)))]
    assert forecast._fit(alike, fixed).predict(192, 96, fixed, 2) == pytest.approx(0.02)


def test_a_report_that_cannot_be_kept_is_no_failure(clock: FakeTime, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    kept(clock)
    assert forecast.forecast("toy", 2)["source"].startswith("measured just now in ")


def doctor(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["doctor", *arguments])
    return int(stop.value.code or 0)


@pytest.mark.usefixtures("clock", "no_trials")
def test_doctor_says_what_to_expect(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor() == 0
    lines = capsys.readouterr().out.splitlines()
    place = next(place for place, line in enumerate(lines) if line.startswith("speed "))
    speed, source, checked = lines[place:]
    assert speed.startswith(f"speed       {LABEL}, ")
    assert ", 320x180 " in speed
    assert source.startswith("            from what its tiles cost: measured just now in ")
    assert checked == (
        "            checked on 352x88, left out of that: the computed time of such a frame is off by up to 0% of the "
        "measured one, in four runs of five"
    )
    monkeypatch.setattr(Watch, "others", lambda self: 1.4)
    assert doctor() == 0
    assert (
        capsys.readouterr().out.splitlines()[-1].startswith("warning     other programs kept 1.4 of 2 processors busy")
    )
    assert doctor("--json") == 0
    found = json.loads(capsys.readouterr().out)["speed"]
    assert found["problem"] is None
    assert found["warning"].startswith("other programs kept 1.4 ")


@pytest.mark.usefixtures("no_trials")
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
