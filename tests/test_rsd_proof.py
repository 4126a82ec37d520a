"""RSD proved on a solvable case, in float64, through the functions that training calls.

`prove` checks every statement; the mutants at the end change one operand of one expression of those functions by 0.1 %,
and each has to break it.
"""

from __future__ import annotations

import ast
import inspect
import math
import textwrap
from collections.abc import Callable
from dataclasses import fields, replace
from types import CodeType, FunctionType
from typing import Any

import pytest
import torch
from gaussian_case import ETAS, KAPPA, STEPS, Gaussian, detached_gradient, distance, distance_gradient, quadrature
from torch import Tensor

from rsd_edge import sampling
from rsd_edge import schedule as schedule_module
from rsd_edge.distill import objectives
from rsd_edge.distill.diffusion import ResidualDiffusion
from rsd_edge.distill.stage_config import StudentConfig
from rsd_edge.kernels import reference
from rsd_edge.kernels.tables import StepTables
from rsd_edge.schedule import ResidualSchedule
from rsd_edge.specs import ScheduleSpec

TEACHER, STUDENT, Y = Gaussian(0.3, 0.8), Gaussian(-0.4, 0.5), 0.7
SHOWN = (0, 4, 9, 14)
EXACT = 1e-9
"""A hundred float64 roundings of numbers near 1 stay below 1e-13; a coefficient off by 0.1 % shows at 1e-5 or so."""
LQ = torch.zeros(1)


def same(actual: Tensor | float, expected: Tensor | float, tolerance: float = EXACT) -> None:
    actual, expected = (torch.as_tensor(value, dtype=torch.float64) for value in (actual, expected))
    error = (actual.detach() - expected).abs().max().item()
    assert error <= tolerance * max(1.0, expected.abs().max().item()), f"off by {error:.2e}"


class Case:
    """G(eps) = mean + deviation eps with the optimal fake model, through the functions of training."""

    def __init__(self, spec: ScheduleSpec | None = None) -> None:
        self.diffusion = ResidualDiffusion(spec or ScheduleSpec(), dtype=torch.float64)
        self.u, self.e, self.w = quadrature()

    def loss(self, objective: Callable[..., Tensor], mean: Tensor, deviation: Tensor, t: int) -> Tensor:
        """The expectation of an objective at one step."""
        z0_hat = mean + deviation * self.u
        steps = self.diffusion.at(t, len(z0_hat))
        x = self.diffusion.q_sample(z0_hat, torch.full_like(z0_hat, Y), steps, self.e, scaled=True)
        fake = Gaussian(float(mean.detach()), float(deviation.detach()))
        loss = objective(TEACHER.denoise_scaled(x, Y, t), fake.denoise_scaled(x, Y, t), z0_hat)
        return objectives.weighted_mean(loss, self.w * len(self.w))

    def value_and_gradient(self, objective: Callable[..., Tensor], student: Gaussian, t: int) -> tuple[Tensor, Tensor]:
        mean = torch.tensor(student.mean, dtype=torch.float64, requires_grad=True)
        deviation = torch.tensor(student.deviation, dtype=torch.float64, requires_grad=True)
        loss = self.loss(objective, mean, deviation, t)
        return loss.detach(), torch.stack(torch.autograd.grad(loss, (mean, deviation)))


def prove(spec: ScheduleSpec | None = None) -> None:
    """Every statement of this file that a coefficient can break."""
    case = Case(spec)
    prove_process(case.diffusion)
    prove_distillation(case)
    prove_fake_model(case)
    prove_normalisation()
    prove_gan()
    prove_sinsr(case)
    prove_step_weights(case.diffusion)


