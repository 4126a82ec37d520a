"""One frame in, one frame out. No files, no threads of its own, nothing printed."""

from __future__ import annotations

import math
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from rsd_edge.backends import open_engine
from rsd_edge.backends.base import Progress, Ticket, TileEngine
from rsd_edge.bundle import resolve_engine
from rsd_edge.errors import BackendError, InputError, ModelError
from rsd_edge.frames import SCALE, DetailCompositor, bicubic_x4, check_frame, check_out, shrink
from rsd_edge.noise import NoiseField
from rsd_edge.specs import ModelSpec, Precision, TileSpec
from rsd_edge.tiling import TileMerger, TilePlan, gather_tiles, plan_tiles

_BATCHES_IN_FLIGHT = 2


@dataclass(frozen=True)
class _Job:
    """One frame and what is to be made of it."""

    frame: NDArray[np.uint8]
    noise: NoiseField
    strength: float
    out: NDArray[np.uint8]
    progress: Progress | None

    def report(self, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(done, total)


@dataclass
class _Batch:
    """Buffers of one batch, and which tiles are in them."""

    lq: NDArray[np.float32]
    noise: NDArray[np.float32]
    detail: NDArray[np.float32]
    tiles: range = range(0)
    ticket: Ticket = None


class _Workspace:
    """Everything that depends on the frame size only; reused while the size stays the same."""

    def __init__(self, plan: TilePlan, engine: TileEngine) -> None:
        self.plan = plan
        self._fixed = engine.tile.fixed
        self._size = engine.tile.batch if self._fixed else min(engine.tile.batch, plan.count)
        self.rounds = -(-plan.count // self._size)
        self.batches = [self._new_batch(engine.spec.model) for _ in range(min(_BATCHES_IN_FLIGHT, self.rounds))]
        self.merger = TileMerger(plan)
        self.compositor = DetailCompositor(*plan.largest_region())

    def tiles(self, turn: int) -> range:
        """The tiles of one round; the last round may hold fewer than the others."""
        return range(turn * self._size, min((turn + 1) * self._size, self.plan.count))

    def submitted(self, tiles: range) -> int:
        """How many tiles the engine is given for these: a fixed engine always takes a full batch."""
        return self._size if self._fixed else len(tiles)

    def _new_batch(self, model: ModelSpec) -> _Batch:
        n, h, w = self._size, self.plan.tile_h, self.plan.tile_w
        return _Batch(
            lq=np.zeros((n, 3, h, w), np.float32),
            noise=np.zeros((n, model.noise_channels, h, w), np.float32),
            detail=np.zeros((n, 3, SCALE * h, SCALE * w), np.float32),
        )


class NumpyFramePath:
    """The reference FramePath: gather, noise, engine, merge, add to the bicubic base, all tile by tile.

    No float buffer is as large as a frame, unless one tile is. Buffers are kept for the last frame size, so that
    further frames of that size allocate nothing as large but their result, and not even that if `out` is given. Calls
    from several threads run one after the other; a progress callback must not call back into the same path.
    """

    def __init__(self, engine: TileEngine) -> None:
        self.engine = engine
        self._workspace: _Workspace | None = None
        self._lock = threading.Lock()

    def __call__(
        self,
        frame: NDArray[np.uint8],
        *,
        seed: int = 0,
        strength: float = 1.0,
        out: NDArray[np.uint8] | None = None,
        progress: Progress | None = None,
    ) -> NDArray[np.uint8]:
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
            space = self._workspace_for(plan_tiles(height, width, self.engine.tile))
            self._run(space, job)
        return out

    def prepare(self, height: int, width: int) -> None:
        """Allocate buffers and warm the engine up for frames of this size. Raises BackendError, InputError."""
        with self._lock:
            space = self._workspace_for(plan_tiles(height, width, self.engine.tile))
            for n in sorted({space.submitted(space.tiles(turn)) for turn in (0, space.rounds - 1)}):
                self.engine.prepare(n, space.plan.tile_h, space.plan.tile_w)

    def _workspace_for(self, plan: TilePlan) -> _Workspace:
        if self._workspace is None or self._workspace.plan != plan:
            self._workspace = None  # frees the old buffers before the new ones are made
            self._workspace = _Workspace(plan, self.engine)
        return self._workspace

    def _run(self, space: _Workspace, job: _Job) -> None:
        """Keep the engine one batch ahead: while it works on one, the previous one is merged and written."""
        in_flight: list[_Batch] = []
        try:
            for turn in range(space.rounds):
                batch = space.batches[turn % len(space.batches)]
                self._submit(space, batch, space.tiles(turn), job)
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

    def _submit(self, space: _Workspace, batch: _Batch, tiles: range, job: _Job) -> None:
        plan = space.plan
        gather_tiles(job.frame, plan, tiles, batch.lq)
        for slot, index in enumerate(tiles):
            job.noise.normal(batch.noise.shape[1], *plan.origin(index), plan.tile_h, plan.tile_w, out=batch.noise[slot])
        n = space.submitted(tiles)
        batch.tiles = tiles
        batch.ticket = self.engine.submit(batch.lq[:n], batch.noise[:n], batch.detail[:n])

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
        self._path = NumpyFramePath(engine)
        self._lock = threading.Lock()
        self._enlarged: NDArray[np.uint8] | None = None

    @classmethod
    def load(
        cls,
        model: str | Path = "edge-s",
        *,
        precision: str | Precision = Precision.FP32,
        threads: int | None = None,
        tile: int | None = None,
        batch: int = 1,
    ) -> SuperResolver:
        """Open a shipped engine by name, or a bundle folder by path.

        precision: what the engine must be; threads: CPU threads, None for all cores; tile: side of a tile in LR pixels,
        halo included, None for the default; batch: tiles that the engine takes at once.
        Raises ModelError, BackendError or InputError.
        """
        bundle = resolve_engine(model)
        wanted = _check_precision(precision)
        if bundle.spec.precision is not wanted:
            raise ModelError(
                f"engine '{model}' is {bundle.spec.precision.value}, not {wanted.value}; pass "
                f"precision='{bundle.spec.precision.value}', or build one with 'rsd-edge build-engine --precision "
                f"{wanted.value}'"
            )
        spec = bundle.spec.model
        size = TileSpec.size if tile is None else tile
        tiles = TileSpec(size=size, halo=spec.halo, multiple_of=spec.multiple_of, batch=batch)
        return cls(open_engine(bundle.graph_path, bundle.spec, tile=tiles, threads=threads))

    def __call__(
        self,
        image_bgr: NDArray[np.uint8],
        *,
        seed: int = 0,
        strength: float = 1.0,
        scale: float = 4.0,
        out: NDArray[np.uint8] | None = None,
        progress: Progress | None = None,
    ) -> NDArray[np.uint8]:
        """Enlarge one image.

        image_bgr: uint8 (h, w, 3) in BGR order. seed: the same seed gives the same image, whatever the tiles.
        strength: 0 is plain bicubic, 1 is all the detail that the network adds.
        scale: 1 to 4; below 4 the fourfold result is reduced by area averaging.
        progress: called with (tiles done, tiles in all).
        Returns uint8 BGR (round(h * scale), round(w * scale), 3): `out` if given, otherwise a new array.
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
            if self._enlarged is None or self._enlarged.shape != shape:
                self._enlarged = np.empty(shape, np.uint8)
            shrink(self._path(frame, seed=seed, strength=strength, out=self._enlarged, progress=progress), out)
        return out

    def warm_up(self, height: int, width: int) -> None:
        """Do the work that the first image of this size would otherwise wait for. Raises BackendError, InputError."""
        self._path.prepare(height, width)

    def close(self) -> None:
        """Release the engine; the resolver cannot be used afterwards. Calling it again does nothing."""
        self.engine.close()

    def __enter__(self) -> SuperResolver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check_strength(strength: float) -> float:
    if not (math.isfinite(strength) and 0.0 <= strength <= 1.0):
        raise InputError(f"strength is {strength}; it must lie between 0 and 1")
    return float(strength)


def _check_precision(precision: str | Precision) -> Precision:
    try:
        return Precision(precision)
    except ValueError:
        names = ", ".join(item.value for item in Precision)
        raise InputError(f"precision is '{precision}'; it must be one of {names}") from None
