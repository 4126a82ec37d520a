"""The kernels on a real GPU: what the interpreter and ptxas cannot show."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from device_doubles import toy_engine
from numpy.typing import NDArray
from torch import Tensor, nn

pytest.importorskip("triton")

from rsd_edge.kernels.frame_ops import frame_tiles, merge_tiles
from rsd_edge.kernels.frame_path import CudaFramePath
from rsd_edge.kernels.noise_field import noise_field, seed_tensor
from rsd_edge.kernels.noising import forward_noise, forward_noise_drawn, posterior_step, prior_input
from rsd_edge.kernels.norm_act import group_norm_silu
from rsd_edge.kernels.rsd import rsd_terms
from rsd_edge.kernels.tables import StepTables
from rsd_edge.noise import NoiseField
from rsd_edge.specs import ModelSpec, TileSpec
from rsd_edge.tiling import plan_tiles

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: the kernels were not run on a GPU"),
]

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SHAPES = ((3, 4, 65, 67), (3, 3, 128, 128))
"""Without and with whole vectors."""
# Float32 sums may be fused and reordered: a few units of 2^-24 of values about 10. Halves: one unit in the last place
# of values up to 8, where the two sides fall on different sides of a tie.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 8e-3, torch.bfloat16: 6.5e-2}
SEEDS = (5, 2**63 + 12345678901, 2**64 - 1)


def images(count: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(len(shape) + shape[-1])
    return [torch.randn(shape, generator=generator).to("cuda", dtype) for _ in range(count)]


def steps() -> Tensor:
    return torch.tensor([0, 6, 14], device="cuda")


def origins() -> Tensor:
    return torch.tensor([[-3, 7], [100, -(2**20)], [0, 0]], dtype=torch.int32, device="cuda")


def compare(run: Callable[[str], tuple[Tensor, ...]]) -> None:
    for got, expected in zip(run("triton"), run("reference"), strict=True):
        torch.testing.assert_close(got, expected, atol=TOLERANCES[got.dtype], rtol=0)


def test_noise_field_is_that_of_numpy_bit_by_bit() -> None:
    for name in ("triton", "reference"):
        got = noise_field(seed_tensor(SEEDS, "cuda"), origins(), 11, 65, 67, implementation=name).cpu().numpy()
        for sample, seed, (y, x) in zip(got, SEEDS, origins().tolist(), strict=True):
            np.testing.assert_array_equal(sample, NoiseField(seed).normal(11, y, x, 65, 67))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_noising(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tables, (x0, y, eps), (n, zc, h, w) = StepTables.of(device="cuda"), images(3, shape, dtype), shape
    direction, field = images(1, shape, dtype)[0], (seed_tensor(SEEDS, "cuda"), origins())

    def forward(name: str) -> tuple[Tensor, ...]:
        inputs = x0.clone().requires_grad_(), y.clone().requires_grad_()
        x_t = forward_noise(*inputs, eps, steps(), tables, scaled=True, implementation=name)
        drawn = forward_noise_drawn(x0, y, field, steps(), tables, implementation=name)
        return x_t.detach(), drawn, *torch.autograd.grad(x_t, inputs, direction)

    def prior(name: str) -> tuple[Tensor, ...]:
        lq, noise = images(1, (n, 3, h, w), dtype)[0], images(1, (n, zc + 1, h, w), dtype)[0]
        return (prior_input(x0, lq, noise, mean_scale=0.4, noise_scale=0.9, implementation=name),)

    def posterior(name: str) -> tuple[Tensor, ...]:
        network_input, noise = torch.zeros(n, 8, h, w, dtype=dtype, device="cuda"), eps.clone()
        noise[0] = torch.nan
        x_prev = posterior_step(x0, y, noise, steps(), tables, network_input, implementation=name)
        return x_prev, network_input

    for run in (forward, prior, posterior):
        compare(run)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_rsd_terms(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    def run(name: str) -> tuple[Tensor, ...]:
        learning = [value.requires_grad_() for value in images(3, shape, dtype)]
        difference, fake, normaliser = rsd_terms(*learning, implementation=name)
        gradients = torch.autograd.grad((difference / normaliser + fake).sum(), learning)
        return difference.detach(), fake.detach(), normaliser, *gradients

    compare(run)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("channels", "side"), [(128, 64), (72, 37)])
def test_group_norm_silu(dtype: torch.dtype, layout: torch.memory_format, channels: int, side: int) -> None:
    x = (images(1, (2, channels, side, side))[0] + 1).to(dtype).contiguous(memory_format=layout)
    weight, bias = torch.linspace(0.5, 2, channels, device="cuda"), torch.linspace(-1, 1, channels, device="cuda")
    got = group_norm_silu(x, weight, bias, 8, implementation="triton")
    normalised = torch.nn.functional.group_norm(x.double(), 8, weight.double(), bias.double(), 1e-6)
    expected = torch.nn.functional.silu(normalised).to(dtype)
    torch.testing.assert_close(got, expected, atol=TOLERANCES[dtype], rtol=0)
    assert got.stride() == x.stride()


def test_opcheck_with_the_kernels() -> None:
    tables, (x0, y, eps) = StepTables.of(device="cuda"), images(3, SHAPES[0])
    learning = [value.clone().requires_grad_() for value in (x0, y)]
    coefficients = (tables.eta, tables.sigma, tables.input_scale)
    torch.library.opcheck(
        torch.ops.rsd_edge.forward_noise, (*learning, eps, None, None, steps(), *coefficients, "triton")
    )
    torch.library.opcheck(torch.ops.rsd_edge.rsd_terms, (*learning, eps, "triton"))


def test_compiled_training_step_equals_the_eager_one() -> None:
    tables, (x0, y, eps) = StepTables.of(device="cuda"), images(3, SHAPES[1])

    def loss(x0: Tensor) -> Tensor:
        x_t = forward_noise(x0, y, eps, steps(), tables, scaled=True, implementation="triton")
        return x_t.square().sum()

    compiled = torch.compile(loss, fullgraph=True)
    gradients = [torch.autograd.grad(f(x0.requires_grad_()), x0)[0] for f in (loss, compiled)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=0)


class ToyNetwork(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(nn.Conv2d(3 + channels, 48, 3, padding=1), nn.PixelShuffle(4))

    def forward(self, lq: Tensor, noise: Tensor) -> Tensor:
        return 0.3 * self.layers(torch.cat([lq, noise], dim=1))


def test_frame_path_replays_its_graph_with_other_frames_seeds_and_strengths(
    photo: Callable[[int, int], NDArray[np.uint8]],
) -> None:
    model, tile = ModelSpec(name="toy"), TileSpec(size=64, halo=16, feather=4, batch=64)
    network = ToyNetwork(model.noise_channels).eval()
    engine = toy_engine(model, tile)
    reference = CudaFramePath(engine, network, implementation="reference", device="cpu")
    expected = {}
    cases = [(photo(90, 70), 1, 1.0), (255 - photo(90, 70), 2**63 + 5, 0.6), (photo(31, 33), 3, 1.0)]
    for i, (frame, seed, strength) in enumerate(cases):
        expected[i] = reference(frame, seed=seed, strength=strength)
    torch.backends.cudnn.allow_tf32 = False
    path = CudaFramePath(engine, network.cuda(), implementation="triton")
    for i, (frame, seed, strength) in enumerate(cases):
        differences = np.abs(path(frame, seed=seed, strength=strength).astype(int) - expected[i].astype(int))
        assert differences.max() <= 1  # convolutions add in another order, and a sum at a tie rounds the other way
        assert differences.mean() < 1e-2


@pytest.mark.parametrize(
    ("height", "width", "spec"),
    [(61, 83, TileSpec(size=40, halo=8, feather=3)), (96, 160, TileSpec(size=64, halo=16, feather=4, fixed=True))],
)
def test_frames_without_and_with_whole_vectors(height: int, width: int, spec: TileSpec) -> None:
    rng = np.random.default_rng(0)
    plan = plan_tiles(height, width, spec)
    frame = torch.tensor(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), device="cuda")
    detail = torch.randn(plan.count, 3, 4 * plan.tile_h, 4 * plan.tile_w, device="cuda")
    for dtype in DTYPES:
        tiles = [frame_tiles(frame, plan, dtype=dtype, implementation=name) for name in ("triton", "reference")]
        assert torch.equal(*tiles)
    strength, flag = torch.full((1,), 0.7, device="cuda"), torch.zeros(1, dtype=torch.int32, device="cuda")
    got, expected = (
        merge_tiles(detail, frame, strength, flag, plan, implementation=name) for name in ("triton", "reference")
    )
    assert not flag
    differences = (got.int() - expected.int()).abs()
    assert differences.max() <= 1
    assert differences.float().mean() < 1e-3


def test_a_cubin_launched_without_triton_gives_the_same(tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings", reason="cuda-bindings is not installed: no cubin was launched")
    from rsd_edge.kernels.aot import build_kernels
    from rsd_edge.kernels.catalogue import catalogue
    from rsd_edge.kernels.launch import CudaDriver, KernelPack

    major, minor = torch.cuda.get_device_capability()
    only = [spec for spec in catalogue() if spec.name == "prior_input-c4"]
    build_kernels([10 * major + minor], tmp_path / "kernels", dtypes=["fp16"], only=only)
    pack = KernelPack(tmp_path / "kernels", 10 * major + minor, CudaDriver())
    for side in (64, 61):
        z_y, noise, lq = (images(1, (2, channels, side, side), torch.float16)[0] for channels in (4, 5, 3))
        expected = prior_input(z_y, lq, noise, mean_scale=0.4, noise_scale=0.9, implementation="triton")
        out = torch.zeros_like(expected)
        pointers: dict[str, Any] = {"Z_Y": z_y, "LQ": lq, "NOISE": noise, "OUT": out}
        arguments = {name: tensor.data_ptr() for name, tensor in pointers.items()}
        numbers = {"mean_scale": 0.4, "noise_scale": 0.9, "pixels": side * side}
        stream = torch.cuda.current_stream().cuda_stream
        pack.launch("prior_input-c4", dtype="fp16", sizes={"n": 2}, arguments={**arguments, **numbers}, stream=stream)
        torch.cuda.synchronize()
        assert torch.equal(out, expected)
