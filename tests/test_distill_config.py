from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml

from rsd_edge.distill.config import DistillConfig, config_to_dict, load_config
from rsd_edge.distill.data_config import DataConfig
from rsd_edge.distill.stage_config import StudentConfig
from rsd_edge.errors import InputError, ModelError, RsdEdgeError
from rsd_edge.plain import from_dict
from rsd_edge.specs import ModelSpec, ScheduleSpec

MINIMAL = "model: {name: tiny}\nseed: 0\n"


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(MINIMAL)
    return path


def shipped() -> Path:
    return Path(str(resources.files("rsd_edge.distill") / "configs" / "edge-s.yaml"))


def test_the_shipped_configuration_loads() -> None:
    config = load_config(shipped())
    assert config.model.name == "edge-s"
    assert config.model.schedule == ScheduleSpec()
    assert config.model.noise_channels == 5
    assert config.student.objective == "rsd"
    assert config.student.distill_weight > 0
    assert config.student.timesteps[-1] == config.model.schedule.steps - 1
    assert config.finetune.train_decoder
    for stage in (config.autoencoder, config.teacher, config.student, config.finetune):
        assert config.crop_of(stage) == config.data.crop == 128


def test_what_is_not_given_takes_its_default(minimal: Path) -> None:
    config = load_config(minimal)
    assert config == DistillConfig(ModelSpec("tiny"))
    assert config.stage_dir("teacher") == Path("runs/edge/teacher")


def test_overrides_are_typed_like_the_file(minimal: Path) -> None:
    overrides = [
        "student.iterations=200",
        "student.lr=1e-4",
        "teacher.lr=2",
        "student.timesteps=[7, 14]",
        "data.degradations={light: 1}",
        "student.crop=64",
        "run_dir=a=b",
        "threads=null",
    ]
    config = load_config(minimal, overrides)
    assert config.student.iterations == 200
    assert config.student.lr == 1e-4
    assert config.teacher.lr == 2.0
    assert config.student.timesteps == (7, 14)
    assert config.data.degradations == {"light": 1.0}
    assert (config.crop_of(config.student), config.crop_of(config.teacher)) == (64, 128)
    assert config.run_dir == "a=b"
    assert config.threads is None


def test_numbers_with_exponents_need_no_point(minimal: Path) -> None:
    minimal.write_text(MINIMAL + "student: {lr: 2e-4, fake_lr: 1.5e-4, clip: 1E+1}\nrun_dir: 1e\n")
    config = load_config(minimal)
    assert (config.student.lr, config.student.fake_lr, config.student.clip) == (2e-4, 1.5e-4, 10.0)
    assert config.run_dir == "1e"


