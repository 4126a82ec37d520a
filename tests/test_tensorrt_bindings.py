"""Names, enum values and conversions against NVIDIA's own bindings, without NVIDIA's libraries or a GPU.

The bindings come as small wheels, and load over empty stubs of the libraries. What needs a builder or an engine cannot
be run on them: that is what the fake is for, and this says that the fake has the real names.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_tensorrt
import numpy as np
import pytest
from fake_tensorrt import cudart
from fake_tensorrt.cudart import FakeCudart

import rsd_edge.backends.tensorrt
import rsd_edge.export
from rsd_edge.backends import open_engine
from rsd_edge.bundle import BuildRecord
from rsd_edge.export.tensorrt_build import build_bundle
from rsd_edge.export.tensorrt_options import FLAGS, TensorRtOptions
from rsd_edge.specs import Backend, EngineSpec, Precision, TileSpec

pytestmark = pytest.mark.slow

WHEELS = {
    "10.3.0": "tensorrt_cu12_bindings==10.3.0",
    "10.16.1.11": "tensorrt_cu12_bindings==10.16.1.11",
    "11.4.0.106": "tensorrt_cu13_bindings==11.4.0.106",
}
CUDA_WHEELS = {"12": "cuda-bindings==12.9.*", "13": "cuda-bindings==13.*"}
STUBS = (
    "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getNvOnnxParserVersion",
    "initLibNvInferPlugins", "getBuilderPluginRegistry", "getPluginRegistry",
)  # fmt: skip
RUNTIME = Path(str(rsd_edge.backends.tensorrt.__file__)).parent
SOURCES = sorted([*RUNTIME.glob("*.py"), *Path(str(rsd_edge.export.__file__)).parent.glob("tensorrt_*.py")])
GUARDED: list[str] = []
"""Names that some version lacks and that are looked up with hasattr; there are none that are written out."""


def unpacked(requirement: str, folder: Path) -> Path:
    """A wheel's contents; skips where the registry does not give it."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        pytest.skip(f"{requirement} cannot be downloaded here: {done.stderr.strip()[-200:]}")
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / "wheel")
    return folder / "wheel"


def stubs(folder: Path, major: str) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("stub libraries need a C compiler, and there is no 'cc'")
    source = folder / "stub.c"
    source.write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in STUBS))
    for library in ("nvinfer", "nvonnxparser", "nvinfer_plugin"):
        name = f"lib{library}.so.{major}"
        subprocess.run(
            [compiler, "-shared", "-fPIC", str(source), "-o", str(folder / name), f"-Wl,-soname,{name}"], check=True
        )
    return folder


@pytest.fixture
def used(toy_graph: Path, toy_spec: EngineSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Members that building, opening and running look up, by a run on the fake."""

    def run(version: str) -> dict[str, dict[str, list[str]]]:
        monkeypatch.setattr("rsd_edge.export.tensorrt_judge._ROUNDS", 1)
        world = fake_tensorrt.install(monkeypatch, version, FakeCudart(integrated=True))
        spec = replace(toy_spec, backend=Backend.TENSORRT, precision=Precision.FP16)
        graphs = {"graph.onnx": toy_graph}
        options = TensorRtOptions(tile=48, batch=(1, 2, 2), flags=FLAGS)
        bundle = build_bundle(graphs, spec, tmp_path / "e", BuildRecord(), reference=graphs, options=options)
        with open_engine(bundle.graph_path, bundle.spec, tile=TileSpec.of(bundle.spec.model)) as engine:
            lq, noise = np.zeros((1, 3, 48, 48), np.float32), np.zeros((1, 5, 48, 48), np.float32)
            engine.collect(engine.submit(lq, noise, np.empty((1, 192, 192, 3), np.float32)))
        found: dict[str, dict[str, list[str]]] = {"read": {}, "written": {}}
        for kind, pairs in (("read", world.read), ("written", world.written)):
            for name, key in sorted(pairs):
                found[kind].setdefault(name, []).append(key)
        # The fake fills these in itself, as the real parser and builder do.
        found["written"] = {
            name: [key for key in keys if (name, key) not in {("ITensor", "name"), ("ITensor", "dtype")}]
            for name, keys in found["written"].items()
        }
        assert "execute_async_v3" in found["read"]["IExecutionContext"]
        return found

    return run


@pytest.mark.parametrize("version", WHEELS)
def test_every_name_is_in_the_bindings(version: str, used: Any, tmp_path: Path) -> None:
    members = used(version)
    wheel = unpacked(WHEELS[version], tmp_path / "download")
    libraries = stubs(tmp_path, version.partition(".")[0])
    surface = json.loads(Path(str(fake_tensorrt.__file__)).with_name("surface.json").read_text())[version]
    facts = tmp_path / "facts.json"
    facts.write_text(
        json.dumps({"sources": [str(path) for path in SOURCES], "guarded": GUARDED, "surface": surface, **members})
    )
    child = Path(__file__).with_name("bindings_child.py")
    environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries), "PYTHONPATH": str(wheel)}
    done = subprocess.run(
        [sys.executable, str(child), str(facts)],
        capture_output=True, text=True, timeout=120, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == {}


CUDA_CHILD = """
import json, sys
from cuda.bindings import runtime
wanted, values = json.loads(sys.argv[1]), json.loads(sys.argv[2])
missing = [name for name in wanted if not hasattr(runtime, name)]
for name, value in values.items():
    enum, _, member = name.partition('.')
    found = getattr(getattr(runtime, enum), member, None) if member else getattr(runtime, enum)
    if found is None or int(found) != value:
        missing.append(f'{name} is {found}, not {value}')
for field in ('name', 'major', 'minor', 'integrated', 'totalGlobalMem'):
    if not hasattr(runtime.cudaDeviceProp, field):
        missing.append(field)
for call in (runtime.cudaGetDeviceCount, runtime.cudaDeviceSynchronize, runtime.cudaMemGetInfo):
    if not isinstance(call(), tuple):
        missing.append(f'{call} gives no tuple')
from rsd_edge.backends.tensorrt.cuda import Cuda
try:
    Cuda()
    said = 'a GPU'
except Exception as error:
    said = f'{type(error).__name__}: {error}'
sys.stdout.write(json.dumps([missing, said]))
"""


@pytest.mark.parametrize("major", CUDA_WHEELS)
def test_every_name_is_in_cuda_python(major: str, tmp_path: Path) -> None:
    wheel = unpacked(CUDA_WHEELS[major], tmp_path)
    unpacked("cuda-pathfinder", tmp_path)
    tree = ast.parse((RUNTIME / "cuda.py").read_text())
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr.startswith("cuda")}
    enums = {"cudaError_t", "cudaMemcpyKind", "cudaStreamCaptureMode"}
    members = {name for name in names for enum in enums if hasattr(getattr(cudart, enum), name)}
    functions = sorted(names - members)
    assert len(functions) > 25
    values = {
        f"{enum}.{item.name}": item.value for enum in enums for item in getattr(cudart, enum)
    }  # fmt: skip
    flags = [name for name in functions if isinstance(getattr(FakeCudart, name, None), int)]
    values |= {name: getattr(FakeCudart, name) for name in flags}
    done = subprocess.run(
        [sys.executable, "-c", CUDA_CHILD, json.dumps(functions), json.dumps(values)], cwd=tmp_path,
        capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "PYTHONPATH": str(wheel)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    missing, said = json.loads(done.stdout)
    assert missing == []
    assert said == "a GPU" or said.startswith("BackendError: CUDA cannot be used here: ")
