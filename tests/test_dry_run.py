"""Every configuration that ships builds and takes a step; the official ones here with small networks."""

from __future__ import annotations

import itertools
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import rsd_edge.distill
from rsd_edge.cli import main
from rsd_edge.distill import dry_run
from rsd_edge.distill.config import load_config
from rsd_edge.distill.dry_run import rehearse
from rsd_edge.distill.runtime import Runtime
from rsd_edge.distill.stage import Stage
from rsd_edge.distill.stage_config import StudentConfig
from rsd_edge.errors import InputError

CONFIGS = {path.stem: path for path in sorted((Path(rsd_edge.distill.__path__[0]) / "configs").glob("*.yaml"))}
OFFICIAL = ("rsd-imagenet256", "rsd-lsdir512", "sinsr", "vsd")
UNET = "model_channels: 32, channel_mult: [1, 2], num_res_blocks: [1, 1], attention_resolutions: [64, 32]"
UNET += ", num_head_channels: 16, swin_embed_dim: 32"
VQ = "{ch: 32, num_res_blocks: 1, n_embed: 64}"

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def small(name: str) -> list[str]:
    """Overrides that make the networks of an official configuration small, and its crops."""
    noise = 0 if name == "sinsr" else 1
    return [
        f"model.architecture={{unet: {{{UNET}, noise_channels: {noise}}}, vq: {VQ}}}",
        f"roles.teacher.model.architecture={{unet: {{{UNET}}}, vq: {VQ}}}",
        "roles.teacher.model.multiple_of=16",
        "model.multiple_of=16",
        "data.crop=64",
        "roles.head_width=8",
    ]


def test_the_list_is_what_ships() -> None:
    assert sorted(CONFIGS) == sorted((*OFFICIAL, "edge-n", "edge-s"))


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_configuration_takes_a_step(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dry_run, "_REPEATS", 1)
    monkeypatch.setattr(dry_run, "_SEVERAL", 2)
    overrides = small(name) if name in OFFICIAL else ["data.crop=64"]
    config = load_config(CONFIGS[name], [*overrides, "student.fake_steps=1"])
    where, teacher, networks, static, step, memory, time = rehearse("student", config, Runtime("cpu", config.precision))
    assert where == f"stage student of {name} on cpu in bf16, 1 process(es)"
    assert "RANDOM weights" in teacher
    assert "student (trained)" in networks
    assert ("fake (trained)" in networks) == (name != "sinsr")
    assert "distill" in step
    assert "nan" not in step
    assert static.startswith("memory: ")
    assert memory.startswith("memory: about ")
    assert f"for {config.student.iterations} iterations" in time
    assert not list(tmp_path.iterdir())  # nothing is written


def estimate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seconds: Callable[[int, int], float]) -> list[float]:
    """The numbers of the line about time for 32 samples in 2 parts, where an iteration takes seconds(call, samples)."""
    monkeypatch.chdir(tmp_path)
    calls: list[int] = []

    def timed(stage: Stage, samples: int) -> tuple[float, dict[str, float]]:
        calls.append(samples)
        return seconds(len(calls), samples), {"distill": 1.0}

    monkeypatch.setattr(dry_run, "_iteration", timed)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.2, 5.0, 5.0))
    overrides = ["data.crop=64", "student.batch=32", "student.accumulate=2", "student.iterations=3600"]
    *_, time = rehearse("student", load_config(CONFIGS["edge-n"], overrides), Runtime("cpu"))
    assert time.endswith("; more where other programs run")
    return [float(number) for number in re.findall(r"([0-9.]+) (?:s|h)\b", time)]


