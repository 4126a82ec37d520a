"""Commands that errors offer for another precision: each of them is one that is taken, or there is none."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from rsd_edge import SuperResolver
from rsd_edge.bundle import BuildRecord, resolve_engine, write_bundle
from rsd_edge.cli.build_engine import command
from rsd_edge.cli.kept_engine import kept_engine
from rsd_edge.engines import tensorrt_engine
from rsd_edge.errors import BackendError, ModelError
from rsd_edge.models.checkpoint import Checkpoint, save_checkpoint
from rsd_edge.specs import Backend, EngineSpec, ModelSpec, Precision
from rsd_edge.stream.batch import RunSettings


def offered(message: str) -> tuple[Any, ...] | None:
    """Model, backend and precision of the command that a message offers, as it takes them; None where it has none."""
    found = re.search(r"'(rsd-edge build-engine .*)'(?: and run that)?$", message)
    if found is None:
        assert "build-engine" not in message
        return None
    _, _, *words = shlex.split(found[1])
    values = command.make_context("build-engine", words).params
    return values["model"], values["backend"], values["precision"]


@pytest.mark.parametrize(
    ("precision", "expected"), [(Precision.FP16, ("edge-s", "tensorrt", "fp16")), (Precision.BF16, None)]
)
def test_a_precision_that_does_not_ship(precision: Precision, expected: tuple[Any, ...] | None) -> None:
    with pytest.raises(ModelError, match=r"'edge-s' ships in fp32, int8, not in .*; use one of these") as caught:
        resolve_engine("edge-s", precision)
    assert offered(str(caught.value)) == expected


@pytest.mark.parametrize(
    ("backend", "own", "precision", "expected"),
    [
        (Backend.OPENVINO, Precision.FP32, Precision.INT8, ("my w.safetensors", "openvino", "int8")),
        (Backend.ONNXRUNTIME, Precision.FP32, Precision.FP16, ("my w.safetensors", "tensorrt", "fp16")),
        (Backend.ONNXRUNTIME, Precision.FP32, Precision.BF16, None),
        (Backend.OPENVINO, Precision.INT8, Precision.FP32, ("my w.safetensors", "onnxruntime", "fp32")),
    ],
)
def test_a_folder_of_another_precision(
    tmp_path: Path, backend: Backend, own: Precision, precision: Precision, expected: tuple[Any, ...] | None
) -> None:
    (tmp_path / "graph.onnx").touch()
    spec = EngineSpec(ModelSpec(name="toy"), backend, own)
    record = BuildRecord(source={"model": "my w.safetensors", "digest": "0f3a"})
    folder = write_bundle(tmp_path, spec, tmp_path / "graph.onnx", record).path
    with pytest.raises(ModelError, match="leave the precision out") as caught:
        resolve_engine(folder, precision)
    assert offered(str(caught.value)) == expected


def test_a_checkpoint_on_a_runtime_of_graphs(tiny_weights: Checkpoint, tmp_path: Path) -> None:
    weights = tmp_path / "my tiny.safetensors"
    save_checkpoint(weights, tiny_weights)
    told = "checkpoints are run on onnxruntime in fp32; leave --precision out"
    with pytest.raises(BackendError, match=told) as caught:
        kept_engine(weights, Backend.ONNXRUNTIME, RunSettings(precision="int8"))
    assert offered(str(caught.value)) == (str(weights), "onnxruntime", "int8")
    for precision in ("fp16", "bf16"):
        with pytest.raises(BackendError, match=f"{told}, or use --backend torch$"):
            kept_engine(weights, Backend.ONNXRUNTIME, RunSettings(precision=precision))
    with pytest.raises(BackendError, match="use --backend torch, or build") as caught:
        SuperResolver.load(weights, backend="onnxruntime")
    assert offered(str(caught.value)) == (str(weights), "onnxruntime", None)


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
def test_tensorrt_has_no_engine_to_offer_in_other_floats(precision: Precision) -> None:
    with pytest.raises(BackendError, match=r"^tensorrt engines are built in fp16 or int8, not in .*; use --precision"):
        tensorrt_engine("edge-s", precision)
