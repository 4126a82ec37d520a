"""Runs beside the real bindings of one version, over stub libraries; tests/test_tensorrt_bindings.py starts it.

    python bindings_child.py FACTS.json

FACTS holds what to look for. Prints one JSON object of what was not found; an empty one is what is hoped for.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

import tensorrt_bindings as trt

from rsd_edge.backends.tensorrt.library import bit, make_logger, numpy_dtype, version_of
from rsd_edge.export.tensorrt_network import make_monitor


def names_of_module(paths: list[str]) -> set[str]:
    """Dotted names that sources take from the module: what follows `trt` in `trt.X.Y`, `self.trt.X` and the like."""
    found = set()
    for path in paths:
        for node in ast.walk(ast.parse(Path(path).read_text())):
            parts: list[str] = []
            while isinstance(node, ast.Attribute):
                parts.insert(0, node.attr)
                node = node.value
            if isinstance(node, ast.Name):
                parts.insert(0, node.id)
            if "trt" in parts[:-1]:
                found.add(".".join(parts[parts.index("trt") + 1 :]))
    return found


def missing_members(members: dict[str, list[str]], *, settable: bool) -> list[str]:
    missing = []
    for name, keys in members.items():
        for key in keys:
            member = getattr(getattr(trt, name), key, None)
            if member is None and not hasattr(getattr(trt, name), key):
                missing.append(f"{name}.{key}")
            elif settable and getattr(member, "fset", None) is None:
                missing.append(f"{name}.{key} cannot be set")
    return missing


def differences(surface: dict[str, Any]) -> list[str]:
    """Where the fake's surface is not that of the bindings."""
    found = []
    for name, values in surface["enums"].items():
        enum = trt
        for part in name.split("."):
            enum = getattr(enum, part)
        real = {key: int(value) for key, value in enum.__members__.items()}
        if real != values:
            found.append(f"{name}: {sorted(set(real.items()) ^ set(values.items()))}")
    for name, members in surface["classes"].items():
        real = {key for key in dir(getattr(trt, name)) if not key.startswith("_")}
        if name == "ParserError":  # listed for 10.16 alone, and used of 10.3 as well
            real &= set(members)
        if real != set(members):
            found.append(f"{name}: {sorted(real ^ set(members))}")
    return found


def behaviours() -> list[str]:
    """What needs no builder: classes that are inherited from, conversions, bits."""
    wrong = []
    logger = make_logger(trt)
    logger.log(trt.ILogger.ERROR, "one\ntwo")
    logger.log(trt.ILogger.INFO, "three")
    if logger.tail() != "one two":
        wrong.append(f"tail {logger.tail()}")
    monitor = make_monitor(trt, None)
    monitor.phase_start("a", None, 1)
    if monitor.step_complete("a", 0) is not True:
        wrong.append("step_complete")
    if [str(numpy_dtype(trt, kind)) for kind in (trt.DataType.FLOAT, trt.DataType.HALF)] != ["float32", "float16"]:
        wrong.append("numpy_dtype")
    if tuple(trt.Dims((-1, 3, 48, 48))) != (-1, 3, 48, 48) or tuple(trt.Dims([1, 3])) != (1, 3):
        wrong.append("Dims")
    expected = 0b1 if version_of(trt)[0] >= 11 else 0b10
    if bit(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED") != expected:
        wrong.append("STRONGLY_TYPED")
    return wrong


def exists(name: str) -> bool:
    value: Any = trt
    for part in name.split("."):
        if not hasattr(value, part):
            return False
        value = getattr(value, part)
    return True


def main() -> None:
    facts = json.loads(Path(sys.argv[1]).read_text())
    used = names_of_module(facts["sources"])
    report = {
        "too_few_names_found": [] if len(used) > 20 else sorted(used),
        "names": sorted(name for name in used if not exists(name) and name not in facts["guarded"]),
        "read": missing_members(facts["read"], settable=False),
        "written": missing_members(facts["written"], settable=True),
        "surface": differences(facts["surface"]),
        "behaviour": behaviours(),
    }
    sys.stdout.write(json.dumps({key: value for key, value in report.items() if value}))


if __name__ == "__main__":
    main()