def test_a_configuration_survives_its_record() -> None:
    config = load_config(shipped(), ["student.timesteps=[14]", "teacher.crop=64"])
    assert from_dict(DistillConfig, config_to_dict(config)) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("studnet.lr=1", r"unknown key 'studnet'; known keys: model, .*student"),
        ("student.rate=1", r"unknown key 'student\.rate'; known keys: iterations, "),
        ("model.architecture.depth=1", r"unknown key 'model\.architecture\.depth'"),
        ("student.lr=fast", r"'student\.lr' must be of type float, not str"),
        ("student.iterations=1.5", r"'student\.iterations' must be of type int, not float"),
        ("student.iterations=true", r"'student\.iterations' must be of type int, not bool"),
        ("student.iterations=", r"'student\.iterations' must be of type int, not NoneType"),
        ("student.betas=[0.9]", r"'student\.betas' needs 2 values, not 1"),
        ("student.timesteps=14", r"'student\.timesteps' must be a list, not int"),
        ("data.degradations=real", r"'data\.degradations' must be a mapping, not str"),
        ("data.degradations={real: much}", r"'data\.degradations\.real' must be of type float, not str"),
        ("model={}", r"model\.: .*'name'"),
        ("teacher=3", r"'teacher' must be a mapping, not int"),
    ],
)
def test_wrong_keys_and_types_are_named(minimal: Path, override: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        load_config(minimal, [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("student.iterations", "override 'student.iterations' is not key=value"),
        ("=3", "is not key=value"),
        ("seed.x=3", "'seed' is a value, not a group of keys"),
        ("student.timesteps=[", "the value is not valid YAML"),
        ("data.crop=100", "data.crop is 100; it must be a multiple of 8, at least 64"),
        ("student.crop=32", "crop of a stage is 32"),
        ("student.crop=0", "crop of a stage is 0"),
        ("data.degradations={}", "at least one preset"),
        ("data.degradations={real: 0}", "at least one preset"),
        ("data.degradations={real: -1, light: 2}", "not negative"),
        ("data.workers=-1", "data.workers"),
        ("data.val_crops=0", "data.val_crops"),
        ("precision=int8", "precision is 'int8'; training runs in fp32, bf16 or fp16"),
        ("seed=-1", "seed is -1; it must lie between 0 and"),
        ("threads=0", "threads is 0; it must be at least 1"),
        ("student.objective=gan", "objective is 'gan'; choose rsd, vsd or sinsr"),
        ("student.iterations=0", "iterations of a stage is 0; it must be at least 1"),
        ("student.log_every=0", "log_every of a stage is 0"),
        ("student.lr=0", "lr of a stage is 0.0; it must be greater than 0"),
        ("student.lr=.nan", "lr of a stage is nan; it must be finite"),
        ("student.lr=nan", "lr of a stage is nan; it must be finite"),
        ("student.fake_lr=inf", "fake_lr of a stage is inf; it must be finite"),
        ("student.clip=.inf", "clip of a stage is inf; it must be finite"),
        ("run_dir=", "run_dir is empty; give a folder, or . for the current one"),
        ("model.name=../x", r"model name is '\.\./x'; it must be a plain file name: not empty"),
        ("student.lpips_weight=-1", "lpips_weight of a stage is -1.0; it must be at least 0"),
        ("student.ema=1", "ema and betas"),
        ("student.gan=images", "gan is 'images'; choose features or pixels"),
        ("student.lpips=resnet", "lpips is 'resnet'; choose squeeze, alex or vgg"),
        ("student.step_weights=snr", "step_weights is 'snr'; choose constant or elbo"),
        ("student.accumulate=3", "batch of a stage is 64; it must be a multiple of accumulate, 3"),
        ("student.clip=0", "clip of a stage is 0.0; it must be greater than 0"),
        ("roles.head_width=0", "head_width is 0"),
        ("student.betas=[0.9, 1.0]", "ema and betas"),
        ("student.timesteps=[]", "timesteps needs at least one index"),
        ("student.timesteps=[-1, 3]", "timesteps needs at least one index"),
        ("model.architecture.time_width=7", "time_width is 7; it must be even"),
        ("model.architecture.decoder_width=0", "widths must be at least 1"),
        ("model.schedule.steps=0", "schedule steps is 0"),
        ("model.schedule.etas_end=0.01", r"schedule etas_end is 0\.01; it must be more than what .*, 0\.02 with this"),
        ("model.scale=2", "model scale is 2; every family enlarges by 4"),
        ("model.multiple_of=0", "model multiple_of is 0; it must be at least 1"),
        ("model.multiple_of=3", "model multiple_of is 3; it must be a multiple of 2"),
        ("model.steps=15", r"model\.steps is 15; what is trained here takes 1 step"),
        ("model.halo=-4", "model halo is -4; it must be at least 0"),
        ("model.halo=15", "model halo is 15; it must be a multiple of 2"),
        ("model.halo=2", r"model\.halo is 2, with which it could not run: tile feather 4 must lie between 0 and"),
        ("model.halo=120", r"model\.halo is 120, with which it could not run: tile size 208 is too small"),
        (f"seed={2**63}", f"seed is {2**63}; it must lie between 0 and"),
    ],
)
def test_values_out_of_range_are_named(minimal: Path, override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config(minimal, ["student.distill_weight=1", override])


@pytest.mark.parametrize("word", ["off", "no", "12", "2026-01-31", "1.5"])
def test_text_that_yaml_takes_for_something_else_wants_quotes_in_a_file(minimal: Path, word: str) -> None:
    minimal.write_text(f"{MINIMAL}run_dir: {word}\n")
    with pytest.raises(ModelError, match=r"'run_dir' must be of type str, .*numbers and dates as such: quote it"):
        load_config(minimal)
    minimal.write_text(f"{MINIMAL}run_dir: '{word}'\n")
    assert load_config(minimal).run_dir == word


@pytest.mark.parametrize("text", ["photos #2", "off", "12", "2026-01-31", "a: b", "{a", "", "caf\udce9", " x"])
def test_text_of_an_override_is_taken_as_it_is(minimal: Path, tmp_path: Path, text: str) -> None:
    config = load_config(minimal, [f"data.train={text}"])
    assert config.data.train == text
    assert load_config(minimal, ["data.train='photos #2'"]).data.train == "photos #2"
    written = tmp_path / "written.yaml"
    written.write_text(yaml.safe_dump(dict(config_to_dict(config))), encoding="utf-8")
    assert load_config(written) == config


@pytest.mark.parametrize("stage", ["student", "finetune"])
def test_timesteps_lie_inside_the_schedule(stage: str) -> None:
    model = ModelSpec("tiny", schedule=ScheduleSpec(steps=8))
    silent = {name: StudentConfig(distill_weight=0.0, gan_weight=0.0) for name in ("student", "finetune")}
    distilling: dict[str, Any] = {**silent, stage: StudentConfig(timesteps=(3, 8))}
    with pytest.raises(InputError, match=rf"{stage}\.timesteps holds 8, but the schedule's last index is 7"):
        DistillConfig(model, **distilling)
    judged: dict[str, Any] = {**silent, stage: StudentConfig(distill_weight=0.0)}  # the discriminator sees its t_n
    with pytest.raises(InputError, match=rf"{stage}\.timesteps holds 14"):
        DistillConfig(model, **judged)
    inside: dict[str, Any] = {**silent, stage: StudentConfig(timesteps=(3, 7))}
    DistillConfig(model, **inside)
    DistillConfig(model, **silent)  # stages that do not distil have no timesteps


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist; give a file"),
        (b"model: [", "is not valid YAML"),
        (b"model: \xff\xfe", "is not valid YAML"),
        (b"- a\n- b\n", "must be a mapping"),
        (b"", "must be a mapping"),
    ],
)
def test_a_file_that_is_no_configuration_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "run.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RsdEdgeError, match=message) as caught:
        load_config(path)
    assert "run.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_data_needs_a_positive_share() -> None:
    assert DataConfig(degradations={"light": 0.5}).degradations == {"light": 0.5}
