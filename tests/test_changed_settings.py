"""A run goes on with the settings that it was begun with, or says which are other ones."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import save
from test_loop import OneWeight, state_path
from torch import nn

from rsd_edge.distill.config import DistillConfig, RoleConfig, load_config
from rsd_edge.distill.loop import CONFIG_FILE, train
from rsd_edge.distill.roles import stage_weights
from rsd_edge.distill.snapshot import save_state
from rsd_edge.distill.stage import DATA
from rsd_edge.distill.stages import STAGES
from rsd_edge.errors import ModelError
from rsd_edge.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

MakeConfig = Callable[..., DistillConfig]


def with_student(config: DistillConfig, **settings: Any) -> DistillConfig:
    return replace(config, student=replace(config.student, **settings))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: replace(c, seed=8), r"seed=7 \(now 8\)"),
        (lambda c: with_student(c, batch=4), r"student\.batch=2 \(now 4\)"),
        (lambda c: with_student(c, objective="vsd"), r"student\.objective=rsd \(now vsd\)"),
        (lambda c: with_student(c, distill_weight=0.5), r"student\.distill_weight=0\.0 \(now 0\.5\)"),
        (lambda c: with_student(c, timesteps=(3, 14)), r"student\.timesteps=\[3, 7, 11, 14\] \(now \[3, 14\]\)"),
        (lambda c: with_student(c, ema=0.9, lr=0.1), r"student\.ema=0\.999 \(now 0\.9\)"),
        (lambda c: replace(c, data=replace(c.data, degradations={"real": 1.0})), r"data\.degradations\.light=0\.4"),
        (lambda c: replace(c, model=replace(c.model, halo=8)), r"model\.halo="),
    ],
)
def test_a_change_that_makes_another_run_is_refused(
    tiny_config: MakeConfig, change: Callable[[DistillConfig], DistillConfig], message: str
) -> None:
    config = tiny_config()
    path = train(OneWeight(config))
    before = {file: file.read_bytes() for file in path.parent.iterdir() if file.is_file()}
    with pytest.raises(ModelError, match=f"stage student was begun with .*{message}") as caught:
        train(OneWeight(change(config)))
    assert "choose another run_dir" in str(caught.value)
    assert "student.lr" not in str(caught.value)  # which may change
    assert "\n" not in str(caught.value)
    assert {file: file.read_bytes() for file in path.parent.iterdir() if file.is_file()} == before


def test_what_may_change_is_logged_and_recorded(tiny_config: MakeConfig, caplog: pytest.LogCaptureFixture) -> None:
    config = tiny_config(iterations=2, lr=0.1)
    assert "changes" not in load_checkpoint(train(OneWeight(config))).record
    longer = with_student(config, iterations=4, lr=0.01)
    with caplog.at_level(logging.WARNING):
        train(OneWeight(longer))
    assert "resuming with another setting: student.lr was 0.1 up to iteration 2, then 0.01" in caplog.text
    last = replace(with_student(longer, iterations=5, save_every=1), threads=1)
    path = train(OneWeight(last))
    changes = [tuple(change.values()) for change in load_checkpoint(path).record["changes"]]
    assert set(changes) == {
        (2, "student.iterations", 2, 4),
        (2, "student.lr", 0.1, 0.01),
        (4, "student.iterations", 4, 5),
        (4, "student.save_every", 200, 1),
        (4, "threads", None, 1),
    }
    text = (path.parent / CONFIG_FILE).read_text()
    assert "# student.lr was 0.1 up to iteration 2, then 0.01\n" in text
    assert yaml.safe_load(text)["student"]["iterations"] == 5
    assert load_config(path.parent / CONFIG_FILE) == last


def test_other_stages_and_the_folder_are_not_compared(tiny_config: MakeConfig) -> None:
    config = tiny_config()
    path = train(OneWeight(config))
    moved = path.parent.parent.rename(path.parent.parent.with_name("moved"))
    other = replace(config, run_dir=str(moved), teacher=replace(config.teacher, batch=4))
    again = train(OneWeight(other))
    assert "changes" not in load_checkpoint(again).record


def test_an_edited_configuration_file_does_not_hide_a_change(tiny_config: MakeConfig) -> None:
    """The file beside the state is made to start runs with; the state itself knows what it was begun with."""
    config = tiny_config()
    file = train(OneWeight(config)).parent / CONFIG_FILE
    file.write_text(file.read_text().replace("seed: 7", "seed: 8"))
    with pytest.raises(ModelError, match=r"seed=7 \(now 8\)"):
        train(OneWeight(load_config(file)))


@pytest.mark.parametrize(
    ("name", "role"), [("teacher", "autoencoder"), ("student", "teacher"), ("finetune", "student")]
)
def test_a_stage_belongs_to_the_weights_that_it_was_built_from(
    prepared: MakeConfig, tiny_weights: Checkpoint, name: str, role: str
) -> None:
    """Otherwise a finished generator would be handed on with a latent space that it was not trained in."""
    config = prepared(iterations=1)
    weights = train(STAGES[name](config, None))
    save_checkpoint(stage_weights(config, role), replace(tiny_weights, record={"stage": role, "seconds": 9}))
    train(STAGES[name](config, None))  # the same weights with another record
    other = {part: dict(state) for part, state in tiny_weights.parts.items()}
    other["decoder"] = {key: tensor + 0.5 for key, tensor in other["decoder"].items()}
    save_checkpoint(stage_weights(config, role), replace(tiny_weights, parts=other))
    before = weights.read_bytes()
    with pytest.raises(ModelError, match=f"stage {name} was begun with other weights of '{role}' than there are now"):
        train(STAGES[name](config, None))
    assert weights.read_bytes() == before


def test_a_stage_belongs_to_the_images_that_it_was_begun_with(
    tiny_config: MakeConfig, hr_photos: Path, tmp_path: Path
) -> None:
    """Which of them a sample shows follows from all of them. Their folder may be moved."""
    config = tiny_config()
    weights = train(OneWeight(config))
    moved = shutil.copytree(hr_photos, tmp_path / "moved")
    config = replace(config, data=replace(config.data, train=str(moved)))
    train(OneWeight(config))
    first = min(file for file in moved.iterdir() if file.is_file())
    shutil.copy(first, moved / f"one-more{first.suffix}")
    before = weights.read_bytes()
    with pytest.raises(ModelError, match=r"stage student was begun with other images in data\.train than there are"):
        train(OneWeight(config))
    assert weights.read_bytes() == before


def test_weights_that_a_stage_was_built_from_may_be_moved(prepared: MakeConfig, tmp_path: Path) -> None:
    config = prepared(iterations=1)
    for name in ("first", "second"):
        file = shutil.copy(stage_weights(config, "teacher"), tmp_path / f"{name}.safetensors")
        roles = replace(config.roles, teacher=RoleConfig(str(file)))
        train(STAGES["student"](replace(config, roles=roles), None))


def test_a_state_of_an_earlier_version_has_no_digest_of_its_images(tiny_config: MakeConfig) -> None:
    config = tiny_config()
    stage = OneWeight(config)
    train(stage)
    del stage.given[DATA]
    save_state(stage, state_path(config).parent, 2, 1.0)
    train(OneWeight(config))


def test_a_state_without_settings_is_named(tiny_config: MakeConfig) -> None:
    config = tiny_config()
    state_path(config).parent.mkdir(parents=True)
    state_path(config).write_bytes(save({}, metadata={"tree": '{"pairs": [["iteration", 1]]}'}))
    with pytest.raises(ModelError, match=r"state\.safetensors was written by an earlier version, without its settings"):
        train(OneWeight(config))


def test_a_state_of_another_format_is_not_passed_over(tiny_config: MakeConfig) -> None:
    config = tiny_config()
    state_path(config).parent.mkdir(parents=True)
    foreign = state_path(config).with_name("state.pt")
    foreign.write_bytes(b"old")
    stage = OneWeight(config)
    weight = nn.utils.parameters_to_vector(stage.network.parameters()).item()
    with pytest.raises(ModelError, match=r"state\.pt is a state that this version cannot read; .*move the file away"):
        train(stage)
    assert nn.utils.parameters_to_vector(stage.network.parameters()).item() == weight
    foreign.unlink()
    train(stage)
