"""A run that was killed, and a run of two processes, against one that was left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from rsd_edge.distill.config import DistillConfig, config_to_dict
from rsd_edge.distill.roles import stage_weights
from rsd_edge.distill.snapshot import STATE_FILE, read_state
from rsd_edge.distill.stages import run_stage
from rsd_edge.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

MakeConfig = Callable[..., DistillConfig]

KILLED_IN_THE_FOURTH_ITERATION = """
import os, signal, sys
from rsd_edge.cli import main
from rsd_edge.distill.stages.student import StudentStage
terms = StudentStage._student_terms
def dying(self, part, iteration, *rest):
    if iteration == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return terms(self, part, iteration, *rest)
StudentStage._student_terms = dying
main(sys.argv[1:])
"""

RSD = {"distill_weight": 1.0, "gan_weight": 0.1, "fake_steps": 2, "lr": 0.01, "save_every": 2, "lr_final": 1.0}


@pytest.fixture
def torch_state() -> Any:
    """`run_stage` changes what the process computes with; later tests get it back."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


@pytest.fixture
def runs(tiny_config: MakeConfig, tiny_weights: Checkpoint, tmp_path: Path) -> Callable[..., DistillConfig]:
    """Runs by name that differ in nothing but their folder."""

    def make(name: str, **settings: Any) -> DistillConfig:
        config = replace(tiny_config(**{**RSD, **settings}), run_dir=str(tmp_path / name), threads=1)
        save_checkpoint(stage_weights(config, "teacher"), tiny_weights)
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(dict(config_to_dict(config)), sort_keys=False))
        return config

    return make


def run(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", *words]
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)


def state(config: DistillConfig, stage: str = "student") -> dict[str, Any]:
    return read_state(config.stage_dir(stage) / STATE_FILE)


