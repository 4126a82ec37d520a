"""One frame in, one frame out. No files, nothing printed."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rsd_edge.arguments import check_real
from rsd_edge.backends.base import Progress, Ticket, TileEngine
from rsd_edge.errors import BackendError, InputError
from rsd_edge.frames import (
    SCALE,
    DType,
    Frame,
    ParallelCompositor,
    PixelT,
    bicubic_bands,
    bicubic_x4,
    check_frame,
    check_out,
)
from rsd_edge.noise import NoiseField
from rsd_edge.resample import Bands
from rsd_edge.specs import TileSpec
from rsd_edge.tiling import TileMerger, TilePlan, TileReader, plan_tiles

_NOISE_BYTES_KEPT = 72 << 20
"""Enough for the default tiles of a 1920 x 1080 frame and five channels."""


@dataclass(frozen=True)
class _Job:
    """What is to be made of a frame."""

    frame: Frame
    noise: NoiseField
    strength: float
    out: Frame
    """The whole result or, if `banded`, one row of tiles after the other."""
    progress: Progress | None
    banded: bool = False

    def report(self, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(done, total)


@dataclass
class _Batch:
    """Buffers of one batch, and which tiles are in them."""

    lq: NDArray[np.float32]
    detail: NDArray[np.float32]
    tiles: range = range(0)
    ticket: Ticket = None


class TileNoise:
    """The noise of a frame's tiles, round by round.

    While it is small, all of it is kept: the next frame of a film uses the same. Otherwise only what is in flight.
    """

    def __init__(self, plan: TilePlan, rounds: int, in_flight: int, batch_shape: tuple[int, int, int, int]) -> None:
        """in_flight: rounds that are in use at once. batch_shape: (n, channels, tile_h, tile_w)."""
        self._plan = plan
        size = 4 * math.prod(batch_shape)
        kept = rounds if rounds * size <= _NOISE_BYTES_KEPT else in_flight
        self._batches = np.zeros((kept, *batch_shape), np.float32)
        self._drawn: list[tuple[int, int] | None] = [None] * kept
        """The seed and the round that each batch holds."""

    def batch(self, field: NoiseField, turn: int, tiles: range) -> NDArray[np.float32]:
        """The noise of one round, for reading."""
        slot = turn % len(self._drawn)
        batch: NDArray[np.float32] = self._batches[slot]
        if self._drawn[slot] != (field.seed, turn):
            self._drawn[slot] = None  # whatever interrupts the drawing leaves nothing that passes for complete
            channels, h, w = batch.shape[1:]
            for samples, index in zip(batch, tiles, strict=False):  # a fixed engine's last batch may have room to spare
                field.normal(channels, *self._plan.origin(index), h, w, out=samples)
            self._drawn[slot] = (field.seed, turn)
        return batch


class _Workspace:
    """Everything that depends on the size and dtype of frames only; reused while they stay the same."""

    def __init__(self, plan: TilePlan, dtype: DType, engine: TileEngine, pool: Executor) -> None:
        self.plan, self.dtype = plan, dtype
        self._fixed = engine.tile.fixed
        self._size = engine.tile.batch if self._fixed else min(engine.tile.batch, plan.count)
        self.rounds = -(-plan.count // self._size)
        self.batches = [self._new_batch() for _ in range(min(engine.ahead, self.rounds))]
        noise_shape = (self._size, engine.spec.model.noise_channels, plan.tile_h, plan.tile_w)
        self.noise = TileNoise(plan, self.rounds, len(self.batches), noise_shape)
        self.reader = TileReader(plan, dtype)
        self.merger = TileMerger(plan)
        self.compositor = ParallelCompositor(*plan.largest_region(), dtype, pool, engine.threads)

    def tiles(self, turn: int) -> range:
        """The tiles of one round; the last round may hold fewer than the others."""
        return range(turn * self._size, min((turn + 1) * self._size, self.plan.count))

    def submitted(self, tiles: range) -> int:
        """How many tiles the engine is given for these: a fixed engine always takes a full batch."""
        return self._size if self._fixed else len(tiles)

    def _new_batch(self) -> _Batch:
        n, h, w = self._size, self.plan.tile_h, self.plan.tile_w
        return _Batch(lq=np.zeros((n, 3, h, w), np.float32), detail=np.zeros((n, SCALE * h, SCALE * w, 3), np.float32))


class NumpyFramePath:
    """The reference FramePath: gather, noise, engine, merge, add to the bicubic base, all tile by tile.

    No float buffer is as large as a frame, unless one tile is or the noise of a small frame. Buffers are kept for the
    last frame size, so that further frames of that size allocate nothing as large but their result, and not even that
    if `out` is given. Calls from several threads run one after the other; a progress callback must not call back into
    the same path.
    """

    def __init__(self, engine: TileEngine) -> None:
        """Between tiles, the engine's threads are used here."""
        self.engine = engine
        self._pool = ThreadPoolExecutor(max(1, engine.threads - 1), thread_name_prefix="rsd-edge")
        self._closed = False
        self._workspace: _Workspace | None = None
        self.alone = OneAtATime()

    def __call__(
        self,
        frame: NDArray[PixelT],
        *,
        seed: int = 0,
        strength: float = 1.0,
        out: NDArray[PixelT] | None = None,
        progress: Progress | None = None,
    ) -> NDArray[PixelT]:
        """See FramePath."""
        frame = check_frame(frame)
        height, width = frame.shape[:2]
        out = check_out(out, frame, (SCALE * height, SCALE * width, 3))
        job = _Job(frame, NoiseField(seed), check_strength(strength), out, progress)
        if job.strength == 0.0:
            bicubic_x4(frame, out)
            job.report(1, 1)
            return out
        with self.alone():
            space = self._workspace_for(plan_tiles(height, width, self.engine.tile), frame.dtype)
            space.reader.load(frame)
            for _ in self._run(space, job):
                pass
        return out

    def bands(
        self, frame: NDArray[PixelT], *, seed: int = 0, strength: float = 1.0, progress: Progress | None = None
    ) -> Bands:
        """The result of `__call__` from top to bottom, in bands of whole rows that are never all in memory.

        A band is overwritten when the next one is asked for. From the first band until the generator is exhausted or
        closed, other calls wait. Raises what `__call__` raises, for arguments at once.
        """
        frame, noise, strength = check_frame(frame), NoiseField(seed), check_strength(strength)
        if strength == 0.0:
            return bicubic_bands(frame, TileSpec.size, progress)
        return self._bands(frame, noise, strength, progress)

    def _bands(self, frame: NDArray[PixelT], noise: NoiseField, strength: float, progress: Progress | None) -> Bands:
        height, width = frame.shape[:2]
        with self.alone():
            space = self._workspace_for(plan_tiles(height, width, self.engine.tile), frame.dtype)
            plan = space.plan
            rows = min(height, plan.largest_region()[0])
            band = np.empty((SCALE * rows, SCALE * width, 3), frame.dtype)
            space.reader.load(frame)
            for index in self._run(space, _Job(frame, noise, strength, band, progress, banded=True)):
                row, column = divmod(index, plan.x.count)
                if column + 1 == plan.x.count:
                    start, stop = plan.y.finished(row)
                    yield band[: SCALE * (stop - start)]

    def prepare(self, height: int, width: int, dtype: DType) -> None:
        """Allocate buffers and warm the engine up for frames of this kind. Raises BackendError, InputError."""
        with self.alone():
            space = self._workspace_for(plan_tiles(height, width, self.engine.tile), dtype)
            for n in sorted({space.submitted(space.tiles(turn)) for turn in (0, space.rounds - 1)}):
                self.engine.prepare(n, space.plan.tile_h, space.plan.tile_w)

    def close(self) -> None:
        """See WholeFramePath."""
        self._closed = True
        self._pool.shutdown(wait=False)
        self._workspace = None

    def _workspace_for(self, plan: TilePlan, dtype: DType) -> _Workspace:
        if self._workspace is None or (self._workspace.plan, self._workspace.dtype) != (plan, dtype):
            self._workspace = None  # frees the old buffers before the new ones are made
            self._workspace = _Workspace(plan, dtype, self.engine, self._pool)
        return self._workspace

    def _run(self, space: _Workspace, job: _Job) -> Iterator[int]:
        """The tiles in raster order, each when it has been written.

        An engine that can work ahead is kept busy: while it does the next batches, a finished one is written.
        """
        in_flight: list[_Batch] = []
        try:
            for turn in range(space.rounds):
                batch = space.batches[turn % len(space.batches)]
                self._submit(space, batch, turn, job)
                in_flight.append(batch)
                if len(in_flight) == len(space.batches):
                    yield from self._finish(space, in_flight.pop(0), job)
            while in_flight:
                yield from self._finish(space, in_flight.pop(0), job)
        finally:
            # After an error the engine may still be writing into buffers that the next frame will use.
            for batch in in_flight:
                with suppress(BackendError):
                    self.engine.collect(batch.ticket)

    def _submit(self, space: _Workspace, batch: _Batch, turn: int, job: _Job) -> None:
        batch.tiles = space.tiles(turn)
        space.reader.read(batch.tiles, batch.lq)
        noise = space.noise.batch(job.noise, turn, batch.tiles)
        n = space.submitted(batch.tiles)
        batch.ticket = self.engine.submit(batch.lq[:n], noise[:n], batch.detail[:n])

    def _finish(self, space: _Workspace, batch: _Batch, job: _Job) -> Iterator[int]:
        self.engine.collect(batch.ticket)
        if self._closed:
            raise BackendError("this resolver was closed in the middle of an image; load another one")
        for slot, index in enumerate(batch.tiles):
            detail = space.merger.merge(index, batch.detail[slot])
            region = space.plan.finished(index)
            top = region.y0 if job.banded else 0
            space.compositor.add(job.frame, region, detail, job.strength, job.out, top)
            job.report(index + 1, space.plan.count)
            yield index


class OneAtATime:
    """`with turns():` lets one thread of this process in at a time."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._user: int | None = None
        """The thread that holds the lock."""

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Wait for other threads. Raises InputError where the same one would wait for itself, BackendError in a fork.

        A fork has the memory of its parent, and none of the threads that engines leave their work to.
        """
        if self._process != os.getpid():
            raise BackendError(
                "this resolver was opened in another process, whose threads a fork does not have; load one here, or "
                "start processes with spawn"
            )
        if self._user == threading.get_ident():
            raise InputError(
                "this resolver is in the middle of an image: use up or close what bands() returned before the next "
                "call, and make none from a progress callback"
            )
        with self._lock:
            self._user = threading.get_ident()
            try:
                yield
            finally:
                self._user = None


def check_strength(strength: float) -> float:
    """The strength itself. Raises InputError if it is not between 0 and 1."""
    check_real("strength", strength)
    if not (math.isfinite(strength) and 0.0 <= strength <= 1.0):
        raise InputError(f"strength is {strength:.12g}; it must lie between 0 (bicubic) and 1 (all detail)")
    return float(strength)
