"""TileEngine on OpenVINO's CPU device."""

from __future__ import annotations

import sys
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rsd_edge.arguments import check_threads
from rsd_edge.backends.base import Ticket
from rsd_edge.errors import BackendError, InputError, ModelError
from rsd_edge.machine import usable_cores
from rsd_edge.specs import EngineSpec, TileSpec

_DEVICE = "CPU"
_COMPILED_KEPT = 4
_TELEMETRY = "openvino_telemetry"


@dataclass(frozen=True, eq=False)
class _Run:
    """A started request and the memory that it reads and writes, which OpenVINO does not keep alive."""

    request: Any
    arrays: dict[str, NDArray[np.float32]]
    what: str


class OpenVinoEngine:
    """Runs one ONNX graph with inputs `lq` and `noise`, output `detail` and symbolic dimensions `n`, `h`, `w`.

    The graphs are those of OnnxRuntimeEngine, float or with explicit quantisation; every tile shape gets a compiled
    model in which its sizes are constants, and the last few are kept. Detail is written straight into the caller's
    buffer. Several batches may be in flight; those of one shape run one after the other, each on all threads. Serves
    one thread at a time.
    """

    ahead = 2

    def __init__(
        self,
        graph_path: Path | str,
        spec: EngineSpec,
        threads: int | None = None,
        *,
        tile: TileSpec | None = None,
        arithmetic: Literal["f32", "bf16"] = "f32",
    ) -> None:
        """
        threads: CPU threads, or None for one on each core that this process may use; OpenVINO takes no more than the
        machine has cores.
        tile: how frames are cut for this engine; None takes the default size with the halo of the model.
        arithmetic: of the float layers. bf16 halves the time on a CPU that multiplies it, and keeps 8 bits of mantissa.

        Raises InputError for a useless thread count or an unknown arithmetic, ModelError for a graph that cannot be
        read, BackendError for a graph or an OpenVINO that does not fit, or a CPU without bf16.
        """
        check_threads(threads)
        if arithmetic not in ("f32", "bf16"):
            raise InputError(f"arithmetic is '{arithmetic}'; it must be f32 or bf16")
        self.spec = spec
        self.tile = tile if tile is not None else TileSpec(halo=spec.model.halo, multiple_of=spec.model.multiple_of)
        self.threads = threads if threads is not None else usable_cores()
        self.arithmetic = arithmetic
        self._graph_path = Path(graph_path)
        self._compiled: OrderedDict[tuple[int, int, int], Any] = OrderedDict()
        self._running: set[_Run] = set()
        self._closed = False
        self._openvino = _import_openvino()
        self._core = self._openvino.Core()
        self._check_device()
        self._model = self._read()
        self._check_signature()

    def prepare(self, n: int, h: int, w: int) -> None:
        """Compile for n tiles of h x w LR pixels and run once, so that later runs take their usual time."""
        channels = self.spec.model.noise_channels
        lq, noise = np.zeros((n, 3, h, w), np.float32), np.zeros((n, channels, h, w), np.float32)
        self.collect(self.submit(lq, noise, np.empty((n, 4 * h, 4 * w, 3), np.float32)))

    def submit(self, lq: NDArray[np.float32], noise: NDArray[np.float32], detail: NDArray[np.float32]) -> Ticket:
        """See TileEngine; returns while the work goes on."""
        n, _, h, w = lq.shape
        compiled = self._compiled_for(n, h, w)
        # Inputs that OpenVINO cannot share, because they are read-only or not contiguous, are copied.
        inputs = {"lq": np.require(lq, requirements=["C", "W"]), "noise": np.require(noise, requirements=["C", "W"])}
        run = _Run(compiled.create_infer_request(), {**inputs, "detail": detail}, f"{n} tiles of {h} x {w}")
        try:
            for name, array in run.arrays.items():
                run.request.set_tensor(name, self._openvino.Tensor(array, shared_memory=True))
            run.request.start_async()
        except Exception as error:
            raise self._failed(run, error) from error
        self._running.add(run)
        return run

    def collect(self, ticket: Ticket) -> None:
        """See TileEngine."""
        try:
            ticket.request.wait()
        except Exception as error:
            raise self._failed(ticket, error) from error
        finally:
            self._running.discard(ticket)

    def close(self) -> None:
        """See TileEngine; waits for work in flight, whose buffers may be freed afterwards."""
        self._closed = True
        for run in list(self._running):
            with suppress(BackendError):
                self.collect(run)
        self._compiled.clear()
        self._model = self._core = None

    def __enter__(self) -> OpenVinoEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _compiled_for(self, n: int, h: int, w: int) -> Any:
        if self._closed:
            raise BackendError(f"the engine for {self._graph_path} is closed; open it again")
        key = (n, h, w)
        if key not in self._compiled:
            self._compiled[key] = self._compile(n, h, w)
        self._compiled.move_to_end(key)
        while len(self._compiled) > _COMPILED_KEPT:
            self._compiled.popitem(last=False)
        return self._compiled[key]

    def _compile(self, n: int, h: int, w: int) -> Any:
        config = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": self.threads,
            # The default takes bf16 wherever the CPU has it.
            "INFERENCE_PRECISION_HINT": self.arithmetic,
            # Each process would pin its threads to the same first cores, whatever else runs there.
            "ENABLE_CPU_PINNING": False,
        }
        try:
            model = self._model.clone()
            model.reshape({"lq": [n, 3, h, w], "noise": [n, self.spec.model.noise_channels, h, w]})
            return self._core.compile_model(model, _DEVICE, config)
        except Exception as error:
            raise self._unloadable(_last_line(error)) from error

    def _read(self) -> Any:
        # Core.read_model asks the frontends of all formats in turn, and some print what they think of the file.
        from openvino.frontend import FrontEndManager

        try:
            frontend = FrontEndManager().load_by_framework("onnx")
            model = frontend.convert(frontend.load(str(self._graph_path)))
        except Exception as error:
            raise self._unloadable(_last_line(error)) from error
        if not model.outputs:  # the frontend makes an empty model of an empty file
            raise self._unloadable("it holds no graph")
        return model

    def _check_device(self) -> None:
        capabilities = _capabilities(self._openvino, self._core)
        if self.arithmetic == "bf16" and "BF16" not in capabilities:
            raise BackendError(f"this CPU does not compute in bf16 (it has {', '.join(capabilities)}); use f32")

    def _check_signature(self) -> None:
        """Refuse a wrong graph when the engine is opened, not at the first frame; `?` is a size that is left open."""
        inputs = {_name(port, ("lq", "noise")): _sizes(port) for port in self._model.inputs}
        outputs = [_name(port, ("detail",)) for port in self._model.outputs]
        expected = {"lq": ["?", 3, "?", "?"], "noise": ["?", self.spec.model.noise_channels, "?", "?"]}
        if inputs != expected or outputs != ["detail"]:
            raise BackendError(
                f"{self._graph_path} takes {inputs} and gives {outputs}, but this engine needs {expected} and "
                "['detail']; export it with 'rsd-edge build-engine'"
            )

    def _unloadable(self, reason: str) -> ModelError:
        return ModelError(
            f"{self._graph_path} cannot be loaded by OpenVINO {_version(self._openvino)} ({reason}); "
            "build the engine again with 'rsd-edge build-engine' or update openvino"
        )

    def _failed(self, run: _Run, error: Exception) -> BackendError:
        return BackendError(f"{self._graph_path} failed on {run.what}: {_last_line(error)}")


