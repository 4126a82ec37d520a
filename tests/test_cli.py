"""What the command does before any of its parts is asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rsd_edge import __version__, cli
from rsd_edge.cli import main, missing_package


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


CTRL_C_IN_AN_EXTENSION = """
try:
    raise KeyboardInterrupt
except KeyboardInterrupt as error:
    raise ImportError("initialization failed") from error
"""


@pytest.mark.parametrize(
    ("content", "code", "line"),
    [
        (CTRL_C_IN_AN_EXTENSION, 130, "interrupted; finished files are kept"),
        (
            "from rsd_edge.errors import MissingDependencyError\n"
            "raise MissingDependencyError('no runtime; install one')",
            2,
            "error: no runtime; install one",
        ),
    ],
)
def test_ctrl_c_while_a_runtime_is_loaded(
    tmp_path: Path,
    content: str,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = f"loads_a_runtime_{code}"
    (tmp_path / f"{name}.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(cli._COMMANDS, "run", cli._Entry(name, ""))
    assert rsd_edge("run") == code
    assert capsys.readouterr().err == f"{line}\n"


def test_a_broken_installation_is_not_taken_for_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_runtime.py").write_text("raise ImportError('initialization failed')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(cli._COMMANDS, "run", cli._Entry("broken_runtime", ""))
    with pytest.raises(ImportError, match="initialization failed"):
        main(["run"])


def test_no_licence_is_asked_for_where_a_package_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "rsd_edge.models.import_weights", raising=False)
    monkeypatch.delitem(sys.modules, "rsd_edge.models.checkpoint", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert rsd_edge("import-weights", "x.pth", "--family", "rsd", "-o", "x.safetensors") == 2
    told = "error: rsd-edge import-weights needs 'torch'; run: pip install 'rsd-edge[distill]'\n"
    assert capsys.readouterr().err == told


def test_ctrl_c_before_anything_is_loaded(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "class CtrlC:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'click':\n            raise KeyboardInterrupt\n"
        "from rsd_edge.__main__ import main\nsys.meta_path.insert(0, CtrlC())\nmain()"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (130, "interrupted\n")


def test_the_package_runs_as_a_module(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rsd_edge", "--version"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert __version__ in result.stdout


def test_a_module_that_this_package_lacks_is_a_fault_of_it() -> None:
    """No extra brings it, so the traceback has to come through."""
    fault = ModuleNotFoundError("No module named 'rsd_edge.gone'", name="rsd_edge.gone")
    with pytest.raises(ModuleNotFoundError) as caught:
        missing_package("run", "export", fault)
    assert caught.value is fault
    absent = ModuleNotFoundError("No module named 'torch'", name="torch")
    assert str(missing_package("run", "export", absent)) == (
        "rsd-edge run needs 'torch'; run: pip install 'rsd-edge[export]'"
    )
