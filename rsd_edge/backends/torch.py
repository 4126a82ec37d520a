"""TileEngine on PyTorch: checkpoints as they are, published or of this project, in fp32, bf16 or fp16."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rsd_edge.backends.base import Ticket, WholeFramePath
from rsd_edge.backends.device_frames import replace_non_finite
from rsd_edge.errors import BackendError, InputError, MissingDependencyError
from rsd_edge.machine import usable_cores
from rsd_edge.pipeline import NumpyFramePath
from rsd_edge.sampling import with_steps
from rsd_edge.specs import EDGE_FAMILY, Backend, EngineSpec, FramePathKind, ModelSpec, Precision, TileSpec

if TYPE_CHECKING:
    from rsd_edge.models.checkpoint import Checkpoint
    from rsd_edge.models.detail import DetailNetwork

log = logging.getLogger(__name__)


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
        frame_path: FramePathKind | None = None,
    ) -> None:
        """
        threads: CPU threads, or None for one on each core that this process may use; they are torch's, so they count
        for the whole process. tile: how frames are cut; None takes what suits the model. device: cpu or cuda.
        frame_path: of `torch_frame_path`; None is Triton's for an edge model on cuda, and else NumPy's.

        Raises ModelError for a checkpoint whose parts do not fit, BackendError for a precision torch has no float for
        or a device that it does not have, InputError for a frame path that the model does not have.
        """
        from rsd_edge.models.detail import DetailNetwork

        self.spec = EngineSpec(checkpoint.spec, Backend.TORCH, precision)
        self.tile = tile if tile is not None else TileSpec.of(checkpoint.spec)
        self.threads = threads if threads is not None else usable_cores()
        self.frame_path = _frame_path_kind(checkpoint.spec, device, frame_path)
        self._open = ExitStack()
        self._network: DetailNetwork | None = DetailNetwork(checkpoint, precision, self.threads, device)

    def prepare(self, n: int, h: int, w: int) -> None:
        """See TileEngine; nothing depends on the size but attention masks, which are small."""

    def submit(self, lq: NDArray[np.float32], noise: NDArray[np.float32], detail: NDArray[np.float32]) -> Ticket:
        """See TileEngine; the detail is complete on return."""
        self.network(lq, noise, detail)
        replace_non_finite(detail, self.spec.model.name, "choose another precision")

    def collect(self, ticket: Ticket) -> None:
        """See TileEngine."""

    @property
    def network(self) -> DetailNetwork:
        """What computes. Raises BackendError if the engine was closed."""
        if self._network is None:
            raise BackendError(f"the engine for {self.spec.model.name} is closed; open it again")
        return self._network

    def check_open(self) -> None:
        """See DeviceEngine."""
        _ = self.network

    def before_close(self, work: Callable[[], None]) -> None:
        """See DeviceEngine."""
        self._open.callback(work)

    def close(self) -> None:
        """See TileEngine."""
        self._open.close()
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
    frame_path: FramePathKind | None = None,
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
    return TorchEngine(checkpoint, precision, threads, tile=tiles, device=device, frame_path=frame_path)


def torch_frame_path(engine: TorchEngine) -> WholeFramePath:
    """What takes whole frames to the engine, of the kind that it says.

    Raises MissingDependencyError or BackendError for kernels that cannot run here; nothing takes their place unasked.
    """
    network, kind = engine.network, engine.frame_path
    if kind is FramePathKind.NUMPY or network.tile is None:
        return NumpyFramePath(engine)
    from rsd_edge.kernels.frame_path import CudaFramePath

    device, dtype = network.device, network.dtype
    try:
        path = CudaFramePath(engine, network.tile, implementation=kind.value, device=device, dtype=dtype)
    except MissingDependencyError as error:
        raise MissingDependencyError(f"{error} or 'numpy' with --frame-path") from error
    log.info("frames of %s: path '%s' on %s", engine.spec.model.name, kind.value, device)
    return path


def _frame_path_kind(model: ModelSpec, device: str, wanted: FramePathKind | None) -> FramePathKind:
    edge = model.family == EDGE_FAMILY
    if wanted is None:
        return FramePathKind.TRITON if edge and device == "cuda" else FramePathKind.NUMPY
    if wanted is not FramePathKind.NUMPY and not edge:
        raise InputError(
            f"frame path is '{wanted.value}', which serves edge models, and '{model.name}' is of family "
            f"{model.family}; use '{FramePathKind.NUMPY.value}'"
        )
    return wanted
