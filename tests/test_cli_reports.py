"""Where `--report` and `--json` may write."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rsd_edge.cli import main
from rsd_edge.stream.images import write_image


def rsd_edge(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.chdir(tmp_path)
    paths = [Path("a.jpg"), Path("b.jpg")]
    for path in paths:
        write_image(path, np.zeros((8, 8, 3), np.uint8))
    return paths


@pytest.mark.parametrize(
    "words",
    [
        "run -o out --report a.jpg b.jpg",
        "run --camera test --max-frames 1 -o null --report a.jpg",
        "bench --json a.jpg",
        "eval --pred . --json a.jpg",
    ],
)
@pytest.mark.usefixtures("photos")
def test_a_photo_is_no_place_for_a_report(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The shell makes this of `--report *.jpg`."""
    before = {path: path.read_bytes() for path in Path().iterdir()}
    assert rsd_edge(*words.split()) == 2
    told = "error: cannot write a.jpg: a report is JSON, not '.jpg'; give a name that ends in .json\n"
    assert capsys.readouterr().err == told
    assert {path: path.read_bytes() for path in Path().iterdir()} == before


@pytest.mark.parametrize("name", ["a.jpg", "x.json"])
@pytest.mark.usefixtures("photos")
def test_a_table_is_csv(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert rsd_edge("eval", "--pred", ".", "--csv", name) == 2
    told = f"error: cannot write {name}: a report is CSV, not '{Path(name).suffix}'; give a name that ends in .csv\n"
    assert capsys.readouterr().err == told
    assert sorted(map(str, Path().iterdir())) == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize("name", ["clip.MP4", "photo.heic", "model.safetensors", "model.pth"])
@pytest.mark.usefixtures("photos")
def test_neither_are_films_pictures_that_are_not_read_and_models(name: str) -> None:
    assert rsd_edge("run", "a.jpg", "-o", "out", "--report", name) == 2
    assert sorted(map(str, Path().iterdir())) == ["a.jpg", "b.jpg"]


def test_nothing_is_enlarged_for_a_report_that_cannot_be_written(photos: list[Path], toy_bundle: Path) -> None:
    Path("reports").mkdir()
    words = ("-o", "out", "--report", "reports", "--engine", str(toy_bundle), "--threads", "1")
    assert rsd_edge("run", *map(str, photos), *words) == 2
    assert not Path("out").exists()


def test_a_report_on_stdout(photos: list[Path], toy_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("-o", "out", "--report", "-", "--engine", str(toy_bundle), "--threads", "1")
    assert rsd_edge("run", *map(str, photos), *words) == 0
    assert [entry["status"] for entry in json.loads(capsys.readouterr().out)["files"]] == ["done", "done"]
    assert not Path("-").exists()
