"""The machine, in every benchmark file: a time without its CPU, its cores and the library versions means nothing."""

from __future__ import annotations

import os
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pytest
from kernel_goals import judge

from rsd_edge.machine import cpu_name

LIBRARIES = ("rsd-edge", "numpy", "opencv-python", "onnxruntime")
COLUMNS = ("counted_mb", "minimum_mb", "kernel_ms", "gb_per_s", "of_copy", "times_eager", "times_compiled",
           "network_ms", "share_of_frame")  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    """For bench_kernels.py."""
    parser.addoption("--dry-run", action="store_true", help="run the kernels' benchmark once, tiny, without a GPU")


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Called by pytest-benchmark before it writes its report."""
    machine_info["cpu_model"] = cpu_name()
    machine_info["usable_cores"] = len(os.sched_getaffinity(0))
    machine_info["versions"] = {name: _version(name) for name in LIBRARIES}


def pytest_benchmark_update_json(config: Any, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """Called before the report is written: which goals of the kernels were met. Without a GPU there are none."""
    goals = judge((bench["name"], bench["extra_info"]) for bench in output_json["benchmarks"])
    output_json["kernel_goals"] = [asdict(goal) for goal in goals] or "not run: no CUDA device"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # run from the tree, as tests/gpu/run.sh does
        return "not installed"


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The kernels' numbers as a table, because the report of pytest-benchmark has columns for times only."""
    session = getattr(config, "_benchmarksession", None)
    rows = [bench for bench in getattr(session, "benchmarks", ()) if "counted_mb" in bench.extra_info]
    if rows:
        terminalreporter.write_sep("-", "kernels")
        terminalreporter.write_line(" ".join(["name", *COLUMNS]))
    for bench in rows:
        cells = (bench.extra_info.get(column) for column in COLUMNS)
        terminalreporter.write_line(" ".join([bench.name, *("-" if cell is None else f"{cell:.3g}" for cell in cells)]))
    for goal in judge((bench.name, bench.extra_info) for bench in rows):
        found = "-" if goal.measured is None else f"{goal.measured:.3g}"
        terminalreporter.write_line(f"{goal.verdict}: {goal.benchmark}: {found} {goal.goal} {goal.wanted:g}")
