"""The torch definitions against the schedule and the NumPy runtime, and the operators built on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rsd_edge.errors import BackendError, InputError
from rsd_edge.kernels import reference
from rsd_edge.kernels.frame_ops import frame_tiles, merge_tiles
from rsd_edge.kernels.noise_field import noise_field, seed_tensor
from rsd_edge.kernels.noising import forward_noise, forward_noise_drawn, posterior_step, prior_input
from rsd_edge.kernels.norm_act import group_norm_silu
from rsd_edge.kernels.rsd import rsd_terms
from rsd_edge.kernels.tables import StepTables
from rsd_edge.noise import NoiseField
from rsd_edge.schedule import ResidualSchedule
from rsd_edge.specs import TileSpec
from rsd_edge.tiling import plan_tiles

SHAPE = (3, 4, 5, 7)
T = torch.tensor([0, 6, 14])
SEEDS = (5, 2**63 + 12345678901, 2**64 - 1)
ORIGINS = torch.tensor([[-3, 7], [100, -(2**20)], [0, 0]], dtype=torch.int32)
TOLERANCE = 2e-6
"""Of values about 5: float32 rounds each of up to four operations to 6e-8 of them."""


def images(count: int, shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(len(shape) + shape[-1])
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(count)]


def test_noise_field_is_that_of_numpy_bit_by_bit() -> None:
    got = noise_field(seed_tensor(SEEDS), ORIGINS, 11, 5, 7, implementation="reference")
    for sample, seed, (y, x) in zip(got, SEEDS, ORIGINS.tolist(), strict=True):
        np.testing.assert_array_equal(sample.numpy(), NoiseField(seed).normal(11, y, x, 5, 7))


@pytest.mark.parametrize("scaled", [False, True])
def test_forward_noise_is_the_schedules_marginal(scaled: bool) -> None:
    schedule, tables = ResidualSchedule(), StepTables.of()
    x0, y, eps = images(3)
    x_t = forward_noise(x0, y, eps, T, tables, scaled=scaled, implementation="reference")
    for i, t in enumerate(T.tolist()):
        factor = schedule.input_scale(t) if scaled else 1.0
        expected = factor * schedule.forward_marginal(x0[i].double(), y[i].double(), eps[i].double(), t)
        torch.testing.assert_close(x_t[i].double(), expected, atol=TOLERANCE, rtol=0)


def test_drawn_noise_equals_noise_given() -> None:
    x0, y = images(2)
    field = (seed_tensor(SEEDS), ORIGINS)
    eps = noise_field(*field, 4, 5, 7, implementation="reference")
    tables = StepTables.of()
    given = forward_noise(x0, y, eps, T, tables, implementation="reference")
    assert torch.equal(forward_noise_drawn(x0, y, field, T, tables, implementation="reference"), given)


def test_prior_input_is_the_schedules_prior_between_its_neighbours() -> None:
    schedule = ResidualSchedule()
    z_y, noise, lq = *images(1), *images(1, (3, 5, 5, 7)), *images(1, (3, 3, 5, 7))
    scale = schedule.input_scale(14)
    got = prior_input(
        z_y, lq, noise, mean_scale=scale, noise_scale=scale * schedule.prior_std, implementation="reference"
    )
    expected = scale * schedule.prior(z_y.double(), noise[:, :4].double())
    torch.testing.assert_close(got[:, :4].double(), expected, atol=TOLERANCE, rtol=0)
    assert torch.equal(got[:, 4:7], lq)
    assert torch.equal(got[:, 7:], noise[:, 4:])


def test_posterior_step_is_the_schedules_and_prepares_the_next_input() -> None:
    schedule = ResidualSchedule()
    x_t, x0_hat, eps = images(3)
    network_input = torch.full((3, 8, 5, 7), 7.0)
    eps[0] = torch.nan  # at t = 0 there is no noise, whatever this holds
    x_prev = posterior_step(x_t, x0_hat, eps, T, StepTables.of(), network_input, implementation="reference")
    assert torch.equal(x_prev[0], x0_hat[0])
    for i, t in enumerate(T.tolist()):
        expected = schedule.posterior_mean(x_t[i].double(), x0_hat[i].double(), t)
        if t:
            expected += schedule.posterior_std(t) * eps[i].double()
        torch.testing.assert_close(x_prev[i].double(), expected, atol=TOLERANCE, rtol=0)
        factor = schedule.input_scale(t - 1) if t else 1.0
        torch.testing.assert_close(network_input[i, :4].double(), factor * expected, atol=TOLERANCE, rtol=0)
    assert torch.equal(network_input[:, 4:], torch.full((3, 4, 5, 7), 7.0))


def test_rsd_terms_are_those_of_training() -> None:
    from rsd_edge.distill import objectives

    f_star, f_phi, z0_hat = images(3)
    difference, fake, normaliser = rsd_terms(f_star, f_phi, z0_hat, implementation="reference")
    torch.testing.assert_close(difference, objectives.rsd_loss(f_star, f_phi, z0_hat), atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(fake, objectives.fake_loss(f_phi, z0_hat), atol=TOLERANCE, rtol=0)
    normalised = objectives.rsd_loss(f_star, f_phi, z0_hat, sid_normalise=True)
    torch.testing.assert_close(difference / (normaliser + reference.SID_EPSILON), normalised, atol=TOLERANCE, rtol=0)
    teacher = objectives.teacher_loss(f_star, z0_hat)
    torch.testing.assert_close(difference + fake, teacher, atol=TOLERANCE, rtol=0)


def test_group_norm_silu_is_its_formula_with_the_epsilon() -> None:
    (x,) = images(1)
    x = 1e-3 * x.double()  # a variance like the epsilon
    weight, bias = torch.linspace(0.5, 2, 4).double(), torch.linspace(-1, 1, 4).double()
    grouped = x.reshape(3, 2, -1)
    variance = grouped.var(dim=2, correction=0, keepdim=True)
    normalised = ((grouped - grouped.mean(dim=2, keepdim=True)) / (variance + 1e-6).sqrt()).reshape(x.shape)
    z = normalised * weight[:, None, None] + bias[:, None, None]
    got = reference.group_norm_silu(x, weight, bias, 2, 1e-6)
    torch.testing.assert_close(got, z / (1 + torch.exp(-z)), atol=1e-12, rtol=0)  # float64 of values about 5


def double(count: int, shape: tuple[int, ...] = (2, 4, 3, 2)) -> list[Tensor]:
    return [image.double().requires_grad_() for image in images(count, shape)]


def coefficients(*names: str) -> list[Tensor]:
    tables = StepTables.of(dtype=torch.float64)
    return [getattr(tables, name)[torch.tensor([3, 14])] for name in names]


GRADIENT_CASES: dict[str, tuple[Callable[..., Any], int]] = {
    "forward_noise": (lambda *x: reference.forward_noise(*x, *coefficients("eta", "sigma", "input_scale")), 3),
    "prior_input": (lambda z, lq, n: reference.prior_input(z, lq[:, :3], torch.cat([n, n[:, :1]], 1), 0.4, 0.9), 3),
    "posterior_step": (
        lambda *x: reference.posterior_step(
            *x, *coefficients("posterior_xt", "posterior_x0", "posterior_std", "next_scale")
        ),
        3,
    ),
    "rsd_terms": (lambda *x: reference.rsd_terms(*x)[:2], 3),
    "group_norm_silu": (lambda x, w, b: reference.group_norm_silu(x, w[0, :, 0, 0], b[0, :, 0, 0], 2, 1e-6), 3),
}


@pytest.mark.parametrize("name", GRADIENT_CASES)
def test_reference_gradients_in_float64(name: str) -> None:
    function, count = GRADIENT_CASES[name]
    assert torch.autograd.gradcheck(function, double(count))


def operator_cases() -> dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]]:
    """Operators as functions of what gradients flow to; each with its definition's gradient below."""
    tables = StepTables.of()
    eps, lq, noise = images(1)[0], images(1, (3, 3, 5, 7))[0], images(1, (3, 5, 5, 7))[0]
    x0, y, z = images(3)
    weight, bias = torch.linspace(0.5, 2, 4), torch.linspace(-1, 1, 4)
    run = {"implementation": "reference"}
    return {
        "forward_noise": (lambda a, b: forward_noise(a, b, eps, T, tables, scaled=True, **run), (x0, y)),
        "prior_input": (lambda a, b: prior_input(a, b, noise, mean_scale=0.4, noise_scale=0.9, **run), (x0, lq)),
        "rsd_terms": (lambda a, b, c: torch.stack(rsd_terms(a, b, c, **run)[:2]), (x0, y, z)),
        "group_norm_silu": (lambda a, w, b: group_norm_silu(a, w, b, 2, **run), (x0 + 3, weight, bias)),
    }


