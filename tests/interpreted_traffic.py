"""Counts the bytes that kernels read and write, in Triton's interpreter: see rsd_edge/kernels/traffic.py.

Not collected with the other tests, for the reason in tests/interpreted_kernels.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from device_doubles import toy_engine
from torch import Tensor
from triton.runtime import interpreter

from rsd_edge.kernels import traffic
from rsd_edge.kernels.frame_ops import frame_tiles, merge_tiles
from rsd_edge.kernels.frame_path import CudaFramePath
from rsd_edge.kernels.noise_field import noise_field, seed_tensor, table_tensor
from rsd_edge.kernels.noising import forward_noise, forward_noise_drawn, posterior_step, prior_input
from rsd_edge.kernels.norm_act import group_norm_silu
from rsd_edge.kernels.rsd import rsd_terms
from rsd_edge.kernels.tables import StepTables
from rsd_edge.kernels.traffic import Traffic
from rsd_edge.specs import ModelSpec, TileSpec
from rsd_edge.tiling import plan_tiles

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp")

SHAPE = (2, 4, 48, 64)
ELEMENTS, PIXELS = 2 * 4 * 48 * 64, 48 * 64
T = torch.tensor([3, 14])
FIELD = (seed_tensor([1, 2]), torch.zeros(2, 2, dtype=torch.int32))
TRITON = {"implementation": "triton"}
PLAN = plan_tiles(1, 60, TileSpec(size=80, halo=16, feather=4, fixed=True))
SLACK = 0.03
"""Left out of the counts: a few scalars and sums of each program, and what 16-byte vectors reach beyond rows."""


class Meter:
    """Addresses of all bytes that launches touch, by program."""

    def __init__(self, patch: pytest.MonkeyPatch, ignored: Tensor) -> None:
        self._programs: dict[Any, list[Any]] = defaultdict(list)
        self.launches = 0
        builder = interpreter.interpreter_builder
        first, last = ignored.data_ptr(), ignored.data_ptr() + ignored.numel() * ignored.element_size()

        def note(pointers: Any, mask: Any) -> None:
            addresses = pointers.data[mask.data.astype(bool)].astype(np.int64)
            addresses = addresses[(addresses < first) | (addresses >= last)]
            width = pointers.get_element_ty().primitive_bitwidth // 8
            self._programs[self.launches, tuple(builder.grid_idx)].append(
                (addresses[:, None] + np.arange(width)).ravel()
            )

        def wrap(name: str, mask_index: int) -> None:
            original = getattr(builder, name)

            def measured(*arguments: Any) -> Any:
                note(arguments[0], arguments[mask_index])
                return original(*arguments)

            patch.setattr(builder, name, measured)

        def start(*grid: int) -> None:
            self.launches += 1
            begin(*grid)

        begin = builder.set_grid_dim
        patch.setattr(builder, "set_grid_dim", start)
        wrap("create_masked_load", 1)
        wrap("create_masked_store", 2)

    def counted(self) -> int:
        """Distinct bytes of each program, added up."""
        return sum(len(np.unique(np.concatenate(touched))) for touched in self._programs.values())

    def minimum(self) -> int:
        """Distinct bytes of all programs together."""
        return len(np.unique(np.concatenate([part for touched in self._programs.values() for part in touched])))


def images(count: int, shape: tuple[int, ...] = SHAPE) -> list[Tensor]:
    return [torch.randn(shape, generator=torch.Generator().manual_seed(i)).half() for i in range(count)]


def noising(name: str) -> None:
    tables, (x0, y, eps) = StepTables.of(), images(3)
    network_input = torch.zeros((2, 8, *SHAPE[2:]), dtype=torch.float16)
    match name:
        case "given":
            forward_noise(x0, y, eps, T, tables, scaled=True, **TRITON)
        case "drawn":
            forward_noise_drawn(x0, y, FIELD, T, tables, **TRITON)
        case "backward":
            torch.ops.rsd_edge.forward_noise_backward(x0, T, tables.eta, None, "triton")
        case "posterior":
            posterior_step(x0, y, eps, T, tables, network_input, **TRITON)
        case _:
            lq, noise = images(1, (2, 3, 48, 64))[0], images(1, (2, 5, 48, 64))[0]
            prior_input(x0, lq, noise, mean_scale=0.4, noise_scale=0.9, **TRITON)


def norm(layout: torch.memory_format) -> None:
    x = images(1, (1, 64, 32, 64))[0].contiguous(memory_format=layout)
    group_norm_silu(x, torch.ones(64), torch.zeros(64), 2, **TRITON)


CASES: dict[str, tuple[Callable[[], Any], Traffic]] = {
    "forward_noise": (lambda: noising("given"), traffic.forward_noise(ELEMENTS, 2)),
    "forward_noise_drawn": (lambda: noising("drawn"), traffic.forward_noise(ELEMENTS, 2, drawn=True)),
    "forward_noise_backward": (lambda: noising("backward"), traffic.forward_noise_backward(ELEMENTS, 2)),
    "prior_input": (lambda: noising("prior"), traffic.prior_input(2, 4, PIXELS, 2)),
    "posterior_step": (lambda: noising("posterior"), traffic.posterior_step(ELEMENTS, 2)),
    "rsd_terms": (lambda: rsd_terms(*images(3), **TRITON), traffic.rsd_terms(ELEMENTS, 2)),
    "rsd_terms_backward": (
        lambda: torch.ops.rsd_edge.rsd_terms_backward(*images(3), torch.ones(2), torch.ones(2), "triton"),
        traffic.rsd_terms_backward(ELEMENTS, 2),
    ),
    "group_norm_silu contiguous": (lambda: norm(torch.contiguous_format), traffic.group_norm_silu(64 * 2048, 2)),
    "group_norm_silu channels_last": (lambda: norm(torch.channels_last), traffic.group_norm_silu(64 * 2048, 2)),
    "noise_field": (
        lambda: noise_field(*FIELD, 8, 48, 64, dtype=torch.float16, **TRITON), traffic.noise_field(2, 8, PIXELS, 2),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bytes_are_those_that_the_table_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run, expected = CASES[name]
    meter = Meter(monkeypatch, table_tensor(torch.device("cpu")))
    run()
    assert meter.counted() == pytest.approx(expected.counted, rel=SLACK)
    assert meter.minimum() == pytest.approx(expected.minimum, rel=SLACK)


def test_bytes_of_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = torch.tensor(np.random.default_rng(0).integers(0, 256, (1, 60, 3), dtype=np.uint8))
    meter = Meter(monkeypatch, table_tensor(torch.device("cpu")))
    frame_tiles(frame, PLAN, dtype=torch.float16, **TRITON)
    expected = traffic.frame_tiles(PLAN, 2)
    # Less than the table says, because the same rows, reflected, lie above and below this one.
    assert meter.minimum() == pytest.approx(expected.minimum, rel=SLACK)
    assert expected.minimum < meter.counted() < (1 + SLACK) * expected.counted


def test_bytes_of_merging(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = torch.zeros((1, 60, 3), dtype=torch.uint8)
    detail = torch.zeros((PLAN.count, 3, 4 * PLAN.tile_h, 4 * PLAN.tile_w), dtype=torch.float16)
    meter = Meter(monkeypatch, table_tensor(torch.device("cpu")))
    merge_tiles(detail, frame, torch.ones(1), torch.zeros(1, dtype=torch.int32), PLAN, **TRITON)
    expected = traffic.merge_tiles(PLAN, 2)
    assert meter.minimum() == pytest.approx(expected.minimum, rel=SLACK)
    assert meter.counted() == pytest.approx(expected.counted, rel=SLACK)
    assert expected.minimum < expected.counted


def test_a_frame_takes_three_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    def network(lq: Tensor, noise: Tensor) -> Tensor:
        assert lq.dtype == noise.dtype == torch.float16
        return lq.repeat_interleave(4, 2).repeat_interleave(4, 3) + noise.mean()

    model, tile = ModelSpec(name="toy"), TileSpec(size=12, halo=4, feather=1, batch=1)
    engine, half = toy_engine(model, tile), torch.float16
    path = CudaFramePath(engine, network, implementation="triton", device="cpu", dtype=half)
    meter = Meter(monkeypatch, table_tensor(torch.device("cpu")))
    assert path(np.zeros((1, 6, 3), np.uint8)).shape == (4, 24, 3)
    assert meter.launches == 3
