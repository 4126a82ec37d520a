"""A teacher of another size than its student, in one latent space."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rsd_edge.distill.config import DistillConfig, RoleConfig, RolesConfig
from rsd_edge.distill.roles import stage_weights
from rsd_edge.distill.stages import run_stage
from rsd_edge.distill.stages.student import FinetuneStage, StudentStage
from rsd_edge.errors import ModelError
from rsd_edge.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

MakeConfig = Callable[..., DistillConfig]


@pytest.fixture
def larger_teacher(prepared: MakeConfig, tiny_weights: Checkpoint) -> DistillConfig:
    """A student stage under a teacher of twice the width, that shares the student's latent space."""
    config = prepared(distill_weight=1.0, fake_steps=1)
    small = config.model.edge
    large = replace(config.model, architecture=replace(small, generator_widths=(16, 32)))
    own = replace(
        config,
        model=large,
        run_dir=f"{config.run_dir}-large",
        roles=RolesConfig(autoencoder=RoleConfig(str(stage_weights(config, "autoencoder")))),
    )
    teacher = RoleConfig(str(run_stage("teacher", own)))
    start = RoleConfig(str(stage_weights(config, "small")))
    alone = {name: part for name, part in tiny_weights.parts.items() if name != "student"}
    save_checkpoint(Path(start.weights), Checkpoint(tiny_weights.spec, alone))
    return replace(config, run_dir=f"{config.run_dir}-small", roles=RolesConfig(teacher=teacher, student=start))


def test_a_larger_teacher_trains_in_the_same_latent_space(
    larger_teacher: DistillConfig, tiny_weights: Checkpoint
) -> None:
    teacher = load_checkpoint(Path(larger_teacher.roles.teacher.weights))
    assert teacher.spec.edge.generator_widths == (16, 32)
    for part in ("encoder", "stem", "decoder"):
        for name, tensor in tiny_weights.parts[part].items():
            assert torch.equal(teacher.parts[part][name], tensor)


def test_a_student_starts_from_a_teacher_of_its_own_size(
    larger_teacher: DistillConfig, tiny_weights: Checkpoint
) -> None:
    stage = StudentStage(larger_teacher)
    for name, tensor in tiny_weights.parts["teacher"].items():
        born = stage.student.state_dict()[name].cpu()
        assert torch.equal(born[:, : tensor.shape[1]] if name == "head.weight" else born, tensor)
    assert not stage.student.state_dict()["head.weight"][:, -1].any()
    assert stage.teacher.state_dict()["head.weight"].shape[0] == 16


def test_a_student_of_a_larger_teacher_is_fine_tuned(larger_teacher: DistillConfig) -> None:
    student = load_checkpoint(run_stage("student", larger_teacher))
    assert "teacher" not in student.parts
    finetune = replace(larger_teacher, finetune=replace(larger_teacher.finetune, train_decoder=True))
    result = load_checkpoint(run_stage("finetune", finetune))
    assert result.spec == student.spec
    assert result.parts.keys() >= {"stem", "student", "decoder"}


def test_a_fine_tune_takes_the_teacher_that_is_named(prepared: MakeConfig, tmp_path: Path) -> None:
    """Not the one that the student's checkpoint carries."""
    config = replace(prepared(distill_weight=1.0), roles=RolesConfig(teacher=RoleConfig(str(tmp_path / "nowhere"))))
    with pytest.raises(ModelError, match=r"nowhere does not exist"):
        run_stage("finetune", config)
    named = tmp_path / "teacher.safetensors"
    weights = load_checkpoint(stage_weights(config, "student"))
    weights.parts["teacher"]["tail.bias"] += 1
    save_checkpoint(named, weights)
    stage = FinetuneStage(replace(config, roles=RolesConfig(teacher=RoleConfig(str(named)))))
    assert torch.equal(stage.teacher.state_dict()["tail.bias"], weights.parts["teacher"]["tail.bias"])


def test_a_latent_space_of_other_sizes_is_refused(prepared: MakeConfig, tiny_weights: Checkpoint) -> None:
    config = prepared(distill_weight=1.0)
    wider = replace(config.model, architecture=replace(config.model.edge, decoder_width=12))
    for stage in ("teacher", "student"):
        roles = RolesConfig(**{"teacher" if stage == "student" else "autoencoder": _weights(config, stage)})
        with pytest.raises(ModelError, match=r"has an encoder, a stem or a decoder of other sizes than model"):
            run_stage(stage, replace(config, model=wider, roles=roles, run_dir=f"{config.run_dir}-wider"))


def _weights(config: DistillConfig, stage: str) -> RoleConfig:
    return RoleConfig(str(stage_weights(config, "autoencoder" if stage == "teacher" else "teacher")))


def test_a_student_does_not_start_from_a_teacher_of_other_sizes(larger_teacher: DistillConfig) -> None:
    large = larger_teacher.roles.teacher
    roles = RolesConfig(teacher=large, student=large)
    with pytest.raises(ModelError, match=r"the teacher in .* has other sizes than model 'tiny'"):
        StudentStage(replace(larger_teacher, roles=roles))


def test_another_latent_space_than_the_teachers_is_refused(
    larger_teacher: DistillConfig, tiny_weights: Checkpoint, tmp_path: Path
) -> None:
    parts = dict(tiny_weights.parts)
    parts["encoder"] = {name: tensor + 1 for name, tensor in parts["encoder"].items()}
    save_checkpoint(tmp_path / "other.safetensors", Checkpoint(tiny_weights.spec, parts))
    roles = replace(larger_teacher.roles, autoencoder=RoleConfig(str(tmp_path / "other.safetensors")))
    with pytest.raises(ModelError, match="has another encoder than the teacher was trained with"):
        StudentStage(replace(larger_teacher, roles=roles))
