"""Runtimes that are installed and do not work."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from rsd_edge import trials
from rsd_edge.cli import main
from rsd_edge.specs import Backend
from rsd_edge.trials import Trial

Install = Callable[[str, str], None]

WORKS = """
class Core:
    def get_property(self, *_):
        return ["FP32"]
"""
LACKS_THE_CPU = """
__version__ = "2026.1.0-7"
class Core:
    def get_property(self, *_):
        raise RuntimeError("somewhere:\\nno plugin for CPU")
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a package before those that are installed, for the processes that are started, too."""

    def put(name: str, content: str) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(content)

    monkeypatch.syspath_prepend(tmp_path)
    return put


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (
            "raise ImportError('libtbb.so.12: cannot open shared object file')",
            r"OpenVINO cannot be imported \(libtbb\.so\.12: cannot .*\); run: pip install --force-reinstall openvino",
        ),
        ("raise OSError('no libtbb')", r"OpenVINO cannot be imported \(no libtbb\); run: pip install --force-.*"),
        (LACKS_THE_CPU, r"OpenVINO 2026\.1\.0 has no CPU device \(no plugin for CPU\); run 'pip install --force-.*"),
        ("", r"OpenVINO cannot be imported \(module 'openvino' has no .*'Core'\); run: pip install --force-.*"),
        ("raise KeyError('x')", r"'openvino' cannot be loaded \(KeyError: 'x'\); run: pip install --force-.*"),
    ],
)
def test_an_openvino_that_does_not_work(install: Install, content: str, problem: str) -> None:
    install("openvino", content)
    assert re.fullmatch(problem, Trial(Backend.OPENVINO).problem() or "")


def test_an_openvino_that_works(install: Install) -> None:
    install("openvino", WORKS)
    assert Trial(Backend.OPENVINO).problem() is None


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("raise OSError('libcudart.so.13:\\nno')", r".* \(OSError: libcudart\.so\.13: no\); run: .*-reinstall torch"),
        ("import no_part_of_it", r".* \(ModuleNotFoundError: .*\); run: pip install 'rsd-edge\[export\]'"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", r"'torch' ends its process .* \(SIGKILL\); .*"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGRTMIN + 1)", r"'torch' ends .* \(signal \d+\); .*"),
        ("import os\nos._exit(3)", r"'torch' cannot be loaded \(exit code 3\); install it again"),
        ("import time\ntime.sleep(60)", r"'torch' did not load within 2 s; close other programs and try again"),
    ],
)
def test_a_torch_that_does_not_work(
    install: Install, monkeypatch: pytest.MonkeyPatch, content: str, problem: str
) -> None:
    if "sleep" in content:
        monkeypatch.setattr(trials, "_PATIENCE_SECONDS", 2)
    install("torch", content)
    assert re.fullmatch(problem, Trial(Backend.TORCH).problem() or "")


@pytest.mark.skipif(find_spec("torch") is None, reason="needs torch")
def test_the_torch_of_this_environment_works() -> None:
    assert Trial(Backend.TORCH).problem() is None


def test_a_trial_imports_nothing_from_the_folder_it_is_started_in(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("openvino", WORKS)
    (tmp_path / "work").mkdir()
    for name in ("json", "openvino", "rsd_edge"):
        (tmp_path / "work" / f"{name}.py").write_text("open('was imported', 'x')")
    monkeypatch.chdir(tmp_path / "work")
    assert Trial(Backend.OPENVINO).problem() is None
    assert not Path("was imported").exists()


def test_what_is_not_installed_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(trials, "subprocess", None)
    assert Trial(Backend.OPENVINO).problem() == "'openvino' is not installed; run: pip install 'rsd-edge[openvino]'"
    assert Trial(Backend.TORCH).problem() == "'torch' is not installed; run: pip install 'rsd-edge[export]'"


def test_doctor_does_not_call_them_usable(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("openvino", "raise ImportError('no libtbb')")
    install("torch", "raise ImportError('no libcudart')")
    with pytest.raises(SystemExit) as caught:
        main(["doctor", "--no-speed", "--backend", "openvino"])
    assert caught.value.code == 2
    out = capsys.readouterr().out
    assert "\nbackend     openvino: OpenVINO cannot be imported (no libtbb); run: pip install --force-reinstall " in out
    assert "\nbackend     torch: 'torch' cannot be loaded (ImportError: no libcudart); run: pip install --force-" in out
    assert "\nbackend     onnxruntime: usable\n" in out
