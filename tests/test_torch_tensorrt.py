"""The second way to a TensorRT engine, by a compiler that is not installed here."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import fake_tensorrt
import pytest
from fake_tensorrt.cudart import FakeCudart

from rsd_edge.bundle import BuildRecord, Bundle
from rsd_edge.errors import InputError, MissingDependencyError
from rsd_edge.export import tensorrt_judge
from rsd_edge.export.tensorrt_build import build_bundle
from rsd_edge.export.tensorrt_options import TensorRtOptions
from rsd_edge.specs import Backend, EngineSpec, Precision

pytest.importorskip("onnx")

TILE = 48


def test_torch_tensorrt_goes_the_same_way(
    toy_graph: Path, toy_spec: EngineSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    world = fake_tensorrt.install(monkeypatch, "10.3.0", FakeCudart(integrated=True))
    monkeypatch.setattr(tensorrt_judge, "_ROUNDS", 1)
    spec = replace(toy_spec, backend=Backend.TENSORRT, precision=Precision.FP16)
    graphs = {"graph.onnx": toy_graph}
    options = TensorRtOptions(tile=TILE, compiler="torch-tensorrt", level=5)

    class Network(torch.nn.Module):  # type: ignore[name-defined]
        def forward(self, lq: Any, noise: Any) -> Any:
            return lq + noise[:, :3]

    example = {"lq": torch.zeros(1, 3, TILE, TILE), "noise": torch.zeros(1, 5, TILE, TILE)}

    def run(modules: Any) -> Bundle:
        return build_bundle(
            graphs, spec, tmp_path / "engines", BuildRecord(), reference=graphs, options=options, modules=modules
        )

    with pytest.raises(InputError, match=r"give --model a \.safetensors checkpoint"):
        run(None)
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    with pytest.raises(MissingDependencyError, match="--compiler torch-tensorrt needs 'torch_tensorrt'"):
        run({"graph.onnx": (Network(), example)})
    asked: dict[str, Any] = {}

    def convert(program: Any, *, arg_inputs: Any, optimization_level: int, use_explicit_typing: bool = False) -> bytes:
        asked.update(inputs=arg_inputs, level=optimization_level, typed=use_explicit_typing)
        trt = world.trt
        builder = trt.Builder(None)
        network, config, profile = (
            builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)),
            builder.create_builder_config(),
            trt.IOptimizationProfile(),
        )
        trt.OnnxParser(network, None).parse_from_file(str(toy_graph))
        for name, channels in (("lq", 3), ("noise", 5)):
            profile.set_shape(name, *[(1, channels, TILE, TILE)] * 3)
        config.add_optimization_profile(profile)
        return bytes(builder.build_serialized_network(network, config))

    library = ModuleType("torch_tensorrt")
    library.Input = SimpleNamespace  # type: ignore[attr-defined]
    library.dynamo = SimpleNamespace(convert_exported_program_to_serialized_trt_engine=convert)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_tensorrt", library)
    monkeypatch.setattr(torch.nn.Module, "cuda", lambda self: self)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    bundle = run({"graph.onnx": (Network(), example)})
    assert bundle.manifest["target"]["options"]["compiler"] == "torch-tensorrt"
    assert [(given.name, given.shape, given.dtype) for given in asked["inputs"]] == [
        ("lq", (1, 3, TILE, TILE), torch.float16),
        ("noise", (1, 5, TILE, TILE), torch.float16),
    ]
    assert (asked["level"], asked["typed"]) == (5, True)
    assert bundle.manifest["parity"]["psnr_db"] > 100  # the plan is that of the same graph
