"""The suites under benchmarks/: that they run, and that what their reports say of each row fits together."""

from __future__ import annotations

import copy
import functools
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from turns import REPLAYED, Group, Job, Row, measure, peak_memory, table

from rsd_edge.bench.timing import Effort

ROOT = Path(__file__).parents[1]
SUITES = ("bench_distill", "bench_frames", "bench_machine", "bench_stages", "bench_start", "bench_streams")
ALWAYS = {"p50_ms", "p90_ms", "p99_ms", "runs", "warm_up_runs"}
COMPUTES, BESIDE = {"gflop", "gflop_per_s"}, {"peak", "peak_per_s", "of_peak"}
FIELDS = {
    "bench_frames": COMPUTES | {"frames_per_s"},
    "bench_distill": COMPUTES,
    "bench_streams": {"frames_per_s"},
}
Entry = dict[str, Any]


def run_suites(*words: str, report: Path) -> dict[str, Any]:
    command = (sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--quick", *words)
    done = subprocess.run(
        (*command, "--benchmark-json", str(report)), cwd=ROOT, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]
    document: dict[str, Any] = json.loads(report.read_text())
    document["printed"] = done.stdout
    return document


def suite(entry: Entry) -> str:
    return Path(entry["fullname"].partition("::")[0]).stem


def close(value: float, expected: float, tolerance: float = 1e-6) -> bool:
    return abs(value - expected) <= tolerance * abs(expected)


def problems(entries: list[Entry]) -> list[str]:
    """What cannot be right."""
    found = []
    for entry in entries:
        info, stats = entry["extra_info"], entry["stats"]
        median = statistics.median(stats["data"])
        checks = {
            "fields": set(info) >= ALWAYS | FIELDS.get(suite(entry), set()),
            # No peak is measured in bfloat16.
            "held against": "gflop" not in info
            or set(info) >= BESIDE
            or suite(entry) == "bench_machine"
            or "bf16" in entry["name"],
            "timer": entry["options"]["timer"] == "replayed",
            "runs": info.get("runs") == stats["rounds"] == len(stats["data"]),
            "seconds": 1e-6 < min(stats["data"]) <= stats["median"] == median < 300,
            # Milliseconds are rounded to three places.
            "median": abs(info.get("p50_ms", 0) - 1e3 * median) < 6e-4,
            "percentiles": info.get("p50_ms", 0) <= info.get("p90_ms", 0) <= info.get("p99_ms", 0),
            "memory": 20 < info.get("peak_mb", 50) < 20000,
        }
        # Wide bounds: a first run without a warm-up, on a busy machine, may wait for a table or for its turn.
        for name, least, most in (("gflop", 1e-3, 1e5), ("gb", 1e-5, 1e4)):
            if name in info:
                rate = info.get(f"{name}_per_s", 0)
                checks[f"{name} a second"] = close(rate, info[name] / median) and least < rate < most
        if "peak" in info:
            rate = info.get("gflop_per_s", info.get("gb_per_s"))
            checks["share"] = close(info.get("of_peak", 0), rate / info["peak_per_s"])
            checks["peak"] = ("convolution" in info["peak"]) == ("gflop" in info) and info["peak_per_s"] > 0.1
        if suite(entry) == "bench_frames":
            checks["frames"] = close(info.get("frames_per_s", 0), 1 / median)
        found += [f"{entry['name']}: {name}" for name, right in checks.items() if not right]
    return found


def by_label(entries: list[Entry], group: str) -> dict[str, Mapping[str, Any]]:
    return {entry["params"]["label"]: entry["extra_info"] for entry in entries if entry["group"] == group}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The machine, the stages of a tile, films, and the smallest frames, OpenVINO's as well."""
    files = [f"benchmarks/{name}.py" for name in ("bench_machine", "bench_stages", "bench_streams", "bench_frames")]
    chosen = "bench_machine or tile or bench_stream or 24x24 and not thread and not tiles"
    path = tmp_path_factory.mktemp("suites") / "report.json"
    return run_suites(*files, "-k", chosen, report=path)


def test_what_a_report_says_fits_together(report: dict[str, Any]) -> None:
    entries = report["benchmarks"]
    assert problems(entries) == []
    assert {suite(entry) for entry in entries} == {"bench_machine", "bench_stages", "bench_streams", "bench_frames"}
    assert {"cpu_model", "usable_cores", "power", "load", "versions"} <= set(report["machine_info"])
    assert "onnxruntime" in report["machine_info"]["versions"]


def test_the_work_is_counted(report: dict[str, Any]) -> None:
    entries = report["benchmarks"]
    stages = by_label(entries, "bench_stages tile 40x40")
    for precision in ("fp32", "int8"):
        parts = sum(stages[f"{name} {precision}"]["gflop"] for name in ("stem", "generator", "decoder"))
        assert parts == pytest.approx(stages[f"whole network {precision}"]["gflop"], rel=1e-9)
    # 1.648 GFLOP a tile of 64 x 64, as distill/configs/edge-n.yaml says with fewer digits.
    assert stages["whole network fp32"]["gflop"] == pytest.approx(1.648 * 40**2 / 64**2, rel=2e-3)
    frames = by_label(entries, "bench_frames 24x24")
    assert len(frames) == 4
    for info in frames.values():  # with a halo of 12 on each side
        assert info["gflop"] == pytest.approx(1.648 * 48**2 / 64**2, rel=2e-3)
    # A frame of 16 x 16 bytes is read and a tile of 40 x 40 floats written, in three channels.
    assert stages["gather"]["gb"] == pytest.approx(3 * (16 * 16 + 4 * 40 * 40) / 1e9)
    (film,) = {entry["group"] for entry in entries if suite(entry) == "bench_streams"}
    for info in by_label(entries, film).values():  # two frames
        assert info["frames_per_s"] * info["p50_ms"] / 1e3 == pytest.approx(2, rel=1e-3)


WRONG: dict[str, Callable[[Entry], Any]] = {
    "median": lambda entry: entry["extra_info"].update(p50_ms=1.01 * entry["extra_info"]["p50_ms"]),
    "percentiles": lambda entry: entry["extra_info"].update(p99_ms=0.5 * entry["extra_info"]["p50_ms"]),
    "seconds": lambda entry: entry["stats"].update(median=1.01 * entry["stats"]["median"]),
    "runs": lambda entry: entry["extra_info"].update(runs=2),
    "held against": lambda entry: entry["extra_info"].pop("of_peak"),
    "timer": lambda entry: entry["options"].update(timer="perf_counter"),
    "fields": lambda entry: entry["extra_info"].pop("p90_ms"),
    "gflop a second": lambda entry: entry["extra_info"].update(gflop=1.01 * entry["extra_info"]["gflop"]),
    "share": lambda entry: entry["extra_info"].update(of_peak=1.01 * entry["extra_info"]["of_peak"]),
    "peak": lambda entry: entry["extra_info"].update(peak="memory copy"),
    "frames": lambda entry: entry["extra_info"].update(frames_per_s=1.01 * entry["extra_info"]["frames_per_s"]),
    "memory": lambda entry: entry["extra_info"].update(peak_mb=3),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value_is_noticed(report: dict[str, Any], name: str) -> None:
    entry = copy.deepcopy(next(entry for entry in report["benchmarks"] if suite(entry) == "bench_frames"))
    WRONG[name](entry)
    assert f"{entry['name']}: {name}" in problems([entry])


def test_the_table_is_printed(report: dict[str, Any]) -> None:
    lines = report["printed"].splitlines()
    for entry in report["benchmarks"]:
        label, info = entry["params"]["label"], entry["extra_info"]
        assert any(line.startswith(label) and f"{info['p50_ms']:.4g}" in line for line in lines)
    (row,) = table({"name": {"p50_ms": 12.345678, "of_peak": 0.5, "peak": "memory copy"}})[1:]
    assert row.split() == ["name", "12.35", *"-" * 6, "0.5", "-", "memory", "copy"]


@pytest.mark.slow
def test_every_suite_runs(tmp_path: Path) -> None:
    document = run_suites("benchmarks", report=tmp_path / "report.json")
    entries = document["benchmarks"]
    assert problems(entries) == []
    assert {suite(entry) for entry in entries} == set(SUITES)
    assert {"python alone", "first frame fp32 onnxruntime"} <= by_label(entries, "bench_start start").keys()
    (stages,) = {entry["group"] for entry in entries if suite(entry) == "bench_distill"}
    assert {label.split()[0] for label in by_label(entries, stages)} == {
        "autoencoder",
        "teacher",
        "student",
        "finetune",
    }


def test_rows_are_timed_beside_their_peak() -> None:
    rows = {
        "short": Row(Job, (functools.partial(time.sleep, 0.01), 2e9, None, "matrix product fp32")),
        "long": Row(Job, (functools.partial(time.sleep, 0.03), None, 3e9, None, 1, 6)),
    }
    found = measure(rows, Effort(rounds=2), warm_up=1, runs=2)
    short, long = (found[name].fields() for name in rows)
    assert len(found["short"].times.seconds) == 4
    assert short["p50_ms"] >= 10  # a sleep is never shorter
    assert long["p50_ms"] >= 30
    assert short["gflop_per_s"] == pytest.approx(2 / (short["p50_ms"] / 1e3), rel=1e-3)
    assert short["of_peak"] == pytest.approx(short["gflop_per_s"] / short["peak_per_s"])
    assert (short["peak"], short["warm_up_runs"]) == ("matrix product fp32", 1)
    assert long["gb_per_s"] == pytest.approx(3 / (long["p50_ms"] / 1e3), rel=1e-3)
    assert long["frames_per_s"] == pytest.approx(6 / (long["p50_ms"] / 1e3), rel=1e-3)
    assert not {"of_peak", "gflop"} & set(long)


def test_what_fails_in_the_other_process_fails_here() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        measure({"row": Row(Job, (functools.partial(int, "seven"),))}, Effort(rounds=1))


def test_seconds_are_played_as_they_are() -> None:
    seen: list[float] = []

    def pedantic(target: Callable[[], None], setup: Callable[[], None], rounds: int) -> None:
        for _ in range(rounds):
            setup()
            began = REPLAYED()
            target()
            seen.append(REPLAYED() - began)

    REPLAYED.play(SimpleNamespace(pedantic=pedantic), (0.1, 1e-9, 123.456))
    assert seen == [0.1, 1e-9, 123.456]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not tell peak memory")
def test_peak_memory_is_that_of_the_row() -> None:
    none, much = (peak_memory(Row(Job, (functools.partial(bytearray, size << 20),))) for size in (0, 64))
    assert none is not None
    assert much is not None
    assert 60 <= much - none <= 80  # zeroed pages are touched; the rest of a process varies by a few MiB


def test_a_missing_package_is_named() -> None:
    spec = importlib.util.spec_from_file_location("benchmarks_conftest", ROOT / "benchmarks" / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    conftest = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conftest)
    rows = {"there": Row(Job, needs="numpy"), "missing": Row(Job, needs="no_such_package")}
    made: list[Any] = []
    conftest.pytest_generate_tests(
        SimpleNamespace(
            fixturenames=["replay"],
            module=SimpleNamespace(groups=lambda quick: {"group": Group(rows)}),
            config=SimpleNamespace(getoption=lambda name: True),
            parametrize=lambda names, found: made.extend(found),
        )
    )
    reasons = {case.id: [mark.args for mark in case.marks if mark.name == "skip"] for case in made}
    assert reasons == {"group: there": [], "group: missing": [("not run: 'no_such_package' is not installed",)]}


def test_the_kernels_suite_needs_no_onnx_runtime() -> None:
    """It shares conftest.py with the others, on machines that have torch and Triton alone."""
    code = "import sys; sys.modules |= {'onnxruntime': None, 'onnx': None, 'cv2': None}; import conftest"
    folder = ROOT / "benchmarks"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
