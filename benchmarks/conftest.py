"""What the suites share: options, rows that take turns, and the machine in every report.

A suite is a module with `groups(quick)`, the rows that are compared with each other, and one benchmark that calls
`replay`; see turns.py.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pytest
from kernel_goals import judge
from pytest_benchmark.fixture import BenchmarkFixture
from turns import REPLAYED, Group, Measured, measure, peak_memory, table

from rsd_edge.bench import environment
from rsd_edge.bench.timing import Effort
from rsd_edge.machine import cpu_name

KERNEL_COLUMNS = ("counted_mb", "minimum_mb", "kernel_ms", "gb_per_s", "of_copy", "times_eager", "times_compiled",
           "network_ms", "share_of_frame")  # fmt: skip


ROUNDS = 100
"""At most: with fewer, p99 is little else than the slowest."""

Selected = tuple[Any, str]
"""A module and the name of a group in it."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """For all suites, and for bench_kernels.py alone."""
    parser.addoption("--quick", action="store_true", help="one run of everything, tiny: whether the suites work")
    parser.addoption("--group-seconds", type=float, default=8.0, help="after which a group begins no further round")
    parser.addoption("--peak-memory", action="store_true", help="also of each row in a process of its own; slow")
    parser.addoption("--dry-run", action="store_true", help="run the kernels' benchmark once, tiny, without a GPU")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A benchmark for each row; those whose package is missing are skipped, and say so."""
    if "replay" not in metafunc.fixturenames:
        return
    found = []
    for name, group in metafunc.module.groups(quick=metafunc.config.getoption("--quick")).items():
        for label, row in group.rows.items():
            missing = row.needs and importlib.util.find_spec(row.needs) is None
            marks = [pytest.mark.benchmark(timer=REPLAYED)]
            marks += [pytest.mark.skip(f"not run: '{row.needs}' is not installed")] if missing else []
            found.append(pytest.param(name, label, id=f"{name}: {label}", marks=marks))
    metafunc.parametrize(("group", "label"), found)


@pytest.fixture(scope="session")
def measured() -> dict[Selected, dict[str, Measured]]:
    """What was measured so far."""
    return {}


@pytest.fixture
def replay(
    request: pytest.FixtureRequest,
    benchmark: BenchmarkFixture,
    measured: dict[Selected, dict[str, Measured]],
    group: str,
    label: str,
) -> Callable[[], None]:
    """Tells pytest-benchmark what the row took. The first row of a group has all selected ones measured."""
    config = request.config
    rows: Group = request.module.groups(quick=config.getoption("--quick"))[group]

    def report() -> None:
        key = request.module, group
        if key not in measured:
            measured[key] = _measure(rows, _selected(request, group), config)
        found = measured[key][label]
        benchmark.group = f"{request.module.__name__.rpartition('.')[2]} {group}"
        benchmark.extra_info.update(found.fields())
        if config.getoption("--peak-memory") and rows.rows[label].memory:
            benchmark.extra_info["peak_mb"] = peak_memory(rows.rows[label])
        REPLAYED.play(benchmark, found.times.seconds)

    return report


def _selected(request: pytest.FixtureRequest, group: str) -> list[str]:
    """Labels of the rows of a group that this run is to measure."""
    items = [item for item in request.session.items if isinstance(item, pytest.Function)]
    chosen = [item for item in items if item.module is request.module and not item.get_closest_marker("skip")]
    return [str(item.callspec.params["label"]) for item in chosen if item.callspec.params["group"] == group]


def _measure(group: Group, labels: list[str], config: pytest.Config) -> dict[str, Measured]:
    quick, seconds = config.getoption("--quick"), config.getoption("--group-seconds")
    rows = {label: group.rows[label] for label in labels}
    if quick or group.once:
        return measure(rows, Effort(rounds=1), warm_up=0)
    return measure(rows, Effort(rounds=ROUNDS, seconds=seconds), warm_up=group.burst, runs=group.burst)


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Called by pytest-benchmark before it writes its report."""
    machine_info["cpu_model"] = cpu_name()
    machine_info["usable_cores"] = len(os.sched_getaffinity(0))
    machine_info["power"], machine_info["load"] = environment.power(), environment.load()
    machine_info["versions"] = environment.versions()


def pytest_benchmark_update_json(config: Any, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """Called before the report is written: which goals of the kernels were met. Without a GPU there are none."""
    goals = judge((bench["name"], bench["extra_info"]) for bench in output_json["benchmarks"])
    output_json["kernel_goals"] = [asdict(goal) for goal in goals] or "not run: no CUDA device"


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """All numbers as tables, because the report of pytest-benchmark has columns for times only."""
    benchmarks = getattr(getattr(config, "_benchmarksession", None), "benchmarks", ())
    rows: dict[str, dict[str, Mapping[str, Any]]] = {}
    for bench in benchmarks:
        if "p50_ms" in bench.extra_info:
            rows.setdefault(bench.group, {})[bench.params["label"]] = bench.extra_info
    for group, found in rows.items():
        terminalreporter.write_sep("-", group)
        for line in table(found):
            terminalreporter.write_line(line)
    _kernels(terminalreporter, [bench for bench in benchmarks if "counted_mb" in bench.extra_info])


def _kernels(terminalreporter: Any, rows: Sequence[Any]) -> None:
    if rows:
        terminalreporter.write_sep("-", "kernels")
        terminalreporter.write_line(" ".join(["name", *KERNEL_COLUMNS]))
    for bench in rows:
        cells = (bench.extra_info.get(column) for column in KERNEL_COLUMNS)
        terminalreporter.write_line(" ".join([bench.name, *("-" if cell is None else f"{cell:.3g}" for cell in cells)]))
    for goal in judge((bench.name, bench.extra_info) for bench in rows):
        found = "-" if goal.measured is None else f"{goal.measured:.3g}"
        terminalreporter.write_line(f"{goal.verdict}: {goal.benchmark}: {found} {goal.goal} {goal.wanted:g}")
