from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rsd_edge.bundle import load_bundle
from rsd_edge.distill.config import DistillConfig
from rsd_edge.distill.stages import run_stage
from rsd_edge.errors import BackendError, InputError, ModelError
from rsd_edge.export import publish as publish_module
from rsd_edge.export.publish import CREDIT_FIELDS, publish
from rsd_edge.specs import Precision

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


@pytest.mark.usefixtures("quick_int8")
def test_a_run_becomes_bundles_with_record_and_credits(
    tiny_config: Callable[..., DistillConfig],
    credit_table: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = tiny_config()
    for stage in ("autoencoder", "teacher", "student", "finetune"):
        run_stage(stage, config)
    home = tmp_path / "zoo" / config.model.name
    shipped = publish(Path(config.run_dir), credit_table, "Apache-2.0", tmp_path / "zoo")
    assert [bundle.path for bundle in shipped] == [home / "fp32", home / "int8"]
    for bundle, precision in zip(shipped, (Precision.FP32, Precision.INT8), strict=True):
        manifest = load_bundle(bundle.path).manifest
        assert bundle.spec.precision is precision
        assert manifest["licence"] == "Apache-2.0"
        assert manifest["training"]["photographs_used"] == 2
        for reference in ("record", "photographs"):
            assert (bundle.path / manifest["training"][reference]).is_file()
    record = json.loads((home / "training.json").read_text())
    assert list(record) == ["autoencoder", "teacher", "student", "finetune"]
    assert record["student"]["config"]["iterations"] == config.student.iterations
    assert record["student"]["validation"][-1]["iteration"] == config.student.iterations
    assert "train" not in record["student"]["data"]  # a path of somebody's machine
    with (home / "credits.csv").open(encoding="utf-8", newline="") as file:
        authors = {row["photo_id"]: row["author"] for row in csv.DictReader(file)}
    assert authors == {"a": "A. Author", "b": "not named; published by owner/photos"}
    check_publishing_again(Path(config.run_dir), credit_table, home, monkeypatch)
    check_going_on_from_what_ships(config, credit_table, home)


def check_publishing_again(run: Path, credit_table: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a person wrote stays, what the last publication wrote goes; and all of it stays if an engine fails."""
    (home / "MODEL_CARD.md").write_text("judgement")
    (home / "fp32" / "stale").touch()
    (home / "training.json").write_text("{}")
    before = content(home)
    original = publish_module.build_engine

    def slow(*arguments: Any, precision: Precision, **options: Any) -> Any:
        if precision is Precision.INT8:
            raise BackendError("int8 is not faster")
        return original(*arguments, precision=precision, **options)

    with monkeypatch.context() as patch:
        patch.setattr(publish_module, "build_engine", slow)
        with pytest.raises(BackendError):
            publish(run, credit_table, "MIT", home.parent)
    assert content(home) == before
    publish(run, credit_table, "MIT", home.parent)
    assert load_bundle(home / "int8").manifest["licence"] == "MIT"
    assert (home / "MODEL_CARD.md").read_text() == "judgement"
    assert "student" in json.loads((home / "training.json").read_text())
    assert not (home / "fp32" / "stale").exists()
    assert [path.name for path in home.parent.iterdir()] == [home.name]


def check_going_on_from_what_ships(config: DistillConfig, credit_table: Path, home: Path) -> None:
    """The record grows by one stage, and nothing is published whose record would have a gap."""
    zoo = home.parent
    again = replace(config, finetune_from=str(home / "fp32"), run_dir=str(zoo.parent / "again"))
    again = replace(again, finetune=replace(config.finetune, train_decoder=True))
    weights = run_stage("finetune", again)
    before = content(home)
    with pytest.raises(
        InputError, match=r"name with --stage-name; the record has autoencoder, teacher, student, finetune"
    ):
        publish(Path(again.run_dir), credit_table, "MIT", zoo)
    with pytest.raises(InputError, match=r"--stage-name is teacher, and the record has .*; choose another"):
        publish(Path(again.run_dir), credit_table, "MIT", zoo, stage_name="teacher")
    with pytest.raises(InputError, match=r"--stage-name is polish, but .* is no fine-tune of a model that ships"):
        publish(Path(config.run_dir), credit_table, "MIT", zoo, stage_name="polish")
    assert content(home) == before
    lines = credit_table.read_text().splitlines()
    credit_table.write_text(
        "\n".join([lines[0], lines[1], lines[-1].replace("b_0", "c_0").replace(",b,", ",c,")]) + "\n"
    )
    publish(Path(again.run_dir), credit_table, "MIT", zoo, stage_name="polish")
    record = json.loads((home / "training.json").read_text())
    assert list(record) == ["autoencoder", "teacher", "student", "finetune", "polish"]
    with (home / "credits.csv").open(encoding="utf-8", newline="") as file:
        assert [row["photo_id"] for row in csv.DictReader(file)] == ["a", "b", "c"]
    assert load_bundle(home / "int8").manifest["training"]["photographs_used"] == 3
    shipped = json.loads(before["fp32/manifest.json"])["digest"]
    assert record["polish"]["started_from"] == {"model": config.model.name, "digest": shipped}
    before = content(home)
    with pytest.raises(
        ModelError, match=r"began with model .*, not with the model in .*; begin it with finetune_from="
    ):
        publish(Path(again.run_dir), credit_table, "MIT", zoo, stage_name="other")
    weights.unlink()
    with pytest.raises(ModelError, match=r"stage finetune .* is not finished"):
        publish(Path(again.run_dir), credit_table, "MIT", zoo, stage_name="other")
    assert content(home) == before


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_nothing_is_published_without_a_run_or_credits(credit_table: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(ModelError, match="no finished stage"):
        publish(tmp_path / "run", credit_table, "Apache-2.0", tmp_path / "zoo")
    (tmp_path / "other.csv").write_text("photo_id,author\na,b\n")
    with pytest.raises(InputError, match="lacks the columns licence"):
        publish(tmp_path / "run", tmp_path / "other.csv", "Apache-2.0", tmp_path / "zoo")
    assert not (tmp_path / "zoo").exists()
