"""The command where standard streams are closed, narrow or full."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rsd_edge.stream.images import write_image

EVAL = ("eval", "--model", "bicubic", "--lr", "lr", "--ref", "ref", "--metrics", "psnr_y")


@pytest.fixture
def folder(tmp_path: Path, photo: Callable[[int, int], np.ndarray]) -> Path:
    """An image whose name few encodings have, and its reference."""
    for name, side in (("lr", 20), ("ref", 80)):
        (tmp_path / name).mkdir()
        write_image(tmp_path / name / "写真.png", photo(side, side))
    return tmp_path


def shell(folder: Path, redirection: str, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", f'exec "$0" -m rsd_edge "$@" {redirection}', sys.executable, *words],
        cwd=folder, env={**os.environ, **variables}, capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_lead_nowhere(folder: Path, toy_bundle: Path, redirection: str) -> None:
    run = ("run", "lr", "-o", "out", "--engine", str(toy_bundle), "--threads", "1")
    for words in (EVAL, run):
        done = shell(folder, redirection, *words)
        assert (done.returncode, done.stderr) == (0, "")
        assert ("写真" in done.stdout) is (redirection == "2>&-" and words is EVAL)
    assert (folder / "out" / "写真.png").is_file()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_an_encoding_lacks_is_escaped(folder: Path, encoding: str) -> None:
    done = shell(folder, "", *EVAL, PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, "")
    assert r"\u5199\u771f" in done.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_behind_stdout_is_one_line(folder: Path, unbuffered: str) -> None:
    for words in (EVAL, ("--version",)):
        done = shell(folder, ">/dev/full", *words, PYTHONUNBUFFERED=unbuffered)
        assert done.returncode == 2
        assert done.stderr == (
            "error: cannot write to standard output: No space left on device; free some space, or send it elsewhere\n"
        )


def test_other_faults_keep_their_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rsd_edge import cli

    (tmp_path / "met_a_full_disk.py").write_text("raise OSError(28, 'No space left on device')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(cli._COMMANDS, "run", cli._Entry("met_a_full_disk", ""))
    with pytest.raises(OSError, match="No space left"):
        cli.main(["run"])