def prove_process(diffusion: ResidualDiffusion) -> None:
    """Eq. 2 to 4, the prior and the input scale, at every step."""
    z0, z_y, eps = (torch.full((1, 1, 1, 1), value, dtype=torch.float64) for value in (0.31, -0.72, 1.17))
    schedule = diffusion.schedule
    same(diffusion.prior(z_y, eps), -0.72 + KAPPA * 0.99 * 1.17)
    same(schedule.prior(-0.72, 1.17), -0.72 + KAPPA * 0.99 * 1.17)
    for i, eta in enumerate(ETAS):
        t, before = diffusion.at(i, 1), ETAS[i - 1] if i else 0.0
        z_t = 0.31 + eta * (-0.72 - 0.31) + KAPPA * math.sqrt(eta) * 1.17
        scale = 1 / math.sqrt(KAPPA**2 * eta + 1)
        same(diffusion.q_sample(z0, z_y, t, eps), z_t)
        same(diffusion.q_sample(z0, z_y, t, eps, scaled=True), z_t * scale)
        same(diffusion.scale(z0, t), 0.31 * scale)
        same(schedule.input_scale(i), scale)
        same(schedule.forward_marginal(0.31, -0.72, 1.17, i), z_t)
        same(schedule.posterior_mean(1.17, 0.31, i), (before / eta) * 1.17 + (eta - before) / eta * 0.31)
        deviation = KAPPA * math.sqrt(before / eta * (eta - before))
        same(schedule.posterior_std(i), deviation)
        next_scale = 1 / math.sqrt(KAPPA**2 * before + 1)
        for column, value in (
            ("posterior_xt", before / eta),
            ("posterior_x0", (eta - before) / eta),
            ("posterior_std", deviation),
            ("next_scale", next_scale),
        ):
            same(getattr(diffusion.tables, column)[i], value)


def prove_distillation(case: Case) -> None:
    """Proposition 3.1: the tractable loss is E||f_G - f*||^2, and so is its gradient; vsd's is the detached part."""
    for t in SHOWN:
        value, gradient = case.value_and_gradient(objectives.rsd_loss, STUDENT, t)
        same(value, distance(STUDENT, TEACHER, t))
        same(gradient, torch.tensor(distance_gradient(STUDENT, TEACHER, t), dtype=torch.float64))
        value, gradient = case.value_and_gradient(objectives.vsd_loss, STUDENT, t)
        same(value, distance(STUDENT, TEACHER, t))
        same(gradient, torch.tensor(detached_gradient(STUDENT, TEACHER, t), dtype=torch.float64))


def prove_fake_model(case: Case) -> None:
    """L_fake at its best is the posterior's variance, and no other line f(z_t) is better or as good."""
    for t in SHOWN:
        z0_hat = STUDENT.mean + STUDENT.deviation * case.u
        steps = case.diffusion.at(t, len(z0_hat))
        z_t = case.diffusion.q_sample(z0_hat, torch.full_like(z0_hat, Y), steps, case.e)
        line = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        f_phi = STUDENT.denoise(z_t, Y, t) + line[0] + line[1] * z_t
        loss = objectives.weighted_mean(objectives.fake_loss(f_phi, z0_hat), case.w * len(case.w))
        same(loss, STUDENT.deviation**2 * KAPPA**2 * ETAS[t] / STUDENT.marginal_variance(t))
        same(torch.autograd.grad(loss, line)[0], torch.zeros(2))
        same(objectives.teacher_loss(f_phi, z0_hat), objectives.fake_loss(f_phi, z0_hat))
        same(reference.rsd_terms(z_t, f_phi, z0_hat)[1], objectives.fake_loss(f_phi, z0_hat))


def prove_normalisation() -> None:
    """SiD's divisor is mean |f* - z0_hat| + 1e-8, each sample's own, and a constant to the gradient."""
    f_star = torch.tensor([[1.0, -2.0], [0.5, 0.5]], dtype=torch.float64).view(2, 1, 1, 2)
    f_phi = torch.tensor([[0.2, 0.1], [0.3, 0.0]], dtype=torch.float64).view(2, 1, 1, 2)
    z0_hat = torch.tensor([[0.0, 1.0], [0.5, 0.5]], dtype=torch.float64).view(2, 1, 1, 2).requires_grad_()
    loss = objectives.rsd_loss(f_star, f_phi, z0_hat, sid_normalise=True)
    differences = [((1 + 9) - (0.04 + 0.81)) / 2, (0 - (0.04 + 0.25)) / 2]
    same(loss[0], differences[0] / (2.0 + 1e-8))
    same(loss[1] * 1e-8, differences[1])  # the teacher agrees with the student: the floor alone
    (gradient,) = torch.autograd.grad(loss[0], z0_hat)
    same(gradient[0].flatten(), torch.tensor([-0.8, 2.1], dtype=torch.float64) / (2.0 + 1e-8))


