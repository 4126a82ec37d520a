"""What the fake's engines do: they are ONNX Runtime sessions on the memory that they are given."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from fake_tensorrt.network import MAGIC, Object, graph_io

SCRATCH = 4096


class Runtime(Object):
    def __init__(self, logger: Any) -> None:
        self._fail("no-runtime")
        self._logger = logger

    def deserialize_cuda_engine(self, data: bytes) -> Any:
        world = self._world
        sound = data[: len(MAGIC)] == MAGIC
        length = int.from_bytes(data[8:12], "little") if sound else 0
        header = json.loads(data[12 : 12 + length]) if sound else {}
        if not sound or header["version"] != world.version or "deserialize" in world.faults:
            self._logger.log(world.trt.ILogger.ERROR, "Serialized engine version mismatch")
            return None
        engine = world.trt.ICudaEngine()
        engine._open(header, data[12 + length :])
        return engine


class ICudaEngine(Object):
    device_memory_size_v2 = SCRATCH

    def _open(self, header: dict[str, Any], graph: bytes) -> None:
        self._header = header
        if graph:
            self._fill(graph)

    def _fill(self, graph: bytes) -> None:
        folder = Path(self._header["graph"]).parent
        model = onnx.load_from_string(graph)
        onnx.external_data_helper.load_external_data_for_model(model, str(folder))
        self._inputs, self._outputs = graph_io(model)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        self._session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    @property
    def num_io_tensors(self) -> int:
        return len(self._inputs) + len(self._outputs)

    @property
    def num_layers(self) -> int:
        return 7

    @property
    def hardware_compatibility_level(self) -> Any:
        return getattr(self._world.trt.HardwareCompatibilityLevel, self._header["compatibility"])

    def get_tensor_name(self, index: int) -> str:
        return [*self._inputs, *self._outputs][index]

    def get_tensor_mode(self, name: str) -> Any:
        modes = self._world.trt.TensorIOMode
        return modes.INPUT if name in self._inputs else modes.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        kind = self._inputs[name][0] if name in self._inputs else self._outputs[name]
        return getattr(self._world.trt.DataType, kind)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self._inputs:
            low, _, high = self._header["shapes"][name]
            return tuple(a if a == b else -1 for a, b in zip(low, high, strict=True))
        return (-1, -1, -1, -1)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        assert profile == 0
        assert -1 in self.get_tensor_shape(name), f"{name} is in no profile"
        return [tuple(shape) for shape in self._header["shapes"][name]]

    def create_execution_context(self, strategy: Any) -> Any:
        assert strategy.name == "USER_MANAGED"
        if "context" in self._world.faults:
            return None
        context = self._world.trt.IExecutionContext()
        context._engine = self
        return context


class IExecutionContext(Object):
    _engine: ICudaEngine

    def __init__(self) -> None:
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._scratch: tuple[int, int] | None = None
        self._results: dict[str, tuple[int, ...]] = {}

    def set_device_memory(self, address: int, size: int) -> None:
        self._world.cudart.check(address, size)
        assert size >= SCRATCH
        self._scratch = (address, size)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self._engine._header["shapes"][name]
        fits = len(shape) == len(low) and all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True))
        if fits and "wrong-shape" not in self._world.faults:
            self._shapes[name] = tuple(shape)
            return True
        return False

    def infer_shapes(self) -> list[str]:
        return [name for name in self._engine._inputs if name not in self._shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self._shapes:
            return self._shapes[name]
        if not self._results:
            kinds = {"FLOAT": np.float32, "HALF": np.float16, "INT64": np.int64, "INT32": np.int32}
            feeds = {
                given: np.zeros(self._shapes[given], kinds[kind]) for given, (kind, _) in self._engine._inputs.items()
            }
            found = self._engine._session.run(list(self._engine._outputs), feeds)
            self._results = {key: value.shape for key, value in zip(self._engine._outputs, found, strict=True)}
        return self._results[name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        if name not in self._engine._inputs and name not in self._engine._outputs:
            return False
        self._addresses[name] = int(address)
        return True

    def execute_async_v3(self, stream: int) -> bool:
        engine, world = self._engine, self._world
        if "execute" in world.faults or self._scratch is None:
            return False
        assert int(stream) != 0, "the default stream"
        world.cudart.check(*self._scratch)
        inputs = {name: self._view(name, self._shapes[name]) for name in engine._inputs}
        outputs = {name: self._view(name, self.get_tensor_shape(name)) for name in engine._outputs}
        world.cudart.give(int(stream), self._work(inputs, outputs))
        return True

    def _view(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        dtype = {"FLOAT": np.float32, "HALF": np.float16, "INT64": np.int64, "INT32": np.int32}
        kind = self._engine.get_tensor_dtype(name).name
        return self._world.cudart.view(self._addresses[name], shape, dtype[kind])

    def _work(self, inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray]) -> Callable[[], None]:
        session, world = self._engine._session, self._world

        def work() -> None:
            for target, value in zip(outputs.values(), session.run(list(outputs), inputs), strict=True):
                np.copyto(target, value)
                if "not-finite" in world.faults:
                    target[0].reshape(-1)[: target[0].size // 2] = np.inf
                if world.touch is not None:
                    world.touch(target)

        return work


class Refitter(Object):
    _graph: bytes

    def __init__(self, engine: Any, logger: Any) -> None:
        self._fail("no-refitter")
        self._engine = engine

    def refit_cuda_engine(self) -> bool:
        self._engine._fill(self._graph)
        return True


class OnnxParserRefitter(Object):
    def __init__(self, refitter: Any, logger: Any) -> None:
        self._refitter = refitter

    def refit_from_file(self, path: str) -> bool:
        self._refitter._graph = Path(path).read_bytes()
        return True
