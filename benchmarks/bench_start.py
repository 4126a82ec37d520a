"""What a user waits for before the first result: imports, loading, the first frame, and the building of engines."""

from __future__ import annotations

from collections.abc import Callable

from start_runs import FIRST_FRAME, IMPORT, LOAD, build, program
from turns import Group, Row

from rsd_edge.machine import usable_cores

MODEL = "edge-n"
BACKENDS = ("onnxruntime", "openvino")


def groups(*, quick: bool) -> dict[str, Group]:
    """quick: the start without OpenVINO, and no INT8, whose ranges and gate take a quarter of a minute."""
    rows = {"python alone": _program(""), "import rsd_edge": _program(IMPORT)}
    for precision in ("fp32", "int8"):
        for backend in BACKENDS[: 1 if quick else 2]:
            words = {"model": MODEL, "precision": precision, "backend": backend}
            rows[f"load {precision} {backend}"] = _program(LOAD.format(**words), backend)
            rows[f"first frame {precision} {backend}"] = _program(FIRST_FRAME.format(**words), backend)
    found = {"start": Group(rows), "build": Group({"fp32": _build("fp32")})}
    return found if quick else found | {"build, once": Group({"int8": _build("int8")}, once=True)}


def _program(code: str, needs: str = "") -> Row:
    return Row(program, (code,), needs, memory=False)


def _build(precision: str) -> Row:
    return Row(build, (MODEL, precision, usable_cores()), "onnx", memory=False)


def bench_start(replay: Callable[[], None]) -> None:
    """Processes from start to end, Python's own start included, files in the system's cache."""
    replay()