def test_the_estimate_is_of_warm_iterations_of_two_sizes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A fixed cost is not multiplied by the samples, nor what only the first iteration takes."""
    found = estimate(monkeypatch, tmp_path, lambda call, samples: 10.0 * (call == 1) + 0.4 + 0.1 * samples)
    assert found == pytest.approx([0.5, 0.1, 4.0, 4.0])  # 2 parts of 0.4 + 16 * 0.1


def test_a_long_iteration_is_not_repeated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[int] = []

    def seconds(call: int, samples: int) -> float:
        calls.append(samples)
        return 10.0 + 20 * samples

    assert estimate(monkeypatch, tmp_path, seconds) == pytest.approx([30.0, 20.0, 660.0, 660.0])
    assert calls == [1, 2]


def test_a_busy_machine_is_told() -> None:
    busy = "other programs are running (load 7.5), without them it may be several times faster"
    assert dry_run._others(7.5) == busy


@pytest.mark.slow
@pytest.mark.parametrize("name", OFFICIAL)
def test_an_official_configuration_takes_a_step_at_full_size(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(CONFIGS[name], ["student.fake_steps=1"])
    lines = list(rehearse("student", config, Runtime("cpu", config.precision)))
    assert "173." in lines[1]  # millions of parameters: 118.6 and 55.3
    assert "distill" in lines[4]


def test_what_is_known_is_told_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a CPU it takes minutes at full size."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dry_run, "_iteration", lambda *_: pytest.fail("a step was taken"))
    lines = rehearse("student", load_config(CONFIGS["edge-n"], ["data.crop=64"]), Runtime("cpu"))
    *_, last = itertools.islice(lines, 4)
    assert re.fullmatch(r"memory: \d+ MB for weights, averages, gradients and moments", last)
    with caplog.at_level(logging.INFO), pytest.raises(pytest.fail.Exception, match="a step was taken"):
        next(lines)
    assert "measuring iterations on made-up images" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.train=/nowhere"], "data source '/nowhere' does not exist"),
        (["data.val=/nowhere"], "data source '' does not exist"),
        (["data.train=PHOTOS"], "data source '' does not exist"),
        (["data.train=PHOTOS", "data.val=/nowhere"], "data source '/nowhere' does not exist"),
        (["data.train=PHOTOS", "data.val=PHOTOS", "data.crop=4096"], "below the crop of 4096; lower data.crop"),
    ],
)
def test_data_that_cannot_be_trained_on_is_refused(
    settings: list[str], message: str, hr_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [setting.replace("PHOTOS", str(hr_photos)) for setting in settings]
    with pytest.raises(InputError, match=message):
        next(rehearse("autoencoder", load_config(CONFIGS["edge-n"], ["data.crop=64", *given]), Runtime("cpu")))
    good = load_config(CONFIGS["edge-n"], [f"data.train={hr_photos}", f"data.val={hr_photos}", "data.crop=64"])
    assert next(rehearse("autoencoder", good, Runtime("cpu"))).startswith("stage autoencoder of edge-n")


def test_the_command_prints_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        "--config",
        "edge-n",
        "--dry-run",
        "--device",
        "cpu",
        "--set",
        "data.crop=64",
        "--set",
        "student.fake_steps=1",
    ]
    with pytest.raises(SystemExit) as caught:
        main(["distill", *words])
    assert caught.value.code == 0
    assert len(capsys.readouterr().out.splitlines()) == 7
    monkeypatch.setattr(Runtime, "is_main", False)
    with pytest.raises(SystemExit):
        main(["distill", *words])
    assert not capsys.readouterr().out


def test_rsd_is_the_papers_recipe() -> None:
    """What the file says beside its rhythm is what the defaults say."""
    config = load_config(CONFIGS["rsd-imagenet256"])
    rhythm = ("accumulate", "log_every", "validate_every", "save_every", "lpips")
    plain = {name: getattr(config.student, name) for name in StudentConfig.__dataclass_fields__ if name not in rhythm}
    assert plain == {name: getattr(StudentConfig(), name) for name in plain}
    assert config.data.crop == 256
    assert config.data.degradations == {"real": 1.0}


def test_vsd_differs_from_rsd_in_its_objective_alone() -> None:
    rsd, vsd = (load_config(CONFIGS[name]).student for name in ("rsd-imagenet256", "vsd"))
    different = {name for name in StudentConfig.__dataclass_fields__ if getattr(rsd, name) != getattr(vsd, name)}
    assert different == {"objective"}