def prove_gan() -> None:
    """The discriminator's best logit is log p_real / p_fake, where the game is worth the Jensen-Shannon divergence."""
    p, q = 0.7, 0.2
    best = torch.full((1, 1), math.log(p / q), dtype=torch.float64, requires_grad=True)
    far = torch.zeros(1, 1, dtype=torch.float64) - 800  # softplus is 0 there
    real = objectives.discriminator_loss(best, far)
    fake = objectives.discriminator_loss(-far, best)
    same(real, math.log(1 + q / p))
    same(fake, math.log(1 + p / q))
    same(torch.autograd.grad((p * real + q * fake).sum(), best)[0], 0.0)
    same(objectives.generator_gan_loss(best), math.log(1 + q / p))


def prove_sinsr(case: Case) -> None:
    """The deterministic map of the optimal teacher, step by step, and the weights of the three terms."""
    z_y = torch.full((3, 1, 1, 1), Y, dtype=torch.float64)
    z_last = torch.tensor([-1.0, 0.2, 2.0], dtype=torch.float64).view(3, 1, 1, 1)
    expected = z_last
    for t in reversed(range(STEPS)):
        eta, before = ETAS[t], ETAS[t - 1] if t else 0.0
        m, j = math.sqrt(before / eta), before - math.sqrt(before * eta)
        k = 1 - before + math.sqrt(before * eta) - math.sqrt(before / eta)
        expected = k * TEACHER.denoise(expected, Y, t) + m * expected + j * Y

    def teacher(x_scaled: Tensor, t: Tensor, lq: Tensor) -> Tensor:
        return TEACHER.denoise_scaled(x_scaled, Y, int(t[0]))

    same(case.diffusion.deterministic(teacher, z_last, z_y, LQ), expected)
    terms = [torch.full((1, 1, 1, 1), value, dtype=torch.float64) for value in (0.0, 1.0, 0.0, 2.0, 0.0, 3.0)]
    same(objectives.sinsr_loss(*terms), 1 + 4 + 9)
    same(objectives.sinsr_loss(*terms, inverse_weight=0.5, truth_weight=0.1), 1 + 2 + 0.9)


def prove_step_weights(diffusion: ResidualDiffusion) -> None:
    """elbo: the KL between the posteriors of two x0 that lie 1 apart is w_t, up to one factor for all steps."""
    same(diffusion.step_weights("constant"), torch.ones(STEPS))
    kl = []
    for t in range(1, STEPS):
        gap, variance = (ETAS[t] - ETAS[t - 1]) / ETAS[t], KAPPA**2 * ETAS[t - 1] / ETAS[t] * (ETAS[t] - ETAS[t - 1])
        kl.append(gap**2 / (2 * variance))
    expected = torch.tensor([kl[0], *kl], dtype=torch.float64)
    same(diffusion.step_weights("elbo"), expected / expected.mean())


def test_the_statements_hold() -> None:
    prove()


@pytest.mark.parametrize("t", range(STEPS))
def test_the_gradient_agrees_with_finite_differences(t: int) -> None:
    case, step = Case(), 1e-5
    _, gradient = case.value_and_gradient(objectives.rsd_loss, STUDENT, t)
    for i, name in enumerate(("mean", "deviation")):
        ends = []
        for sign in (1, -1):
            moved = replace(STUDENT, **{name: getattr(STUDENT, name) + sign * step})
            ends.append(case.value_and_gradient(objectives.rsd_loss, moved, t)[0])
        same(gradient[i], (ends[0] - ends[1]) / (2 * step), 1e-8)  # step^2 of truncation, 1e-16 / step of rounding


