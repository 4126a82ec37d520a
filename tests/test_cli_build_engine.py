from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

from rsd_edge.bundle import BuildRecord, load_bundle, rebuild_command, write_bundle
from rsd_edge.cli import main
from rsd_edge.errors import OutputError
from rsd_edge.export import build, typed_build
from rsd_edge.export.tensorrt_options import TensorRtOptions
from rsd_edge.models.checkpoint import Checkpoint, save_checkpoint
from rsd_edge.specs import Backend, EngineSpec, ModelSpec, Precision
from rsd_edge.stream.images import write_image


@pytest.fixture(autouse=True)
def _no_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["build-engine", *map(str, arguments)])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_a_checkpoint_becomes_a_bundle(
    tiny_weights: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "weights.safetensors"
    save_checkpoint(weights, tiny_weights)
    assert run("--model", weights, "-o", tmp_path / "engines", "--threads", 1) == 0
    (folder,) = (tmp_path / "engines").iterdir()
    assert load_bundle(folder).spec.model == tiny_weights.spec
    out, err = capsys.readouterr()
    assert out.startswith(f"{folder}: ")
    assert "dB against the network; a 64x64 tile on 1 threads: fp32 " in out
    assert err.startswith("built for onnxruntime, not for tensorrt: TensorRT is not installed here")
    assert err.count("\n") == 1


@pytest.mark.usefixtures("quick_int8")
def test_int8_says_both_times(
    toy_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    write_image(folder / "a.png", np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8))
    output = tmp_path / "engines"
    words = ["--precision", "int8", "--calibration", folder, "--threads", 1]
    assert run("--model", toy_bundle, "-o", output, *words) == 0
    (built,) = output.iterdir()
    out, err = capfd.readouterr()
    assert out.startswith(f"{built}: ")
    assert "dB against fp32 on held-out crops; " in out
    assert out.endswith("a 64x64 tile on 1 threads: fp32 20.0 ms, int8 10.0 ms\n")
    assert err == ""  # pytest takes what is logged
    assert {record.name for record in caplog.records} == {"rsd_edge.export.gate"}
    assert json.loads((built / "quantization.json").read_text())["calibration"] == "8 crops of own images"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--precision", "fp16"), "TensorRT is not installed here"),
        (("--precision", "fp16", "--backend", "onnxruntime"), "engines for CPUs cannot be built in fp16; use"),
        (("--tile", "128", "--model", "edge-n"), "leave them out, or give the tile to --backend tensorrt"),
        (("--tile", "0", "--model", "edge-n"), "Invalid value for '--tile': 0 is not in the range x>=1"),
        (("--threads", "-2", "--model", "edge-n"), "Invalid value for '--threads': -2 is not in the range x>=1"),
        (("--calibration", ".", "--model", "BUNDLE"), "calibration images serve INT8 engines and this one is fp32"),
        (("--calibration", "absent"), "'absent' does not exist"),
        (("--precision", "int8", "--calibration", "EMPTY", "--model", "BUNDLE"), "contains no images"),
        (("--precision", "fp8"), "'fp8' is not one of 'fp32', 'fp16', 'int8'"),
        (("--backend", "coreml"), "'coreml' is not"),
        (("--model", "none.safetensors"), "none.safetensors does not exist"),
        (("--model", "edge-z"), "'edge-z' is neither a shipped engine"),
        (("--threads", "0", "--model", "BUNDLE"), "Invalid value for '--threads': 0 is not in the range x>=1"),
    ],
)
def test_what_cannot_be_built_is_one_line(
    toy_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    (tmp_path / "empty").mkdir()
    folders = {"BUNDLE": str(toy_bundle), "EMPTY": str(tmp_path / "empty")}
    words = [folders.get(word, word) for word in arguments]
    assert run(*words, "-o", tmp_path / "engines") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("error: ")
    assert message in err
    assert not (tmp_path / "engines").exists()


def test_a_corrupt_checkpoint_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ")
    assert run("--model", weights, "-o", tmp_path / "engines") == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "weights.safetensors" in err


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.INT8])
@pytest.mark.parametrize("backend", [Backend.ONNXRUNTIME, Backend.TENSORRT])
def test_a_command_that_builds_an_engine_again_is_taken(
    backend: Backend,
    precision: Precision,
    toy_graph: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def far_enough(_: Path) -> None:
        raise OutputError("the options were taken")

    monkeypatch.setattr(build, "check_writable", far_enough)
    monkeypatch.setattr(typed_build, "check_writable", far_enough)
    spec = EngineSpec(ModelSpec("edge-n"), Backend.TENSORRT, precision)
    options = TensorRtOptions(batch=(1, 2, 4), threads=2)
    source = {"model": "edge-n", **typed_build._again(options, lookup=True, calibration=tmp_path, elsewhere=False)}
    files = {"graph.onnx": toy_graph, "graph.plan": toy_graph}
    bundle = write_bundle(tmp_path, spec, files, BuildRecord(source=source))
    command = rebuild_command(bundle, backend)
    assert (f"--calibration {tmp_path}" in command) is not (
        backend is Backend.ONNXRUNTIME and precision is Precision.FP16
    )
    assert run(*shlex.split(command)[2:]) == 2
    assert capsys.readouterr().err == "error: the options were taken\n"
