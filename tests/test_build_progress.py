from __future__ import annotations

import pytest

from rsd_edge.cli import build_progress
from rsd_edge.cli.build_progress import TerminalProgress


@pytest.mark.parametrize("terminal", [False, True])
def test_phases_come_and_go(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build_progress.sys.stderr, "isatty", lambda: terminal)
    with TerminalProgress() as progress:
        progress.begin("Building", None, 2)
        progress.begin("Tactics", "Building", 3)
        progress.step("Tactics", 0)
        tasks = {task.description: (task.completed, task.total) for task in progress._bars.tasks}
        assert tasks == {"Building": (0, 2), "  Tactics": (1, 3)}
        progress.end("Tactics")
        progress.step("Tactics", 1)  # TensorRT may still tell of what is over
        progress.end("Building")
        assert progress._bars.tasks == []
    assert bool(capsys.readouterr().err) is terminal
