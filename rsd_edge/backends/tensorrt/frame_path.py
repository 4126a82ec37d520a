"""A FramePath on the device: the frame goes up, the result comes down, and between them nothing crosses the bus.

    frame (uint8) -> frame_tiles -> plan, batch by batch -> merge_tiles -> result (uint8)
                     noise_field ------^

The three kernels come from a pack in the bundle (`rsd-edge build-engine --kernels FOLDER`); everything from the upload
to the download is one CUDA graph for each size of frame. merge_tiles tells whether any detail was not finite; only then
are the tiles looked at one by one.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsd_edge.backends.device_frames import DeviceFrames, Space, warn_of_lost_tiles
from rsd_edge.backends.tensorrt.cuda import Cuda
from rsd_edge.backends.tensorrt.engine import REBUILD, TensorRtEngine
from rsd_edge.backends.tensorrt.plan import Context
from rsd_edge.errors import BackendError, RsdEdgeError
from rsd_edge.frames import SCALE
from rsd_edge.kernels.launch import CudaDriver, Driver, KernelPack
from rsd_edge.kernels.sequences import FrameLaunches
from rsd_edge.tiling import TilePlan

log = logging.getLogger(__name__)

_DTYPES = {np.dtype(np.float32): "fp32", np.dtype(np.float16): "fp16"}
_SEED_SIGN = 1 << 63


class DeviceFramePath(DeviceFrames[TensorRtEngine]):
    """Enlarges uint8 frames with one plan and three kernels."""

    def __init__(self, engine: TensorRtEngine, kernels: Path, driver: Driver | None = None) -> None:
        """kernels: a folder of `rsd-edge build-kernels`. driver: None for CUDA's.

        Raises ModelError for a pack that does not fit the GPU, BackendError for a plan whose detail is not in planes.
        """
        super().__init__(engine)
        self._pack = KernelPack(kernels, engine.cuda.device.sm, driver or CudaDriver())
        self._context = engine.new_context()
        shape, dtypes = engine.detail_shape(self._context), _dtypes(engine)
        if shape[1] != 3 or not _DTYPES.keys() >= set(dtypes):
            raise BackendError(
                f"{engine.path} gives {shape} and works on {', '.join(map(str, dtypes))}, which the kernels of frames "
                "do not know; build it with 'rsd-edge build-engine --kernels FOLDER'"
            )

    def new_space(self, plan: TilePlan) -> Space:
        """See DeviceFrames."""
        return _Space(self.engine, self._context, self._pack, plan)

    def memory(self, plan: TilePlan) -> tuple[int, int]:
        """See DeviceFrames."""
        self.engine.cuda.make_current()
        return _bytes(self.engine, plan), self.engine.cuda.free_bytes()


class _Space:
    """Buffers for one size of frame, and the graph that works on them."""

    def __init__(self, engine: TensorRtEngine, context: Context, pack: KernelPack, plan: TilePlan) -> None:
        self.plan, self._engine, self._context = plan, engine, context
        tiles, noise, detail = (_DTYPES[dtype] for dtype in _dtypes(engine))
        self._launch = FrameLaunches(pack, plan, tiles, noise, detail, engine.stream)
        self._cuda: Cuda = engine.cuda.child()
        self._graph: int | None = None
        self._seed: int | None = None
        try:
            self._allocate()
            self._record()
        except BaseException:
            self.close()
            raise

    def enlarge(self, frame: NDArray[Any], seed: int, strength: float) -> NDArray[np.uint8]:
        """The enlarged frame (4h, 4w, 3); the next call overwrites it."""
        stream, cuda = self._engine.stream, self._cuda
        cuda.make_current()
        np.copyto(self._frame.host, frame)
        self._strength.host[0] = strength
        if self._seed != seed:
            self._draw(seed)
        if self._graph is None:
            self._work()
        else:
            cuda.launch(self._graph, stream)
        cuda.drain(stream)
        if self._not_finite.host[0]:
            self._leave_out()
        return self._result.host

    def close(self) -> None:
        """Free the buffers."""
        self._cuda.close()

    def _allocate(self) -> None:
        plan, cuda, engine = self.plan, self._cuda, self._engine
        height, width, count = plan.y.length, plan.x.length, _padded(engine, plan)
        self._frame = cuda.staged((height, width, 3), np.uint8)
        self._result = cuda.staged((SCALE * height, SCALE * width, 3), np.uint8)
        self._strength = cuda.staged((1,), np.float32)
        self._seeds, self._origins = cuda.staged((plan.count,), np.int64), cuda.staged((plan.count, 2), np.int32)
        self._origins.host[:] = self._launch.origins
        self._table = cuda.staged((1 << 16,), np.int16)
        np.copyto(self._table.host, np.frombuffer(self._launch.pack.noise_table(), "<i2"))
        self._bytes = _tile_bytes(engine)
        self._lq, self._noise, self._detail = (cuda.device_memory(count * size) for size in self._bytes)
        for address, size in zip((self._lq, self._noise), self._bytes, strict=False):
            cuda.clear(address, count * size, engine.stream)  # where the last batch has room to spare
        self._not_finite = cuda.staged((1,), np.int32)
        for staged in (self._origins, self._table, self._not_finite):
            cuda.upload(staged, engine.stream)

    def _record(self) -> None:
        """Work once, for what is loaded and chosen on first runs, and then into a graph."""
        self._draw(0)
        self._work()
        self._cuda.drain(self._engine.stream)
        try:
            self._graph = self._cuda.capture(self._engine.stream, self._work)
        except RsdEdgeError as error:
            log.warning("frames run without a CUDA graph, which costs latency: %s", error)

    def _draw(self, seed: int) -> None:
        """Noise for all tiles. It stays for the frames that follow with the same seed."""
        self._seeds.host[:] = seed - 2 * (seed & _SEED_SIGN)
        self._cuda.upload(self._seeds, self._engine.stream)
        self._launch.draw(
            noise=self._noise,
            seeds=self._seeds.device,
            origins=self._origins.device,
            table=self._table.device,
            channels=self._engine.spec.model.noise_channels,
        )
        self._cuda.drain(self._engine.stream)  # the seeds may be written again
        self._seed = seed

    def _work(self) -> None:
        engine, cuda = self._engine, self._cuda
        for staged in (self._frame, self._strength):
            cuda.upload(staged, engine.stream)
        self._launch.cut(frame=self._frame.device, tiles=self._lq)
        lq, noise, detail = self._bytes
        for first in range(0, _padded(engine, self.plan), engine.tile.batch):
            self._context.bind(
                {
                    "lq": self._lq + first * lq,
                    "noise": self._noise + first * noise,
                    engine.output: self._detail + first * detail,
                }
            )
            self._context.enqueue(engine.stream)
        self._merge()

    def _merge(self) -> None:
        self._launch.merge(
            detail=self._detail,
            frame=self._frame.device,
            strength=self._strength.device,
            not_finite=self._not_finite.device,
            out=self._result.device,
        )
        for staged in (self._result, self._not_finite):
            self._cuda.download(staged, self._engine.stream)

    def _leave_out(self) -> None:
        """Merge again without the detail of tiles that are not finite. It is rare, so that time does not matter."""
        cuda, stream, size = self._cuda.child(), self._engine.stream, self._bytes[2]
        shape = (3, SCALE * self.plan.tile_h, SCALE * self.plan.tile_w)
        detail, address = cuda.pinned(shape, self._engine.plan.outputs[self._engine.output].dtype)
        lost = 0
        for tile in range(self.plan.count):
            cuda.fetch(address, self._detail + tile * size, size, stream)
            cuda.drain(stream)
            if not np.isfinite(detail).all():
                cuda.clear(self._detail + tile * size, size, stream)
                lost += 1
        self._not_finite.host[0] = 0
        cuda.upload(self._not_finite, stream)
        self._merge()
        cuda.drain(stream)
        cuda.close()
        if lost:
            warn_of_lost_tiles(lost, self.plan.count, str(self._engine.path), REBUILD)


def _padded(engine: TensorRtEngine, plan: TilePlan) -> int:
    """Tiles in whole batches."""
    return -(-plan.count // engine.tile.batch) * engine.tile.batch


def _dtypes(engine: TensorRtEngine) -> tuple[np.dtype[Any], ...]:
    """Of the LR pixels, the noise and the detail."""
    plan = engine.plan
    return plan.inputs["lq"].dtype, plan.inputs["noise"].dtype, plan.outputs[engine.output].dtype


def _tile_bytes(engine: TensorRtEngine) -> tuple[int, ...]:
    """Of one tile's LR pixels, noise and detail."""
    lq, noise = (math.prod(engine.input_shapes()[name][1:]) for name in ("lq", "noise"))
    values = (lq, noise, 3 * SCALE**2 * engine.tile.size**2)
    return tuple(count * dtype.itemsize for count, dtype in zip(values, _dtypes(engine), strict=True))


def _bytes(engine: TensorRtEngine, plan: TilePlan) -> int:
    """Device memory of a frame size, but for a few small arrays."""
    frame = 3 * plan.y.length * plan.x.length
    return _padded(engine, plan) * sum(_tile_bytes(engine)) + (1 + SCALE**2) * frame
