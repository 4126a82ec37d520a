"""GB/s of each GPU kernel against a device copy of as many bytes in the same run, eager torch and torch.compile.

    sh tests/gpu/run.sh                  # these and tests/gpu on a GPU, in less than ten minutes; needs no network
    TRITON_INTERPRET=1 pytest benchmarks/bench_kernels.py --dry-run     # without one: that the script runs, no times

Bytes are those of rsd_edge/kernels/traffic.py. Training sizes are beyond the L2 cache; 1 to 64 tiles run as a CUDA
graph, as they do in CudaFramePath. Without a GPU nothing is timed, and the report of pytest says so. With one, the JSON
report lists under `kernel_goals` what kernel_goals.py wants, met or missed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

pytest.importorskip("triton")

from rsd_edge.bundle import resolve_engine
from rsd_edge.kernels import reference_frames, traffic
from rsd_edge.kernels.frame_ops import frame_tiles, merge_tiles
from rsd_edge.kernels.noise_field import noise_field, seed_tensor
from rsd_edge.kernels.noising import forward_noise, forward_noise_drawn, posterior_step, prior_input
from rsd_edge.kernels.norm_act import group_norm_silu
from rsd_edge.kernels.rsd import rsd_terms
from rsd_edge.kernels.tables import StepTables
from rsd_edge.kernels.traffic import Traffic
from rsd_edge.models.edge import EdgeDecoder, EdgeGenerator, EdgeStem, EdgeTile
from rsd_edge.specs import TileSpec
from rsd_edge.tiling import TilePlan, plan_tiles

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

CALLS, ROUNDS = 20, 7
"""Calls between two events, so that an idle stream does not time the host; the median of the rounds counts."""
COMPILE_S, STOP_S = 330, 480
"""Seconds after which nothing more is compiled by torch, and nothing more is timed: the whole run, tests of tests/gpu
before it included, stays under ten minutes."""
STARTED = time.monotonic()
"""Before those tests, because files are collected first."""
TRITON = "triton"
STEPS = ("forward_noise", "forward_noise_drawn", "forward_noise_backward", "posterior_step", "prior_input")
TERMS = ("rsd_terms", "rsd_terms_backward")


@dataclass(frozen=True)
class Case:
    """One kernel with its eager counterpart on the same tensors."""

    kernel: Callable[[], Any]
    eager: Callable[[], Any]
    traffic: Traffic
    compiles: bool = True


@pytest.fixture
def dry(request: pytest.FixtureRequest) -> bool:
    """Whether only the script is tried: tiny tensors on the CPU, in Triton's interpreter."""
    wanted = bool(request.config.getoption("--dry-run"))
    if not wanted and not torch.cuda.is_available():
        pytest.skip("not run: no CUDA device")
    if not wanted and time.monotonic() - STARTED > STOP_S:
        pytest.skip(f"not run: the {STOP_S} s that this run may take are over")
    return wanted


def device(dry: bool) -> str:
    return "cpu" if dry else "cuda"


def at(table: Tensor, t: Tensor, dtype: torch.dtype) -> Tensor:
    return table[t].to(dtype)[:, None, None, None]


def step_cases(n: int, side: int, dtype: torch.dtype, where: str) -> dict[str, Case]:
    """The residual-shift steps on n latents of four channels."""
    zc, tables, t = 4, StepTables.of(device=where), torch.arange(n, device=where) % 15
    x0, y, eps = (torch.randn((n, zc, side, side), device=where, dtype=dtype) for _ in range(3))
    lq = torch.randn((n, 3, side, side), device=where, dtype=dtype)
    noise = torch.randn((n, zc + 1, side, side), device=where, dtype=dtype)
    network_input = torch.zeros((n, zc + 4, side, side), device=where, dtype=dtype)
    field = seed_tensor(range(n), where), torch.zeros((n, 2), dtype=torch.int32, device=where)

    def noise_eagerly(eps: Tensor = eps) -> Tensor:
        x_t = x0 + at(tables.eta, t, dtype) * (y - x0) + at(tables.sigma, t, dtype) * eps
        return at(tables.input_scale, t, dtype) * x_t

    def gradients_eagerly() -> tuple[Tensor, Tensor]:
        grad = at(tables.input_scale, t, dtype) * x0
        grad_y = at(tables.eta, t, dtype) * grad
        return grad - grad_y, grad_y

    def step_eagerly() -> Tensor:
        mean = at(tables.posterior_xt, t, dtype) * x0 + at(tables.posterior_x0, t, dtype) * y
        x_prev = mean + at(tables.posterior_std, t, dtype) * eps
        network_input[:, :zc] = at(tables.next_scale, t, dtype) * x_prev
        return x_prev

    def backward() -> Any:
        return torch.ops.rsd_edge.forward_noise_backward(x0, t, tables.eta, tables.input_scale, TRITON)

    count, size = x0.numel(), x0.element_size()
    return {
        "forward_noise": Case(
            lambda: forward_noise(x0, y, eps, t, tables, scaled=True, implementation=TRITON),
            noise_eagerly,
            traffic.forward_noise(count, size),
        ),
        "forward_noise_drawn": Case(
            lambda: forward_noise_drawn(x0, y, field, t, tables, scaled=True, implementation=TRITON),
            lambda: noise_eagerly(torch.randn_like(x0)),
            traffic.forward_noise(count, size, drawn=True),
        ),
        "forward_noise_backward": Case(backward, gradients_eagerly, traffic.forward_noise_backward(count, size)),
        "posterior_step": Case(
            lambda: posterior_step(x0, y, eps, t, tables, network_input, implementation=TRITON),
            step_eagerly,
            traffic.posterior_step(count, size),
        ),
        "prior_input": Case(
            lambda: prior_input(x0, lq, noise, mean_scale=0.4, noise_scale=0.9, implementation=TRITON),
            lambda: torch.cat([0.4 * x0 + 0.9 * noise[:, :zc], lq, noise[:, zc:]], dim=1),
            traffic.prior_input(n, zc, side * side, size),
        ),
    }


