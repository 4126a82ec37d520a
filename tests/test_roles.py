from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from rsd_edge.distill.config import DistillConfig
from rsd_edge.distill.discriminators import PatchDiscriminator
from rsd_edge.distill.roles import load_part, load_stage, stage_weights
from rsd_edge.errors import ModelError
from rsd_edge.models.checkpoint import Checkpoint, save_checkpoint
from rsd_edge.models.edge import EdgeGenerator
from rsd_edge.specs import ScheduleSpec

MakeConfig = Callable[..., DistillConfig]


def test_parts_are_frozen_and_loaded(tiny_weights: Checkpoint) -> None:
    for part in ("encoder", "stem", "decoder", "teacher", "student"):
        network = load_part(tiny_weights, part)
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, tiny_weights.parts[part][name])
    student, teacher = load_part(tiny_weights, "student"), load_part(tiny_weights, "teacher")
    assert isinstance(student, EdgeGenerator)
    assert isinstance(teacher, EdgeGenerator)
    assert student.noise_channel
    assert not teacher.noise_channel


def test_a_missing_stage_names_the_command_that_makes_it(tiny_config: MakeConfig) -> None:
    with pytest.raises(
        ModelError, match=r"stage teacher has no weights yet .*; run 'rsd-edge distill teacher --config \.\.\.' first"
    ):
        load_stage(tiny_config(), "teacher")


@pytest.mark.parametrize("what", ["architecture", "schedule"])
def test_weights_of_another_model_are_refused(tiny_config: MakeConfig, tiny_weights: Checkpoint, what: str) -> None:
    config = tiny_config()
    save_checkpoint(stage_weights(config, "teacher"), tiny_weights)
    assert load_stage(config, "teacher").spec == tiny_weights.spec
    changed = {
        "architecture": replace(config.model.architecture, stem_blocks=2),
        "schedule": ScheduleSpec(kappa=1.0),
    }
    model = replace(config.model, **{what: changed[what]})
    with pytest.raises(ModelError, match=rf"was trained with another model\.{what}; restore that"):
        load_stage(replace(config, model=model), "teacher")


def test_the_discriminator_judges_patches() -> None:
    """One logit depends on 28 x 28 pixels and no others."""
    torch.manual_seed(0)
    critic = PatchDiscriminator(width=4).eval()
    image = torch.rand(1, 3, 64, 64, requires_grad=True)
    logits = critic(image, torch.rand(1, 3, 64, 64))
    assert logits.shape == (1, 1, 16, 16)
    logits[0, 0, 8, 8].backward()
    assert image.grad is not None
    seen = image.grad[0].abs().sum(dim=0) > 0
    rows, columns = torch.nonzero(seen.any(dim=1)).flatten(), torch.nonzero(seen.any(dim=0)).flatten()
    assert int(rows[-1] - rows[0]) + 1 == 28
    assert int(columns[-1] - columns[0]) + 1 == 28


def test_the_discriminator_cannot_run_away() -> None:
    """Spectral normalisation: multiplying all weights changes nothing."""
    torch.manual_seed(0)
    critic = PatchDiscriminator(width=4).eval()
    image, base = torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16)
    before = critic(image, base)
    with torch.no_grad():
        for name, parameter in critic.named_parameters():
            if "original" in name:
                parameter.mul_(10)
    torch.testing.assert_close(critic(image, base), before, rtol=1e-4, atol=1e-5)  # float32 through five layers
