"""What a terminal shows while `rsd-edge run` enlarges images."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from rsd_edge.cli import main, video_options
from rsd_edge.cli import run as run_command
from rsd_edge.stream.batch import FileResult, Status
from rsd_edge.stream.discovery import Job
from rsd_edge.stream.images import write_image
from rsd_edge.video.settings import Forecast


class Terminal(io.StringIO):
    """Takes what a terminal takes."""

    def isatty(self) -> bool:
        return True

    def news(self) -> str:
        """What was drawn since the last call."""
        text = self.getvalue()
        self.seek(0)
        self.truncate()
        return text


def become_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Stderr from here on. Not a fixture: pytest takes stderr back between the phases of a test."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    return terminal


def test_the_bar_follows_files_and_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = become_terminal(monkeypatch)
    monkeypatch.setattr(run_command, "_DRAWN_EVERY", 0.0)
    first, second = (Job(Path(name), Path("out.png")) for name in ("first.jpg", "second.jpg"))
    with run_command._Display(2) as display:
        terminal.news()
        display.start(0, first)
        assert "first.jpg" in terminal.news()
        display.load(4_000_000)
        display.advance(1, 4)
        drawn = terminal.news()
        assert "12%" in drawn  # a quarter of one of two, halves to even
        assert "Mpx/s" in drawn
        display.show(FileResult(first, Status.DONE))
        assert "1/2" in terminal.news()
        display.start(1, second)
        assert "second.jpg" in terminal.news()


def test_names_in_messages_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """What is markup or an emoji to the package that draws the bar is a part of a name here."""
    image = Job(Path("photo[final]:cat:.jpg"), Path("out.png"))
    with run_command._Display(1) as display:
        display.show(FileResult(image, Status.DONE, notes=("something was left out",)))
    assert capsys.readouterr().err == "warning: photo[final]:cat:.jpg: something was left out\n"
    video = Job(Path("film[final]:cat:.mp4"), Path("out.mp4"))
    with video_options._Display(video) as shown:
        shown.announce(Forecast(9, (64, 48), "h264", None))
    assert capsys.readouterr().err == "film[final]:cat:.mp4: 9 frames of 64x48 with h264\n"


def test_the_bar_is_not_drawn_for_each_of_many_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = become_terminal(monkeypatch)
    monkeypatch.setattr(run_command, "_DRAWN_EVERY", 3600.0)
    with run_command._Display(1) as display:
        display.start(0, Job(Path("a.jpg"), Path("out.png")))
        terminal.news()
        for tile in range(100):
            display.advance(tile + 1, 100)
        assert terminal.news() == ""
    assert "100%" in terminal.news()  # the last state, when it ends


def test_nothing_is_drawn_while_a_file_is_decoded(
    tmp_path: Path, toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*arguments: Any) -> Any:
        before = terminal.getvalue()
        time.sleep(0.3)
        drawn.append(terminal.getvalue() != before)
        return decode(*arguments)

    terminal = become_terminal(monkeypatch)
    drawn: list[bool] = []
    decode = cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", slow)
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png"):
        write_image(tmp_path / "in" / name, np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(SystemExit):
        main(["run", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--engine", str(toy_bundle), "--threads", "1"])
    assert drawn == [False, False]
    assert "2/2" in terminal.getvalue()


NAME = "\x1b[31mred\x1b]0;title\x07\x9b.jpg"
SHOWN = r"\x1b[31mred\x1b]0;title\x07\x9b.jpg"


@pytest.mark.parametrize("words", [(NAME, "-o", "out"), (NAME, "gone.png", "-o", "out"), ("in", "-o", "out")])
def test_the_name_of_a_file_gives_the_terminal_no_orders(
    words: tuple[str, ...], toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    Path("in", NAME).write_text("no image")
    terminal = become_terminal(monkeypatch)
    with pytest.raises(SystemExit):
        main(["run", *words, "--engine", str(toy_bundle), "--threads", "1"])
    drawn = terminal.news()
    assert SHOWN in drawn
    assert "\x1b[31m" not in drawn
    assert not set("\x07\x9b") & set(drawn)


def test_the_name_of_a_film_gives_the_terminal_no_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = become_terminal(monkeypatch)
    with video_options._Display(Job(Path(NAME), Path("out.mp4"))) as display:
        display.announce(Forecast(3, (8, 8), "libx264", None))
    drawn = terminal.news()
    assert drawn.count(SHOWN) >= 2
    assert "\x1b[31m" not in drawn
    assert not set("\x07\x9b") & set(drawn)


def test_nor_does_that_of_a_link_in_a_warning(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / NAME).symlink_to(tmp_path, target_is_directory=True)
    command = [sys.executable, "-c", "from rsd_edge.cli import main; main()", "run", "in", "-r", "-o", "out"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.stderr.startswith(f"warning: in/{SHOWN} leads to another folder, which is left out;")