def check_openvino() -> None:
    """Raise BackendError, in one line, if OpenVINO cannot be imported or has no device to run on."""
    openvino = _import_openvino()
    _capabilities(openvino, openvino.Core())


def _capabilities(openvino: Any, core: Any) -> Any:
    try:
        return core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")
    except Exception as error:
        raise BackendError(
            f"OpenVINO {_version(openvino)} has no {_DEVICE} device ({_last_line(error)}); "
            "run 'pip install --force-reinstall openvino'"
        ) from error


def _import_openvino() -> Any:
    """The package without its telemetry, which reports every import to a web service and writes into the home folder.

    OpenVINO replaces it with a stub if it is not installed, and for the time of the import it looks so.
    """
    modules: dict[str, Any] = sys.modules
    was_imported, telemetry = _TELEMETRY in modules, modules.get(_TELEMETRY)
    modules[_TELEMETRY] = None
    try:
        import openvino

        _ = openvino.Core  # a folder that was left over is imported, too, and has nothing
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "openvino"
        cure = "'rsd-edge[openvino]'" if missing else "--force-reinstall openvino"
        raise BackendError(f"OpenVINO cannot be imported ({_last_line(error)}); run: pip install {cure}") from error
    finally:
        del modules[_TELEMETRY]
        if was_imported:
            modules[_TELEMETRY] = telemetry
    return openvino


def _version(openvino: Any) -> str:
    return str(openvino.__version__).partition("-")[0]


def _name(port: Any, wanted: tuple[str, ...]) -> str:
    """One tensor may have several names; the one that is looked for counts."""
    return next((name for name in wanted if name in port.names), ", ".join(sorted(port.names)))


def _sizes(port: Any) -> list[int | str]:
    return [size.get_length() if size.is_static else "?" for size in port.partial_shape]


def _last_line(error: Exception) -> str:
    """OpenVINO's messages go from the place in its sources to the reason."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
