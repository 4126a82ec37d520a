"""The machine, in every benchmark file: a time without its CPU, its cores and the library versions means nothing."""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import Any

from rsd_edge.machine import cpu_name

LIBRARIES = ("rsd-edge", "numpy", "opencv-python", "onnxruntime")


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Called by pytest-benchmark before it writes its report."""
    machine_info["cpu_model"] = cpu_name()
    machine_info["usable_cores"] = len(os.sched_getaffinity(0))
    machine_info["versions"] = {name: version(name) for name in LIBRARIES}