def definition(name: str, *inputs: Tensor) -> Tensor:
    eps, noise = images(1)[0], images(1, (3, 5, 5, 7))[0]
    tables = StepTables.of()
    match name:
        case "forward_noise":
            x0, y = inputs
            return reference.forward_noise(x0, y, eps, tables.eta[T], tables.sigma[T], tables.input_scale[T])
        case "prior_input":
            z, lq = inputs
            return reference.prior_input(z, lq, noise, 0.4, 0.9)
        case "rsd_terms":
            return torch.stack(reference.rsd_terms(*inputs)[:2])
        case _:
            x, weight, bias = inputs
            return reference.group_norm_silu(x, weight, bias, 2, 1e-6)


@pytest.mark.parametrize("name", operator_cases())
def test_operators_have_the_gradients_of_their_definitions(name: str) -> None:
    function, inputs = operator_cases()[name]
    inputs = tuple(value.requires_grad_() for value in inputs)
    got, expected = function(*inputs), definition(name, *inputs)
    torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)
    direction = torch.randn(got.shape, generator=torch.Generator().manual_seed(3))
    pairs = zip(
        torch.autograd.grad(got, inputs, direction), torch.autograd.grad(expected, inputs, direction), strict=True
    )
    for mine, theirs in pairs:
        # Sums over 105 elements in another order: a few units in the last place of values about 10.
        torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=0)


