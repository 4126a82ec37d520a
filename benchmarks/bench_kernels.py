"""GB/s of each GPU kernel against a device copy of the same bytes in the same run, eager torch and torch.compile.

    pytest tests/gpu benchmarks/bench_kernels.py --benchmark-json kernels.json

Bytes are counted: every input read and every output written, as often as the kernel does so; the minimum is once each.
Training sizes are beyond the L2 cache; frames of 1 to 64 tiles run as a CUDA graph, as they do in CudaFramePath.
Without a GPU nothing is run, and the report of pytest says so. The command is meant to take less than ten minutes.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

pytest.importorskip("triton")

from rsd_edge.kernels.frame_ops import frame_tiles, merge_tiles
from rsd_edge.kernels.noise_field import noise_field, seed_tensor
from rsd_edge.kernels.noising import forward_noise, posterior_step, prior_input
from rsd_edge.kernels.norm_act import group_norm_silu
from rsd_edge.kernels.rsd import rsd_terms
from rsd_edge.kernels.tables import StepTables
from rsd_edge.models.edge import EdgeDecoder, EdgeGenerator, EdgeStem, EdgeTile
from rsd_edge.specs import ModelSpec, TileSpec
from rsd_edge.tiling import plan_tiles

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="not run: no CUDA device"),
]

CALLS, ROUNDS = 20, 7
"""Calls between two events, so that an idle stream does not time the host; the median of the rounds counts."""
TILES = (1, 4, 16, 64)
TRITON = {"implementation": "triton"}


@dataclass(frozen=True)
class Case:
    """One kernel with its eager counterpart on the same tensors."""

    kernel: Callable[[], Any]
    eager: Callable[[], Any]
    counted_bytes: int
    minimum_bytes: int


def size(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def at(table: Tensor, t: Tensor, dtype: torch.dtype) -> Tensor:
    return table[t].to(dtype)[:, None, None, None]


def noising_cases(n: int, zc: int, side: int, dtype: torch.dtype) -> dict[str, Case]:
    shape, tables = (n, zc, side, side), StepTables.of(device="cuda")
    x0, y, eps = (torch.randn(shape, device="cuda", dtype=dtype) for _ in range(3))
    t = torch.arange(n, device="cuda") % tables.steps
    lq = torch.randn((n, 3, side, side), device="cuda", dtype=dtype)
    noise = torch.randn((n, zc + 1, side, side), device="cuda", dtype=dtype)
    network_input = torch.zeros((n, zc + 4, side, side), device="cuda", dtype=dtype)

    def noise_eagerly() -> Tensor:
        x_t = x0 + at(tables.eta, t, dtype) * (y - x0) + at(tables.sigma, t, dtype) * eps
        return at(tables.input_scale, t, dtype) * x_t

    def step_eagerly() -> Tensor:
        mean = at(tables.posterior_xt, t, dtype) * x0 + at(tables.posterior_x0, t, dtype) * y
        x_prev = mean + at(tables.posterior_std, t, dtype) * eps
        network_input[:, :zc] = at(tables.next_scale, t, dtype) * x_prev
        return x_prev

    def prior_eagerly() -> Tensor:
        return torch.cat([0.4 * x0 + 0.9 * noise[:, :zc], lq, noise[:, zc:]], dim=1)

    def terms_eagerly() -> tuple[Tensor, ...]:
        teacher, fake = (x0 - eps).square(), (y - eps).square()
        return teacher.mean((1, 2, 3)) - fake.mean((1, 2, 3)), fake.mean((1, 2, 3)), (x0 - eps).abs().mean((1, 2, 3))

    one, prior_bytes = size(x0), size(x0, noise, lq, network_input)
    return {
        "forward_noise": Case(
            lambda: forward_noise(x0, y, eps, t, tables, scaled=True, **TRITON), noise_eagerly, 4 * one, 4 * one
        ),
        "posterior_step": Case(
            lambda: posterior_step(x0, y, eps, t, tables, network_input, **TRITON), step_eagerly, 5 * one, 5 * one
        ),
        "prior_input": Case(
            lambda: prior_input(x0, lq, noise, mean_scale=0.4, noise_scale=0.9, **TRITON),
            prior_eagerly,
            prior_bytes,
            prior_bytes,
        ),
        "rsd_terms": Case(lambda: rsd_terms(x0, y, eps, **TRITON), terms_eagerly, 3 * one, 3 * one),
    }


def norm_cases(dtype: torch.dtype) -> dict[str, Case]:
    """At the size of the VQ decoder's last level."""
    cases = {}
    weight, bias = torch.ones(128, device="cuda", dtype=dtype), torch.zeros(128, device="cuda", dtype=dtype)
    for name, layout in (("contiguous", torch.contiguous_format), ("channels_last", torch.channels_last)):
        x = torch.randn((8, 128, 512, 512), device="cuda", dtype=dtype).contiguous(memory_format=layout)
        cases[f"group_norm_silu {name}"] = Case(
            lambda x=x: group_norm_silu(x, weight, bias, 32, **TRITON),
            lambda x=x: functional.silu(functional.group_norm(x, 32, weight, bias, 1e-6)),
            3 * size(x),
            2 * size(x),
        )
    return cases


