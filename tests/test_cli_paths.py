"""What is told of paths that the system refuses, or that nobody can have meant."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rsd_edge.cli import main
from rsd_edge.stream.images import write_image

LONG = "x" * 300


def rsd_edge(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_image("a.png", np.zeros((8, 8, 3), np.uint8))


@pytest.mark.parametrize(
    "words",
    [
        f"run {LONG}.png -o o.png",
        f"run a.png {LONG}.png -o out",
        f"run a.png -o {LONG}",
        f"run a.png -o {LONG}.png",
        f"run a.png -o o.png --report {LONG}",
        f"run a.png -o o.png --engine {LONG}",
        f"run a.png -o o.png --engine {LONG}.safetensors",
        f"eval --pred {LONG}",
        f"eval --pred . --ref {LONG}",
        f"bench -o {LONG}",
        f"bench --json {LONG}",
        f"build-engine --model edge-n -o {LONG}",
        f"fetch rsd --from-file {LONG}",
    ],
)
def test_a_name_that_is_too_long_is_told_in_one_line(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert rsd_edge(*words.split()) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: cannot ")
    assert line.endswith(": its name is too long; choose a shorter one")
    assert os.listdir() == ["a.png"]


@pytest.mark.parametrize(
    "words",
    [
        "run locked/a.png -o o.png",
        "run a.png -o locked/o.png",
        "run a.png -o o.png --report locked/r.json",
        "run a.png -o o.png --engine locked/e",
        "eval --pred . --ref locked/y",
        "bench -o locked/x",
        "build-engine --model edge-n -o locked/e",
    ],
)
def test_a_folder_of_another_user_is_told_in_one_line(
    words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stat = Path.stat

    def stat_allowed(path: Path, **options: Any) -> os.stat_result:
        if "locked" in path.parts:
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", stat_allowed)  # root may look everywhere
    assert rsd_edge(*words.split()) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: cannot ")
    assert "locked" in err
    assert "Permission denied; " in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["run", "", "-o", "out"], "INPUT..."),
        (["run", "a.png", "", "-o", "out"], "INPUT..."),
        (["run", "a.png", "-o", ""], "-o"),
        (["run", "a.png", "-o", "out", "--report="], "--report"),
        (["eval", "--pred", ""], "--pred"),
        (["build-engine", "--model", "edge-n", "-o", ""], "-o"),
        (["import-weights", "", "--family", "rsd", "-o", "x.safetensors"], "FILE..."),
        (["doctor", ""], "FOLDER"),
    ],
)
def test_an_empty_path_is_not_the_current_folder(
    words: list[str], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `"$PHOTO"` is where PHOTO is not set."""
    assert rsd_edge(*words) == 2
    err = capsys.readouterr().err
    assert name in err
    assert "it is empty; give a path, or . for the current folder." in err
    assert os.listdir() == ["a.png"]


@pytest.mark.parametrize("words", ["a.png -o -", "--camera test --max-frames 1 -o -"])
def test_results_do_not_go_to_stdout(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert rsd_edge("run", *words.split()) == 2
    assert capsys.readouterr().err == "error: -o -: results do not go to stdout; give a file or a folder\n"
    assert os.listdir() == ["a.png"]
