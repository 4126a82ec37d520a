from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from rsd_edge.distill.objectives import (
    discriminator_loss,
    fake_loss,
    generator_gan_loss,
    rsd_loss,
    teacher_loss,
    vsd_loss,
)
from rsd_edge.distill.pixel_objectives import (
    SPECTRUM_FLOOR,
    _log_power,
    chroma_loss,
    direction_loss,
    gradient_phases,
    grid_loss,
    lattice_loss,
    phase_moments,
    pixel_loss,
    retoned,
    spectrum_directions,
    tone_loss,
)
from rsd_edge.schedule import ResidualSchedule

SHAPE = (3, 4, 5, 6)
NUMEL = 4 * 5 * 6


def close(actual: Tensor, expected: Tensor) -> None:
    """Equal but for float32: a few roundings of sums over a hundred terms near 1."""
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape or SHAPE, generator=generator, dtype=dtype)


def direct(f_star: Tensor, f_phi: Tensor, z0_hat: Tensor) -> Tensor:
    """Proposition 3.1 as it is stated: ||f* - z0_hat||^2 - ||f_phi - z0_hat||^2, as a mean over a sample's elements."""
    return ((f_star - z0_hat) ** 2 - (f_phi - z0_hat) ** 2).mean(dim=(1, 2, 3))


def test_rsd_loss_is_the_difference_of_the_two_errors() -> None:
    f_star, f_phi, z0_hat = normal(1), normal(2), normal(3)
    close(rsd_loss(f_star, f_phi, z0_hat), direct(f_star, f_phi, z0_hat))


def test_rsd_loss_vanishes_where_the_fake_model_is_the_teacher() -> None:
    f_star = normal(1)
    assert rsd_loss(f_star, f_star.clone(), normal(3)).abs().max() == 0


