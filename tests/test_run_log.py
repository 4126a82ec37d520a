from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rsd_edge.distill.run_log import BOARD_FOLDER, LOG_FILE, RunLog
from rsd_edge.distill.stage import Validation
from rsd_edge.errors import OutputError
from rsd_edge.stream.images import read_image


def board(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag to (step, value) as TensorBoard shows them."""
    events = EventAccumulator(str(folder / BOARD_FOLDER))
    events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def write(folder: Path, start: int, values: dict[int, float]) -> None:
    with RunLog(folder, "teacher", start) as run_log:
        for iteration, value in values.items():
            run_log.add({"loss": torch.tensor(value)})
            run_log.flush(iteration, 10.0 * iteration)


def test_rows_hold_means_and_reach_both_files(tmp_path: Path) -> None:
    black = torch.full((5, 3, 8, 6), -1.0)
    with RunLog(tmp_path, "teacher", 0) as run_log:
        run_log.add({"loss": torch.tensor(1.0, requires_grad=True)})
        run_log.add({"loss": torch.tensor(2.0), "gan": torch.tensor(5.0)})
        run_log.flush(2, 1.26)
        run_log.validation(2, Validation({"psnr_y": 25.5}, (black, black + 2)))
        run_log.add({"loss": torch.tensor(4.0)})
        run_log.flush(3, 2.0)
    lines = (tmp_path / LOG_FILE).read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"stage": "teacher", "iteration": 2, "seconds": 1.3, "loss": 1.5, "gan": 5.0},
        {"stage": "teacher", "iteration": 2, "validation": {"psnr_y": 25.5}},
        {"stage": "teacher", "iteration": 3, "seconds": 2.0, "loss": 4.0},
    ]
    assert board(tmp_path) == {
        "train/loss": [(2, 1.5), (3, 4.0)],
        "train/gan": [(2, 5.0)],
        "validation/psnr_y": [(2, 25.5)],
    }
    strip = read_image(tmp_path / "strips" / "000002.png")
    assert strip.shape == (4 * 8, 2 * 6, 3)
    assert not strip[:, :6].any()
    assert (strip[:, 6:] == 255).all()


def test_steps_that_overflowed_are_counted_and_not_averaged(tmp_path: Path) -> None:
    with RunLog(tmp_path, "student", 0) as run_log:
        for value in (1.0, float("inf"), 2.0):
            run_log.add({"gradient": torch.tensor(value)})
        run_log.flush(3, 1.0)
        run_log.add({"gradient": torch.tensor(float("nan"))})
        run_log.flush(4, 2.0)
    rows = [json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / LOG_FILE).read_text().splitlines()]
    assert rows == [
        {"stage": "student", "iteration": 3, "seconds": 1.0, "gradient": 1.5, "gradient_overflows": 1},
        {"stage": "student", "iteration": 4, "seconds": 2.0, "gradient_overflows": 1},
    ]


def test_other_processes_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with RunLog(None, "teacher", 0) as run_log:
        run_log.add({"loss": torch.tensor(1.0)})
        assert run_log.flush(1, 1.0) == {"loss": 1.0}
        run_log.validation(1, Validation({"psnr_y": 1.0}, (torch.zeros(1, 3, 4, 4),)))
    assert not list(tmp_path.iterdir())


def test_rows_after_the_point_of_resuming_are_replaced(tmp_path: Path) -> None:
    write(tmp_path, 0, {1: 1.0, 2: 2.0, 3: 3.0})
    with (tmp_path / LOG_FILE).open("a") as file:
        file.write('{"stage": "teacher", "itera')  # cut short by a crash
    write(tmp_path, 2, {3: 30.0, 4: 40.0})
    lines = [json.loads(line) for line in (tmp_path / LOG_FILE).read_text().splitlines()]
    assert [(line["iteration"], line["loss"]) for line in lines] == [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0)]
    assert board(tmp_path)["train/loss"] == [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0)]


def test_a_run_from_the_start_has_a_log_of_its_own(tmp_path: Path) -> None:
    write(tmp_path, 0, {1: 1.0})
    write(tmp_path, 0, {1: 10.0})
    assert json.loads((tmp_path / LOG_FILE).read_text())["loss"] == 10.0


def test_the_log_is_closed_when_training_fails(tmp_path: Path) -> None:
    def fail() -> None:
        with RunLog(tmp_path, "teacher", 0) as run_log:
            run_log.add({"loss": torch.tensor(1.0)})
            run_log.flush(1, 1.0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert board(tmp_path)["train/loss"] == [(1, 1.0)]


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with RunLog(tmp_path, "teacher", 0) as run_log:
        (tmp_path / LOG_FILE).mkdir()
        run_log.add({"loss": torch.tensor(1.0)})
        with pytest.raises(OutputError, match=r"cannot write .*log\.jsonl"):
            run_log.flush(1, 1.0)
