"""Every Triton kernel against its torch definition, in Triton's interpreter on the CPU.

Not collected with the other tests: the interpreter is chosen when the kernels are imported, for a whole process.
tests/test_kernels_interpreted.py runs this file in one of its own, with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rsd_edge.kernels.frame_ops import frame_tiles, merge_tiles
from rsd_edge.kernels.noise_field import noise_field, seed_tensor
from rsd_edge.kernels.noising import forward_noise, forward_noise_drawn, posterior_step, prior_input
from rsd_edge.kernels.norm_act import group_norm_silu
from rsd_edge.kernels.reference import group_norm_silu as group_norm_silu_definition
from rsd_edge.kernels.rsd import rsd_terms
from rsd_edge.kernels.tables import StepTables
from rsd_edge.noise import NoiseField
from rsd_edge.specs import TileSpec
from rsd_edge.tiling import plan_tiles

# Where a block reaches beyond the data, SiLU sees what nothing is stored of, and NumPy warns.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp")

# bfloat16 is left to tests/gpu: NumPy, on which the interpreter runs, has none, and rounds it otherwise.
DTYPES = (torch.float32, torch.float16)
SHAPES = ((3, 4, 5, 7), (3, 3, 33, 37))
"""Odd sides; one sample smaller than a block, one larger."""
T = torch.tensor([0, 6, 14])
SEEDS = (5, 2**63 + 12345678901, 2**64 - 1)
ORIGINS = torch.tensor([[-3, 7], [100, -(2**20)], [0, 0]], dtype=torch.int32)
# Both sides compute in float32, in the same or nearly the same order, and round once: values about 5 differ by a few
# units of 2^-24 of them, and by one unit in the last place of float16 where such a difference crosses a tie.
TOLERANCES = {torch.float32: 3e-6, torch.float16: 4e-3}


def images(count: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(len(shape) + shape[-1])
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(count)]


def both(run: Callable[[str], Any]) -> tuple[Any, Any]:
    return run("triton"), run("reference")


def check(got: Tensor, expected: Tensor) -> None:
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got, expected, atol=TOLERANCES[got.dtype], rtol=0)


def not_contiguous(x: Tensor) -> Tensor:
    return x.transpose(2, 3).contiguous().transpose(2, 3)


def test_noise_field_is_that_of_numpy_bit_by_bit() -> None:
    got = noise_field(seed_tensor(SEEDS), ORIGINS, 11, 5, 7, implementation="triton")
    for sample, seed, (y, x) in zip(got, SEEDS, ORIGINS.tolist(), strict=True):
        np.testing.assert_array_equal(sample.numpy(), NoiseField(seed).normal(11, y, x, 5, 7))
    half = noise_field(seed_tensor(SEEDS), ORIGINS, 11, 5, 7, dtype=torch.float16, implementation="triton")
    assert torch.equal(half, got.half())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scaled", [False, True])
def test_forward_noise(dtype: torch.dtype, shape: tuple[int, ...], scaled: bool) -> None:
    x0, y, eps = images(3, shape, dtype)
    tables, direction = StepTables.of(), images(1, shape, dtype)[0]

    def run(implementation: str) -> tuple[Tensor, ...]:
        inputs = x0.clone().requires_grad_(), y.clone().requires_grad_()
        x_t = forward_noise(*inputs, eps, T, tables, scaled=scaled, implementation=implementation)
        return x_t.detach(), *torch.autograd.grad(x_t, inputs, direction)

    for got, expected in zip(*both(run), strict=True):
        check(got, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_forward_noise_drawn(dtype: torch.dtype) -> None:
    x0, y = images(2, (3, 11, 5, 7), dtype)  # more channels than one block of the field holds
    field = (seed_tensor(SEEDS), ORIGINS)
    check(*both(lambda name: forward_noise_drawn(x0, y, field, T, StepTables.of(), implementation=name)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_prior_input(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    n, zc, h, w = shape
    (z_y,), (lq,), (noise,) = (
        images(1, shape, dtype),
        images(1, (n, 3, h, w), dtype),
        images(1, (n, zc + 1, h, w), dtype),
    )
    check(*both(lambda name: prior_input(z_y, lq, noise, mean_scale=0.4, noise_scale=0.9, implementation=name)))


def posterior(tables: StepTables, dtype: torch.dtype, shape: tuple[int, ...], name: str) -> tuple[Tensor, Tensor]:
    x_t, x0_hat, eps = images(3, shape, dtype)
    eps[0] = torch.nan  # t = 0: not to be looked at
    network_input = torch.full((shape[0], 8, *shape[2:]), 7.0, dtype=dtype)
    return posterior_step(x_t, x0_hat, eps, T, tables, network_input, implementation=name), network_input


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_posterior_step(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    for got, expected in zip(*both(lambda name: posterior(StepTables.of(), dtype, shape, name)), strict=True):
        assert bool(got.isfinite().all())
        check(got, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_rsd_terms(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    inputs = images(3, shape, dtype)

    def run(name: str) -> tuple[Tensor, ...]:
        learning = [value.clone().requires_grad_() for value in inputs]
        difference, fake, normaliser = rsd_terms(*learning, implementation=name)
        assert not normaliser.requires_grad
        loss = (difference * torch.tensor([1.0, 2.0, 3.0]) / normaliser + 0.5 * fake).sum()
        return difference.detach(), fake.detach(), normaliser, *torch.autograd.grad(loss, learning)

    for got, expected in zip(*both(run), strict=True):
        check(got, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("channels", "groups"), [(12, 4), (72, 3)])  # 72: more than a block of channels
def test_group_norm_silu(dtype: torch.dtype, layout: torch.memory_format, channels: int, groups: int) -> None:
    x = (images(1, (2, channels, 23, 29))[0] + 5).to(dtype).contiguous(memory_format=layout)
    weight, bias = torch.linspace(0.5, 2, channels), torch.linspace(-1, 1, channels)
    got = group_norm_silu(x, weight, bias, groups, implementation="triton")
    assert got.stride() == x.stride()
    # In float64: on channels_last, torch's own float32 statistics are less precise than the kernel's.
    expected = group_norm_silu_definition(x.double(), weight.double(), bias.double(), groups, 1e-6).to(dtype)
    # One more rounding than elsewhere: x * scale + shift, both of which reach 10 because the mean is 5.
    torch.testing.assert_close(got, expected, atol=2e-5 if dtype == torch.float32 else 8e-3, rtol=0)


def test_a_large_mean_does_not_spoil_the_variance() -> None:
    """E[x^2] - E[x]^2 in float32 would lose it: the mean is 1000 deviations away."""
    x = images(1, (1, 4, 33, 37))[0] + 1000
    weight, bias = torch.ones(4), torch.zeros(4)
    got = group_norm_silu(x, weight, bias, 2, implementation="triton")
    expected = torch.nn.functional.silu(torch.nn.functional.group_norm(x.double(), 2, eps=1e-6))
    # x * scale + shift cancels two values of 1000, which float32 holds to 6e-5 each.
    torch.testing.assert_close(got.double(), expected, atol=4e-4, rtol=0)


def test_epsilon_counts_where_the_variance_is_as_small() -> None:
    x = 1e-3 * images(1, (1, 4, 33, 37))[0]
    arguments = x, torch.ones(4), torch.zeros(4), 2
    got, more = (group_norm_silu(*arguments, epsilon=e, implementation="triton") for e in (1e-6, 1.01e-6))
    check(got, group_norm_silu_definition(*arguments, 1e-6))
    with pytest.raises(AssertionError, match="not close"):
        check(more, group_norm_silu_definition(*arguments, 1e-6))


def test_the_default_epsilon_is_that_of_the_vq_networks() -> None:
    x = 1e-3 * images(1, (1, 4, 33, 37))[0]
    arguments = x, torch.ones(4), torch.zeros(4), 2
    for name in ("triton", "reference"):
        got = group_norm_silu(*arguments, implementation=name)
        check(got, group_norm_silu_definition(*arguments, 1e-6))


def test_memory_that_is_not_contiguous() -> None:
    tables, (x0, y, eps) = StepTables.of(), images(3, SHAPES[0])
    strange = not_contiguous(x0), not_contiguous(y), not_contiguous(eps)
    noise, lq = images(1, (3, 5, 5, 7))[0], x0[:, :3]
    plain = forward_noise(x0, y, eps, T, tables, implementation="triton")
    assert torch.equal(forward_noise(*strange, T, tables, implementation="triton"), plain)
    scales = {"mean_scale": 0.4, "noise_scale": 0.9, "implementation": "triton"}
    plain = prior_input(x0, lq.contiguous(), noise, **scales)
    assert torch.equal(prior_input(strange[0], lq, not_contiguous(noise), **scales), plain)
    first, second = torch.zeros(3, 8, 5, 7), torch.zeros(3, 8, 5, 7)
    plain = posterior_step(x0, y, eps, T, tables, first, implementation="triton")
    assert torch.equal(posterior_step(*strange, T, tables, second, implementation="triton"), plain)
    assert torch.equal(first, second)
    for got, expected in zip(*(rsd_terms(*v, implementation="triton") for v in ((x0, y, eps), strange)), strict=True):
        assert torch.equal(got, expected)
    weights = (torch.ones(4), torch.zeros(4))
    plain = group_norm_silu(x0, *weights, 2, implementation="triton")
    assert torch.equal(group_norm_silu(strange[0], *weights, 2, implementation="triton"), plain)


def test_steps_seeds_and_origins_that_are_not_contiguous() -> None:
    """A column of a table, one step expanded: kernels know no strides and would read past them."""
    tables, (x0, y, eps) = StepTables.of(), images(3, SHAPES[0])
    column = torch.stack([T, torch.full_like(T, 9)], dim=1)[:, 0]
    seeds = torch.stack([seed_tensor(SEEDS), seed_tensor([7, 8, 9])], dim=1)[:, 0]
    origins = ORIGINS.t().contiguous().t()
    for strange in (column, torch.tensor([14]).expand(3)):
        assert strange.stride() != (1,)
        steps = strange.clone(memory_format=torch.contiguous_format)

        def run(t: Tensor, seeds: Tensor, origins: Tensor) -> list[Tensor]:
            x, network_input = x0.clone().requires_grad_(), torch.zeros(3, 8, 5, 7)
            x_t = forward_noise(x, y, eps, t, tables, scaled=True, implementation="triton")
            drawn = forward_noise_drawn(x0, y, (seeds, origins), t, tables, implementation="triton")
            x_prev = posterior_step(x0, y, eps, t, tables, network_input, implementation="triton")
            return [x_t.detach(), *torch.autograd.grad(x_t.sum(), x), drawn, x_prev, network_input]

        for got, expected in zip(run(strange, seeds, origins), run(steps, seed_tensor(SEEDS), ORIGINS), strict=True):
            assert torch.equal(got, expected)
    noise = [noise_field(*field, 4, 5, 7, implementation="triton") for field in
             ((seeds, origins), (seed_tensor(SEEDS), ORIGINS))]  # fmt: skip
    assert torch.equal(*noise)


@pytest.mark.parametrize(
    ("height", "width", "spec", "offset"),
    [
        (
            10,
            100,
            TileSpec(size=64, halo=16, feather=4, fixed=True),
            0,
        ),  # whole vectors: lanes inside, half and outside
        (5, 97, TileSpec(size=48, halo=8, feather=3), 0),  # rows that begin at any byte, tiles of 42 columns
        (3, 131, TileSpec(size=40, halo=6, feather=2, fixed=True), 5),  # a frame that begins at any byte
    ],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_frame_tiles(height: int, width: int, spec: TileSpec, offset: int, dtype: torch.dtype) -> None:
    memory = np.random.default_rng(height).integers(0, 256, 3 * height * width + offset, dtype=np.uint8)
    frame = torch.tensor(memory)[offset:].view(height, width, 3)
    plan = plan_tiles(height, width, spec)
    got, expected = both(lambda name: frame_tiles(frame, plan, dtype=dtype, implementation=name))
    assert torch.equal(got, expected)


@pytest.mark.parametrize(
    ("height", "width", "spec"),
    [
        # The interpreter takes half a second for a row of a tile, so frames are tiny.
        (1, 2, TileSpec(size=12, halo=4, feather=2)),
        (3, 3, TileSpec(size=10, halo=4, feather=1, fixed=True)),  # seams both ways, short last cores
        (1, 5, TileSpec(size=10, halo=4, feather=1, fixed=True)),  # a tile with seams on both sides
        (1, 3, TileSpec(size=10, halo=4, feather=0, fixed=True)),  # a border without a fade
        (10, 19, TileSpec(size=24, halo=4, feather=2, fixed=True)),  # more rows than a block; of two tiles' columns
        (3, 34, TileSpec(size=62, halo=14, feather=2, fixed=True)),  # no block of columns fits
    ],
)
def test_frame_tiles_and_merge(height: int, width: int, spec: TileSpec) -> None:
    rng = np.random.default_rng(height)
    plan = plan_tiles(height, width, spec)
    frame = torch.tensor(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    got, expected = both(lambda name: frame_tiles(frame, plan, implementation=name))
    assert torch.equal(got, expected)
    shape = (plan.count, 3, 4 * plan.tile_h, 4 * plan.tile_w)
    detail = torch.tensor(rng.normal(0, 0.4, shape).astype(np.float32))
    for dtype in DTYPES[(height, width) == (1, 3) :][:1]:
        flag = torch.zeros(1, dtype=torch.int32)
        arguments = detail.to(dtype), frame, torch.tensor([0.7]), flag, plan
        got, expected = both(lambda name, arguments=arguments: merge_tiles(*arguments, implementation=name))  # type: ignore[misc]
        assert not flag
        # Four weighted details are added in another order, so a sum at a tie may round the other way.
        differences = (got.int() - expected.int()).abs()
        assert differences.max() <= 1
        assert differences.float().mean() < 1e-3


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        # Seams reach four output pixels into what the neighbour decides, before a tile's core and behind it.
        ((3, 0, 12, 12), math.nan, 1),
        ((0, 2, 27, 27), math.inf, 1),
        ((1, 1, 16, 11), math.nan, 0),  # in the halo, of which nothing is in the picture
    ],
)
def test_merging_tells_of_a_single_value_that_is_not_finite(place: tuple[int, ...], value: float, told: int) -> None:
    plan = plan_tiles(3, 3, TileSpec(size=10, halo=4, feather=1, fixed=True))  # four tiles with cores of two pixels
    frame, detail = torch.zeros(3, 3, 3, dtype=torch.uint8), torch.zeros(4, 3, 40, 40)
    detail[place] = value
    for implementation in ("triton", "reference"):
        flag = torch.zeros(1, dtype=torch.int32)
        with np.errstate(invalid="ignore"):  # what NumPy says of such a value's pixel
            merge_tiles(detail, frame, torch.ones(1), flag, plan, implementation=implementation)
        assert int(flag) == told, implementation


def test_opcheck_with_the_kernels() -> None:
    tables, (x0, y, eps) = StepTables.of(), images(3, SHAPES[0])
    learning = [value.clone().requires_grad_() for value in (x0, y)]
    coefficients = (tables.eta, tables.sigma, tables.input_scale)
    torch.library.opcheck(torch.ops.rsd_edge.forward_noise, (*learning, eps, None, None, T, *coefficients, "triton"))
    torch.library.opcheck(torch.ops.rsd_edge.rsd_terms, (*learning, eps, "triton"))


TABLES = [field.name for field in fields(StepTables)]


@pytest.mark.parametrize("name", TABLES)
def test_one_percent_of_a_coefficient_shows(name: str) -> None:
    """In each kernel that reads it: the comparisons above would fail."""
    tables = StepTables.of()
    changed = replace(tables, **{name: getattr(tables, name) * 1.01})
    if name in ("eta", "sigma", "input_scale"):
        x0, y, eps = images(3, SHAPES[0])
        got = forward_noise(x0, y, eps, T, changed, scaled=True, implementation="triton")
        expected = forward_noise(x0, y, eps, T, tables, scaled=True, implementation="reference")
    else:
        got = torch.cat(posterior(changed, torch.float32, SHAPES[0], "triton"), dim=1)
        expected = torch.cat(posterior(tables, torch.float32, SHAPES[0], "reference"), dim=1)
    with pytest.raises(AssertionError, match="not close"):
        check(got, expected)


@pytest.mark.parametrize("name", ["mean_scale", "noise_scale"])
def test_one_percent_of_a_scale_of_the_prior_shows(name: str) -> None:
    z_y, noise, lq = *images(1, SHAPES[0]), *images(1, (3, 5, 5, 7)), *images(1, (3, 3, 5, 7))
    scales = {"mean_scale": 0.4, "noise_scale": 0.9}
    got = prior_input(z_y, lq, noise, **{**scales, name: 1.01 * scales[name]}, implementation="triton")
    with pytest.raises(AssertionError, match="not close"):
        check(got, prior_input(z_y, lq, noise, **scales, implementation="reference"))
