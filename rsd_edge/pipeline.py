"""One frame in, one frame out. No files, nothing printed."""

from __future__ import annotations

import logging
import math
import threading
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from rsd_edge.backends import open_engine
from rsd_edge.backends.base import Progress, Ticket, TileEngine
from rsd_edge.bundle import staleness
from rsd_edge.errors import BackendError, InputError
from rsd_edge.frames import SCALE, DType, Frame, ParallelCompositor, PixelT, bicubic_x4, check_frame, check_out, shrink
from rsd_edge.machine import usable_cores
from rsd_edge.noise import NoiseField
from rsd_edge.sampling import with_steps
from rsd_edge.selection import Choice, choose
from rsd_edge.specs import Backend, Precision, TileSpec
from rsd_edge.tiling import TileMerger, TilePlan, TileReader, plan_tiles

log = logging.getLogger(__name__)

EnumT = TypeVar("EnumT", bound=Enum)

CHECKPOINT_SUFFIX = ".safetensors"
_BYTES = np.dtype(np.uint8)
_NOISE_BYTES_KEPT = 72 << 20
"""Enough for the default tiles of a 1920 x 1080 frame and five channels."""


@dataclass(frozen=True)
class _Job:
    """What is to be made of a frame."""

    frame: Frame
    noise: NoiseField
    strength: float
    out: Frame
    progress: Progress | None

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


class _TileNoise:
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
        self.noise = _TileNoise(plan, self.rounds, len(self.batches), noise_shape)
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
        self._workspace: _Workspace | None = None
        self._lock = threading.Lock()

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
        job = _Job(frame, NoiseField(seed), _check_strength(strength), out, progress)
        if job.strength == 0.0:
            bicubic_x4(frame, out)
            job.report(1, 1)
            return out
        with self._lock:
            space = self._workspace_for(plan_tiles(height, width, self.engine.tile), frame.dtype)
            space.reader.load(frame)
            self._run(space, job)
        return out

    def prepare(self, height: int, width: int, dtype: DType) -> None:
        """Allocate buffers and warm the engine up for frames of this kind. Raises BackendError, InputError."""
        with self._lock:
            space = self._workspace_for(plan_tiles(height, width, self.engine.tile), dtype)
            for n in sorted({space.submitted(space.tiles(turn)) for turn in (0, space.rounds - 1)}):
                self.engine.prepare(n, space.plan.tile_h, space.plan.tile_w)

    def _workspace_for(self, plan: TilePlan, dtype: DType) -> _Workspace:
        if self._workspace is None or (self._workspace.plan, self._workspace.dtype) != (plan, dtype):
            self._workspace = None  # frees the old buffers before the new ones are made
            self._workspace = _Workspace(plan, dtype, self.engine, self._pool)
        return self._workspace

    def _run(self, space: _Workspace, job: _Job) -> None:
        """Keep an engine that can work ahead busy: while it does the next batches, a finished one is written."""
        in_flight: list[_Batch] = []
        try:
            for turn in range(space.rounds):
                batch = space.batches[turn % len(space.batches)]
                self._submit(space, batch, turn, job)
                in_flight.append(batch)
                if len(in_flight) == len(space.batches):
                    self._finish(space, in_flight.pop(0), job)
            while in_flight:
                self._finish(space, in_flight.pop(0), job)
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

    def _finish(self, space: _Workspace, batch: _Batch, job: _Job) -> None:
        self.engine.collect(batch.ticket)
        for slot, index in enumerate(batch.tiles):
            detail = space.merger.merge(index, batch.detail[slot])
            space.compositor.add(job.frame, space.plan.finished(index), detail, job.strength, job.out)
            job.report(index + 1, space.plan.count)


