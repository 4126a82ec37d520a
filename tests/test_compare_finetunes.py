"""Fine-tunes side by side: each row changes what it says and nothing else."""

from __future__ import annotations

from pathlib import Path

import compare_finetunes
import numpy as np
import pytest
from click.testing import CliRunner
from compare_finetunes import CHANGES, common
from training_tables import finetunes_table

from rsd_edge.cli.distill import find_config
from rsd_edge.distill.changes import plain
from rsd_edge.distill.config import load_config
from rsd_edge.stream.images import write_image


@pytest.mark.parametrize("row", list(CHANGES))
def test_a_row_changes_what_it_says(row: str) -> None:
    def settings(*changed: str) -> dict[str, object]:
        config = plain(load_config(find_config("edge-n"), [*common("edge-n", 9, Path("a"), Path("b")), *changed]))
        losses = config.pop("finetune")
        return {**config, **{f"finetune.{name}": value for name, value in losses.items()}}

    plainly, changed = settings(), settings(*CHANGES[row])
    assert plainly["finetune_from"] == "edge-n"
    assert plainly["finetune.iterations"] == 9
    differing = {name for name in plainly if plainly[name] != changed[name]}
    keys = {change.partition("=")[0] for change in CHANGES[row]}
    assert differing == {"data" if key.startswith("data.") else key for key in keys}


def test_the_table_has_a_row_for_each_fine_tune() -> None:
    scores = {"lpips_squeeze": 0.31489, "psnr_y": 24.046, "niqe": 3.51, "spectrum_db": 10.16}
    lines = finetunes_table({"rows": {"as it ships": {"sets": {"real": scores}}}}).splitlines()
    assert lines[0].endswith("| real: LPIPS / PSNR-Y / NIQE / spectrum error dB |")
    assert lines[2] == "| as it ships | 0.3149 / 24.05 / 3.51 / 10.2 |"


def test_rows_of_other_photos_or_other_test_images_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    monkeypatch.setattr(compare_finetunes, "run_stage", lambda *_: made.append("trained"))
    monkeypatch.setattr(compare_finetunes, "_scores", lambda *_: made.append("scored"))
    for level, folder in enumerate(("photos", "others", "val", "lr", "ref", "other_lr")):
        (tmp_path / folder).mkdir()
        write_image(tmp_path / folder / f"{'b' if folder == 'others' else 'a'}.png", np.full((64, 64, 3), level, "u1"))

    def run(train: str, lr: str) -> list[str]:
        made.clear()
        places = ["--train", train, "--val", "val", "--work", "work", "--set", "real", lr, "ref", "--json", "r.json"]
        chosen = ["--row", "the same losses"]
        result = CliRunner().invoke(compare_finetunes.main, chosen + places, catch_exceptions=False)
        assert result.exit_code == 0
        return list(made)

    monkeypatch.chdir(tmp_path)
    everything = ["scored", "trained", "scored"]
    assert run("photos", "lr") == everything
    assert run("photos", "lr") == []
    assert run("others", "lr") == ["trained", "scored"]
    assert run("others", "other_lr") == everything
