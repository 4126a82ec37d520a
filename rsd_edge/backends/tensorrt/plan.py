"""A TensorRT plan that has been loaded: what it takes and gives, and contexts to run it in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rsd_edge.backends.tensorrt.cuda import Cuda
from rsd_edge.backends.tensorrt.library import created, make_logger, numpy_dtype, version_of
from rsd_edge.errors import BackendError, ModelError

Shape = tuple[int, ...]

SCRATCH_ALIGNMENT = 256


@dataclass(frozen=True)
class Tensor:
    """An input or output of a plan."""

    name: str
    dtype: np.dtype[Any]
    shape: Shape
    """-1 where it depends on the batch."""
    smallest: Shape
    usual: Shape
    largest: Shape
    """Of an input with an open shape, what its profile allows; `shape` otherwise."""


class Plan:
    """A deserialised engine. TensorRT's objects die in the order in which they were made, so they live here."""

    def __init__(self, trt: Any, path: Path, *, weights: Path | None = None) -> None:
        """weights: the graph that a plan without weights is filled from.

        Raises ModelError, with TensorRT's reason, for a plan that it does not take.
        """
        self.trt, self.path = trt, path
        self.logger = make_logger(trt)
        self._runtime = created(trt, self.logger, "runtime", lambda: trt.Runtime(self.logger))
        try:
            engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        except OSError as error:
            raise ModelError(f"{path} cannot be read ({error.strerror}); build the engine again") from error
        if engine is None:
            raise ModelError(
                f"{path} is not for TensorRT {trt.__version__} and this GPU ({self.logger.tail()}); build it again "
                "here with 'rsd-edge build-engine --backend tensorrt'"
            )
        self.engine = engine
        if weights is not None:
            self._refit(weights)
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        mode = trt.TensorIOMode
        self.inputs = {name: self._tensor(name) for name in names if engine.get_tensor_mode(name) == mode.INPUT}
        self.outputs = {name: self._tensor(name) for name in names if engine.get_tensor_mode(name) == mode.OUTPUT}
        self.scratch_bytes = int(engine.device_memory_size_v2)

    def context(self, scratch: int, shapes: Mapping[str, Shape]) -> Context:
        """A context with shapes of its own. scratch: address of `scratch_bytes` that contexts take turns in."""
        return Context(self, scratch, shapes)

    def _refit(self, weights: Path) -> None:
        trt, logger = self.trt, self.logger
        refitter = created(trt, logger, "refitter", lambda: trt.Refitter(self.engine, logger))
        parser = created(trt, logger, "parser of weights", lambda: trt.OnnxParserRefitter(refitter, logger))
        if not parser.refit_from_file(str(weights)) or not refitter.refit_cuda_engine():
            raise ModelError(
                f"{self.path} cannot be filled with the weights of {weights} ({self.logger.tail()}); build it again"
            )

    def _tensor(self, name: str) -> Tensor:
        engine = self.engine
        shape = tuple(engine.get_tensor_shape(name))
        dtype = numpy_dtype(self.trt, engine.get_tensor_dtype(name))
        output = engine.get_tensor_mode(name) == self.trt.TensorIOMode.OUTPUT
        if output or -1 not in shape:  # profiles hold open shapes only
            return Tensor(name, dtype, shape, shape, shape, shape)
        smallest, usual, largest = (tuple(limit) for limit in engine.get_tensor_profile_shape(name, 0))
        return Tensor(name, dtype, shape, smallest, usual, largest)


class Context:
    """An execution context whose shapes are fixed, and its CUDA graph once it is warm."""

    def __init__(self, plan: Plan, scratch: int, shapes: Mapping[str, Shape]) -> None:
        self._plan = plan
        strategy = plan.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = plan.engine.create_execution_context(strategy)
        if context is None:
            raise BackendError(
                f"{plan.path} gives no execution context ({plan.logger.tail()}); use a smaller tile or batch"
            )
        self._context = context
        if set(shapes) != set(plan.inputs):
            raise ModelError(f"{plan.path} takes {sorted(plan.inputs)}, not {sorted(shapes)}; build the engine again")
        context.set_device_memory(scratch, plan.scratch_bytes)
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                tensor = plan.inputs[name]
                raise BackendError(
                    f"{plan.path} takes {name} of {tensor.smallest} to {tensor.largest}, not {shape}; "
                    "use the tile and batch that it was built for, or build it again"
                )
        unresolved = context.infer_shapes()
        if unresolved:
            raise BackendError(f"{plan.path} leaves the shapes of {unresolved} open; build the engine again")

    def output_shape(self, name: str) -> Shape:
        """Of these inputs."""
        return tuple(self._context.get_tensor_shape(name))

    def bind(self, addresses: Mapping[str, int]) -> None:
        """Give every input and output its device memory."""
        for name, address in addresses.items():
            if not self._context.set_tensor_address(name, address):
                raise BackendError(f"{self._plan.path} takes no address for '{name}' ({self._plan.logger.tail()})")

    def enqueue(self, stream: int) -> None:
        """Start on what is bound."""
        if not self._context.execute_async_v3(stream):
            raise BackendError(f"{self._plan.path} failed ({self._plan.logger.tail()}); build the engine again")


def scratch_for(cuda: Cuda, plans: list[Plan]) -> int:
    """One block of device memory for plans that never run at the same time."""
    return cuda.device_memory(max(SCRATCH_ALIGNMENT, *(plan.scratch_bytes for plan in plans)))


def built_for(trt: Any) -> str:
    """The version in the words of a manifest."""
    return ".".join(str(part) for part in version_of(trt))
