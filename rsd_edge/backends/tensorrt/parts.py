"""TileEngine on TensorRT for the published models: three plans and a loop over steps."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsd_edge.backends.base import Ticket
from rsd_edge.backends.device_frames import replace_non_finite
from rsd_edge.backends.onnx_parts import Array, PartsEngine
from rsd_edge.backends.tensorrt.cuda import Cuda, Staged
from rsd_edge.backends.tensorrt.engine import REBUILD, Replay
from rsd_edge.backends.tensorrt.library import load_tensorrt
from rsd_edge.backends.tensorrt.plan import Plan, Shape, scratch_for
from rsd_edge.bundle import DECODER, ENCODER, GENERATOR, plan_name
from rsd_edge.errors import BackendError, ModelError
from rsd_edge.frames import SCALE
from rsd_edge.machine import usable_cores
from rsd_edge.specs import EngineSpec, TileSpec

GRAPHS = (ENCODER, GENERATOR, DECODER)


class TensorRtPartsEngine(PartsEngine):
    """Encoder, generator and decoder as plans, one after the other on one stream and with one scratch memory.

    The latents cross the bus between them, for the prior and the steps, which NumPy does: 0.05 MB for a tile of 64.
    """

    def __init__(
        self,
        folder: Path,
        spec: EngineSpec,
        *,
        tile: TileSpec | None = None,
        threads: int | None = None,
        weights: bool = False,
    ) -> None:
        """weights: the plans have none, and are filled from the graphs beside them.

        Raises MissingDependencyError, BackendError or ModelError if TensorRT, the GPU or the plans do not fit.
        """
        trt = load_tensorrt()
        self._folder = folder
        self._open = ExitStack()
        self._cuda = Cuda()
        self._open.callback(self._cuda.close)
        self._parts: dict[str, _Part] = {}
        try:
            plans = {
                name: Plan(trt, folder / plan_name(name), weights=folder / name if weights else None) for name in GRAPHS
            }
            whole = _tile_of(plans, folder, tile or TileSpec.of(spec.model))
            scratch, stream = scratch_for(self._cuda, list(plans.values())), self._cuda.stream()
            self._parts = {name: _Part(self._cuda, plan, scratch, stream, whole.batch) for name, plan in plans.items()}
        except BaseException:
            self.close()
            raise
        takes_noise = "eps" in plans[GENERATOR].inputs
        super().__init__(spec, threads if threads is not None else usable_cores(), whole, takes_noise=takes_noise)

    def prepare(self, n: int, h: int, w: int) -> None:
        """Run every plan until it is warm, and record its CUDA graph."""
        for part in self._parts.values():
            part.warm_up()

    def submit(self, lq: Array, noise: Array, detail: Array) -> Ticket:
        """See TileEngine; the detail is complete on return."""
        super().submit(lq, noise, detail)
        replace_non_finite(detail, str(self._folder), REBUILD)

    def run_part(self, part: str, inputs: Mapping[str, NDArray[Any]]) -> Array:
        """What one plan gives for inputs of the batch that the engine was opened for, by their names."""
        return self._run(part, **inputs)

    def close(self) -> None:
        """See TileEngine."""
        self._parts = {}
        self._open.close()

    def _run(self, part: str, **inputs: NDArray[Any]) -> Array:
        if not self._parts:
            raise BackendError(f"the engine for {self.spec.model.name} is closed; open it again")
        return self._parts[part](inputs)


class _Part:
    """One plan with its buffers."""

    def __init__(self, cuda: Cuda, plan: Plan, scratch: int, stream: int, batch: int) -> None:
        self._cuda, self._plan, self._stream = cuda, plan, stream
        shapes = {name: _with_batch(tensor.largest, tensor.shape, batch) for name, tensor in plan.inputs.items()}
        context = plan.context(scratch, shapes)
        (name,) = plan.outputs
        self._inputs: dict[str, Staged] = {
            given: cuda.staged(shape, plan.inputs[given].dtype) for given, shape in shapes.items()
        }
        self._output = cuda.staged(context.output_shape(name), plan.outputs[name].dtype)
        context.bind({**{given: staged.device for given, staged in self._inputs.items()}, name: self._output.device})
        self._replay = Replay(cuda, context, str(plan.path))

    def warm_up(self) -> None:
        self._replay.warm_up(self._stream, self._inputs.values())

    def __call__(self, inputs: dict[str, NDArray[Any]]) -> Array:
        for name, value in inputs.items():
            staged = self._inputs[name]
            if staged.host.shape != value.shape:
                raise BackendError(
                    f"{self._plan.path} was opened for {name} of {staged.host.shape}, not {value.shape}; "
                    "open it for that batch"
                )
        self.warm_up()
        for name, value in inputs.items():
            staged = self._inputs[name]
            np.copyto(staged.host, value, casting="same_kind")
            self._cuda.upload(staged, self._stream)
        self._replay(self._stream)
        self._cuda.download(self._output, self._stream)
        self._cuda.drain(self._stream)
        return self._output.host.astype(np.float32)


def _with_batch(largest: Shape, shape: Shape, batch: int) -> Shape:
    """What a batch takes: the index of the step has one entry whatever the batch."""
    return (batch, *largest[1:]) if shape[0] < 0 or len(largest) == 4 else largest


def _tile_of(plans: dict[str, Plan], folder: Path, wish: TileSpec) -> TileSpec:
    for name, plan in plans.items():
        if len(plan.outputs) != 1:
            raise ModelError(f"{folder / name} gives {sorted(plan.outputs)} where one output is expected; build again")
    sides = {
        plans[ENCODER].inputs["image"].largest[-1] // SCALE,
        plans[GENERATOR].inputs["z_t"].largest[-1],
        plans[DECODER].inputs["z0"].largest[-1],
    }
    if len(sides) != 1:
        raise ModelError(f"the plans in {folder} are for tiles of {sorted(sides)}; build the engine again")
    limits = plans[GENERATOR].inputs["z_t"]
    if not limits.smallest[0] <= wish.batch <= limits.largest[0]:
        raise BackendError(
            f"batch is {wish.batch} and the plans in {folder} take {limits.smallest[0]} to {limits.largest[0]} tiles "
            "at once; choose one of these, or build the engine again for it"
        )
    return replace(wish, size=sides.pop(), fixed=True)