def test_opcheck() -> None:
    """Schemas, fake kernels, autograd registration and AOT dispatch of every operator."""
    tables, (x0, y, eps) = StepTables.of(), images(3)
    ops = torch.ops.rsd_edge
    field = (seed_tensor(SEEDS), ORIGINS)
    learning = tuple(value.clone().requires_grad_() for value in (x0, y))
    steps = (T, tables.eta, tables.sigma, tables.input_scale, "reference")
    torch.library.opcheck(ops.noise_field, (*field, 4, 5, 7, torch.float16, "reference"))
    torch.library.opcheck(ops.forward_noise, (*learning, eps, None, None, *steps))
    torch.library.opcheck(ops.forward_noise, (*learning, None, *field, *steps))
    torch.library.opcheck(ops.forward_noise_backward, (x0, T, tables.eta, tables.input_scale, "reference"))
    noise = images(1, (3, 5, 5, 7))[0]
    torch.library.opcheck(ops.prior_input, (learning[0], x0[:, :3].clone(), noise, 0.4, 0.9, "reference"))
    step = (tables.posterior_xt, tables.posterior_x0, tables.posterior_std, tables.next_scale)
    torch.library.opcheck(ops.posterior_step, (x0, y, eps, T, *step, torch.zeros(3, 8, 5, 7), "reference"))
    torch.library.opcheck(ops.rsd_terms, (*learning, eps, "reference"))
    torch.library.opcheck(ops.rsd_terms_backward, (x0, y, eps, torch.ones(3), torch.ones(3), "reference"))
    weights = (torch.ones(4), torch.zeros(4))
    torch.library.opcheck(ops.group_norm_silu, (learning[0], *weights, 2, 1e-6, "reference"))
    last = x0.contiguous(memory_format=torch.channels_last)
    torch.library.opcheck(ops.group_norm_silu, (last, *weights, 2, 1e-6, "reference"))