def term_cases(n: int, side: int, dtype: torch.dtype, where: str) -> dict[str, Case]:
    star, phi, z0 = (torch.randn((n, 4, side, side), device=where, dtype=dtype) for _ in range(3))
    ones, elements = torch.ones(n, device=where), 4 * side * side

    def terms_eagerly() -> tuple[Tensor, ...]:
        teacher, fake = (star - z0).square(), (phi - z0).square()
        means = [value.mean((1, 2, 3)) for value in (teacher, fake, (star - z0).abs())]
        return means[0] - means[1], means[1], means[2]

    def gradients_eagerly() -> tuple[Tensor, ...]:
        difference, fake = 2 / elements * ones.to(dtype)[:, None, None, None], 2 / elements
        return difference * (star - z0), (fake - difference) * (phi - z0), difference * (phi - star) - fake * (phi - z0)

    return {
        "rsd_terms": Case(
            lambda: rsd_terms(star, phi, z0, implementation=TRITON),
            terms_eagerly,
            traffic.rsd_terms(star.numel(), star.element_size()),
        ),
        "rsd_terms_backward": Case(
            lambda: torch.ops.rsd_edge.rsd_terms_backward(star, phi, z0, ones, ones, TRITON),
            gradients_eagerly,
            traffic.rsd_terms_backward(star.numel(), star.element_size()),
        ),
    }


def norm_case(layout: torch.memory_format, side: int, where: str) -> Case:
    """At the size of the VQ decoder's last level."""
    x = torch.randn((8, 128, side, side), device=where, dtype=torch.float16).contiguous(memory_format=layout)
    weight, bias = torch.ones(128, device=where).half(), torch.zeros(128, device=where).half()
    return Case(
        lambda: group_norm_silu(x, weight, bias, 32, implementation=TRITON),
        lambda: functional.silu(functional.group_norm(x, 32, weight, bias, 1e-6)),
        traffic.group_norm_silu(x.numel(), 2),
    )


def frame_cases(plan: TilePlan, where: str) -> dict[str, Case]:
    """What CudaFramePath launches, in float16. The eager counterparts loop over tiles, so they are not compiled."""
    frame = torch.randint(0, 256, (plan.y.length, plan.x.length, 3), dtype=torch.uint8, device=where)
    detail = torch.randn((plan.count, 3, 4 * plan.tile_h, 4 * plan.tile_w), device=where, dtype=torch.float16)
    seeds, strength = seed_tensor([1] * plan.count, where), torch.ones(1, device=where)
    flag = torch.zeros(1, dtype=torch.int32, device=where)
    starts = torch.tensor([plan.origin(i) for i in range(plan.count)], dtype=torch.int32, device=where)
    sides, half = (plan.tile_h, plan.tile_w), torch.float16
    return {
        "noise_field": Case(
            lambda: noise_field(seeds, starts, 5, *sides, dtype=half, implementation=TRITON),
            lambda: torch.randn((plan.count, 5, *sides), device=where, dtype=half),
            traffic.noise_field(plan.count, 5, sides[0] * sides[1], 2),
        ),
        "frame_tiles": Case(
            lambda: frame_tiles(frame, plan, dtype=half, implementation=TRITON),
            lambda: reference_frames.frame_tiles(frame, plan, half),
            traffic.frame_tiles(plan, 2),
            compiles=False,
        ),
        "merge_tiles": Case(
            lambda: merge_tiles(detail, frame, strength, flag, plan, implementation=TRITON),
            lambda: reference_frames.merge_tiles(detail, frame, strength, flag, plan),
            traffic.merge_tiles(plan, 2),
            compiles=False,
        ),
    }


def milliseconds(run: Callable[[], Any], calls: int = CALLS) -> float:
    """Median time of one call, once it is warm."""
    for _ in range(3):
        run()
    times: list[float] = []
    for _ in range(ROUNDS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        for _ in range(calls):
            run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / calls)
    return statistics.median(times)


def graphed(run: Callable[[], Any]) -> Callable[[], Any]:
    """The same as the replay of a CUDA graph."""
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def finished(run: Callable[[], Any]) -> Callable[[], None]:
    """The same, over when the device is."""

    def run_and_wait() -> None:
        run()
        torch.cuda.synchronize()

    return run_and_wait


