"""Which files `rsd-edge run` leaves alone, and which it goes on without."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rsd_edge.cli import main
from rsd_edge.stream.images import read_image, write_image


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["run", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("in.png", "c.png", "in.mp4", "l.mkv"):
        Path(name).write_text("what was there")
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        "in.png -o c.png --report c.png",
        "in.png -o c.png --report in.png",
        "in.mp4 -o out.mp4 --report ./in.mp4",
        "--camera test --max-frames 1 -o l.mkv --report l.mkv",
    ],
)
def test_a_report_replaces_no_input_and_no_result(folder: Path, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(folder.iterdir())
    assert run(*words.split()) == 2
    report = str(Path(words.split()[-1]))
    told = f"error: cannot write {report}: it is an input or a result of this run; give another name\n"
    assert capsys.readouterr().err == told
    assert sorted(folder.iterdir()) == before
    assert all(path.read_text() == "what was there" for path in before)


def test_a_folder_without_images_does_not_stop_the_others(
    toy_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty, photo, into = tmp_path / "empty", tmp_path / "a.png", tmp_path / "out"
    empty.mkdir()
    write_image(photo, np.zeros((8, 8, 3), np.uint8))
    assert run(str(empty), str(photo), "-o", str(into), "--engine", str(toy_bundle), "--threads", "1") == 2
    assert [path.name for path in into.iterdir()] == ["a.png"]
    assert f"error: {empty} contains no images" in capsys.readouterr().err


def test_an_image_that_may_not_be_read_does_not_stop_the_others(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readable, secret, into = tmp_path / "a.png", tmp_path / "secret.png", tmp_path / "out"
    for path in (readable, secret):
        write_image(path, np.zeros((8, 8, 3), np.uint8))
    secret.chmod(0)
    access, opened = os.access, Path.open

    def allowed(path: Any, *arguments: Any, **options: Any) -> bool:
        return str(path) != str(secret) and access(path, *arguments, **options)

    def open_allowed(path: Path, *arguments: Any, **options: Any) -> Any:
        if path == secret:
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "access", allowed)  # root may read everything
    monkeypatch.setattr(Path, "open", open_allowed)
    assert run(str(readable), str(secret), "-o", str(into), "--engine", str(toy_bundle), "--threads", "1") == 2
    assert read_image(into / "a.png").shape == (32, 32, 3)
    assert f"{secret} cannot be read (Permission denied); allow this user to read it" in capsys.readouterr().err
