"""One iteration of each stage of training, on a tiny batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest.importorskip("torch")

from distill_runs import iteration
from turns import Group, Row

from rsd_edge.distill.stages import STAGES
from rsd_edge.machine import usable_cores

SAMPLES, CROP = 2, 128
"""A smaller crop than this leaves the discriminator of the finetune stage less than it looks at."""


def groups(*, quick: bool) -> dict[str, Group]:
    """In the precision of the configuration, bf16, and in fp32. quick: in fp32, one sample, small crops."""
    if quick:
        return {"edge-n, 1 sample of 64x64": Group({f"{name} fp32": _row(name, "fp32", 1, 64) for name in STAGES})}
    rows = {f"{name} {p}": _row(name, p, SAMPLES, CROP) for name in STAGES for p in ("fp32", "bf16")}
    return {f"edge-n, {SAMPLES} samples of {CROP}x{CROP}": Group(rows)}


def _row(name: str, precision: str, samples: int, crop: int) -> Row:
    return Row(iteration, ("edge-n", name, precision, samples, crop, usable_cores()), "torch")


def bench_iteration(replay: Callable[[], None]) -> None:
    """Forward and backward passes of all networks of the stage, and their updates."""
    replay()