def tensors(tree: Any, name: str = "") -> dict[str, Tensor]:
    if isinstance(tree, Tensor):
        return {name: tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return {path: tensor for key, item in items for path, tensor in tensors(item, f"{name}/{key}").items()}


@pytest.mark.usefixtures("torch_state")
def test_a_killed_run_ends_as_if_nothing_had_been(runs: Callable[..., DistillConfig], tmp_path: Path) -> None:
    """kill -9 between the fake model's steps and the student's: weights and moments are bit-identical in the end."""
    whole, killed = runs("whole", iterations=5), runs("killed", iterations=5)
    process = run(
        tmp_path, "-c", KILLED_IN_THE_FOURTH_ITERATION, "distill", "--config", "killed.yaml", "--device", "cpu"
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert state(killed)["iteration"] == 2
    assert not stage_weights(killed, "student").exists()
    paths = [run_stage("student", config) for config in (whole, killed)]
    expected, actual = (tensors(state(config)) for config in (whole, killed))
    assert expected.keys() == actual.keys()
    assert {name.split("/")[1] for name in expected} == {"networks", "averages", "optimizers"}
    different = {name: float((expected[name] - actual[name]).abs().max()) for name in expected}
    assert {name: error for name, error in different.items() if error} == {}
    first, second = (tensors(load_checkpoint(path).parts) for path in paths)
    assert all(torch.equal(first[name], second[name]) for name in first)


LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
JOINT = {"pixel_weight": 1.0, "lattice_weight": 0.5, "train_decoder": True, "gan": "pixels", "distill_weight": 0.0}


@pytest.mark.usefixtures("torch_state")
@pytest.mark.parametrize(
    ("name", "losses", "accumulate", "optimizers"),
    [
        ("student", {}, 1, {"student", "fake"}),
        ("finetune", JOINT, 1, {"student", "discriminator"}),
        pytest.param("finetune", JOINT, 2, {"student", "discriminator"}, marks=pytest.mark.slow),
    ],
)
def test_two_processes_take_the_steps_of_one(
    runs: Callable[..., DistillConfig],
    tiny_weights: Checkpoint,
    tmp_path: Path,
    name: str,
    losses: dict[str, Any],
    accumulate: int,
    optimizers: set[str],
) -> None:
    """Two ranks of two samples, resumed from a state of one process, against one process with four samples."""
    alone, shared = (runs(folder, iterations=2, batch=4, **losses) for folder in ("alone", "shared"))
    if name == "finetune":
        for config in (alone, shared):
            save_checkpoint(stage_weights(config, "student"), tiny_weights)
    run_stage(name, alone)
    once = {part: replace(getattr(shared, part), iterations=1) for part in ("student", "finetune")}
    run_stage(name, replace(shared, **once))
    words = (name, "--config", "shared.yaml", "--device", "cpu", "--set", f"{name}.accumulate={accumulate}")
    process = run(tmp_path, *LAUNCHER, "-m", "rsd_edge", "distill", *words)
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines() == [str(stage_weights(shared, name))]  # one process talks
    one, two = state(alone, name), state(shared, name)
    assert one["iteration"] == two["iteration"] == 2
    assert one["optimizers"].keys() == optimizers
    for optimizer in optimizers:
        # First moments are sums of gradients. Half batches are added up in another order: float32 through few layers.
        expected, actual = (tensors(which["optimizers"][optimizer]["state"]) for which in (one, two))
        for key, moment in expected.items():
            if key.endswith("exp_avg"):
                torch.testing.assert_close(actual[key], moment, rtol=0, atol=2e-5 * float(moment.abs().max()) + 1e-9)


STOPPED_IN_THE_FOURTH_ITERATION = """
import os, signal, sys
from rsd_edge.cli import main
from rsd_edge.distill.stages.student import StudentStage
terms = StudentStage._student_terms
def stopped(self, part, iteration, *rest):
    if iteration == 3 and self.runtime.rank == {rank}:
        os.kill({process}, signal.{name})
    return terms(self, part, iteration, *rest)
StudentStage._student_terms = stopped
main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "process", "kept"),
    [
        ("SIGKILL", "os.getpid()", 2),  # one rank dies, the launcher ends the other
        ("SIGINT", "os.getppid()", 4),  # Ctrl-C at the launcher, which tells both: the iteration is saved
    ],
)
def test_processes_that_were_stopped_end_as_if_nothing_had_been(
    runs: Callable[..., DistillConfig], tmp_path: Path, name: str, process: str, kept: int
) -> None:
    """Two ranks, killed or interrupted and started again, against two that were left alone: bit-identical."""
    whole, stopped = (runs(folder, iterations=6, batch=4) for folder in ("whole", "stopped"))
    words = ("distill", "student", "--device", "cpu", "--config")
    script = tmp_path / "stopped.py"
    script.write_text(STOPPED_IN_THE_FOURTH_ITERATION.format(rank=1, process=process, name=name))
    first = run(tmp_path, *LAUNCHER, str(script), *words, "stopped.yaml")
    assert first.returncode != 0
    assert state(stopped)["iteration"] == kept, first.stderr
    assert not stage_weights(stopped, "student").exists()
    for file in ("whole.yaml", "stopped.yaml"):
        done = run(tmp_path, *LAUNCHER, "-m", "rsd_edge", *words, file)
        assert done.returncode == 0, done.stderr
    expected, actual = (tensors(state(config)) for config in (whole, stopped))
    assert expected.keys() == actual.keys()
    assert [key for key in expected if not torch.equal(expected[key], actual[key])] == []


@pytest.mark.usefixtures("torch_state")
def test_a_batch_that_cannot_be_shared_is_one_line(runs: Callable[..., DistillConfig], tmp_path: Path) -> None:
    from rsd_edge.distill.loop import check_share
    from rsd_edge.distill.stages.student import StudentStage
    from rsd_edge.errors import InputError

    stage = StudentStage(runs("odd", batch=6, accumulate=2))
    check_share(stage)
    stage.runtime.processes = 2
    with pytest.raises(InputError, match=r"student\.batch is 6; 2 processes with accumulate 2 need a multiple of 4"):
        check_share(stage)
