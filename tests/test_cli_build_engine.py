from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from rsd_edge.bundle import load_bundle
from rsd_edge.cli import main
from rsd_edge.models.checkpoint import Checkpoint, save_checkpoint
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
        (("--precision", "fp16"), "onnxruntime engines for CPUs cannot be built in fp16; use --precision fp32 or int8"),
        (("--calibration", ".", "--model", "BUNDLE"), "calibration images serve INT8 engines and this one is fp32"),
        (("--calibration", "absent"), "'absent' does not exist"),
        (("--precision", "int8", "--calibration", "EMPTY", "--model", "BUNDLE"), "contains no images"),
        (("--precision", "fp8"), "'fp8' is not one of 'fp32', 'fp16', 'int8'"),
        (("--backend", "coreml"), "'coreml' is not"),
        (("--model", "none.safetensors"), "none.safetensors does not exist"),
        (("--model", "edge-z"), "'edge-z' is neither a shipped engine"),
        (("--threads", "0", "--model", "BUNDLE"), "threads is 0"),
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
