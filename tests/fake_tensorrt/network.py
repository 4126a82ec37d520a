"""What the fake's builder does, on networks from real ONNX files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from fake_tensorrt.cudart import FakeCudart

MAGIC = b"FAKEPLAN"
_DTYPES = {1: "FLOAT", 10: "HALF", 7: "INT64", 6: "INT32"}


@dataclass
class World:
    """What all objects of one fake library share."""

    version: str
    trt: Any
    cudart: FakeCudart
    faults: set[str] = field(default_factory=set)
    """none, parse, out-of-memory, serialize, deserialize, context, execute, not-finite, wrong-shape, timing-cache; and
    no-builder, no-network, no-config, no-profile, no-parser, no-cache, no-timings, no-runtime, no-refitter."""
    touch: Callable[[np.ndarray], None] | None = None
    """Changes what engines give, batch by batch."""
    built: list[dict[str, Any]] = field(default_factory=list)
    """What each call of the builder was given."""
    read: set[tuple[str, str]] = field(default_factory=set)
    """(class, member) that were looked up; those of the fake's own making are among them."""
    written: set[tuple[str, str]] = field(default_factory=set)


def graph_io(model: onnx.ModelProto) -> tuple[dict[str, tuple[str, tuple[int, ...]]], dict[str, str]]:
    """Inputs with type and shape (-1 where symbolic), outputs with type."""
    weights = {item.name for item in model.graph.initializer}
    inputs = {}
    for value in model.graph.input:
        if value.name not in weights:
            kind = value.type.tensor_type
            shape = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim)
            inputs[value.name] = (_DTYPES[kind.elem_type], shape)
    return inputs, {value.name: _DTYPES[value.type.tensor_type.elem_type] for value in model.graph.output}


class Object:
    """Base of all: made with the world it lives in, which a generated class supplies."""

    _world: World

    def _fail(self, fault: str) -> None:
        """As pybind11 does where a constructor of the library gives nothing."""
        if fault in self._world.faults:
            raise TypeError("pybind11::init(): factory function returned nullptr")


class ILogger(Object):
    def __init__(self) -> None:
        pass

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError("ILogger.log is pure virtual")


class IProgressMonitor(Object):
    def __init__(self) -> None:
        pass


class ITensor(Object):
    def _set(self, name: str, kind: str, shape: tuple[int, ...]) -> ITensor:
        self.name, self.shape = name, shape
        self.dtype = getattr(self._world.trt.DataType, kind)
        return self


class INetworkDefinition(Object):
    _path: Path
    _tensors: list[Any]

    @property
    def num_inputs(self) -> int:
        return len(self._tensors)

    @property
    def num_layers(self) -> int:
        return len(self._model.graph.node)

    def get_input(self, index: int) -> Any:
        return self._tensors[index]

    def _load(self, path: Path) -> None:
        self._path, self._model = path, onnx.load(path)
        make = self._world.trt.ITensor
        self._tensors = [make()._set(name, *what) for name, what in graph_io(self._model)[0].items()]


class ParserError(Object):
    def _set(self, text: str, operator: str) -> ParserError:
        self._text, self._operator = text, operator
        return self

    def desc(self) -> str:
        return self._text

    def node(self) -> int:
        return 3

    def node_name(self) -> str:
        return "node_of_3"

    def node_operator(self) -> str:
        return self._operator


class OnnxParser(Object):
    def __init__(self, network: Any, logger: Any) -> None:
        self._fail("no-parser")
        self._network, self._logger = network, logger
        self._errors: list[Any] = []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> Any:
        return self._errors[index]

    def parse_from_file(self, path: str) -> bool:
        if "parse" in self._world.faults:
            make = self._world.trt.ParserError
            self._errors = [make()._set("no importer", "Mystery"), make()._set("bad type", "Conv")]
            return False
        self._network._load(Path(path))
        return True


class IOptimizationProfile(Object):
    def __init__(self) -> None:
        self._shapes: dict[str, list[tuple[int, ...]]] = {}

    def set_shape(self, name: str, smallest: Any, usual: Any, largest: Any) -> None:
        for low, mid, high in zip(smallest, usual, largest, strict=True):
            assert 0 < low <= mid <= high, (name, smallest, usual, largest)
        self._shapes[name] = [tuple(smallest), tuple(usual), tuple(largest)]


class ITimingCache(Object):
    def _set(self, data: bytes) -> ITimingCache:
        self._data = data
        return self

    def serialize(self) -> Any:
        return None if "no-timings" in self._world.faults else host_memory(self._data + b"+timings")