@pytest.mark.parametrize("t", SHOWN)
def test_the_gradient_of_vsd_is_another(t: int) -> None:
    case = Case()
    _, full = case.value_and_gradient(objectives.rsd_loss, STUDENT, t)
    _, detached = case.value_and_gradient(objectives.vsd_loss, STUDENT, t)
    # In the deviation; the last step keeps 2 % of the mean, so the paths through z_t hardly show there.
    assert abs(full[1] - detached[1]) > 0.005 * abs(detached[1])


def test_the_optimum_is_the_teachers_distribution() -> None:
    case = Case()
    value, gradient = case.value_and_gradient(objectives.rsd_loss, TEACHER, 7)
    same(value, 0.0, 1e-15)
    same(gradient, torch.zeros(2), 1e-15)
    mean = torch.tensor(STUDENT.mean, dtype=torch.float64, requires_grad=True)
    deviation = torch.tensor(STUDENT.deviation, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([mean, deviation], max_iter=60, line_search_fn="strong_wolfe", tolerance_change=1e-16)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = torch.stack([case.loss(objectives.rsd_loss, mean, deviation, t) for t in range(STEPS)]).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    same(mean, TEACHER.mean, 1e-6)  # a loss of 1e-13 is where float64 ends the search
    same(deviation, TEACHER.deviation, 1e-6)


def test_the_defaults_are_the_papers_recipe() -> None:
    stage = StudentConfig()
    recipe = {"distill_weight": 1.0, "lpips_weight": 2.0, "gan_weight": 3e-3, "lr": 5e-5, "fake_lr": 5e-5, "ema": 0.999}
    assert {name: getattr(stage, name) for name in recipe} == recipe
    assert (stage.objective, stage.gan, stage.step_weights) == ("rsd", "features", "constant")
    assert (stage.fake_steps, stage.iterations, stage.batch, stage.betas) == (5, 3000, 64, (0.9, 0.95))
    assert (stage.timesteps, stage.sid_normalise, stage.lr_final, stage.warmup) == ((3, 7, 11, 14), True, 1.0, 0)
    others = [field.name for field in fields(stage) if field.name.endswith("_weight") and field.name not in recipe]
    assert {getattr(stage, name) for name in set(others) - {"inverse_weight", "truth_weight"}} == {0.0}
    assert (stage.inverse_weight, stage.truth_weight) == (1.0, 1.0)


CHANGE = 1.001


class _Operands(ast.NodeTransformer):
    """Multiplies one operand of the arithmetic in a function's body, the `chosen`-th, by CHANGE; counts all."""

    def __init__(self, chosen: int | None) -> None:
        self.chosen, self.count, self.what, self.whole = chosen, 0, "", ""

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.op, (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow)):
            whole = ast.unparse(node)
            # In a product it does not matter which factor changes.
            names = ("left",) if isinstance(node.op, (ast.Mult, ast.Div)) else ("left", "right")
            for name in names:
                setattr(node, name, self._change(getattr(node, name), whole))
        return node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.op, ast.USub) and not isinstance(node.operand, ast.Constant):
            node.operand = self._change(node.operand, ast.unparse(node))
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if node.value is not None:
            node.value = self.visit(node.value)
        return node

    def _change(self, operand: ast.expr, whole: str) -> ast.expr:
        index, self.count = self.count, self.count + 1
        if index != self.chosen:
            return operand
        self.what, self.whole = f"{ast.unparse(operand)} in {whole}", whole
        return ast.BinOp(ast.Constant(CHANGE), ast.Mult(), operand)


