"""What records say of the packages that are installed."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from rsd_edge import __version__, versions
from rsd_edge.backends.tensorrt.library import load_tensorrt
from rsd_edge.errors import MissingDependencyError
from rsd_edge.versions import installed, version_of, versions_of


@pytest.fixture
def only_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime as onnxruntime-gpu brings it."""

    def version(name: str) -> str:
        if name == "onnxruntime":
            raise metadata.PackageNotFoundError(name)
        return "1.23.2" if name == "onnxruntime-gpu" else metadata.version(name)

    found = {"version": version, "packages_distributions": lambda: {"onnxruntime": ["onnxruntime-gpu"]}}
    monkeypatch.setattr(versions, "metadata", SimpleNamespace(**{**vars(metadata), **found}))


def test_a_folder_that_was_left_over_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "nothing_in_it").mkdir()
    (tmp_path / "something_in_it").mkdir()
    (tmp_path / "something_in_it" / "__init__.py").touch()
    assert not installed("nothing_in_it")
    assert not installed("not_even_that")
    assert installed("something_in_it")


def test_a_tensorrt_without_a_version_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", ModuleType("tensorrt"))
    with pytest.raises(
        MissingDependencyError, match=r"TensorRT's libraries cannot be loaded .*__version__'\); install"
    ):
        load_tensorrt()


@pytest.mark.usefixtures("only_for_gpus")
def test_a_module_that_another_package_brings_has_its_version() -> None:
    assert version_of("onnxruntime") == "onnxruntime-gpu 1.23.2"
    assert versions_of("numpy", "absent") == {
        "rsd-edge": __version__,
        "numpy": metadata.version("numpy"),
        "absent": "none",
    }


@pytest.mark.usefixtures("only_for_gpus")
def test_engines_are_built_beside_another_package_of_onnx_runtime(toy_bundle: Path, tmp_path: Path) -> None:
    from rsd_edge.export.build import build_engine

    bundle = build_engine(str(toy_bundle), tmp_path, threads=1)
    assert bundle.manifest["versions"]["onnxruntime"] == "onnxruntime-gpu 1.23.2"