class IBuilderConfig(Object):
    builder_optimization_level = 3
    hardware_compatibility_level: Any = None
    profiling_verbosity: Any = None
    progress_monitor: Any = None

    def __init__(self) -> None:
        self._limits: dict[str, int] = {}
        self._flags: set[str] = {"TF32"}
        self._profiles: list[Any] = []
        self._cache: Any = None

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        assert isinstance(size, int)
        self._limits[pool.name] = size

    def set_flag(self, flag: Any) -> None:
        self._flags.add(flag.name)

    def clear_flag(self, flag: Any) -> None:
        self._flags.discard(flag.name)

    def add_optimization_profile(self, profile: Any) -> int:
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, data: bytes) -> Any:
        if "no-cache" in self._world.faults:
            return None
        return self._world.trt.ITimingCache()._set(bytes(data))

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        if "timing-cache" in self._world.faults and cache._data:
            return False
        self._cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self._cache


class Builder(Object):
    def __init__(self, logger: Any) -> None:
        self._fail("no-builder")
        self._logger = logger

    def create_network(self, flags: int = 0) -> Any:
        assert isinstance(flags, int)
        if "no-network" in self._world.faults:
            return None
        network = self._world.trt.INetworkDefinition()
        network._flags = flags
        return network

    def create_builder_config(self) -> Any:
        return None if "no-config" in self._world.faults else self._world.trt.IBuilderConfig()

    def create_optimization_profile(self) -> Any:
        return None if "no-profile" in self._world.faults else self._world.trt.IOptimizationProfile()

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        world = self._world
        if not self._typed(network):
            self._error("the network is not strongly typed, so that FP16 and INT8 would need flags of their own")
            return None
        world.built.append({"flags": config._flags, "limits": config._limits, "network": network._flags,
                            "level": config.builder_optimization_level, "cache": config._cache,
                            "compatibility": config.hardware_compatibility_level,
                            "verbosity": config.profiling_verbosity,
                            "shapes": self._shapes(network, config._profiles)})  # fmt: skip
        if config.progress_monitor is not None:
            monitor = config.progress_monitor
            monitor.phase_start("Building Engine", None, 2)
            monitor.phase_start("Tactics", "Building Engine", 5)
            if not all(monitor.step_complete("Tactics", step) for step in range(5)):
                return None
            monitor.phase_finish("Tactics")
            monitor.phase_finish("Building Engine")
        if "out-of-memory" in world.faults:
            self._error("[defaultAllocator.cpp::allocate] Cuda Runtime (out of memory)")
            return None
        if "none" in world.faults:
            self._error("Error Code 10: could not find any implementation for node Conv_3")
            return None
        shapes = self._shapes(network, config._profiles)
        header = {"version": world.version, "gpu": world.cudart.name.decode(), "shapes": shapes,
                  "graph": str(network._path), "stripped": "STRIP_PLAN" in config._flags,
                  "compatibility": getattr(config.hardware_compatibility_level, "name", "NONE")}  # fmt: skip
        text = json.dumps(header).encode()
        graph = b"" if header["stripped"] else network._path.read_bytes()
        return host_memory(MAGIC + len(text).to_bytes(4, "little") + text + graph)

    def _typed(self, network: Any) -> bool:
        """From 11 on all are."""
        bit = 1 << int(self._world.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        return int(self._world.version.split(".")[0]) >= 11 or bool(network._flags & bit)

    def _shapes(self, network: Any, profiles: list[Any]) -> dict[str, Any]:
        shapes = {}
        known = profiles[0]._shapes if profiles else {}
        for tensor in network._tensors:
            fixed = all(length > 0 for length in tensor.shape)
            limits = known.get(tensor.name, [tuple(tensor.shape)] * 3 if fixed else None)
            assert limits is not None, f"no profile for {tensor.name}"
            assert all(d in (-1, a) or d in (-1, b) for d, a, b in zip(tensor.shape, limits[0], limits[2], strict=True))
            shapes[tensor.name] = limits
        return shapes

    def _error(self, text: str) -> None:
        self._logger.log(self._world.trt.ILogger.ERROR, text)


class HostMemory(bytes):
    """Bytes by the buffer protocol, which a class cannot offer on its own before Python 3.12."""

    @property
    def nbytes(self) -> int:
        return len(self)


def host_memory(data: bytes) -> HostMemory:
    return HostMemory(data)
