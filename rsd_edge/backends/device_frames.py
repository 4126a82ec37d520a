"""Whole frames in the memory of a device, and over NumPy where that cannot be: what the frame paths of GPUs share."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from rsd_edge.backends.base import Progress, TileEngine
from rsd_edge.errors import BackendError
from rsd_edge.frames import SCALE, DType, PixelT, check_frame, check_out
from rsd_edge.noise import NoiseField
from rsd_edge.pipeline import NumpyFramePath, OneAtATime, check_strength
from rsd_edge.resample import Bands
from rsd_edge.tiling import TilePlan, plan_tiles

log = logging.getLogger(__name__)

_SHARE_OF_MEMORY = 0.6
"""Of what is free; the rest is left to decoders and encoders."""


class DeviceEngine(TileEngine, Protocol):
    """An engine whose device outlives no close."""

    def check_open(self) -> None:
        """Raise BackendError if the engine was closed."""

    def before_close(self, work: Callable[[], None]) -> None:
        """Do this when the engine is closed, before its device is released."""


class Space(Protocol):
    """Buffers on the device for one size of frame."""

    @property
    def plan(self) -> TilePlan:
        """How frames of this size are cut."""

    def enlarge(self, frame: NDArray[Any], seed: int, strength: float) -> NDArray[np.uint8]:
        """The enlarged frame (4h, 4w, 3); the next call overwrites it."""

    def close(self) -> None:
        """Free the buffers."""


EngineT = TypeVar("EngineT", bound=DeviceEngine)


class DeviceFrames(ABC, Generic[EngineT]):
    """Enlarges uint8 frames as a whole on the device; see WholeFramePath. Calls run one after the other.

    Frames of 16 bits, strength 0, and frames whose tiles do not fit into memory at once take NumpyFramePath, which
    gives the same picture tile by tile. Buffers are kept for the last size of frame, until the engine is closed.
    """

    def __init__(self, engine: EngineT) -> None:
        self.engine = engine
        self._numpy = NumpyFramePath(engine)
        self._space: Space | None = None
        self._told: TilePlan | None = None
        self.alone = OneAtATime()
        engine.before_close(self.close)
        engine.before_close(self._numpy.close)

    @abstractmethod
    def new_space(self, plan: TilePlan) -> Space:
        """Buffers for a size of frame. Raises BackendError."""

    @abstractmethod
    def memory(self, plan: TilePlan) -> tuple[int, int]:
        """Bytes that a size of frame takes on the device, and those that are free there."""

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
        """Allocate buffers and warm the device up for frames of this kind. Raises BackendError, InputError."""
        with self.alone():
            if self._space_for(height, width, dtype) is None:
                self._numpy.prepare(height, width, dtype)

    def close(self) -> None:
        """Free the buffers; the engine is closed by whoever opened it."""
        if self._space is not None:
            self._space.close()
        self._space = None

    def _space_for(self, height: int, width: int, dtype: DType) -> Space | None:
        """Buffers for a size of frame; None if it does not run on the device as a whole."""
        self.engine.check_open()
        if dtype != np.uint8:
            return None
        plan = plan_tiles(height, width, self.engine.tile)
        if self._space is not None and self._space.plan == plan:
            return self._space
        self.close()
        wanted, free = self.memory(plan)
        if wanted > _SHARE_OF_MEMORY * free:
            if self._told != plan:  # once, not for each frame of a film
                log.warning(
                    "frames of %dx%d take %d MiB of the GPU at once and %d are free: they are done tile by tile",
                    width, height, wanted >> 20, free >> 20,
                )  # fmt: skip
            self._told = plan
            return None
        self._space = self.new_space(plan)
        return self._space


def replace_non_finite(detail: NDArray[np.float32], what: str, cure: str) -> None:
    """Set the detail of tiles that hold anything but numbers to zero, and warn, as `warn_of_lost_tiles` does."""
    # Float64 holds every sum of float32 numbers, so it is finite exactly if all of them are.
    bad = [index for index, tile in enumerate(detail) if not np.isfinite(tile.sum(dtype=np.float64))]
    for index in bad:
        detail[index] = 0.0
    if bad:
        warn_of_lost_tiles(len(bad), len(detail), what, cure)


def warn_of_lost_tiles(lost: int, count: int, what: str, cure: str) -> None:
    """Say that tiles were left out. what: the engine; cure: what helps if it happens often."""
    log.warning(
        "%d of %d tiles from %s were not finite and became plain bicubic; %s if it happens often",
        lost, count, what, cure,
    )  # fmt: skip
