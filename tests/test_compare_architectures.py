"""Sizes side by side: each row changes what it says and nothing else."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import compare_architectures
import numpy as np
import pytest
from click.testing import CliRunner
from compare_architectures import BASE, ROWS, common, folder_name, stage_settings
from made_from import configuration
from training_tables import architectures_table

from rsd_edge.cli.distill import find_config
from rsd_edge.distill.config import DistillConfig, load_config
from rsd_edge.distill.stages import STAGES
from rsd_edge.stream.images import write_image

LENGTHS = dict.fromkeys(STAGES, 101)


def configured(row: str) -> dict[str, DistillConfig]:
    work = Path("work")
    shared = common(Path("a"), Path("b"), LENGTHS)
    stages = stage_settings(ROWS[row], work, work / folder_name(row))
    return {stage: load_config(find_config("edge-n"), [*shared, *settings]) for stage, settings in stages.items()}


def sizes(config: DistillConfig) -> dict[str, object]:
    return asdict(config.model.edge)


@pytest.mark.parametrize("row", list(ROWS))
def test_a_row_changes_the_sizes_that_it_says(row: str) -> None:
    plain = configured(BASE)
    for stage, config in configured(row).items():
        changed = ROWS[row].model + (ROWS[row].teacher if stage == "teacher" else ())
        named = {size.partition("=")[0] for size in changed}
        base = sizes(plain[stage])
        assert {name for name, value in sizes(config).items() if value != base[name]} == named
        assert getattr(config, stage) == getattr(plain[stage], stage)
        assert (config.data, config.seed) == (plain[stage].data, plain[stage].seed)


def test_a_larger_teacher_shares_space_and_start_with_the_base() -> None:
    rows = configured("teacher of edge-s's size")
    assert list(rows) == ["teacher", "student", "finetune"]
    assert rows["teacher"].roles.autoencoder.weights == "work/as-configured/autoencoder/weights.safetensors"
    assert rows["student"].roles.student.weights == "work/as-configured/teacher/weights.safetensors"
    assert rows["student"].roles.teacher.weights == "work/teacher-of-edge-ss-size/teacher/weights.safetensors"


def test_the_table_has_a_row_for_each_size() -> None:
    scores = {"lpips_squeeze": 0.31489, "psnr_y": 24.046, "niqe": 3.51, "spectrum_db": 10.16}
    row = {"gflop": 1.6432, "sets": {"real": scores}}
    lines = architectures_table({"rows": {BASE: row}}).splitlines()
    assert lines[0].startswith("| sizes | GFLOP a tile |")
    assert lines[2] == "| as configured | 1.64 | 0.3149 / 24.05 / 3.51 / 10.2 |"


def test_a_row_is_made_from_its_configuration_and_not_from_places(tmp_path: Path) -> None:
    def made_from(*settings: str) -> str:
        return configuration(load_config(find_config("edge-n"), list(settings)))

    one = made_from(f"data.train={tmp_path}", f"run_dir={tmp_path}/a", "roles.teacher.weights=a", "threads=1")
    assert one == made_from("data.train=elsewhere", "run_dir=b", "roles.teacher.weights=b", "threads=2")
    assert one != made_from("finetune.lr=1e-5")


def test_rows_of_other_photos_or_other_test_images_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    monkeypatch.setattr(compare_architectures, "train_row", lambda *_: made.append("row") or {"weights": Path("w")})
    monkeypatch.setattr(compare_architectures, "measure", lambda *_: {"sets": {}})
    for level, folder in enumerate(("photos", "others", "val", "lr", "ref", "other_lr")):
        (tmp_path / folder).mkdir()
        write_image(tmp_path / folder / f"{'b' if folder == 'others' else 'a'}.png", np.full((64, 64, 3), level, "u1"))

    def rows_made(train: str, lr: str) -> int:
        made.clear()
        places = ["--train", train, "--val", "val", "--work", "work", "--set", "real", lr, "ref", "--json", "r.json"]
        CliRunner().invoke(compare_architectures.main, ["--row", BASE, *places], catch_exceptions=False)
        return len(made)

    monkeypatch.chdir(tmp_path)
    runs = [("photos", "lr"), ("photos", "lr"), ("others", "lr"), ("others", "other_lr"), ("others", "other_lr")]
    assert [rows_made(*run) for run in runs] == [1, 0, 1, 1, 0]
