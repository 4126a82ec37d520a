from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from rsd_edge.cli import main
from rsd_edge.distill.config import DistillConfig, config_to_dict
from rsd_edge.distill.stage import Stage
from rsd_edge.distill.stages.student import StudentStage
from rsd_edge.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint


@pytest.fixture(autouse=True)
def quiet_logging() -> Iterator[None]:
    """The command configures the root logger; later tests get it back as it was."""
    root = logging.getLogger()
    handlers, level, threads = list(root.handlers), root.level, torch.get_num_threads()
    yield
    root.handlers[:], root.level = handlers, level
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


@pytest.fixture
def config_file(tiny_config: object, tmp_path: Path) -> Path:
    config: DistillConfig = tiny_config()
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(dict(config_to_dict(config))))
    return path


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["distill", *map(str, arguments)])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def weights(tmp_path: Path, stage: str) -> Path:
    return tmp_path / "run" / stage / "weights.safetensors"


def test_a_stage_is_trained_and_its_weights_named(
    config_file: Path, tiny_weights: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a stage's name it is the student; --set wins over the file."""
    save_checkpoint(weights(tmp_path, "teacher"), tiny_weights)
    assert run("--config", config_file, "--set", "student.iterations=1", "--set", "threads=1") == 0
    assert capsys.readouterr().out == f"{weights(tmp_path, 'student')}\n"
    assert load_checkpoint(weights(tmp_path, "student")).record["iterations"] == 1
    assert torch.get_num_threads() == 1


def test_stages_are_chosen_by_name(config_file: Path, tmp_path: Path) -> None:
    assert run("autoencoder", "--config", config_file, "--set", "autoencoder.iterations=1") == 0
    assert load_checkpoint(weights(tmp_path, "autoencoder")).record["stage"] == "autoencoder"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pretrain", "--config", "FILE"), "'pretrain' is not one of 'autoencoder', 'teacher', 'student', 'finetune'"),
        ((), "Missing option '--config'"),
        (("--config", "edge-z"), "configuration 'edge-z' is neither a file nor a ready-made one (edge-n, edge-s"),
        (("--config", "FILE", "--set", "student.rate=1"), "unknown key 'student.rate'"),
        (("--config", "FILE", "--set", "student.lr=fast"), "'student.lr' must be of type float"),
        (("--config", "FILE", "--set", "seed"), "override 'seed' is not key=value"),
        (("--config", "FILE"), "stage teacher has no weights yet"),
        (("autoencoder", "--config", "FILE", "--set", "data.val=/nowhere"), "data source '/nowhere' does not exist"),
        (("autoencoder", "--config", "FILE", "--set", "data.train=/nowhere"), "data source '/nowhere' does not exist"),
        (("autoencoder", "--config", "edge-s"), "data source '' does not exist; set data.train and data.val"),
    ],
)
def test_what_cannot_be_trained_is_one_line(
    config_file: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(config_file.parent)
    words = [str(config_file) if word == "FILE" else word for word in arguments]
    assert run(*words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("error: ")
    assert message in err


def test_ready_made_configurations_are_found_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], hr_photos: Path
) -> None:
    """Up to the weights of the teacher, which are not there."""
    settings = [f"run_dir={tmp_path / 'run'}", f"data.train={hr_photos}", f"data.val={hr_photos}"]
    assert run("student", "--config", "edge-s", *(word for setting in settings for word in ("--set", setting))) == 2
    assert "run 'rsd-edge distill teacher --config ...' first" in capsys.readouterr().err


def test_an_interrupted_stage_says_what_is_kept(
    config_file: Path,
    tiny_weights: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_checkpoint(weights(tmp_path, "teacher"), tiny_weights)
    original = StudentStage.step

    def step(self: StudentStage, iteration: int, *rest: object) -> object:
        if iteration == 1:
            raise KeyboardInterrupt
        return original(self, iteration, *rest)

    monkeypatch.setattr(StudentStage, "step", step)
    assert issubclass(StudentStage, Stage)
    assert run("--config", config_file, "--set", "student.save_every=1") == 130
    assert "student interrupted: iteration 1 of 2 is kept, the same command goes on from there" in caplog.text
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted"
    monkeypatch.undo()
    assert run("--config", config_file) == 0


@pytest.mark.parametrize(("kind", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_an_iteration_and_gives_its_exit_code(
    config_file: Path,
    tiny_weights: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: signal.Signals,
    code: int,
) -> None:
    save_checkpoint(weights(tmp_path, "teacher"), tiny_weights)
    original = StudentStage.step

    def step(self: StudentStage, *rest: object) -> object:
        signal.raise_signal(kind)
        return original(self, *rest)

    monkeypatch.setattr(StudentStage, "step", step)
    assert run("--config", config_file, "--set", "student.save_every=9") == code
    assert "student interrupted: iteration 1 of 2 is kept, the same command goes on from there" in caplog.text
