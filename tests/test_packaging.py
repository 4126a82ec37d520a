"""The package on disk, in pyproject.toml and at import are the same thing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

import rsd_edge

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[1]
TOP_FOLDERS = ("rsd_edge", "distill", "export", "kernels")
TRAINING = ("rsd_edge.models", "rsd_edge.kernels", "rsd_edge.distill", "rsd_edge.export")
CORE = ("numpy", "cv2", "onnxruntime", "av", "click", "rich")

BLOCKED_IMPORTS = """
import importlib, sys

blocked = {"torch", "onnx", "onnxscript", "openvino", "safetensors", "yaml", "tensorboard", "scipy", "PIL", "triton"}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Blocker())
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def packages_on_disk() -> dict[str, Path]:
    found = {}
    for top in TOP_FOLDERS:
        for init in (ROOT / top).rglob("__init__.py"):
            folder = init.parent
            name = ".".join(folder.relative_to(ROOT).parts)
            found[name if top == "rsd_edge" else f"rsd_edge.{name}"] = folder
    return found


def runtime_modules() -> Iterator[str]:
    for name, folder in packages_on_disk().items():
        if not name.startswith(TRAINING):
            yield name
            yield from (f"{name}.{file.stem}" for file in folder.glob("*.py") if file.stem != "__init__")


def test_every_package_on_disk_is_listed(settings: dict[str, Any]) -> None:
    assert sorted(settings["tool"]["setuptools"]["packages"]) == sorted(packages_on_disk())


def test_every_folder_with_modules_is_a_package() -> None:
    folders = {file.parent for top in TOP_FOLDERS for file in (ROOT / top).rglob("*.py")}
    assert folders == set(packages_on_disk().values())


def test_every_data_file_ships(settings: dict[str, Any]) -> None:
    packages = packages_on_disk()
    data = settings["tool"]["setuptools"]["package-data"]
    shipped = {file for name, patterns in data.items() for pattern in patterns for file in packages[name].glob(pattern)}
    ignored = ("*.py", "*.pyc")
    present = {
        file
        for top in TOP_FOLDERS
        for file in (ROOT / top).rglob("*")
        if file.is_file() and not any(fnmatch(file.name, pattern) for pattern in ignored)
    }
    assert present <= shipped
    assert ROOT / "rsd_edge" / "py.typed" in shipped


def test_constraints_pin_every_requirement(settings: dict[str, Any]) -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.partition("==")[0].lower() for line in lines if not line.startswith("#")}
    project = settings["project"]
    extras = project["optional-dependencies"]
    needed = [
        *project["dependencies"],
        *(item for name in ("export", "distill", "openvino", "serve", "test", "dev") for item in extras[name]),
    ]
    names = {_distribution(item) for item in needed}
    assert names - {"rsd-edge"} <= pinned


def test_core_dependencies_are_the_light_ones(settings: dict[str, Any]) -> None:
    names = [_distribution(item) for item in settings["project"]["dependencies"]]
    assert names == ["numpy", "opencv-python", "onnxruntime", "av", "click", "rich"]


def _distribution(requirement: str) -> str:
    name = requirement
    for mark in "<>=!~[; ":
        name = name.partition(mark)[0]
    return name.lower()


def test_version_agrees(settings: dict[str, Any]) -> None:
    assert rsd_edge.__version__ == settings["project"]["version"]


def test_runtime_modules_import_with_core_dependencies_alone(tmp_path: Path) -> None:
    """A blocked import stands for an absent package; tests/test_bare_install.py shows the same bare."""
    modules = sorted(runtime_modules())
    assert "rsd_edge.pipeline" in modules
    assert "rsd_edge.cli" in modules
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", BLOCKED_IMPORTS, *modules],
        cwd=tmp_path,  # not the repository, whose folder names would shadow the installed package
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_the_blocker_blocks(tmp_path: Path) -> None:
    """The test above must be able to fail: a module that imports torch at the top is refused."""
    (tmp_path / "heavy.py").write_text("import torch\n")
    result = subprocess.run(
        [sys.executable, "-c", BLOCKED_IMPORTS, "heavy"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "torch is blocked" in result.stderr


@pytest.mark.parametrize("command", [["--help"], ["run", "--help"]])
def test_the_console_command_starts(command: list[str], tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("rsd-edge")
    result = subprocess.run([script, *command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "Usage" in result.stdout
