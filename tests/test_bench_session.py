"""One run of the bench on engines that take a known time."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from bench_doubles import PER_TILE, PER_TILE_PIXEL, FakeTime, fake_load

from rsd_edge.bench import opening, session, stages, timing
from rsd_edge.bench.latency import LatencyModel
from rsd_edge.bench.memory import ProcessLostError
from rsd_edge.bench.opening import BenchSettings
from rsd_edge.bench.others import Watch
from rsd_edge.bench.peaks import Peak
from rsd_edge.bench.peer import scores_of_peer
from rsd_edge.bench.reading import read_report
from rsd_edge.bench.session import measure
from rsd_edge.bench.subjects import Wish, load_and_run
from rsd_edge.bench.timing import Effort
from rsd_edge.errors import InputError
from rsd_edge.resolver import SuperResolver
from rsd_edge.specs import TileSpec

LABEL = "toy fp32 onnxruntime"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, toy_bundle: Path) -> FakeTime:
    made = FakeTime()
    for module in (timing, stages):
        monkeypatch.setattr(module, "time", made)
    monkeypatch.setattr(SuperResolver, "load", fake_load(made, toy_bundle))
    found = {"convolution fp32": Peak(made.taking(0.5, "peak"), 25e9, "GFLOP/s")}
    monkeypatch.setattr(opening, "peaks", lambda threads: found)
    monkeypatch.setattr(Watch, "others", lambda self: 0.1)  # or what runs beside the tests would be in the notes
    monkeypatch.setattr(opening, "open_peer", lambda path, w, h, threads: made.taking(1e-3, "peer"))
    return made


def settings(**changes: Any) -> BenchSettings:
    options = {"sizes": ((60, 40), (230, 100)), "threads": (1, 2), "effort": Effort(4), "memory": False}
    return BenchSettings((Wish("toy"),), **{**options, **changes})


def test_all_takes_its_turn_in_every_round(clock: FakeTime) -> None:
    measure(settings(sizes=((60, 40),), threads=(2,), effort=Effort(5), peers={"bicubic": None}), "command")
    turns = " / ".join(clock.log).split("pause")
    of_round = turns[1:-1][: (len(turns) - 1) // 5]
    # The last turn of all is followed by the stages, so it is left out.
    assert turns[1:-1] == (of_round * 5)[:-1]
    # Of a frame, two tiles, nine points, a peer and a peak; each ran twice, once to warm up.
    assert len(of_round) == 1 + 2 + 9 + 1 + 1
    # 60 x 40 with a halo of 16: one tile of 92 x 72.
    assert of_round[0] == " / 92x72, 2 threads / 92x72, 2 threads / "
    assert [turn.count("peer") for turn in of_round].index(2) == 12
    assert clock.log.count("closed") == 1 + 1 + 2 + 9  # the one that settles the choice, frame, tiles, points


def test_rows_say_what_was_measured(clock: FakeTime) -> None:
    document = measure(settings(peers={"bicubic": None}), "rsd-edge bench")
    frames = {row["name"]: row for row in document["frames"]}
    wide = frames[f"{LABEL} 230x100, 2 threads"]
    # Strides of 176 allow two tiles for 230 columns: 115, rounded up to an even 116, with halos 148 x 132.
    assert (wide["tiles"], wide["tile"]) == ("2x1", "148x132")
    seconds = 2 * (PER_TILE + 148 * 132 * PER_TILE_PIXEL[2])
    assert wide["seconds"] == pytest.approx([seconds] * 4)
    assert wide["ms"]["median"] == pytest.approx(1e3 * seconds, abs=1e-3)  # rounded to a microsecond
    assert wide["per_second"] == pytest.approx(1 / seconds, abs=1e-3)
    # The toy's convolutions: 8 -> 12, 12 -> 12, 12 -> 48 channels of 3x3.
    gflop = 2 * 148 * 132 * 2 * 9 * (8 * 12 + 12 * 12 + 12 * 48) / 1e9
    assert wide["gflop"] == pytest.approx(gflop, abs=1e-4)
    assert wide["share_of_peak"] == pytest.approx(gflop / seconds / 50, rel=0.01)  # rounded to 0.01 GFLOP/s
    assert frames["bicubic 230x100, 1 thread"]["peer"] is True
    assert {row["rate"] for row in document["peaks"]} == {50.0}
    assert {(row["width"], row["threads"]) for row in document["tiles"]} == {(64, 1), (64, 2), (208, 1), (208, 2)}
    assert document["engines"][LABEL]["digest"]
    assert document["quality"]["scores"] == {"bicubic": scores_of_peer(None)}  # the toy was never scored
    assert document["notes"] == [
        "realesr-general-x4v3 is not measured: give its ncnn files with --peer-file realesr-general-x4v3.param"
    ]


def test_a_peak_is_that_of_the_fastest_run(clock: FakeTime, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.cycle((0.5, 0.2, 0.8, 0.4, 1.0))
    peak = Peak(lambda: clock.spend(next(seconds)), 25e9, "GFLOP/s")
    monkeypatch.setattr(opening, "peaks", lambda threads: {"convolution fp32": peak})
    (row,) = measure(settings(threads=(2,), effort=Effort(6)), "rsd-edge bench")["peaks"]
    assert len(set(row["seconds"])) > 1
    assert row["rate"] == pytest.approx(25 / min(row["seconds"]), abs=0.01)


def test_more_threads_than_cores_are_told(clock: FakeTime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "usable_cores", lambda: 1)
    told = next(session.notes(settings()))
    assert told.startswith("2 threads share 1 cores: they wait for each other")
    monkeypatch.setattr(session, "usable_cores", lambda: 2)
    assert not list(session.notes(settings()))


def test_a_peer_has_the_scores_of_its_files_and_not_of_its_name(tmp_path: Path) -> None:
    assert scores_of_peer(None) is not None
    name = tmp_path / "realesr-general-x4v3.param"
    for path in (name, name.with_suffix(".bin")):
        path.write_bytes(b"others")
    assert scores_of_peer(name) is None


def test_a_run_beside_others_says_so(clock: FakeTime, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = measure(settings(peers={"bicubic": None}), "rsd-edge bench")
    assert quiet["load"]["others"] == 0.1
    monkeypatch.setattr(Watch, "others", lambda self: 100.0)  # more than there can be
    *others, note = measure(settings(peers={"bicubic": None}), "rsd-edge bench")["notes"]
    assert others == quiet["notes"]
    assert note.startswith("other programs kept 100.0 of ")
    assert note.endswith("; end what else runs here, then measure again")


def test_the_model_finds_what_the_engine_costs(clock: FakeTime) -> None:
    document = measure(settings(), "rsd-edge bench")
    model = LatencyModel.from_json(document["latency"][LABEL])
    for threads, per_tile_pixel in PER_TILE_PIXEL.items():
        assert model.seconds[threads]["per_tile"] == pytest.approx(PER_TILE, rel=1e-6)
        assert model.seconds[threads]["per_tile_pixel"] == pytest.approx(per_tile_pixel, rel=1e-6)
    held = [row.name for row in model.held_out]
    assert held == [
        f"{size} in tiles up to 208, {threads} threads" for threads in (1, 2) for size in ("60x40", "230x100")
    ]
    assert model.error == pytest.approx(0, abs=1e-6)
    # Strides of 176 again: 4 x 3 tiles of 160 x 120 with their halos.
    expected = 4 * 3 * (PER_TILE + (160 + 32) * (120 + 32) * PER_TILE_PIXEL[2])
    assert model.predict(640, 360, TileSpec(), 2) == pytest.approx(expected, rel=1e-6)


def test_stages_are_those_of_the_most_threads(clock: FakeTime) -> None:
    found = measure(settings(), "rsd-edge bench")["stages"]
    assert list(found) == [f"{LABEL} 60x40, 2 threads", f"{LABEL} 230x100, 2 threads"]
    for stage, taken in found[f"{LABEL} 60x40, 2 threads"].items():
        engine = 1e3 * (PER_TILE + 92 * 72 * PER_TILE_PIXEL[2])
        assert taken == pytest.approx(engine if stage == "engine" else 0, abs=1e-3)


def test_memory_is_taken_of_every_frame(clock: FakeTime, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def peak(make: object, *arguments: object) -> int:
        asked.append((make, *arguments))
        return 100 + len(asked)

    monkeypatch.setattr(session, "peak_megabytes", peak)
    frames = measure(settings(memory=True, threads=(2,)), "rsd-edge bench")["frames"]
    assert [row["peak_mb"] for row in frames] == [101, 102]
    assert asked[1] == (load_and_run, Wish("toy", "fp32", "onnxruntime"), 230, 100, 2)


def test_a_row_whose_process_was_killed_has_no_memory(clock: FakeTime, monkeypatch: pytest.MonkeyPatch) -> None:
    def peak(make: object, wish: object, width: int, *others: object) -> int:
        if width == 230:
            raise ProcessLostError("killed; end what else runs here")
        return 100

    monkeypatch.setattr(session, "peak_megabytes", peak)
    document = measure(settings(memory=True, threads=(2,)), "rsd-edge bench")
    assert [row["peak_mb"] for row in document["frames"]] == [100, None]
    assert document["notes"] == [
        f"the memory of {LABEL} 230x100, 2 threads is not known: killed; end what else runs here"
    ]


def test_the_document_can_be_read_again(clock: FakeTime, tmp_path: Path) -> None:
    document = measure(settings(), "rsd-edge bench")
    (tmp_path / "report.json").write_text(json.dumps(document, allow_nan=False))
    assert read_report(tmp_path / "report.json") == document


def test_what_does_not_compare_is_not_measured(clock: FakeTime) -> None:
    def refuse(known: Any) -> None:
        assert known["engines"][LABEL]["model"] == "toy"
        raise InputError("another machine")

    with pytest.raises(InputError, match="another machine"):
        measure(settings(), "rsd-edge bench", accept=refuse)
    assert "pause" not in clock.log


def test_an_interrupted_run_closes_its_engines(clock: FakeTime, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(threads: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Watch, "others", lambda self: 0.1)  # or what runs beside the tests would be in the notes
    monkeypatch.setattr(opening, "open_peer", lambda *_: lambda: interrupt(1))
    with pytest.raises(KeyboardInterrupt):
        measure(settings(threads=(2,), peers={"bicubic": None}), "rsd-edge bench")
    assert clock.log.count("closed") == 1 + 2 + 2 + 9


def test_without_onnx_the_rest_is_measured(clock: FakeTime, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (opening, session):
        monkeypatch.setattr(module, "can_count", lambda: False)
    monkeypatch.setattr(opening, "copy_peak", lambda threads: Peak(clock.taking(0.1, "copy"), 1e9, "GB/s"))
    document = measure(settings(), "rsd-edge bench")
    assert {row["peak"] for row in document["peaks"]} == {"memory copy"}
    assert {row["rate"] for row in document["peaks"]} == {10.0}
    assert all(row["share_of_peak"] is None for row in document["frames"])
    assert "pip install 'rsd-edge[bench]'" in document["notes"][0]
