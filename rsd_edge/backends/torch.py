"""TileEngine on PyTorch: checkpoints as they are, published or of this project, in fp32, bf16 or fp16."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rsd_edge.backends.base import Ticket
from rsd_edge.errors import BackendError, MissingDependencyError
from rsd_edge.machine import usable_cores
from rsd_edge.sampling import with_steps
from rsd_edge.specs import Backend, EngineSpec, Precision, TileSpec

if TYPE_CHECKING:
    from rsd_edge.models.checkpoint import Checkpoint


class TorchEngine:
    """Runs the networks of a checkpoint. The work is done inside `submit`. Serves one thread at a time."""

    ahead = 1

    def __init__(
        self,
        checkpoint: Checkpoint,
        precision: Precision,
        threads: int | None = None,
        *,
        tile: TileSpec | None = None,
        device: str = "cpu",
    ) -> None:
        """
        threads: CPU threads, or None for one on each core that this process may use; they are torch's, so they count
        for the whole process. tile: how frames are cut; None takes what suits the model. device: cpu or cuda.

        Raises ModelError for a checkpoint whose parts do not fit, BackendError for a precision torch has no float for
        or a device that it does not have.
        """
        from rsd_edge.models.detail import DetailNetwork

        self.spec = EngineSpec(checkpoint.spec, Backend.TORCH, precision)
        self.tile = tile if tile is not None else TileSpec.of(checkpoint.spec)
        self.threads = threads if threads is not None else usable_cores()
        self._network: DetailNetwork | None = DetailNetwork(checkpoint, precision, self.threads, device)

    def prepare(self, n: int, h: int, w: int) -> None:
        """See TileEngine; nothing depends on the size but attention masks, which are small."""

    def submit(self, lq: NDArray[np.float32], noise: NDArray[np.float32], detail: NDArray[np.float32]) -> Ticket:
        """See TileEngine; the detail is complete on return."""
        if self._network is None:
            raise BackendError(f"the engine for {self.spec.model.name} is closed; open it again")
        self._network(lq, noise, detail)

    def collect(self, ticket: Ticket) -> None:
        """See TileEngine."""

    def close(self) -> None:
        """See TileEngine."""
        self._network = None

    def __enter__(self) -> TorchEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_checkpoint(
    path: Path,
    *,
    precision: Precision = Precision.FP32,
    steps: int | None = None,
    threads: int | None = None,
    tile: int | None = None,
    batch: int = 1,
    device: str = "cpu",
) -> TorchEngine:
    """The engine for a checkpoint (.safetensors). steps: None for as many as the model says.

    Raises ModelError, BackendError, InputError for a number of steps that the model does not take, and
    MissingDependencyError without torch.
    """
    try:
        from rsd_edge.models.checkpoint import load_checkpoint, read_spec
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("rsd_edge"):
            raise
        raise MissingDependencyError(f"checkpoints need '{error.name}'; run: pip install 'rsd-edge[export]'") from error
    spec = with_steps(read_spec(path), steps)  # what cannot be is said before half a gigabyte is read
    tiles = TileSpec.of(spec, tile, batch)
    checkpoint = dataclasses.replace(load_checkpoint(path), spec=spec)
    return TorchEngine(checkpoint, precision, threads, tile=tiles, device=device)