def copy_of(counted: int) -> Callable[[], Any]:
    """A device copy that reads and writes as many bytes in all."""
    source = torch.ones(max(counted // 8, 4), dtype=torch.int32, device="cuda")
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def report(benchmark: Any, case: Case, *, dry: bool, graph: bool) -> None:
    info = {"counted_mb": case.traffic.counted / 1e6, "minimum_mb": case.traffic.minimum / 1e6}
    if dry:
        case.eager()
        benchmark.extra_info.update(info)
        benchmark.pedantic(case.kernel, rounds=1)
        return
    wrap = graphed if graph else lambda run: run
    kernel, copy = milliseconds(wrap(case.kernel)), milliseconds(wrap(copy_of(case.traffic.counted)))
    info |= {"kernel_ms": kernel, "gb_per_s": case.traffic.counted / kernel / 1e6, "of_copy": copy / kernel}
    info["times_eager"] = milliseconds(wrap(case.eager), calls=CALLS if case.compiles else 1) / kernel
    if case.compiles and time.monotonic() - STARTED < COMPILE_S:
        torch.compiler.reset()  # after eight variants of one function, torch.compile would silently run it eagerly
        info["times_compiled"] = milliseconds(wrap(torch.compile(case.eager, dynamic=False))) / kernel
    properties = torch.cuda.get_device_properties()
    info["l2_mb"] = properties.L2_cache_size / 1e6
    benchmark.extra_info.update(info, device=properties.name, torch=torch.__version__)
    benchmark.pedantic(finished(case.kernel), rounds=5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", STEPS + TERMS)
def bench_training(benchmark: Any, name: str, dtype: torch.dtype, dry: bool) -> None:
    """256 latents of 256 x 256 and 4 channels: 134 MB or more a tensor, beyond any L2 cache."""
    n, side, dtype = (2, 16, torch.float32) if dry else (256, 256, dtype)
    cases = term_cases if name in TERMS else step_cases
    report(benchmark, cases(n, side, dtype, device(dry))[name], dry=dry, graph=False)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def bench_norm(benchmark: Any, layout: torch.memory_format, dry: bool) -> None:
    report(benchmark, norm_case(layout, 8 if dry else 512, device(dry)), dry=dry, graph=False)


@pytest.mark.parametrize("name", ["noise_field", "frame_tiles", "merge_tiles"])
def bench_large_frame(benchmark: Any, name: str, dry: bool) -> None:
    """2560 x 1440, which is 3600 tiles: the least of the three, frame_tiles, moves 100 MB, beyond an L2 cache of 50."""
    plan = plan_tiles(*((1, 4) if dry else (1440, 2560)), TileSpec(size=64, halo=16, fixed=True))
    report(benchmark, frame_cases(plan, device(dry))[name], dry=dry, graph=False)


@pytest.mark.parametrize("tiles", [1, 8, 64])
@pytest.mark.parametrize("name", ["forward_noise", "posterior_step", "prior_input"])
def bench_small(benchmark: Any, name: str, tiles: int, dry: bool) -> None:
    """Tiles of 64 x 64 under a CUDA graph, where a launch costs more than the bytes."""
    report(benchmark, step_cases(tiles, 8 if dry else 64, torch.float16, device(dry))[name], dry=dry, graph=True)


@pytest.mark.parametrize("tiles", [1, 4, 16, 64])
def bench_frame(benchmark: Any, tiles: int, dry: bool) -> None:
    """Our three launches of a frame of that many 64 x 64 tiles, and their share of it beside edge-s in float16."""
    side, spec = (0.03125 if dry else round(tiles**0.5)), resolve_engine("edge-s").spec.model
    plan = plan_tiles(int(32 * side), int(32 * side), TileSpec(size=64, halo=16, fixed=True))
    cases, arch = frame_cases(plan, device(dry)).values(), spec.edge
    parts = EdgeStem(arch), EdgeGenerator(arch, noise_channel=True), EdgeDecoder(arch)
    network = EdgeTile(spec, *parts).eval().requires_grad_(False).to(device(dry), torch.float16)
    lq, noise = (
        torch.randn((plan.count, c, 64, 64), device=device(dry), dtype=torch.float16) for c in (3, spec.noise_channels)
    )

    def ours() -> None:
        for case in cases:
            case.kernel()

    if dry:
        network.float()(lq.float(), noise.float())
        benchmark.pedantic(ours, rounds=1)
        return
    counted = sum(case.traffic.counted for case in cases)
    kernels, around = milliseconds(graphed(ours)), milliseconds(graphed(lambda: network(lq, noise)))
    benchmark.extra_info.update(
        device=torch.cuda.get_device_name(),
        counted_mb=counted / 1e6,
        kernel_ms=kernels,
        of_copy=milliseconds(graphed(copy_of(counted))) / kernels,
        network_ms=around,
        share_of_frame=kernels / (kernels + around),
    )
    benchmark.pedantic(finished(ours), rounds=5)
