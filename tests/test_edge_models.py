from __future__ import annotations

import copy
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rsd_edge.distill.config import load_config
from rsd_edge.models.checkpoint import Checkpoint
from rsd_edge.models.edge import (
    EdgeDecoder,
    EdgeEncoder,
    EdgeGenerator,
    EdgeStem,
    EdgeTile,
    SubPixelConv,
    student_from_teacher,
)
from rsd_edge.schedule import ResidualSchedule
from rsd_edge.specs import EdgeArchitecture, ModelSpec

Randomise = Callable[[nn.Module, int], nn.Module]


def close(actual: Tensor, expected: Tensor) -> None:
    """Equal but for another order of summation, in float32, over some hundred products of values near 1."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@pytest.fixture
def arch(tiny_model: ModelSpec) -> EdgeArchitecture:
    return tiny_model.architecture


@pytest.fixture
def teacher(arch: EdgeArchitecture, randomise: Randomise) -> EdgeGenerator:
    network = EdgeGenerator(arch, noise_channel=False)
    randomise(network, 1)
    return network


@pytest.fixture
def student(arch: EdgeArchitecture, randomise: Randomise) -> EdgeGenerator:
    network = EdgeGenerator(arch, noise_channel=True)
    randomise(network, 2)
    return network


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(n: int = 2, h: int = 6, w: int = 10) -> tuple[Tensor, Tensor, Tensor]:
    """x_t, lq, eps."""
    return normal(n, 4, h, w, seed=1), normal(n, 3, h, w, seed=2).clamp(-1, 1), normal(n, 1, h, w, seed=3)


def shipped_tile(name: str) -> EdgeTile:
    with resources.as_file(resources.files("rsd_edge.distill") / "configs" / f"{name}.yaml") as path:
        spec = load_config(Path(path)).model
    arch = spec.architecture
    return EdgeTile(spec, EdgeStem(arch), EdgeGenerator(arch, noise_channel=True), EdgeDecoder(arch))


@pytest.mark.parametrize(
    ("name", "budget", "cost", "parameters"), [("edge-s", 5, 4.28, 1_430_516), ("edge-n", 1.8, 1.64, 479_892)]
)
def test_the_shipped_tiles_keep_their_budgets(name: str, budget: float, cost: float, parameters: int) -> None:
    tile = shipped_tile(name)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        tile(torch.zeros(1, 3, 64, 64), torch.zeros(1, 5, 64, 64))
    gigaflops = counter.get_total_flops() / 1e9  # two for each multiplication and addition
    assert gigaflops <= budget
    # What documentation says of the model; a change of sizes has to change it there as well.
    assert gigaflops == pytest.approx(cost, abs=0.01)
    assert sum(parameter.numel() for parameter in tile.parameters()) == parameters


def test_the_flop_counter_counts_what_the_budget_means() -> None:
    """A 3x3 convolution of 4 to 8 channels on 10x10 pixels: 2 x 9 x 4 x 8 x 100."""
    with FlopCounterMode(display=False) as counter:
        nn.Conv2d(4, 8, 3, padding=1)(torch.zeros(1, 4, 10, 10))
    assert counter.get_total_flops() == 57600


def test_the_encoder_makes_a_normalised_latent(arch: EdgeArchitecture, randomise: Randomise) -> None:
    encoder = randomise(EdgeEncoder(arch), 3).train()
    z = encoder(normal(4, 3, 32, 48))
    assert z.shape == (4, 4, 8, 12)
    close(z.mean(dim=(0, 2, 3)), torch.zeros(4))
    # The normalisation adds 1e-5 to the variance, which is some tenths here.
    torch.testing.assert_close(z.var(dim=(0, 2, 3), correction=0), torch.ones(4), rtol=0, atol=1e-3)


def test_the_encoder_in_use_looks_at_one_image_at_a_time(arch: EdgeArchitecture) -> None:
    encoder = EdgeEncoder(arch).eval()
    images = normal(3, 3, 16, 16)
    close(encoder(images)[1:2], encoder(images[1:2]))


def test_a_student_at_birth_equals_its_teacher(teacher: EdgeGenerator, arch: EdgeArchitecture) -> None:
    newborn = student_from_teacher(teacher, arch)
    x_t, lq, eps = inputs()
    t = torch.tensor([14, 3])
    close(newborn(x_t, t, lq, 100 * eps), teacher(x_t, t, lq))
    assert all(parameter.requires_grad for parameter in newborn.parameters())


def test_the_noise_channel_learns_from_the_first_step(teacher: EdgeGenerator, arch: EdgeArchitecture) -> None:
    newborn = student_from_teacher(teacher, arch)
    x_t, lq, eps = inputs()
    newborn(x_t, torch.tensor([14, 3]), lq, eps).square().sum().backward()
    gradient = newborn.head.weight.grad
    assert gradient is not None
    assert gradient[:, -1].abs().max() > 1e-3 * gradient.abs().max()


def test_noise_comes_last(student: EdgeGenerator) -> None:
    """[x_t, lq, eps]: silencing the last input channel makes eps ineffective."""
    x_t, lq, eps = inputs()
    t = torch.tensor([14, 14])
    assert (student(x_t, t, lq, eps) - student(x_t, t, lq, 0 * eps)).abs().max() > 0.01
    with torch.no_grad():
        student.head.weight[:, -1] = 0
    close(student(x_t, t, lq, eps), student(x_t, t, lq, 0 * eps))


def test_each_sample_has_its_own_timestep(teacher: EdgeGenerator) -> None:
    x_t, lq, _ = inputs()
    both = teacher(x_t, torch.tensor([14, 3]), lq)
    close(both[1:], teacher(x_t[1:], torch.tensor([3]), lq[1:]))
    assert (both[1:] - teacher(x_t[1:], torch.tensor([4]), lq[1:])).abs().max() > 1e-3


@pytest.mark.parametrize("t", [0, 14])
def test_folding_a_timestep_changes_nothing(student: EdgeGenerator, t: int) -> None:
    x_t, lq, eps = inputs()
    expected = student(x_t, torch.full((2,), t), lq, eps)
    other = student(x_t, torch.full((2,), 14 - t), lq, eps)
    folded = copy.deepcopy(student)
    folded.fold(t)
    close(folded(x_t, None, lq, eps), expected)
    assert (expected - other).abs().max() > 0.01


def test_the_tile_is_stem_prior_student_and_decoder(tiny_weights: Checkpoint, student: EdgeGenerator) -> None:
    """Written out from the schedule, with the unfolded student."""
    spec = tiny_weights.spec
    stem, decoder = EdgeStem(spec.architecture), EdgeDecoder(spec.architecture)
    tiny_weights.load_into("stem", stem)
    tiny_weights.load_into("decoder", decoder)
    tile = EdgeTile(spec, stem, copy.deepcopy(student), decoder)
    lq, noise = normal(2, 3, 6, 10, seed=4).clamp(-1, 1), normal(2, 5, 6, 10, seed=5)
    schedule = ResidualSchedule(spec.schedule)
    with torch.no_grad():
        z_T = schedule.prior(stem(lq), noise[:, :4])
        z0_hat = student(z_T * schedule.input_scale(14), torch.tensor([14, 14]), lq, noise[:, 4:])
        expected = decoder(z0_hat, lq)
        detail = tile(lq, noise)
    assert detail.shape == (2, 3, 24, 40)
    assert expected.std() > 0.1
    close(detail, expected)


@pytest.mark.parametrize("kernel", [1, 3])
def test_the_phases_of_a_new_upsampling_are_equal(kernel: int) -> None:
    upsampling = SubPixelConv(6, 5, kernel)
    image = upsampling(normal(1, 6, 7, 9))
    assert image.shape == (1, 5, 14, 18)
    blocks = image.unfold(2, 2, 2).unfold(3, 2, 2).flatten(-2)
    assert blocks.std() > 0.1
    # One sum of the same products; a convolution may still order channels differently at the end of a vector.
    torch.testing.assert_close(blocks, blocks[..., :1].expand_as(blocks), rtol=0, atol=1e-6)


def test_new_decoders_print_no_lattice_inside_a_flat_image(arch: EdgeArchitecture) -> None:
    """The two convolutions after the last shuffle see each other's neighbours, so equal phases stay equal where the
    image is flat; its borders, where zeros are padded, are left out."""
    detail = EdgeDecoder(arch)(torch.full((1, 4, 16, 16), 0.3), torch.full((1, 3, 16, 16), 0.2))
    inner = detail[..., 24:-24, 24:-24]
    assert inner.abs().max() > 1e-3
    torch.testing.assert_close(inner, inner[..., :1, :1].expand_as(inner), rtol=0, atol=1e-5)


def test_wrong_shapes_are_refused(student: EdgeGenerator, teacher: EdgeGenerator, arch: EdgeArchitecture) -> None:
    x_t, lq, eps = inputs()
    t = torch.tensor([14, 3])
    with pytest.raises(RuntimeError, match="channels"):
        teacher(x_t, t, lq, eps)
    with pytest.raises(RuntimeError, match="channels"):
        student(x_t, t, lq)
    with pytest.raises(RuntimeError, match=r"[Ss]ize"):
        student(x_t, t, lq[..., :-2], eps)
    with pytest.raises(RuntimeError, match=r"[Ss]ize"):
        student(x_t[..., :-1], t, lq[..., :-1], eps[..., :-1])  # odd sides do not survive the downsampling
    with pytest.raises(RuntimeError, match=r"[Ss]ize"):
        EdgeDecoder(arch)(x_t, lq[..., :-2, :])


def test_nothing_looks_at_the_whole_tile(student: EdgeGenerator) -> None:
    """Far pixels have no influence at all: there is no attention and no normalisation over space."""
    x_t, lq, eps = inputs(1, 8, 64)
    moved = x_t.clone()
    moved[..., -1] += 1
    t = torch.tensor([14])
    difference = (student(x_t, t, lq, eps) - student(moved, t, lq, eps)).abs().amax(dim=(0, 1, 2))
    # Convolutions and blocks of both levels, in LR pixels: 1 + 1 + 1 + 2 + 1 + 1, and up to 2 for the coarse grid.
    assert difference[: 64 - 10].max() < 1e-6
    assert difference[-1] > 1e-3