class Denoiser(nn.Module):
    """A small nonlinear network (z_t, t) -> x0 in float64."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 6, 3, padding=1, dtype=torch.float64)
        self.second = nn.Conv2d(6, 4, 3, padding=1, dtype=torch.float64)
        for i, parameter in enumerate(self.parameters()):
            parameter.data = 0.4 * normal(10 * seed + i, *parameter.shape, dtype=torch.float64)
        self.requires_grad_(False)

    def forward(self, z_t: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(z_t)))


class Chain:
    """z0_hat -> z_t by Eq. 4 -> both networks, everything in float64 and frozen."""

    def __init__(self, t: int) -> None:
        self.f_star, self.f_phi = Denoiser(1), Denoiser(2)
        self.z0_hat, self.z_y, self.eps = (normal(seed, dtype=torch.float64) for seed in (3, 4, 5))
        self.schedule, self.t = ResidualSchedule(), t

    def outputs(self, z0_hat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z_t = self.schedule.forward_marginal(z0_hat, self.z_y, self.eps, self.t)
        scaled = z_t * self.schedule.input_scale(self.t)
        return self.f_star(scaled), self.f_phi(scaled), z0_hat

    def gradient(self, objective: object) -> Tensor:
        z0_hat = self.z0_hat.clone().requires_grad_()
        loss: Tensor = objective(*self.outputs(z0_hat)).sum()
        (gradient,) = torch.autograd.grad(loss, z0_hat)
        return gradient

    def finite_differences(self, probes: Tensor) -> Tensor:
        """Directional derivatives of the direct form along each probe, by central differences."""
        step = 1e-5
        ends = [
            [direct(*self.outputs(self.z0_hat + sign * step * probe)).sum() for sign in (1, -1)] for probe in probes
        ]
        return torch.stack([(up - down) / (2 * step) for up, down in ends])


@pytest.mark.parametrize("t", [1, 7, 14])
def test_rsd_gradient_flows_through_z_t_into_both_networks(t: int) -> None:
    chain = Chain(t)
    probes = normal(9, 8, *SHAPE, dtype=torch.float64)
    expected = chain.finite_differences(probes)
    slopes = (probes * chain.gradient(rsd_loss)).sum(dim=(1, 2, 3, 4))
    torch.testing.assert_close(slopes, expected, rtol=1e-7, atol=1e-8)  # 1e-16 / step, times sums over 360 terms
    vsd_slopes = (probes * chain.gradient(vsd_loss)).sum(dim=(1, 2, 3, 4))
    # At the last index z_t keeps only 1 - 0.98 of z0_hat, so the paths through it are short; still they show.
    assert (vsd_slopes - expected).norm() > 0.01 * expected.norm()


def test_detaching_either_network_is_another_gradient() -> None:
    chain = Chain(7)
    full = chain.gradient(rsd_loss)
    no_teacher = chain.gradient(lambda a, b, z: rsd_loss(a.detach(), b, z))
    no_fake = chain.gradient(lambda a, b, z: rsd_loss(a, b.detach(), z))
    for partial in (no_teacher, no_fake):
        assert (partial - full).norm() > 0.05 * full.norm()
    # The paths add up: what each network contributes, and once too often the direct one.
    torch.testing.assert_close(no_teacher + no_fake - chain.gradient(vsd_loss), full, rtol=1e-5, atol=1e-7)


def test_vsd_gradient_is_twice_the_difference_of_the_networks() -> None:
    f_star, f_phi = normal(1).requires_grad_(), normal(2).requires_grad_()
    z0_hat = normal(3).requires_grad_()
    vsd_loss(f_star, f_phi, z0_hat).sum().backward()
    assert z0_hat.grad is not None
    torch.testing.assert_close(z0_hat.grad, 2 * (f_phi - f_star).detach() / NUMEL, rtol=1e-6, atol=0)  # one rounding
    assert f_star.grad is None
    assert f_phi.grad is None


def test_vsd_and_rsd_have_the_same_value() -> None:
    f_star, f_phi, z0_hat = normal(1), normal(2), normal(3)
    assert torch.equal(vsd_loss(f_star, f_phi, z0_hat), rsd_loss(f_star, f_phi, z0_hat))


def test_sid_normalisation_divides_each_sample_by_its_teachers_error() -> None:
    f_star, f_phi, z0_hat = normal(1), normal(2), normal(3)
    expected = direct(f_star, f_phi, z0_hat) / ((f_star - z0_hat).abs().mean(dim=(1, 2, 3)) + 1e-8)
    close(rsd_loss(f_star, f_phi, z0_hat, sid_normalise=True), expected)
    close(vsd_loss(f_star, f_phi, z0_hat, sid_normalise=True), expected)
    # Where the teacher agrees with the student exactly, the floor keeps the quotient finite.
    assert torch.isfinite(rsd_loss(z0_hat, f_phi, z0_hat, sid_normalise=True)).all()


def test_sid_normalisation_is_a_constant_to_the_gradient() -> None:
    f_star, f_phi, z0_hat = normal(1), normal(2), normal(3).requires_grad_()
    (plain,) = torch.autograd.grad(rsd_loss(f_star, f_phi, z0_hat).sum(), z0_hat)
    (normalised,) = torch.autograd.grad(rsd_loss(f_star, f_phi, z0_hat, sid_normalise=True).sum(), z0_hat)
    scale = (f_star - z0_hat).detach().abs().mean(dim=(1, 2, 3), keepdim=True)
    close(normalised, plain / scale)


def test_the_fake_model_learns_and_the_student_does_not() -> None:
    f_phi, z0_hat = normal(1).requires_grad_(), normal(2).requires_grad_()
    loss = fake_loss(f_phi, z0_hat)
    close(loss, ((f_phi - z0_hat) ** 2).mean(dim=(1, 2, 3)))
    loss.sum().backward()
    assert z0_hat.grad is None
    assert f_phi.grad is not None
    close(f_phi.grad, 2 * (f_phi - z0_hat).detach() / NUMEL)


def test_losses_are_float32_and_one_for_each_sample() -> None:
    f_star, f_phi, z0_hat = (normal(seed).bfloat16() for seed in (1, 2, 3))
    exact = rsd_loss(f_star.double(), f_phi.double(), z0_hat.double()).float()
    for loss in (rsd_loss, vsd_loss):
        result = loss(f_star, f_phi, z0_hat)
        assert result.shape == (3,)
        assert result.dtype == torch.float32
        close(result, exact)  # bfloat16 arithmetic would be off by 1e-3
    assert teacher_loss(f_star, z0_hat).dtype == torch.float32


def test_gan_losses_are_the_softplus_pair() -> None:
    real, fake = torch.tensor([[2.0, -1.0]]), torch.tensor([[0.5, -3.0]])

    def softplus(x: float) -> float:
        return math.log1p(math.exp(x))

    generator = (softplus(-0.5) + softplus(3.0)) / 2
    discriminator = (softplus(-2.0) + softplus(1.0)) / 2 + (softplus(0.5) + softplus(-3.0)) / 2
    assert generator_gan_loss(fake).tolist() == pytest.approx([generator], rel=1e-6)  # float32
    assert discriminator_loss(real, fake).tolist() == pytest.approx([discriminator], rel=1e-6)


def test_gan_losses_push_in_opposite_directions() -> None:
    fake = torch.zeros(1, 4, requires_grad=True)
    (towards,) = torch.autograd.grad(generator_gan_loss(fake).sum(), fake)
    (away,) = torch.autograd.grad(discriminator_loss(torch.ones(1, 4), fake).sum(), fake)
    close(towards, torch.full((1, 4), -0.125))  # sigmoid(0) / 4 logits
    close(away, torch.full((1, 4), 0.125))


def test_chroma_loss_sees_colour_and_nothing_else() -> None:
    target = normal(1, 2, 3, 8, 8)
    grain = normal(2, 2, 1, 8, 8)
    assert chroma_loss(target + grain, target).max() < 1e-12  # rounding of the sums, squared
    red = target.clone()
    red[:, 0] += 0.5
    close(chroma_loss(red, target), torch.full((2,), 0.5**2 / 2))  # one of two differences
    close(pixel_loss(red, target), torch.full((2,), 0.5 / 3))
    green = target.clone()
    green[:, 1] += 0.5
    close(chroma_loss(green, target), torch.full((2,), 0.5**2))


def test_chroma_loss_pulls_hardest_where_the_colour_is_most_wrong() -> None:
    target = torch.zeros(1, 3, 8, 8)
    image = target.clone()
    image[:, 0, 0, 0], image[:, 0, 4, 4] = 0.1, 0.4
    image.requires_grad_()
    (pull,) = torch.autograd.grad(chroma_loss(image, target).sum(), image)
    close(pull[0, 0, 4, 4], 4 * pull[0, 0, 0, 0])


def test_tone_loss_sees_areas_and_no_detail() -> None:
    target = normal(1, 2, 3, 64, 64)
    detail = normal(2, 2, 3, 64, 64)
    squares = detail.unflatten(2, (2, 32)).unflatten(4, (2, 32))
    detail = (squares - squares.mean(dim=(3, 5), keepdim=True)).reshape(target.shape)
    assert tone_loss(target + detail, target).max() < 1e-12  # rounding of the sums, squared
    shifted = target + detail
    shifted[1, 0, :32, 32:] += 0.2  # one of three channels in one of four squares
    close(tone_loss(shifted, target), torch.tensor([0.0, 0.2**2 / 12]))
    close(tone_loss(torch.ones(1, 3, 16, 16), torch.zeros(1, 3, 16, 16)), torch.ones(1))


def test_a_retoned_target_has_the_mean_colour_of_the_input_and_its_own_areas() -> None:
    target, base = normal(3, 2, 3, 64, 64), normal(4, 2, 3, 64, 64)
    result = retoned(target, base)
    close(result.mean(dim=(2, 3)), base.mean(dim=(2, 3)))
    close(result - result.mean(dim=(2, 3), keepdim=True), target - target.mean(dim=(2, 3), keepdim=True))


def test_grid_loss_sees_a_weave_and_no_content() -> None:
    target = normal(5, 16, 3, 128, 128) / 127.5  # steps of about a grey level
    weave = torch.zeros(128)
    weave[::4] = 1 / 127.5  # one row in four lighter by one level
    woven = target + weave[:, None]
    assert grid_loss(gradient_phases(target, target)) == 0
    content = grid_loss(gradient_phases(target.flip(2, 3), target))  # the same steps at other phases
    seen = grid_loss(gradient_phases(woven, target))
    assert seen > 20 * content  # or a batch of 16 would learn from what its crops show
    close(grid_loss(gradient_phases(woven.transpose(2, 3), target.transpose(2, 3))), seen)
    halves = [gradient_phases(woven[half], target[half]) for half in (slice(8), slice(8, 16))]
    close(gradient_phases(woven, target), (halves[0] + halves[1]) / 2)


def noise(seed: int) -> Tensor:
    return normal(seed, 4, 3, 64, 64)


def lattice(detail: Tensor) -> Tensor:
    return lattice_loss(phase_moments(detail))


def test_lattice_loss_of_plain_noise_is_small_and_of_a_pattern_is_not() -> None:
    plain = lattice(noise(1))
    assert plain < 0.12  # 64 phases of 256 samples: deviations of 5 % in their means, 3 % in their spreads
    offset, gain, wide = noise(1), noise(1), noise(1)
    offset[..., ::4, 1::4] += 1
    gain[..., 2::4, ::4] *= 2
    assert lattice(offset) > plain + 0.05
    assert lattice(gain) > plain + 0.05
    wide[..., ::8, 1::4] += 1
    wide[..., 4::8, 1::4] -= 1  # of period 8, and zero on average over a period of 4
    assert lattice(wide) > plain + 0.05
    row = noise(1)
    row[:, 1, ::4] += 1  # one channel, four phases of a row
    assert lattice(row) > plain + 0.02


def test_lattice_loss_has_no_unit_and_does_not_reward_noise() -> None:
    detail = noise(1)
    detail[..., ::4, ::4] += 1
    torch.testing.assert_close(lattice(10 * detail), lattice(detail), rtol=1e-4, atol=0)  # the floor of 1e-6
    detail.requires_grad_()
    (gradient,) = torch.autograd.grad(lattice(detail), detail)
    offsets = detail.detach() - noise(1)
    assert (gradient * offsets).sum() > 0  # less pattern, less loss


def test_lattice_loss_ignores_what_changes_slowly() -> None:
    ramp = torch.linspace(-3, 3, 64).expand(4, 3, 64, 64)
    torch.testing.assert_close(lattice(noise(1) + ramp), lattice(noise(1)), rtol=0.05, atol=0)  # borders


def test_direction_loss_sees_a_canvas_and_neither_amounts_nor_content() -> None:
    target, other = (normal(seed, 16, 3, 128, 128) / 10 for seed in (6, 7))  # far above half a grey level
    canvas = target + 0.3 * (target.roll(1, 2) + target.roll(-1, 2))  # each column smoother than each row
    assert direction_loss(spectrum_directions(target, target)) == 0
    seen = direction_loss(spectrum_directions(canvas, target))
    assert seen > 1000 * direction_loss(spectrum_directions(2 * target, target))  # which the floor leaves of it
    chance = direction_loss(spectrum_directions(other, target))
    # Variance of the difference of two logarithms, of 256 windows; the mean of neighbours, taken off, has some of it.
    assert float(chance) == pytest.approx(math.pi**2 / 3 / 256, rel=0.2)
    close(direction_loss(spectrum_directions(canvas.transpose(2, 3), target.transpose(2, 3))), seen)
    coarse = canvas.bfloat16()  # as a network gives it under autocast; spectra are taken in float32
    assert torch.equal(spectrum_directions(coarse, target), spectrum_directions(coarse.float(), target))
    halves = [spectrum_directions(canvas[half], target[half]) for half in (slice(8), slice(8, 16))]
    close(spectrum_directions(canvas, target), (halves[0] + halves[1]) / 2)


def test_directions_are_of_fine_detail() -> None:
    target = normal(8, 4, 3, 96, 96) / 1000
    x = 2 * math.pi * torch.arange(96) / 32

    def seen(periods: float) -> float:
        return float(direction_loss(spectrum_directions(target + 0.1 * torch.cos(periods * x), target)))

    assert seen(2) < 1e-4
    assert seen(3) > 0.3  # the taper shows it at frequency 4 as well, and 2 nowhere


def test_the_floor_is_half_a_grey_level_of_noise() -> None:
    grainy, black = normal(9, 64, 1, 128, 128) * SPECTRUM_FLOOR, torch.zeros(64, 1, 128, 128)
    # Power of noise is exponential, and E log(1 + power / its mean) = e E1(1); of 140 000 values, by chance to 0.002.
    gain = (_log_power(grainy) - _log_power(black))[:, 8:25, 8:16].mean()
    assert float(gain) == pytest.approx(0.59635, rel=0.01)


def test_the_pull_on_directions_is_finite_where_there_is_no_detail() -> None:
    black = torch.zeros(1, 3, 64, 64, requires_grad=True)
    loss = direction_loss(spectrum_directions(black, normal(10, 1, 3, 64, 64)))
    (pull,) = torch.autograd.grad(loss, black)
    assert pull.isfinite().all()
