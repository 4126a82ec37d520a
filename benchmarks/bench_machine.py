"""What this machine computes and moves at best, which the other suites measure again beside their own rows."""

from __future__ import annotations

from collections.abc import Callable

from frame_runs import peak
from turns import Group, Row

from rsd_edge.bench.peaks import CONVOLUTION, COPY
from rsd_edge.machine import usable_cores

KINDS = (*CONVOLUTION.values(), "matrix product fp32", "dot product int8", COPY)


def groups(*, quick: bool) -> dict[str, Group]:
    """On one thread and on all; quick: on one."""
    every = (1,) if quick else sorted({1, usable_cores()})
    return {f"{threads} threads": Group(_rows(threads), burst=5) for threads in every}


def _rows(threads: int) -> dict[str, Row]:
    return {kind: Row(peak, (kind, threads), "onnx") for kind in KINDS}


def bench_machine(replay: Callable[[], None]) -> None:
    """Convolutions, products of matrices, integer dot products, copies of memory."""
    replay()