def one_operator_cases() -> dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]]:
    tables, (x0, y, eps), run = StepTables.of(), images(3), {"implementation": "reference"}
    field, noise, weights = (seed_tensor(SEEDS), ORIGINS), images(1, (3, 5, 5, 7))[0], (torch.ones(4), torch.zeros(4))
    plan = plan_tiles(9, 14, TileSpec(size=20, halo=4, feather=2))
    frame, detail = (
        torch.zeros(9, 14, 3, dtype=torch.uint8),
        torch.zeros(plan.count, 3, 4 * plan.tile_h, 4 * plan.tile_w),
    )
    return {
        "noise_field": (lambda s, o: noise_field(s, o, 4, 5, 7, **run), field),
        "forward_noise": (lambda a, b, c, t: forward_noise(a, b, c, t, tables, **run), (x0, y, eps, T)),
        "forward_noise drawn": (lambda a, b, t: forward_noise_drawn(a, b, field, t, tables, **run), (x0, y, T)),
        "prior_input": (
            lambda a, b, c: prior_input(a, b, c, mean_scale=0.4, noise_scale=0.9, **run), (x0, x0[:, :3], noise),
        ),
        "posterior_step": (
            lambda a, b, c, t, out: posterior_step(a, b, c, t, tables, out, **run),
            (x0, y, eps, T, torch.zeros(3, 8, 5, 7)),
        ),
        "rsd_terms": (lambda a, b, c: rsd_terms(a, b, c, **run), (x0, y, eps)),
        "group_norm_silu": (lambda a, w, b: group_norm_silu(a, w, b, 2, **run), (x0, *weights)),
        "frame_tiles": (lambda f: frame_tiles(f, plan, **run), (frame,)),
        "merge_tiles": (
            lambda d, f, s, flag: merge_tiles(d, f, s, flag, plan, **run),
            (detail, frame, torch.ones(1), torch.zeros(1, dtype=torch.int32)),
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", one_operator_cases())
def test_export_and_compile_see_one_operator(name: str) -> None:
    function, inputs = one_operator_cases()[name]

    class Step(torch.nn.Module):
        def forward(self, *inputs: Tensor) -> Any:
            return function(*inputs)

    def ours(graph: torch.fx.Graph) -> list[str]:
        """Targets, and, where export hides an operator that writes to its input in another, its arguments."""
        nodes = [node for node in graph.nodes if node.op == "call_function"]
        names = [str(each) for node in nodes for each in (node.target, *node.args)]
        return [each.removesuffix(".default") for each in names if each.startswith("rsd_edge.")]

    exported = torch.export.export(Step(), inputs)
    assert ours(exported.graph) == [f"rsd_edge.{name.partition(' ')[0]}"]

    seen: list[str] = []

    def collect(module: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        seen.extend(ours(module.graph))
        return module.forward

    torch.compiler.reset()
    got, expected = torch.compile(Step(), backend=collect, fullgraph=True)(*inputs), Step()(*inputs)
    torch.testing.assert_close(got, expected, atol=0, rtol=0)
    assert seen == [f"rsd_edge.{name.partition(' ')[0]}"]


@pytest.mark.parametrize("name", ["eta", "sigma", "input_scale"])
def test_one_percent_of_a_coefficient_shows(name: str) -> None:
    tables = StepTables.of()
    changed = replace(tables, **{name: getattr(tables, name) * 1.01})
    x0, y, eps = images(3)
    first, second = (
        forward_noise(x0, y, eps, T, each, scaled=True, implementation="reference") for each in (tables, changed)
    )
    assert (first - second).abs().max() > 100 * TOLERANCE


def test_asking_for_triton_without_a_gpu_says_so() -> None:
    pytest.importorskip("triton")
    x0, y, eps = images(3)
    with pytest.raises(BackendError, match=r"needs tensors on a CUDA device, not on 'cpu'.*'reference'"):
        forward_noise(x0, y, eps, T, StepTables.of(), implementation="triton")


def raw_operator_calls(implementation: str) -> dict[str, Callable[[], Any]]:
    """Operators as torch knows them, without the checks of the functions around them."""
    ops, tables, (x0, y, eps) = torch.ops.rsd_edge, StepTables.of(), images(3)
    steps, lq, noise = (T, tables.eta, tables.sigma, None), x0[:, :3], torch.zeros(3, 5, 5, 7)
    posterior = (tables.posterior_xt, tables.posterior_x0, tables.posterior_std, tables.next_scale)
    plan = plan_tiles(9, 14, TileSpec(size=20, halo=4, feather=2))
    frame, numbers = torch.zeros(9, 14, 3, dtype=torch.uint8), [9, 14, plan.y.stride, plan.x.stride, 4, 2]
    detail = torch.zeros(plan.count, 3, 4 * plan.tile_h, 4 * plan.tile_w)
    arguments: dict[str, tuple[Any, ...]] = {
        "noise_field": (seed_tensor(SEEDS), ORIGINS, 4, 5, 7, torch.float32),
        "forward_noise": (x0, y, eps, None, None, *steps),
        "forward_noise_backward": (x0, T, tables.eta, None),
        "prior_input": (x0, lq, noise, 0.4, 0.9),
        "posterior_step": (x0, y, eps, T, *posterior, torch.zeros(3, 8, 5, 7)),
        "rsd_terms": (x0, y, eps),
        "rsd_terms_backward": (x0, y, eps, torch.ones(3), torch.ones(3)),
        "group_norm_silu": (x0, torch.ones(4), torch.zeros(4), 2, 1e-6),
        "frame_tiles": (frame, numbers, torch.float32),
        "merge_tiles": (detail, frame, torch.ones(1), torch.zeros(1, dtype=torch.int32), numbers),
    }
    return {name: partial(getattr(ops, name), *values, implementation) for name, values in arguments.items()}


@pytest.mark.parametrize("name", raw_operator_calls("reference"))
def test_operators_name_what_cannot_run(name: str) -> None:
    raw_operator_calls("reference")[name]()
    with pytest.raises(InputError, match="implementation is 'bogus'; it must be one of reference, triton"):
        raw_operator_calls("bogus")[name]()
    pytest.importorskip("triton")
    with pytest.raises(BackendError, match="needs tensors on a CUDA device, not on 'cpu'"):
        raw_operator_calls("triton")[name]()


def test_the_default_epsilon_is_that_of_the_vq_networks() -> None:
    x, weight, bias = 1e-3 * images(1)[0], torch.ones(4), torch.zeros(4)  # a variance like the epsilon
    got = group_norm_silu(x, weight, bias, 2, implementation="reference")
    torch.testing.assert_close(got, reference.group_norm_silu(x, weight, bias, 2, 1e-6), atol=TOLERANCE, rtol=0)
    assert (got - reference.group_norm_silu(x, weight, bias, 2, 1.01e-6)).abs().max() > 100 * TOLERANCE


def test_wrong_arguments_are_named() -> None:
    tables, (x0, y, eps) = StepTables.of(), images(3)
    with pytest.raises(InputError, match="implementation is 'cuda'"):
        forward_noise(x0, y, eps, T, tables, implementation="cuda")
    with pytest.raises(InputError, match=r"y is torch\.float16"):
        forward_noise(x0, y.half(), eps, T, tables, implementation="reference")
    with pytest.raises(InputError, match=r"t is torch\.int32"):
        forward_noise(x0, y, eps, T.int(), tables, implementation="reference")
    for wrong in (torch.tensor([0, 15, 3]), torch.tensor([-1, 0, 3])):
        with pytest.raises(InputError, match=r"t holds (0 to 15|-1 to 3); this schedule has the timesteps 0 to 14"):
            forward_noise(x0, y, eps, wrong, tables, implementation="reference")
        with pytest.raises(InputError, match="t holds"):
            posterior_step(x0, y, eps, wrong, tables, torch.zeros(3, 8, 5, 7), implementation="reference")
    with pytest.raises(InputError, match=r"pass eps\.detach"):
        forward_noise(x0, y, eps.requires_grad_(), T, tables, implementation="reference")
    with pytest.raises(InputError, match="network_input"):
        posterior_step(x0, y, eps.detach(), T, tables, torch.zeros(3, 2, 5, 7), implementation="reference")
    with pytest.raises(InputError, match="lq is"):
        prior_input(x0, y, x0, mean_scale=1.0, noise_scale=1.0, implementation="reference")
    with pytest.raises(InputError, match="4 channels do not divide into 3 groups"):
        group_norm_silu(x0, torch.ones(4), torch.ones(4), 3, implementation="reference")
    with pytest.raises(InputError, match="seeds are"):
        noise_field(torch.zeros(2), ORIGINS[:2], 4, 5, 7, implementation="reference")


def test_more_samples_than_a_launch_takes_are_refused() -> None:
    z_y, lq, noise = (torch.zeros(1, channels, 1, 1).expand(65536, -1, -1, -1) for channels in (1, 3, 2))
    with pytest.raises(InputError, match="65536 samples do not fit one launch; use at most 65535"):
        prior_input(z_y, lq, noise, mean_scale=1.0, noise_scale=1.0, implementation="reference")
