"""TileEngine on TensorRT: a ring of slots, so that copies, the network and the caller work at the same time."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsd_edge.backends.base import Ticket
from rsd_edge.backends.device_frames import replace_non_finite
from rsd_edge.backends.tensorrt.cuda import Cuda, Staged
from rsd_edge.backends.tensorrt.library import load_tensorrt
from rsd_edge.backends.tensorrt.plan import Context, Plan, Shape, scratch_for
from rsd_edge.errors import BackendError, ModelError
from rsd_edge.frames import SCALE
from rsd_edge.machine import usable_cores
from rsd_edge.specs import EngineSpec, TileSpec

log = logging.getLogger(__name__)

SLOTS = 3
"""One is uploaded, one computed, one downloaded and read."""
REBUILD = "build the engine again in another precision"
_WARM_UPS = 2
"""Runs before a capture: TensorRT loads kernels and settles on its first ones, which a graph cannot hold."""

Array = NDArray[np.float32]


class TensorRtEngine:
    """Runs the fused tile of an edge model, tiles of one size in batches of one size.

    `submit` copies into the slot's own buffers and returns; three batches may be in flight. Serves one thread at a
    time. A tile whose detail is not finite becomes plain bicubic, with a warning.
    """

    def __init__(
        self,
        plan_path: Path,
        spec: EngineSpec,
        *,
        tile: TileSpec | None = None,
        threads: int | None = None,
        weights: Path | None = None,
        slots: int = SLOTS,
    ) -> None:
        """tile: its batch is taken, its size is the plan's. weights: the graph, for a plan without any.

        Raises MissingDependencyError, BackendError or ModelError if TensorRT, the GPU or the plan does not fit.
        """
        self.spec, self.path = spec, plan_path
        self.threads = threads if threads is not None else usable_cores()
        self.ahead = slots
        trt = load_tensorrt()
        self._open = ExitStack()
        self.cuda = Cuda()
        self._open.callback(self.cuda.close)
        try:
            self.plan = Plan(trt, plan_path, weights=weights)
            self.tile = _tile_of(self.plan, tile or TileSpec.of(spec.model))
            self.check_shapes()
            self.scratch = scratch_for(self.cuda, [self.plan])
            self._upload, self.stream, self._download = (self.cuda.stream() for _ in range(3))
            self._slots = [self._new_slot() for _ in range(slots)]
        except BaseException:
            self.close()
            raise
        self._free = deque(self._slots)
        self._closed = False

    def prepare(self, n: int, h: int, w: int) -> None:
        """Run every slot until it is warm, and record its CUDA graph."""
        self._check(n, h, w)
        for slot in self._slots:
            slot.run.warm_up(self.stream, slot.inputs.values())

    def submit(self, lq: Array, noise: Array, detail: Array) -> Ticket:
        """See TileEngine; `lq` and `noise` may be written again on return."""
        self._check(lq.shape[0], *lq.shape[2:])
        if not self._free:
            raise BackendError(f"all {self.ahead} slots are in use; collect a batch before another is submitted")
        self.prepare(lq.shape[0], *lq.shape[2:])
        slot, cuda = self._free[0], self.cuda
        for name, given in (("lq", lq), ("noise", noise)):
            np.copyto(slot.inputs[name].host, given, casting="same_kind")
            cuda.upload(slot.inputs[name], self._upload)
        cuda.record(slot.uploaded, self._upload)
        cuda.wait(self.stream, slot.uploaded)
        slot.run(self.stream)
        cuda.record(slot.computed, self.stream)
        cuda.wait(self._download, slot.computed)
        cuda.download(slot.detail, self._download)
        cuda.record(slot.done, self._download)
        return self._free.popleft(), detail

    def collect(self, ticket: Ticket) -> None:
        """See TileEngine."""
        slot, detail = ticket
        try:
            self.cuda.finish(slot.done)
            np.copyto(detail, rows_of(slot.detail.host))
            replace_non_finite(detail, str(self.path), REBUILD)
        finally:
            self._free.append(slot)

    def check_open(self) -> None:
        """Raise BackendError if the engine was closed."""
        if self._closed:
            raise BackendError(f"the engine for {self.path} is closed; open it again")

    def before_close(self, work: Callable[[], None]) -> None:
        """Do this when the engine is closed, before its device is released."""
        self._open.callback(work)

    def close(self) -> None:
        """Release the device; the engine cannot be used afterwards. Calling it again does nothing."""
        self._closed = True
        self._slots = []
        self._free = deque()
        self._open.close()

    def __enter__(self) -> TensorRtEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def input_shapes(self) -> dict[str, Shape]:
        """Of one batch, by the name of the input."""
        side, n = self.tile.size, self.tile.batch
        return {"lq": (n, 3, side, side), "noise": (n, self.spec.model.noise_channels, side, side)}

    def check_shapes(self) -> None:
        """Raise ModelError for a plan with other inputs or outputs than a fused tile."""
        found = {name: tensor.largest for name, tensor in self.plan.inputs.items()}
        sound = {name: shape[1:] for name, shape in self.input_shapes().items()}
        if {name: shape[1:] for name, shape in found.items()} != sound or len(self.plan.outputs) != 1:
            raise ModelError(
                f"{self.path} takes {found} and gives {sorted(self.plan.outputs)}, but a tile of "
                f"{self.spec.model.name} takes {self.input_shapes()} and gives one detail; build the engine again"
            )

    @property
    def output(self) -> str:
        """Name of the plan's only output."""
        return str(next(iter(self.plan.outputs)))

    def new_context(self) -> Context:
        """One more context for a batch, with the scratch memory of all; its runs belong on `stream`."""
        return self.plan.context(self.scratch, self.input_shapes())

    def _new_slot(self) -> _Slot:
        context, cuda = self.new_context(), self.cuda
        inputs = {name: cuda.staged(shape, self.plan.inputs[name].dtype) for name, shape in self.input_shapes().items()}
        detail = cuda.staged(self.detail_shape(context), self.plan.outputs[self.output].dtype)
        context.bind({**{name: staged.device for name, staged in inputs.items()}, self.output: detail.device})
        events = (cuda.event() for _ in range(3))
        return _Slot(Replay(cuda, context, str(self.path)), inputs, detail, *events)

    def detail_shape(self, context: Context) -> Shape:
        """(n, 4h, 4w, 3), or (n, 3, 4h, 4w) for the kernels of frames. Raises ModelError for anything else."""
        n, large = self.tile.batch, SCALE * self.tile.size
        shape = context.output_shape(self.output)
        if shape not in ((n, large, large, 3), (n, 3, large, large)):
            raise ModelError(f"{self.path} gives {shape} for {n} tiles of {self.tile.size}; build the engine again")
        return shape

    def _check(self, n: int, h: int, w: int) -> None:
        self.check_open()
        side = self.tile.size
        if (n, h, w) != (self.tile.batch, side, side):
            raise BackendError(
                f"{self.path} was opened for {self.tile.batch} tiles of {side}x{side}, not {n} of {h}x{w}; "
                "open it for that batch, or build it for that tile"
            )