def mutated(function: FunctionType, chosen: int | None) -> tuple[CodeType, _Operands]:
    """The code of a function with one operand changed."""
    tree = ast.parse("from __future__ import annotations\n" + textwrap.dedent(inspect.getsource(function)))
    definition = tree.body[1]
    assert isinstance(definition, ast.FunctionDef)
    definition.decorator_list, definition.args.defaults, definition.args.kw_defaults = [], [], []
    definition.args.kwonlyargs, keywords = [], definition.args.kwonlyargs
    definition.args.args += keywords
    operands = _Operands(chosen)
    definition.body = [operands.visit(statement) for statement in definition.body]
    definition.args.args = definition.args.args[: len(definition.args.args) - len(keywords)]
    definition.args.kwonlyargs, definition.args.kw_defaults = keywords, [None] * len(keywords)
    names: dict[str, Any] = {}
    exec(compile(ast.fix_missing_locations(tree), f"<mutant of {function.__qualname__}>", "exec"), names)
    return names[definition.name].__code__, operands


def plain(function: Any) -> FunctionType:
    """The function below decorators."""
    function = getattr(function, "fget", function)
    function = getattr(function, "__func__", function)
    unwrapped = inspect.unwrap(function)
    assert isinstance(unwrapped, FunctionType)
    return unwrapped


FUNCTIONS = [
    plain(function)
    for function in (
        schedule_module._sqrt_etas,
        ResidualSchedule.__init__,
        ResidualSchedule.prior_std,
        ResidualSchedule.input_scale,
        ResidualSchedule.forward_marginal,
        ResidualSchedule.posterior_mean,
        ResidualSchedule.prior,
        StepTables.of,
        reference.forward_noise,
        reference.rsd_terms,
        sampling.deterministic,
        ResidualDiffusion.q_sample,
        ResidualDiffusion.scale,
        ResidualDiffusion.prior,
        ResidualDiffusion.step_weights,
        objectives.square_error,
        objectives.fake_loss,
        objectives.rsd_loss,
        objectives.sinsr_loss,
        objectives.weighted_mean,
        objectives.generator_gan_loss,
        objectives.discriminator_loss,
    )
]
CANCELS = (
    "schedule.alphas[1:] / (schedule.etas[1:] * schedule.etas_prev[1:])",
    "schedule.etas[1:] * schedule.etas_prev[1:]",
)
"""One factor for all steps, which the mean that the weights are divided by has too."""
MUTANTS = [
    (function, i)
    for function in FUNCTIONS
    for i in range(mutated(function, None)[1].count)
    if mutated(function, i)[1].whole not in CANCELS
]


@pytest.mark.parametrize(("function", "index"), MUTANTS, ids=[f"{f.__qualname__}-{i}" for f, i in MUTANTS])
def test_a_change_of_any_operand_breaks_the_proof(
    function: FunctionType, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, operands = mutated(function, index)
    monkeypatch.setattr(function, "__code__", code)
    try:
        prove()
    except (AssertionError, TypeError, IndexError):  # a whole number times 1.001 no longer counts or slices
        return
    pytest.fail(f"nothing depends on {operands.what}")


@pytest.mark.parametrize("name", ["kappa", "power", "min_noise_level", "etas_end"])
def test_a_change_of_any_constant_of_the_schedule_breaks_the_proof(name: str) -> None:
    spec = ScheduleSpec()
    with pytest.raises(AssertionError):
        prove(replace(spec, **{name: getattr(spec, name) * CHANGE}))


@pytest.mark.parametrize("column", [column.name for column in fields(StepTables)])
@pytest.mark.parametrize("t", [0, 1, 7, 14])
def test_a_change_of_any_entry_of_a_table_breaks_the_proof(
    column: str, t: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = plain(StepTables.of)

    def changed(cls: type[StepTables], *arguments: Any, **options: Any) -> StepTables:
        tables: StepTables = original(cls, *arguments, **options)
        entry = getattr(tables, column)
        entry[t] = entry[t] * CHANGE or CHANGE - 1  # some are 0
        return tables

    monkeypatch.setattr(StepTables, "of", classmethod(changed))
    with pytest.raises(AssertionError):
        prove()
