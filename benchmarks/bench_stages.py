"""Where the time of a tile and of a frame goes, each stage by itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest.importorskip("onnx")

from stage_runs import PARTS, Where, base, finish, gather, merge, noise, one_tile, part
from turns import Group, Row

from rsd_edge.machine import usable_cores

MODEL = "edge-n"
AROUND = {"gather": gather, "noise": noise, "merge": merge, "bicubic base": base, "merge, base and sum": finish}


def groups(*, quick: bool) -> dict[str, Group]:
    """One tile of 64 x 64 with its halo, and the tiles of a frame of 320 x 180. Copies within caches exceed the
    machine's rate for memory, so shares of that above 1 are no mistake. quick: smaller ones."""
    cores = usable_cores()
    side, width, height = (40, 40, 24) if quick else (64, 320, 180)
    return {
        f"tile {side}x{side}": Group(_rows(one_tile(MODEL, side, cores)), burst=5),
        f"frame {width}x{height}": Group(_rows(Where(MODEL, width, height, cores)), burst=3),
    }


def _rows(where: Where) -> dict[str, Row]:
    networks = {f"{name} {p}": Row(part, (where, p, name)) for p in ("fp32", "int8") for name in PARTS}
    return networks | {name: Row(make, (where,)) for name, make in AROUND.items()}


def bench_stage(replay: Callable[[], None]) -> None:
    """Parts of the shipped graph on ONNX Runtime, and what the frame path does around them."""
    replay()
