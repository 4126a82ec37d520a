"""Targets that are no files."""

from __future__ import annotations

import json
import os
import stat
import threading
from pathlib import Path

import pytest

from rsd_edge.errors import OutputError
from rsd_edge.stream.atomic import check_target, write_json


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


def test_a_folder_is_no_target(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="it is a folder; give a name for the file"):
        check_target(tmp_path)
    check_target(tmp_path / "new" / "report.json")
    assert list(tmp_path.iterdir()) == []