class SuperResolver:
    """Enlarges images with one engine.

        with SuperResolver.load("edge-s") as enlarge:
            result = enlarge(image_bgr)

    Calls from several threads run one after the other; for work in parallel, load one SuperResolver for each thread.
    """

    def __init__(self, engine: TileEngine) -> None:
        """Take over an open engine; `close` closes it."""
        self.engine = engine
        self.choice: Choice | None = None
        """How `load` came to this engine; None if it was given."""
        self._path = NumpyFramePath(engine)
        self._lock = threading.Lock()
        self._enlarged: NDArray[Any] | None = None

    @classmethod
    def load(
        cls,
        model: str | Path = "edge-s",
        *,
        precision: str | Precision | None = None,
        backend: str | Backend | None = None,
        threads: int | None = None,
        tile: int | None = None,
        batch: int = 1,
        steps: int | None = None,
    ) -> SuperResolver:
        """Open a shipped engine by name, or a bundle folder or a checkpoint (.safetensors) by path.

        precision: fp32 or int8, None for the fastest on this machine, which is timed once and remembered, and which
        `choice` tells afterwards; a folder has one precision. backend: onnxruntime or openvino, None for the fastest of
        those installed where the precision is open too, and otherwise for the one that the engine was built for.
        threads: CPU threads, None for all cores; tile: side of a tile in LR pixels, halo included, None for the
        default; batch: tiles that the engine takes at once.
        A checkpoint runs on torch, in fp32, bf16 or fp16. steps: evaluations of the generator, None for as many as the
        model says.
        Raises ModelError, BackendError or InputError.
        """
        if threads is not None and threads < 1:
            raise InputError(f"threads is {threads}; it must be at least 1")
        wanted, runtime = _check(Precision, "precision", precision), _check(Backend, "backend", backend)
        if str(model).endswith(CHECKPOINT_SUFFIX):
            return cls(_open_checkpoint(Path(model), wanted, runtime, steps, threads, tile, batch))
        choice = choose(model, wanted, runtime, threads or usable_cores())
        for reason in staleness(choice.candidate.bundle):
            log.warning("%s", reason)
        chosen = replace(choice.candidate.spec, model=with_steps(choice.candidate.spec.model, steps))
        tiles = TileSpec.of(chosen.model, tile, batch)
        engine = open_engine(choice.candidate.bundle.graph_path, chosen, tile=tiles, threads=threads)
        if tile not in (None, engine.tile.size):
            engine.close()
            raise InputError(f"tile is {tile}, but '{model}' was built for {engine.tile.size}; leave it out")
        resolver = cls(engine)
        resolver.choice = choice
        return resolver

    def __call__(
        self,
        image_bgr: NDArray[PixelT],
        *,
        seed: int = 0,
        strength: float = 1.0,
        scale: float = 4.0,
        out: NDArray[PixelT] | None = None,
        progress: Progress | None = None,
    ) -> NDArray[PixelT]:
        """Enlarge one image.

        image_bgr: uint8 or uint16 (h, w, 3) in BGR order, with values up to 255 or 65535.
        seed: the same seed gives the same image, whatever the tiles.
        strength: 0 is plain bicubic, 1 is all the detail that the network adds.
        scale: 1 to 4; below 4 the fourfold result is reduced by area averaging.
        progress: called with (tiles done, tiles in all).
        Returns BGR (round(h * scale), round(w * scale), 3) of the same dtype: `out` if given, or a new array.
        Raises InputError for arguments that cannot be used, BackendError if the engine fails.
        """
        if not 1.0 <= scale <= SCALE:
            raise InputError(f"scale is {scale}; it must lie between 1 and {SCALE}")
        if scale == SCALE:
            return self._path(image_bgr, seed=seed, strength=strength, out=out, progress=progress)
        frame = check_frame(image_bgr)
        height, width = frame.shape[:2]
        out = check_out(out, frame, (round(height * scale), round(width * scale), 3))
        with self._lock:
            shape = (SCALE * height, SCALE * width, 3)
            if self._enlarged is None or self._enlarged.shape != shape or self._enlarged.dtype != frame.dtype:
                self._enlarged = np.empty(shape, frame.dtype)
            shrink(self._path(frame, seed=seed, strength=strength, out=self._enlarged, progress=progress), out)
        return out

    def warm_up(self, height: int, width: int, dtype: DType = _BYTES) -> None:
        """Do the work that the first image of this kind would otherwise wait for. Raises BackendError, InputError."""
        self._path.prepare(height, width, dtype)

    def close(self) -> None:
        """Release the engine; the resolver cannot be used afterwards. Calling it again does nothing."""
        self.engine.close()

    def __enter__(self) -> SuperResolver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _open_checkpoint(
    path: Path,
    precision: Precision | None,
    backend: Backend | None,
    steps: int | None,
    threads: int | None,
    tile: int | None,
    batch: int,
) -> TileEngine:
    if backend not in (None, Backend.TORCH):
        raise BackendError(
            f"{backend.value} does not run {path}; use --backend torch, or build an engine with "
            f"'rsd-edge build-engine --model {path} --backend {backend.value}'"
        )
    from rsd_edge.backends.torch import open_checkpoint

    return open_checkpoint(
        path, precision=precision or Precision.FP32, steps=steps, threads=threads, tile=tile, batch=batch
    )


def _check_strength(strength: float) -> float:
    if not (math.isfinite(strength) and 0.0 <= strength <= 1.0):
        raise InputError(f"strength is {strength}; it must lie between 0 and 1")
    return float(strength)


def _check(kind: type[EnumT], name: str, value: str | EnumT | None) -> EnumT | None:
    try:
        return None if value is None else kind(value)
    except ValueError:
        names = ", ".join(str(item.value) for item in kind)
        raise InputError(f"{name} is '{value}'; it must be one of {names}") from None
