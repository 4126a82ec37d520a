"""TileEngine on ONNX Runtime's CPU provider."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsd_edge.arguments import check_threads
from rsd_edge.backends.base import Ticket
from rsd_edge.errors import BackendError, ModelError
from rsd_edge.machine import usable_cores
from rsd_edge.ort import ort
from rsd_edge.specs import EngineSpec, TileSpec

_PROVIDER = "CPUExecutionProvider"
_SESSIONS_KEPT = 4
_LOG_ERRORS_ONLY = 3
_SMALL_TILE = 128 * 128
"""Pixels up to which threads look out for the next operator instead of sleeping."""
_KEPT_AS_EXPORTED = ("WeightBiasQuantization",)
"""Rewrites that are left out: this one makes a convolution between integer ones integer too, with one scale for all of
its weights, although it was left in float because it does not stand that."""


class OnnxRuntimeEngine:
    """Runs one ONNX graph with inputs `lq` and `noise`, output `detail` and symbolic dimensions `n`, `h`, `w`.

    Every tile shape gets a session in which these dimensions are constants, so that memory is planned ahead; the last
    few sessions are kept. Detail is written straight into the caller's buffer. The work is done inside `submit`, which
    uses all threads by itself. Serves one thread at a time.
    """

    ahead = 1

    def __init__(
        self, graph_path: Path | str, spec: EngineSpec, threads: int | None = None, *, tile: TileSpec | None = None
    ) -> None:
        """
        threads: CPU threads, or None for one on each core that this process may use.
        tile: how frames are cut for this engine; None takes the default size with the halo of the model.

        Raises InputError for a useless thread count, ModelError for a graph that cannot be read, BackendError for a
        graph or an ONNX Runtime that does not fit.
        """
        check_threads(threads)
        self.spec = spec
        self.tile = tile if tile is not None else TileSpec(halo=spec.model.halo, multiple_of=spec.model.multiple_of)
        self.threads = threads if threads is not None else usable_cores()
        self._graph_path = Path(graph_path)
        self._sessions: OrderedDict[tuple[int, int, int], Any] = OrderedDict()
        self._closed = False
        providers = ort.get_available_providers()
        if _PROVIDER not in providers:
            raise BackendError(
                f"ONNX Runtime {ort.__version__} has no {_PROVIDER} (it has {', '.join(providers)}); "
                "run 'pip install --force-reinstall onnxruntime'"
            )
        self._check_signature()

    def prepare(self, n: int, h: int, w: int) -> None:
        """Open the session for n tiles of h x w LR pixels and run it once, so that later runs take their usual time."""
        channels = self.spec.model.noise_channels
        lq, noise = np.zeros((n, 3, h, w), np.float32), np.zeros((n, channels, h, w), np.float32)
        self.submit(lq, noise, np.empty((n, 4 * h, 4 * w, 3), np.float32))

    def submit(self, lq: NDArray[np.float32], noise: NDArray[np.float32], detail: NDArray[np.float32]) -> Ticket:
        """See TileEngine; the detail is complete on return."""
        n, _, h, w = lq.shape
        session = self._session(n, h, w)
        try:
            binding = session.io_binding()
            binding.bind_cpu_input("lq", lq)
            binding.bind_cpu_input("noise", noise)
            binding.bind_output("detail", "cpu", 0, np.float32, detail.shape, detail.ctypes.data)
            session.run_with_iobinding(binding)
        except Exception as error:
            what = f"{n} tiles of {h} x {w}"
            if _lacks_memory(error):
                raise BackendError(f"not enough memory for {what}; give a smaller --tile or --batch") from error
            raise BackendError(f"{self._graph_path} failed on {what}: {_first_line(error)}") from error

    def collect(self, ticket: Ticket) -> None:
        """See TileEngine."""

    def close(self) -> None:
        """See TileEngine."""
        self._closed = True
        self._sessions.clear()

    def __enter__(self) -> OnnxRuntimeEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _session(self, n: int, h: int, w: int) -> Any:
        if self._closed:
            raise BackendError(f"the engine for {self._graph_path} is closed; open it again")
        key = (n, h, w)
        if key not in self._sessions:
            self._sessions[key] = self._open(n, h, w)
        self._sessions.move_to_end(key)
        while len(self._sessions) > _SESSIONS_KEPT:
            self._sessions.popitem(last=False)
        return self._sessions[key]

    def _open(self, n: int, h: int, w: int) -> Any:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        # The arena keeps its high-water mark for ever, and keeps one for every session.
        options.enable_cpu_mem_arena = False
        # A small tile is sixty operators of 0.1 ms each: threads that sleep between them make it a quarter slower. On a
        # large one they gain nothing, and keep the core from what comes between tiles.
        spinning = n * h * w <= _SMALL_TILE
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
        options.add_session_config_entry("session.force_spinning_stop", "1")
        for name, value in (("n", n), ("h", h), ("w", w)):
            options.add_free_dimension_override_by_name(name, value)
        return self._load(options)

    def _load(self, options: Any) -> Any:
        options.log_severity_level = _LOG_ERRORS_ONLY
        try:
            return ort.InferenceSession(
                str(self._graph_path), options, providers=[_PROVIDER], disabled_optimizers=_KEPT_AS_EXPORTED
            )
        except Exception as error:
            if _lacks_memory(error):
                raise BackendError(
                    f"not enough memory to load {self._graph_path}; close other programs, or give a smaller --tile"
                ) from error
            raise ModelError(
                f"{self._graph_path} cannot be loaded by ONNX Runtime {ort.__version__} ({_first_line(error)}); "
                "build the engine again with 'rsd-edge build-engine' or update onnxruntime"
            ) from error

    def _check_signature(self) -> None:
        """Refuse a wrong graph when the engine is opened, not at the first frame; without optimising, this is quick."""
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = self._load(options)
        inputs = {node.name: list(node.shape) for node in session.get_inputs()}
        outputs = {node.name: list(node.shape) for node in session.get_outputs()}
        expected = {"lq": ["n", 3, "h", "w"], "noise": ["n", self.spec.model.noise_channels, "h", "w"]}
        detail = outputs.get("detail", [])
        if inputs != expected or len(outputs) != 1 or (len(detail), detail[-1:]) != (4, [3]):
            raise BackendError(
                f"{self._graph_path} takes {inputs} and gives {outputs}, but this engine needs {expected} and "
                "{'detail': ['n', '4h', '4w', 3]}; export it with 'rsd-edge build-engine'"
            )


def _lacks_memory(error: Exception) -> bool:
    """ONNX Runtime has no exception for it: the text is that of the one in C++, unless it comes through as Python's."""
    return isinstance(error, MemoryError) or "bad_alloc" in str(error)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