def milliseconds(run: Callable[[], Any], calls: int = CALLS) -> float:
    """Median time of one call, once it is warm."""
    for _ in range(3):
        run()
    times = []
    for _ in range(ROUNDS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(calls):
            run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / calls)
    return statistics.median(times)


def graphed(run: Callable[[], Any]) -> Callable[[], Any]:
    """The same as the replay of a CUDA graph."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def copy_of(counted: int) -> Callable[[], Any]:
    """A device copy that reads and writes as many bytes in all."""
    source = torch.empty(max(counted // 2, 16), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def report(benchmark: Any, case: Case, *, graph: bool) -> None:
    wrap = graphed if graph else lambda run: run
    kernel, copy = milliseconds(wrap(case.kernel)), milliseconds(wrap(copy_of(case.counted_bytes)))
    eager = milliseconds(wrap(case.eager))
    compiled = milliseconds(wrap(torch.compile(case.eager)))
    benchmark.extra_info.update(
        device=torch.cuda.get_device_name(),
        torch=torch.__version__,
        counted_mb=case.counted_bytes / 1e6,
        minimum_mb=case.minimum_bytes / 1e6,
        kernel_ms=kernel,
        gb_per_s=case.counted_bytes / kernel / 1e6,
        of_copy=copy / kernel,
        times_eager=eager / kernel,
        times_compiled=compiled / kernel,
    )
    benchmark.pedantic(lambda: (case.kernel(), torch.cuda.synchronize()), rounds=5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["forward_noise", "posterior_step", "prior_input", "rsd_terms"])
def bench_training(benchmark: Any, name: str, dtype: torch.dtype) -> None:
    """256 latents of 256 x 256 and 4 channels: 134 MB or more a tensor, beyond any L2 cache."""
    report(benchmark, noising_cases(256, 4, 256, dtype)[name], graph=False)


@pytest.mark.parametrize("name", ["group_norm_silu contiguous", "group_norm_silu channels_last"])
def bench_norm(benchmark: Any, name: str) -> None:
    report(benchmark, norm_cases(torch.float16)[name], graph=False)


@pytest.mark.parametrize("tiles", TILES)
@pytest.mark.parametrize("name", ["forward_noise", "posterior_step", "prior_input"])
def bench_small(benchmark: Any, name: str, tiles: int) -> None:
    """Tiles of 64 x 64 under a CUDA graph, where a launch costs more than the bytes."""
    report(benchmark, noising_cases(tiles, 4, 64, torch.float16)[name], graph=True)


@pytest.mark.parametrize("tiles", TILES)
def bench_frame(benchmark: Any, tiles: int) -> None:
    """Our three launches of a frame of that many 64 x 64 tiles, and their share of it beside edge-s in float16."""
    side = round(tiles**0.5)
    plan = plan_tiles(32 * side, 32 * side, TileSpec(size=64, halo=16, fixed=True))
    frame = torch.zeros((32 * side, 32 * side, 3), dtype=torch.uint8, device="cuda")
    detail = torch.randn((plan.count, 3, 256, 256), device="cuda")
    seeds, strength = seed_tensor([1] * plan.count, "cuda"), torch.ones(1, device="cuda")
    starts = torch.tensor([plan.origin(i) for i in range(plan.count)], dtype=torch.int32, device="cuda")

    def ours() -> Tensor:
        frame_tiles(frame, plan, **TRITON)
        noise_field(seeds, starts, 5, 64, 64, **TRITON)
        return merge_tiles(detail, frame, strength, plan, **TRITON)

    # Of the detail, only the core and its seams are read: a quarter of the area, and a little more.
    cores = 16 * 3 * 4 * 32 * 32 * plan.count
    counted = 2 * size(frame) + (3 + 5) * 64 * 64 * 4 * plan.count + cores + 16 * size(frame)
    replay, spec = graphed(ours), ModelSpec(name="edge-s")
    arch = spec.architecture
    parts = EdgeStem(arch), EdgeGenerator(arch, noise_channel=True), EdgeDecoder(arch)
    network = EdgeTile(spec, *parts).eval().requires_grad_(False).to("cuda", torch.float16)
    lq, noise = (torch.randn((tiles, c, 64, 64), device="cuda", dtype=torch.float16) for c in (3, spec.noise_channels))
    around = milliseconds(graphed(lambda: network(lq, noise)))
    kernel, copy = milliseconds(replay), milliseconds(graphed(copy_of(counted)))
    benchmark.extra_info.update(
        device=torch.cuda.get_device_name(),
        counted_mb=counted / 1e6,
        kernels_ms=kernel,
        of_copy=copy / kernel,
        share_of_frame=kernel / (kernel + around),
    )
    benchmark.pedantic(lambda: (replay(), torch.cuda.synchronize()), rounds=5)
