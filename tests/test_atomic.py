"""Targets that are no files."""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
from pathlib import Path

import pytest

from rsd_edge.errors import OutputError
from rsd_edge.stream.atomic import atomic_file, check_target, folder_for, write_json


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_written_to_and_stays_one(tmp_path: Path) -> None:
    """As /dev/stdout and /dev/null, which a file in their place would break for every program."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_text()), daemon=True)
    reader.start()
    check_target(pipe)
    write_json(pipe, {"frames": 3})
    reader.join(10)
    assert json.loads(found[0]) == {"frames": 3}
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert list(tmp_path.iterdir()) == [pipe]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="this system has no folder of open files")
def test_an_open_file_goes_on_from_where_it_is(tmp_path: Path) -> None:
    """As with `--report /dev/stdout >> log`."""
    log, link, further = tmp_path / "log", tmp_path / "stdout", tmp_path / "further"
    log.write_text("before\n")
    with log.open("a") as opened:
        link.symlink_to(f"/proc/self/fd/{opened.fileno()}")
        further.symlink_to(link.name)
        check_target(further)
        write_json(further, {"frames": 3})
        opened.write("after\n")
    assert link.is_symlink()
    assert further.is_symlink()
    assert log.read_text() == 'before\n{\n  "frames": 3\n}\nafter\n'
    assert len(list(tmp_path.iterdir())) == 3


def test_a_link_to_a_file_is_no_open_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "3").symlink_to("file")
    write_json(tmp_path / "3", {"frames": 3})
    assert json.loads((tmp_path / "3").read_text()) == {"frames": 3}
    assert (tmp_path / "file").read_text() == "old"


def test_contents_reach_the_disk_before_the_name_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bytes] = []

    def sync(descriptor: int) -> None:
        assert not (tmp_path / "file").exists()
        synced.append(Path(f"/dev/fd/{descriptor}").read_bytes())

    monkeypatch.setattr(os, "fsync", sync)
    with atomic_file(tmp_path / "file") as file:
        file.write(b"short enough for a buffer")
    assert synced == [b"short enough for a buffer"] == [(tmp_path / "file").read_bytes()]


def test_an_error_takes_away_the_folders_that_were_made_for_it(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    made = tmp_path / "old" / "a" / "b" / "c"
    with pytest.raises(FileExistsError), folder_for(made / "file"):
        made.mkdir()
    assert [path.name for path in tmp_path.rglob("*")] == ["old"]


def test_a_folder_that_another_run_took_away_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "out" / "report.json"
    with folder_for(path):
        path.parent.rmdir()
        write_json(path, {"frames": 3})
    assert json.loads(path.read_text()) == {"frames": 3}


def test_a_folder_is_no_target(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="it is a folder; give a name for the file"):
        check_target(tmp_path)
    check_target(tmp_path / "new" / "report.json")
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_too_long_is_told_with_its_own_cure(tmp_path: Path) -> None:
    for write in (check_target, lambda path: write_json(path, {})):
        with pytest.raises(OutputError, match=r"its name is too long; choose a shorter one"):
            write(tmp_path / (256 * "n"))


def test_a_file_that_is_too_large_for_its_place_is_told_with_its_own_cure(tmp_path: Path) -> None:
    cure = "allows no larger file; choose another folder or raise the limit"
    with pytest.raises(OutputError, match=cure), atomic_file(tmp_path / "file"):
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))


def test_what_json_cannot_hold_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "report.json", {"seconds": float("nan")})
    assert list(tmp_path.iterdir()) == []
