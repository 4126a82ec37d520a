"""A FramePath on the device: the frame goes up, the result comes down, and between them nothing crosses the bus.

    frame (uint8) -> frame_tiles -> plan, batch by batch -> merge_tiles -> result (uint8)
                     noise_field ------^

The three kernels come from a pack in the bundle (`rsd-edge build-engine --kernels FOLDER`); everything from the upload
to the download is one CUDA graph for each size of frame. Frames of 16 bits, and frames whose tiles do not fit into
memory at once, take the path over NumPy, which gives the same picture tile by tile.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsd_edge.backends.base import Progress
from rsd_edge.backends.tensorrt.cuda import Cuda
from rsd_edge.backends.tensorrt.engine import TensorRtEngine
from rsd_edge.backends.tensorrt.plan import Context
from rsd_edge.errors import BackendError, RsdEdgeError
from rsd_edge.frames import SCALE, DType, PixelT, check_frame, check_out
from rsd_edge.kernels.launch import CudaDriver, Driver, KernelPack
from rsd_edge.kernels.sequences import FrameLaunches
from rsd_edge.noise import NoiseField
from rsd_edge.pipeline import NumpyFramePath, OneAtATime, check_strength
from rsd_edge.resample import Bands
from rsd_edge.tiling import TilePlan, plan_tiles

log = logging.getLogger(__name__)

PROBED_ROW = 16
"""One row of the detail in so many is looked at for numbers that are not finite. Four LR rows apart: what goes wrong
within the network spreads by at least its last three convolutions before it comes out."""
_SHARE_OF_MEMORY = 0.6
"""Of what is free; the rest is left to decoders and encoders."""
_DTYPES = {np.dtype(np.float32): "fp32", np.dtype(np.float16): "fp16"}
_SEED_SIGN = 1 << 63


class DeviceFramePath:
    """Enlarges uint8 frames with one plan and three kernels; see FramePath. Calls run one after the other."""

    def __init__(self, engine: TensorRtEngine, kernels: Path, driver: Driver | None = None) -> None:
        """kernels: a folder of `rsd-edge build-kernels`. driver: None for CUDA's.

        Raises ModelError for a pack that does not fit the GPU, BackendError for a plan whose detail is not in planes.
        """
        self.engine = engine
        self._pack = KernelPack(kernels, engine.cuda.device.sm, driver or CudaDriver())
        self._context = engine.new_context()
        shape, dtypes = engine.detail_shape(self._context), _dtypes(engine)
        if shape[1] != 3 or not _DTYPES.keys() >= set(dtypes):
            raise BackendError(
                f"{engine.path} gives {shape} and works on {', '.join(map(str, dtypes))}, which the kernels of frames "
                "do not know; build it with 'rsd-edge build-engine --kernels FOLDER'"
            )
        self._numpy = NumpyFramePath(engine)
        self._space: _Space | None = None
        self.alone = OneAtATime()
        engine.before_close(self.close)

    def __call__(
        self,
        frame: NDArray[PixelT],
        *,
        seed: int = 0,
        strength: float = 1.0,
        out: NDArray[PixelT] | None = None,
        progress: Progress | None = None,
    ) -> NDArray[PixelT]:
        """See FramePath; `progress` is called once where the device does the whole frame."""
        frame = check_frame(frame)
        height, width = frame.shape[:2]
        field, strength = NoiseField(seed), check_strength(strength)
        with self.alone():
            space = self._space_for(height, width, frame.dtype) if strength else None
            if space is None:
                return self._numpy(frame, seed=seed, strength=strength, out=out, progress=progress)
            out = check_out(out, frame, (SCALE * height, SCALE * width, 3))
            np.copyto(out, space.enlarge(frame, field.seed, strength))
        if progress is not None:
            progress(space.plan.count, space.plan.count)
        return out

    def bands(
        self, frame: NDArray[PixelT], *, seed: int = 0, strength: float = 1.0, progress: Progress | None = None
    ) -> Bands:
        """See NumpyFramePath; the whole result is in memory where the device does the whole frame."""
        frame = check_frame(frame)
        field, strength = NoiseField(seed), check_strength(strength)
        with self.alone():
            fits = strength > 0 and self._space_for(frame.shape[0], frame.shape[1], frame.dtype) is not None
        if not fits:
            return self._numpy.bands(frame, seed=seed, strength=strength, progress=progress)
        return self._bands(frame, field.seed, strength, progress)

    def _bands(self, frame: NDArray[Any], seed: int, strength: float, progress: Progress | None) -> Bands:
        with self.alone():
            space = self._space_for(frame.shape[0], frame.shape[1], frame.dtype)
            if space is None:  # memory went in the meantime
                raise BackendError("the GPU is out of memory; close other programs, or use a smaller tile or batch")
            result, plan = space.enlarge(frame, seed, strength), space.plan
            for row in range(plan.y.count):
                start, stop = (SCALE * edge for edge in plan.y.finished(row))
                if progress is not None:
                    progress((row + 1) * plan.x.count, plan.count)
                yield result[start:stop]

    def prepare(self, height: int, width: int, dtype: DType) -> None:
        """Allocate buffers, warm the engine up and record the graph for frames of this kind."""
        with self.alone():
            if self._space_for(height, width, dtype) is None:
                self._numpy.prepare(height, width, dtype)

    def close(self) -> None:
        """Free the buffers; the engine is closed by whoever opened it."""
        if self._space is not None:
            self._space.close()
        self._space = None

    def _space_for(self, height: int, width: int, dtype: DType) -> _Space | None:
        """Buffers for a size of frame; None if it does not run on the device as a whole."""
        self.engine.check_open()
        if dtype != np.uint8:
            return None
        plan = plan_tiles(height, width, self.engine.tile)
        if self._space is not None and self._space.plan == plan:
            return self._space
        self.close()
        self.engine.cuda.make_current()
        wanted, free = _bytes(self.engine, plan), self.engine.cuda.free_bytes()
        if wanted > _SHARE_OF_MEMORY * free:
            log.info(
                "frames of %dx%d take %d MiB at once and %d are free: they are done tile by tile",
                width, height, wanted >> 20, free >> 20,
            )  # fmt: skip
            return None
        self._space = _Space(self.engine, self._context, self._pack, plan)
        return self._space


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
        bad = self._not_finite()
        if bad:
            self._leave_out(bad)
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
        self._row = SCALE * plan.tile_w
        rows = count * 3 * SCALE * plan.tile_h // PROBED_ROW
        self._probe, self._probed = cuda.pinned((rows, self._row), engine.plan.outputs[engine.output].dtype)
        for staged in (self._origins, self._table):
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
        bytes_of_row = self._probe.itemsize * self._row
        cuda.download_rows(self._probed, self._detail, bytes_of_row, PROBED_ROW, len(self._probe), engine.stream)
        self._merge()

    def _merge(self) -> None:
        self._launch.merge(
            detail=self._detail, frame=self._frame.device, strength=self._strength.device, out=self._result.device
        )
        self._cuda.download(self._result, self._engine.stream)

    def _not_finite(self) -> list[int]:
        sums = self._probe.sum(axis=1, dtype=np.float64)
        rows = np.flatnonzero(~np.isfinite(sums)) * PROBED_ROW
        tiles = {int(row) // (3 * SCALE * self.plan.tile_h) for row in rows}
        return sorted(tile for tile in tiles if tile < self.plan.count)

    def _leave_out(self, tiles: list[int]) -> None:
        """Merge again without the detail of some tiles."""
        size = self._bytes[2]
        for tile in tiles:
            self._cuda.clear(self._detail + tile * size, size, self._engine.stream)
        self._merge()
        self._cuda.drain(self._engine.stream)
        log.warning(
            "%d of %d tiles from %s were not finite and became plain bicubic; build the engine again in another "
            "precision if it happens often",
            len(tiles), self.plan.count, self._engine.path,
        )  # fmt: skip


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
