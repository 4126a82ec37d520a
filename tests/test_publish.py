from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from rsd_edge.bundle import load_bundle
from rsd_edge.distill.config import DistillConfig
from rsd_edge.distill.stages import run_stage
from rsd_edge.errors import InputError, ModelError
from rsd_edge.export.publish import CREDIT_FIELDS, publish

HEADER = ("crop", *CREDIT_FIELDS)


@pytest.fixture
def credit_table(tmp_path: Path) -> Path:
    """Two crops of one photograph by a named author, one of another whose author the source does not name."""
    rows = [
        ("a_0.jpg", "a", "A. Author", "CC-BY-4.0", "LICENSE", "https://github.com/owner/photos", "a.jpg"),
        ("a_1.jpg", "a", "A. Author", "CC-BY-4.0", "LICENSE", "https://github.com/owner/photos", "a.jpg"),
        ("b_0.jpg", "b", "", "CC-BY", "README", "https://github.com/owner/photos/", "b.jpg"),
    ]
    path = tmp_path / "credits.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([HEADER, *rows])
    return path


def test_a_run_becomes_a_bundle_with_record_and_credits(
    tiny_config: Callable[..., DistillConfig], credit_table: Path, tmp_path: Path
) -> None:
    config = tiny_config()
    for stage in ("autoencoder", "teacher", "student", "finetune"):
        run_stage(stage, config)
    shipped = publish(Path(config.run_dir), credit_table, "Apache-2.0", tmp_path / "zoo")
    assert shipped.path == tmp_path / "zoo" / config.model.name
    assert load_bundle(shipped.path).manifest["licence"] == "Apache-2.0"
    record = json.loads((shipped.path / "training.json").read_text())
    assert list(record) == ["autoencoder", "teacher", "student", "finetune"]
    assert record["student"]["config"]["iterations"] == config.student.iterations
    assert record["student"]["validation"][-1]["iteration"] == config.student.iterations
    assert "train" not in record["student"]["data"]  # a path of somebody's machine
    with (shipped.path / "credits.csv").open(encoding="utf-8", newline="") as file:
        authors = {row["photo_id"]: row["author"] for row in csv.DictReader(file)}
    assert authors == {"a": "A. Author", "b": "not named; published by owner/photos"}


def test_nothing_is_published_without_a_run_or_credits(credit_table: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(ModelError, match="no finished stage"):
        publish(tmp_path / "run", credit_table, "Apache-2.0", tmp_path / "zoo")
    (tmp_path / "other.csv").write_text("photo_id,author\na,b\n")
    with pytest.raises(InputError, match="lacks the columns licence"):
        publish(tmp_path / "run", tmp_path / "other.csv", "Apache-2.0", tmp_path / "zoo")
    assert not (tmp_path / "zoo").exists()
