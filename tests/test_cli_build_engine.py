from __future__ import annotations

from pathlib import Path

import pytest

from rsd_edge.bundle import load_bundle
from rsd_edge.cli import main
from rsd_edge.models.checkpoint import Checkpoint, save_checkpoint


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
    assert "dB against the reference" in out
    assert "ms a 64x64 tile on 1 threads" in out
    assert err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--precision", "int8"), "engines in int8 cannot be built by this version; use --precision fp32"),
        (("--precision", "fp16"), "engines in fp16 cannot be built by this version; use --precision fp32"),
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
    words = [str(toy_bundle) if word == "BUNDLE" else word for word in arguments]
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
