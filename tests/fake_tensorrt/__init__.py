"""A `tensorrt` of any version in surface.json: its names, its integers, and ONNX Runtime behind them.

surface.json holds what the real bindings of 10.3.0, 10.16.1 and 11.4.0 have: names of the module, members of the
classes that this project uses, and all values of their enums. A name that a version lacks raises AttributeError here as
it would there; a name that it has and the fake does not do raises NotImplementedError.
"""

from __future__ import annotations

import json
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fake_tensorrt import engine, network
from fake_tensorrt.cudart import FakeCudart
from fake_tensorrt.network import Object, World

VERSIONS = ("10.3.0", "10.16.1.11", "11.4.0.106")
_SURFACE = json.loads(Path(__file__).with_name("surface.json").read_text())


class _Value:
    """One value of an enum; like pybind11's it is an integer only when asked to be."""

    def __init__(self, enum: str, name: str, value: int) -> None:
        self._enum, self.name, self.value = enum, name, value

    def __int__(self) -> int:
        return self.value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Value) and (self._enum, self.value) == (other._enum, other.value)

    def __hash__(self) -> int:
        return hash((self._enum, self.value))

    def __repr__(self) -> str:
        return f"<{self._enum}.{self.name}: {self.value}>"


def _enum(name: str, members: dict[str, int]) -> type:
    return type(name, (), {key: _Value(name, key, value) for key, value in members.items()})


def _restricted(name: str, members: set[str], world: World) -> type:
    """A class with these members and no others, doing what the class of that name in network.py or engine.py does."""
    behaviour = getattr(network, name, None) or getattr(engine, name, Object)

    def get(self: Any, key: str) -> Any:
        own = type(self) is cls  # classes of Python that inherit from one of these may have what they like
        if own and key in members:
            world.read.add((name, key))
        if own and not key.startswith("_") and key not in members:
            raise AttributeError(f"'{name}' of TensorRT {world.version} has no attribute '{key}'")
        if (
            own
            and key in members
            and not hasattr(behaviour, key)
            and key not in object.__getattribute__(self, "__dict__")
        ):
            raise NotImplementedError(f"the fake does not do {name}.{key}")
        return object.__getattribute__(self, key)

    def put(self: Any, key: str, value: Any) -> None:
        if type(self) is cls and not key.startswith("_") and key not in members:
            raise AttributeError(f"'{name}' of TensorRT {world.version} has no attribute '{key}'")
        if type(self) is cls and key in members:
            world.written.add((name, key))
        object.__setattr__(self, key, value)

    cls = type(name, (behaviour,), {"_world": world, "__getattribute__": get, "__setattr__": put})
    return cls


def make_module(version: str, cudart: FakeCudart) -> tuple[ModuleType, World]:
    """The module of a version and the world behind it."""
    surface = _SURFACE[version]
    module = ModuleType("tensorrt")
    module.__spec__ = ModuleSpec("tensorrt", None)  # torch asks whether it is there
    world = World(version, module, cudart)
    module.__version__ = version  # type: ignore[attr-defined]
    for name in surface["top"]:
        setattr(module, name, type(name, (), {}))
    module.Dims = type("Dims", (tuple,), {})  # type: ignore[attr-defined]
    for name, members in surface["enums"].items():
        if "." not in name:
            setattr(module, name, _enum(name, members))
    for name, members in surface["classes"].items():
        setattr(module, name, _restricted(name, set(members), world))
    for name, value in surface["enums"]["ILogger.Severity"].items():
        setattr(module.ILogger, name, _Value("Severity", name, value))
    return module, world


def install(patch: pytest.MonkeyPatch, version: str, cudart: FakeCudart | None = None) -> World:
    """Let `import tensorrt` and `from cuda.bindings import runtime` find the fakes."""
    runtime = cudart or FakeCudart()
    module, world = make_module(version, runtime)
    bindings = ModuleType("cuda.bindings")
    bindings.runtime = runtime  # type: ignore[attr-defined]
    patch.setitem(__import__("sys").modules, "tensorrt", module)
    patch.setitem(__import__("sys").modules, "cuda", ModuleType("cuda"))
    patch.setitem(__import__("sys").modules, "cuda.bindings", bindings)
    return world
