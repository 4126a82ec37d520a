from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_tensorrt
import numpy as np
import pytest
from fake_tensorrt.network import World

from rsd_edge import SuperResolver
from rsd_edge.bundle import BuildRecord, Bundle, resolve_engine
from rsd_edge.cli import main
from rsd_edge.engines import engine_folder
from rsd_edge.errors import BackendError, MissingDependencyError, NoEngineError
from rsd_edge.export.tensorrt_build import build_bundle
from rsd_edge.export.tensorrt_options import TensorRtOptions
from rsd_edge.specs import Backend, EngineSpec, Precision
from rsd_edge.stream.images import read_image, write_image

pytest.importorskip("onnx")

MODEL = "edge-n"


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("rsd_edge.export.tensorrt_judge._ROUNDS", 1)
    return fake_tensorrt.install(monkeypatch, "10.3.0")


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch, world: World) -> list[str]:
    """The models that were built; float graphs stand for the typed ones, which take a minute."""
    built = []

    def build(model: str, output: Path, *, precision: Precision, options: TensorRtOptions, progress: Any) -> Bundle:
        built.append(f"{model} {precision.value}")
        shipped = resolve_engine(MODEL)
        spec = EngineSpec(shipped.spec.model, Backend.TENSORRT, precision)
        graphs = {"graph.onnx": shipped.graph_path}
        record = BuildRecord(source={"model": model, "digest": shipped.digest})
        small = TensorRtOptions(tile=options.tile or 48, batch=options.batch)
        return build_bundle(graphs, spec, output, record, reference=graphs, options=small)

    monkeypatch.setattr("rsd_edge.export.typed_build.build_tensorrt", build)
    return built


@pytest.fixture
def run(tmp_path: Path, photo: Callable[[int, int], np.ndarray]) -> Callable[..., int]:
    write_image(tmp_path / "in.png", photo(20, 30))

    def call(*arguments: object) -> int:
        with pytest.raises(SystemExit) as caught:
            main(["run", str(tmp_path / "in.png"), "-o", str(tmp_path / "out.png"), *map(str, arguments)])
        return int(caught.value.code or 0)

    return call


def test_the_first_run_builds_and_later_ones_do_not(
    builds: list[str], run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--engine", MODEL, "--auto-build", "--report", tmp_path / "report.json")
    assert run(*words) == 0
    assert "building a TensorRT engine of edge-n in fp16 for this GPU" in capsys.readouterr().err
    first = read_image(tmp_path / "out.png")
    assert run(*words) == 0
    assert builds == ["edge-n fp16"]
    np.testing.assert_array_equal(read_image(tmp_path / "out.png"), first)
    assert json.loads((tmp_path / "report.json").read_text())["engine"]["backend"] == "tensorrt"
    assert run("--engine", MODEL, "--backend", "tensorrt") == 0  # found without being asked to build
    assert run(*words, "--tile", 64) == 0
    assert builds == ["edge-n fp16"] * 2


def test_a_stale_engine_is_built_again(
    builds: list[str], run: Callable[..., int], world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--engine", MODEL, "--auto-build") == 0
    (folder,) = engine_folder().glob("edge-n*")
    world.cudart.name = b"Thor"
    assert run("--engine", folder) == 2
    assert "was built for another device: the GPU was Orin and is Thor; run 'rsd-edge" in capsys.readouterr().err
    assert run("--engine", folder, "--auto-build") == 0
    assert builds == ["edge-n fp16"] * 2


def test_there_is_no_engine_yet(world: World) -> None:
    with pytest.raises(NoEngineError, match="there is no TensorRT engine of 'edge-n' for this GPU; add --auto-build"):
        SuperResolver.load(MODEL, backend="tensorrt")


def test_without_tensorrt_it_is_one_line(monkeypatch: pytest.MonkeyPatch, run: Callable[..., int], capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependencyError, match="TensorRT is not installed here"):
        SuperResolver.load(MODEL, backend="tensorrt")
    for words in (("--backend", "tensorrt"), ("--auto-build",)):
        assert run("--engine", MODEL, *words) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: TensorRT is not installed here (no module 'tensorrt'); on a Jetson")
        assert error.count("\n") == 1


def test_engines_keep_to_their_runtime(builds: list[str], run: Callable[..., int], toy_bundle: Path) -> None:
    assert run("--engine", MODEL, "--auto-build") == 0
    (folder,) = engine_folder().glob("edge-n*")
    with pytest.raises(BackendError, match="was built for tensorrt and onnxruntime does not run it"):
        SuperResolver.load(folder, backend="onnxruntime")
    with pytest.raises(BackendError, match="was built for onnxruntime and tensorrt does not run it"):
        SuperResolver.load(toy_bundle, backend="tensorrt")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--backend", "openvino"), "--auto-build builds TensorRT engines, not for openvino"),
        (("--precision", "fp32"), "--auto-build builds fp16 and int8 engines, not fp32"),
        (("--engine", "nothing"), "'nothing' is neither a shipped model nor a bundle nor a checkpoint"),
    ],
)
def test_what_cannot_be_built_is_refused(
    world: World, run: Callable[..., int], capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    assert run("--auto-build", *words) == 2
    assert message in capsys.readouterr().err
