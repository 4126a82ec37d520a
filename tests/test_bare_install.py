"""The wheel in an environment that holds the core dependencies and nothing else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
PHOTO = ROOT / "assets" / "face.png"
FOLDERS = {
    "rsd_edge": "rsd_edge",
    "distill": "rsd_edge/distill",
    "export": "rsd_edge/export",
    "kernels": "rsd_edge/kernels",
}
NOT_SOURCES = shutil.ignore_patterns(".*", "build", "dist", "runs", "*.egg-info", "__pycache__")
HEAVY = ("torch", "onnx", "onnxscript", "openvino", "triton", "tensorboard", "scipy", "nvidia", "matplotlib", "ncnn")

IMPORT_RUNTIME = """
import importlib, pkgutil, rsd_edge

training = ("rsd_edge.models", "rsd_edge.kernels", "rsd_edge.distill", "rsd_edge.export")
names = []

def walk(package):
    for info in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        if not info.name.startswith(training):
            names.append(info.name)
            module = importlib.import_module(info.name)
            if info.ispkg:
                walk(module)

walk(rsd_edge)
print(" ".join(names))
"""


def run(*command: str | Path, cwd: Path) -> str:
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, because setuptools keeps deleted modules in a build folder and ships them."""
    return shutil.copytree(ROOT, tmp_path_factory.mktemp("sources") / "tree", ignore=NOT_SOURCES)


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", work, tree, cwd=work)
    (built,) = work.glob("rsd_edge-*.whl")
    return built


@pytest.fixture(scope="module")
def scripts(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the executables of an environment in which only the wheel was installed."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    venv.create(folder, with_pip=True)
    binaries = folder / "bin"
    run(binaries / "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel, cwd=folder)
    return binaries


def test_the_sources_have_what_the_first_command_needs_and_no_part_of_the_tests(tree: Path, tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    run(sys.executable, "-c", build, tmp_path, cwd=tree)
    (built,) = tmp_path.iterdir()
    with tarfile.open(built) as sources:
        names = [name.partition("/")[2] for name in sources.getnames()]
    assert {"constraints.txt", "assets/face.png"} <= set(names)
    assert not [name for name in names if name.startswith("tests")]


def test_wheel_holds_what_the_tree_holds(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {
        f"{target}/{file.relative_to(ROOT / top).as_posix()}"
        for top, target in FOLDERS.items()
        for file in (ROOT / top).rglob("*")
        if file.is_file() and file.suffix != ".pyc"
    }
    assert names == expected


def test_licence_and_notice_travel_with_the_wheel(wheel: Path) -> None:
    names = {name.rpartition("/")[2] for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/licenses/" in name}
    assert names == {"LICENSE", "NOTICE"}


def test_no_training_library_is_installed(scripts: Path, tmp_path: Path) -> None:
    listed = json.loads(run(scripts / "pip", "list", "--format", "json", cwd=tmp_path))
    names = {item["name"].lower() for item in listed}
    assert "onnxruntime" in names
    assert not [name for name in names if name in HEAVY or name.startswith("nvidia")]


def test_every_runtime_module_imports(scripts: Path, tmp_path: Path) -> None:
    names = run(scripts / "python", "-c", IMPORT_RUNTIME, cwd=tmp_path).split()
    assert {"rsd_edge.pipeline", "rsd_edge.backends.onnxruntime", "rsd_edge.cli"} <= set(names)


def test_help_starts(scripts: Path, tmp_path: Path) -> None:
    assert "Usage: rsd-edge" in run(scripts / "rsd-edge", "--help", cwd=tmp_path)


def test_shipped_model_upscales_a_photo(scripts: Path, tmp_path: Path) -> None:
    run(scripts / "rsd-edge", "run", PHOTO, "-o", "out.png", "--report", "report.json", cwd=tmp_path)
    assert (tmp_path / "out.png").stat().st_size > PHOTO.stat().st_size  # sixteen times the pixels, lossless
    engine = json.loads((tmp_path / "report.json").read_text())["engine"]
    assert (engine["model"], engine["backend"]) == ("edge-s", "onnxruntime")  # the only one that is installed


def test_a_backend_that_is_not_installed_is_one_line(scripts: Path, tmp_path: Path) -> None:
    command = (scripts / "rsd-edge", "run", PHOTO, "-o", "out.png", "--backend", "openvino")
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith(
        "error: OpenVINO cannot be imported (No module named 'openvino'); run: pip install "
    )
    assert result.stderr.endswith("'rsd-edge[openvino]'\n")
    assert result.stderr.count("\n") == 1


def test_the_bench_measures_what_it_can_and_names_the_rest(scripts: Path, tmp_path: Path) -> None:
    options = ("--model", "edge-n", "--sizes", "40x24", "--threads", "1", "--rounds", "3", "-o", "report")
    command = (scripts / "rsd-edge", "bench", *options)
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "report\n")
    lines = result.stderr.splitlines()
    assert lines[0] == "no report.html: the HTML report needs 'matplotlib'; run: pip install 'rsd-edge[bench]'"
    assert lines[1].startswith("note: operations are not counted and the processor's peaks not measured")
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["report.json", "report.md"]
    document = json.loads((tmp_path / "report" / "report.json").read_text())
    assert document["frames"][0]["peak_mb"] > 0
    assert "gflop" not in document["frames"][0]
    assert {row["peak"] for row in document["peaks"]} == {"memory copy"}
    assert document["quality"]["scores"]
