"""What the command does before any of its parts is asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rsd_edge import __version__
from rsd_edge.cli import main


def rsd_edge(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert rsd_edge("--version") == 0
    assert __version__ in capsys.readouterr().out
    assert rsd_edge() == 0
    assert "Usage: rsd-edge" in capsys.readouterr().out
    assert rsd_edge("run", "-h") == 0
    assert "--skip-existing" in capsys.readouterr().out


def test_listing_commands_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom rsd_edge.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n"
        "    heavy = {'numpy', 'cv2', 'onnxruntime', 'rich', 'torch'} & set(sys.modules)\n    sys.exit(str(heavy))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.stderr.strip() == "set()"
    for name in ("run", "eval", "build-engine", "build-kernels", "fetch", "import-weights", "distill"):
        assert f"\n  {name} " in result.stdout