class Replay:
    """Runs a context, from its CUDA graph as soon as there is one."""

    def __init__(self, cuda: Cuda, context: Context, what: str) -> None:
        self._cuda, self._context, self._what = cuda, context, what
        self.graph: int | None = None
        self._warm = False

    def warm_up(self, stream: int, inputs: Iterable[Staged]) -> None:
        """Run a few times and record the graph, once; if that fails, a warning says so and runs are enqueued.

        inputs: uploaded first, since an index that is rubbish would read beyond its table.
        """
        if self._warm:
            return
        self._warm = True
        for staged in inputs:
            self._cuda.upload(staged, stream)
        for _ in range(_WARM_UPS):
            self._context.enqueue(stream)
        self._cuda.drain(stream)
        try:
            self.graph = self._cuda.capture(stream, lambda: self._context.enqueue(stream))
        except BackendError as error:
            log.warning("%s runs without a CUDA graph, which costs latency: %s", self._what, error)

    def __call__(self, stream: int) -> None:
        """Start on what the context is bound to."""
        if self.graph is None:
            self._context.enqueue(stream)
        else:
            self._cuda.launch(self.graph, stream)


@dataclass(frozen=True)
class _Slot:
    run: Replay
    inputs: Mapping[str, Staged]
    detail: Staged
    uploaded: int
    computed: int
    done: int


def rows_of(detail: NDArray[Any]) -> NDArray[Any]:
    """Detail as frames are stored, whichever way the plan gives it: RGB planes are turned round."""
    return detail if detail.shape[-1] == 3 else detail.transpose(0, 2, 3, 1)[..., ::-1]


def _tile_of(plan: Plan, wish: TileSpec) -> TileSpec:
    lq = plan.inputs.get("lq")
    if lq is None or len(lq.largest) != 4 or lq.smallest[1:] != lq.largest[1:] or lq.largest[2] != lq.largest[3]:
        raise ModelError(f"{plan.path} has no input lq (n, 3, s, s) of one side s; build the engine again")
    smallest, largest = lq.smallest[0], lq.largest[0]
    if not smallest <= wish.batch <= largest:
        raise BackendError(
            f"batch is {wish.batch} and {plan.path} takes {smallest} to {largest} tiles at once; "
            "choose one of these, or build the engine again for it"
        )
    return replace(wish, size=lq.largest[2], fixed=True)
