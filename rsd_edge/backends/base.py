"""The two interfaces between frames and runtimes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rsd_edge.frames import DType, PixelT
from rsd_edge.resample import Bands
from rsd_edge.specs import EngineSpec, TileSpec

Ticket: TypeAlias = Any
"""What `submit` hands out and `collect` takes back; only the engine that made it looks inside."""

Progress: TypeAlias = Callable[[int, int], None]
"""Called with (tiles done, tiles in all) after each tile."""


class TileEngine(Protocol):
    """Turns tiles and noise into detail on some device.

    `submit` may return before the work is done, so that a device can run ahead while the caller prepares more tiles; an
    engine that has nothing to run ahead does the work there. Work is collected in the order in which it was submitted.
    Buffers belong to the caller and must not be touched between submit and collect. An engine serves one thread.
    """

    spec: EngineSpec
    tile: TileSpec
    """The tiles that suit this engine; a `fixed` one takes batches of exactly that batch and size."""
    threads: int
    """CPU threads that its caller may use, too, while the engine has nothing to do."""
    ahead: int
    """Batches worth submitting before the first of them is collected: 1 for an engine that works in `submit`."""

    def prepare(self, n: int, h: int, w: int) -> None:
        """Do now what the first batch of n tiles of h x w LR pixels would otherwise wait for."""

    def submit(self, lq: NDArray[np.float32], noise: NDArray[np.float32], detail: NDArray[np.float32]) -> Ticket:
        """Start on n tiles. All arrays are contiguous float32.

        lq: (n, 3, h, w), RGB in [-1, 1]. noise: (n, spec.model.noise_channels, h, w), standard normal.
        detail: (n, 4h, 4w, 3), written by the engine: image - bicubic x4 of lq, in units of the model range, stored as
        frames are: BGR.
        Raises BackendError if the device fails.
        """

    def collect(self, ticket: Ticket) -> None:
        """Wait until the `detail` given with this ticket is complete. Raises BackendError if the device failed."""

    def close(self) -> None:
        """Release the device; the engine cannot be used afterwards. Calling it again does nothing."""

    def __enter__(self) -> TileEngine: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class FramePath(Protocol):
    """One frame in, one frame out, four times as large."""

    def __call__(
        self,
        frame: NDArray[PixelT],
        *,
        seed: int = 0,
        strength: float = 1.0,
        out: NDArray[PixelT] | None = None,
        progress: Progress | None = None,
    ) -> NDArray[PixelT]:
        """bicubic + strength * detail.

        frame: uint8 or uint16 BGR (h, w, 3). Returns BGR (4h, 4w, 3) of the same dtype: `out` if given. Strength 0 is
        exactly the bicubic enlargement. Raises InputError for a frame, seed, strength or `out` that cannot be used.
        """


class WholeFramePath(FramePath, Protocol):
    """A FramePath that also gives its result in bands, and can be told what frames will come."""

    @property
    def alone(self) -> Callable[[], AbstractContextManager[None]]:
        """`with alone():` waits until no other thread uses the engine, and keeps them out."""

    def bands(
        self, frame: NDArray[PixelT], *, seed: int = 0, strength: float = 1.0, progress: Progress | None = None
    ) -> Bands:
        """The result from top to bottom, in bands of whole rows, each overwritten when the next one is asked for."""

    def prepare(self, height: int, width: int, dtype: DType) -> None:
        """Do now what the first frame of this kind would otherwise wait for. Raises BackendError, InputError."""

    def close(self) -> None:
        """Let go of threads and buffers; the engine is closed by whoever opened it. Calling it again does nothing."""
