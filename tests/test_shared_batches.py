"""A batch has one gradient, in however many parts and processes it is computed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rsd_edge.distill.config import DistillConfig
from rsd_edge.distill.data import Batch, CropDataset, training_batches
from rsd_edge.distill.discriminators import PatchDiscriminator
from rsd_edge.distill.loop import draws
from rsd_edge.distill.pixel_losses import BatchStatistics, PixelCriterion
from rsd_edge.distill.randomness import Randomness
from rsd_edge.distill.runtime import Runtime
from rsd_edge.distill.stage import Part
from rsd_edge.distill.stage_config import StageConfig
from rsd_edge.distill.stages import STAGES
from rsd_edge.distill.stages.student import FinetuneStage

MakeConfig = Callable[..., DistillConfig]

pytestmark = pytest.mark.usefixtures("one_torch_thread")

RSD: dict[str, Any] = {"distill_weight": 1.0, "gan_weight": 0.1, "fake_steps": 1}
JOINT: dict[str, Any] = {
    "pixel_weight": 1.0,
    "chroma_weight": 1.0,
    "tone_weight": 1.0,
    "flat_weight": 1.0,
    "lattice_weight": 0.5,
    "grid_weight": 1.0,
    "direction_weight": 1.0,
}
JOINT |= {"train_decoder": True, "gan_weight": 0.1, "gan": "pixels"}


def gradients(config: DistillConfig, name: str) -> dict[str, Tensor]:
    """By network, as they stand after two iterations in which no weight moves, with a batch of four."""
    stage = STAGES[name](config, None)
    for optimizer in stage.optimizers.values():
        optimizer.step = lambda *_: None
    batch = next(training_batches(CropDataset(config.data, config.data.crop, 1), 4, 0))
    for iteration in range(2):
        stage.step(iteration, draws(stage, itertools.repeat(batch), iteration))
    return {
        part: torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
        for part, network in stage.networks.items()
    }


@pytest.mark.parametrize(
    ("name", "losses", "networks"),
    [
        ("student", RSD, {"student", "fake"}),
        ("finetune", JOINT, {"student", "stem", "decoder", "discriminator"}),
        ("finetune", {**JOINT, "gan_weight": 0.0}, {"student", "stem", "decoder"}),
    ],
)
def test_parts_have_the_gradients_of_the_whole(
    prepared: MakeConfig, name: str, losses: dict[str, Any], networks: set[str]
) -> None:
    whole = gradients(prepared(batch=4, clip=None, **losses), name)
    assert whole.keys() == networks
    for accumulate in (2, 4):
        parts = gradients(prepared(batch=4, clip=None, accumulate=accumulate, **losses), name)
        for network, gradient in whole.items():
            error = float((parts[network] - gradient).norm() / gradient.norm())
            assert error < 2e-5, (network, accumulate)  # float32 sums of some thousand terms in another order


def test_an_iteration_refines_the_norms_once(prepared: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = FinetuneStage(prepared(accumulate=2, **JOINT))
    refined: list[int] = []
    monkeypatch.setattr(stage.discriminator, "refine", lambda: refined.append(1))
    batch = next(training_batches(CropDataset(stage.config.data, stage.config.data.crop, 1), 2, 0))
    stage.step(0, draws(stage, itertools.repeat(batch), 0))
    assert refined == [1]


def test_statistics_are_the_whole_batchs() -> None:
    """A pattern that one half of a batch has and the other cancels is none, whichever part is asked."""
    stage = StageConfig(lattice_weight=1.0, grid_weight=1.0, direction_weight=1.0)
    criterion = PixelCriterion(stage, torch.nn.Identity(), Runtime("cpu"))
    noise = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    halves = [noise.clone(), noise.clone()]
    halves[0][..., ::8, ::8] += 3
    halves[1][..., ::8, ::8] -= 3
    random = Randomness("test", 0, 1)
    parts = [Part(Batch(noise, noise.new_zeros(1, 3, 16, 16)), random) for _ in halves]
    details = iter(halves)
    shared = criterion.survey(parts, lambda _: next(details))

    def terms(image: Tensor, shared: BatchStatistics | None) -> tuple[float, ...]:
        scalars: dict[str, Tensor] = {}
        base, target = torch.zeros_like(image), noise.expand_as(image)
        criterion(image, base, target, random, scalars, shared)
        return tuple(float(scalars[name]) for name in ("lattice", "grid", "direction"))

    whole = terms(torch.cat(halves), None)
    for half in halves:
        assert terms(half, shared) == pytest.approx(whole, rel=1e-5)  # float32
    alone = terms(halves[0], None)
    assert whole[0] < alone[0] - 0.02  # the pattern still widens its phase
    assert whole[2] < 0.8 * alone[2]  # what differs by chance is less in more windows
    assert criterion.survey(parts[:1], lambda _: halves[0]) is None  # nothing is computed twice without need


def test_spectral_norms_are_refined_when_asked_and_in_no_pass() -> None:
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(width=8)
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        for layer in discriminator.layers:
            layer.parametrizations.weight.original.normal_()

    @torch.no_grad()
    def norm() -> float:
        return float(torch.linalg.matrix_norm(discriminator.layers[1].weight.flatten(1), 2))

    before = norm()
    assert abs(before - 1) > 0.1
    assert torch.equal(discriminator(image, image), discriminator(image, image))
    assert norm() == before
    discriminator.refine()
    assert norm() != before
    for _ in range(100):
        discriminator.refine()
    assert norm() == pytest.approx(1, abs=0.02)  # the power iteration has found the largest singular value
