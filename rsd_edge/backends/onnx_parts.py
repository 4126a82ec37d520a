"""TileEngine on ONNX Runtime for the published models, which are three graphs and a loop over steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from rsd_edge.backends.base import Ticket
from rsd_edge.bundle import DECODER, ENCODER, GENERATOR
from rsd_edge.errors import BackendError, ModelError
from rsd_edge.frames import SCALE
from rsd_edge.machine import usable_cores
from rsd_edge.opencv import cv2
from rsd_edge.ort import ort
from rsd_edge.sampling import sample
from rsd_edge.specs import EngineSpec, TileSpec

_PROVIDER = "CPUExecutionProvider"
_LOG_ERRORS_ONLY = 3

Array = NDArray[np.float32]
EngineT = TypeVar("EngineT", bound="PartsEngine")


class PartsEngine:
    """Runs encoder, generator and decoder of a bundle on tiles of the size that they were exported for.

    The bicubic enlargement, the noise and the steps between are NumPy's and OpenCV's; a subclass runs the graphs. The
    work is done inside `submit`. Serves one thread at a time.
    """

    ahead = 1

    def __init__(self, spec: EngineSpec, threads: int, tile: TileSpec, *, takes_noise: bool) -> None:
        """takes_noise: the generator has an input `eps`."""
        self.spec, self.threads, self.tile = spec, threads, tile
        self._takes_noise = takes_noise

    def prepare(self, n: int, h: int, w: int) -> None:
        """See TileEngine; graphs are loaded with the engine."""

    def submit(self, lq: Array, noise: Array, detail: Array) -> Ticket:
        """See TileEngine; the detail is complete on return."""
        side = self.tile.size
        if lq.shape[2:] != (side, side):
            raise BackendError(f"this engine takes tiles of {side}x{side}, not {lq.shape[2]}x{lq.shape[3]}")
        base = np.stack([_bicubic(tile) for tile in lq])
        z_y = self._run(ENCODER, image=_channels_first(base))
        given = {"lq": lq, **({"eps": noise[:, -1:]} if self._takes_noise else {})}

        def predict(z_t: Array, t: int) -> Array:
            return self._run(GENERATOR, z_t=z_t, t=np.array([t], np.int64), **given)

        image = self._run(DECODER, z0=sample(predict, self.spec.model, z_y, noise))
        rgb = np.clip(image, -1, 1).transpose(0, 2, 3, 1)
        np.subtract(rgb[..., ::-1], base[..., ::-1], out=detail)

    def collect(self, ticket: Ticket) -> None:
        """See TileEngine."""

    def close(self) -> None:
        """See TileEngine."""

    def __enter__(self: EngineT) -> EngineT:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, part: str, **inputs: NDArray[Any]) -> Array:
        """The output of one graph, an array of its own."""
        raise NotImplementedError


class OnnxPartsEngine(PartsEngine):
    """The graphs in ONNX Runtime."""

    def __init__(
        self, folder: Path | str, spec: EngineSpec, threads: int | None = None, *, tile: TileSpec | None = None
    ) -> None:
        """
        folder: with the three graphs. threads: None for one on each core that this process may use. tile: its size is
        replaced by that of the graphs.

        Raises ModelError for graphs that cannot be read or do not belong together.
        """
        cores = threads if threads is not None else usable_cores()
        sessions = {name: open_session(Path(folder) / name, cores) for name in (ENCODER, GENERATOR, DECODER)}
        self._sessions: dict[str, Any] | None = sessions
        sides = {
            sessions[GENERATOR].get_inputs()[0].shape[-1],
            sessions[ENCODER].get_inputs()[0].shape[-1] // SCALE,
            sessions[DECODER].get_inputs()[0].shape[-1],
        }
        if len(sides) != 1:
            raise ModelError(f"the graphs in {folder} are for tiles of {sides}; build the engine again")
        whole = replace(tile or TileSpec.of(spec.model), size=sides.pop(), fixed=True)
        takes_noise = "eps" in {node.name for node in sessions[GENERATOR].get_inputs()}
        super().__init__(spec, cores, whole, takes_noise=takes_noise)

    def close(self) -> None:
        """See TileEngine."""
        self._sessions = None

    def _run(self, part: str, **inputs: NDArray[Any]) -> Array:
        if self._sessions is None:
            raise BackendError(f"the engine for {self.spec.model.name} is closed; open it again")
        try:
            feeds = {name: np.ascontiguousarray(value) for name, value in inputs.items()}
            result: Array = self._sessions[part].run(None, feeds)[0]
        except Exception as error:
            raise BackendError(f"{part} failed: {_first_line(error)}") from error
        return result


def _bicubic(tile: Array) -> Array:
    """(3, h, w) to (4h, 4w, 3), the same numbers as torch's."""
    h, w = tile.shape[1:]
    rows = np.ascontiguousarray(tile.transpose(1, 2, 0))
    enlarged: Array = np.asarray(cv2.resize(rows, (SCALE * w, SCALE * h), interpolation=cv2.INTER_CUBIC), np.float32)
    return enlarged


def _channels_first(images: Array) -> Array:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def open_session(path: Path, threads: int) -> Any:
    """A session for one part. Raises ModelError if the graph cannot be loaded."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _LOG_ERRORS_ONLY
    options.enable_cpu_mem_arena = False  # it keeps its high-water mark, of every part
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(str(path), options, providers=[_PROVIDER])
    except Exception as error:
        raise ModelError(
            f"{path} cannot be loaded by ONNX Runtime {ort.__version__} ({_first_line(error)}); "
            "build the engine again with 'rsd-edge build-engine' or update onnxruntime"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
