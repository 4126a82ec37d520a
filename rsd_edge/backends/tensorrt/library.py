"""TensorRT's Python module: found or refused in one line, and its differences between 10.3 and 11.4 in one place."""

from __future__ import annotations

import importlib
import logging
import re
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from rsd_edge.errors import BackendError, MissingDependencyError

log = logging.getLogger(__name__)

OLDEST = (10, 3)
NEWEST_MAJOR = 11

_TAIL = 6
"""Messages of TensorRT that go into an error: what went wrong and what led to it."""


def load_tensorrt() -> Any:
    """The module. Raises MissingDependencyError if it cannot be imported, BackendError for a version not served."""
    try:
        trt = importlib.import_module("tensorrt")
        version = version_of(trt)  # a folder that was left over is imported, too, and has none
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"TensorRT is not installed here (no module '{error.name}'); on a Jetson use its own Python or a virtual "
            "environment made with --system-site-packages, elsewhere run: pip install 'rsd-edge[tensorrt]'"
        ) from error
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        raise MissingDependencyError(
            f"TensorRT's libraries cannot be loaded ({_first_line(error)}); install TensorRT for this system again"
        ) from error
    if not OLDEST <= version[:2] < (NEWEST_MAJOR + 1, 0):
        raise BackendError(
            f"TensorRT {trt.__version__} is not served; install one from {'.'.join(map(str, OLDEST))} to "
            f"{NEWEST_MAJOR}.x"
        )
    return trt


def version_of(trt: Any) -> tuple[int, ...]:
    """(10, 16, 1, 11) for 10.16.1.11."""
    return tuple(int(part) for part in re.findall(r"\d+", str(trt.__version__))[:4])


def bit(flags: Any, name: str) -> int:
    """The bit of a flag, 0 where this version has no such flag; the numbers of flags differ between versions."""
    return 1 << int(getattr(flags, name)) if hasattr(flags, name) else 0


def make_logger(trt: Any) -> Any:
    """An ILogger that keeps the last warnings and errors, as its `tail()`, and passes everything on to `logging`."""
    errors = (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR)
    told = (*errors, trt.ILogger.WARNING)

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: deque[tuple[bool, str]] = deque(maxlen=200)

        def log(self, severity: Any, msg: str) -> None:
            if severity in told:
                self.messages.append((severity in errors, " ".join(str(msg).split())))
            log.debug("%s", msg)

        def tail(self) -> str:
            """The last errors, or the last warnings where there were none."""
            lines = [text for failed, text in self.messages if failed] or [text for _, text in self.messages]
            return "; ".join(lines[-_TAIL:]) or "TensorRT gave no reason"

    return Logger()


def created(trt: Any, logger: Any, what: str, make: Callable[[], Any]) -> Any:
    """What TensorRT makes. Raises BackendError where it makes nothing: it answers None, or its bindings raise."""
    try:
        made = make()
    except (RuntimeError, TypeError) as error:  # pybind11: a factory that returns nothing
        raise BackendError(_nothing(trt, what, f"{logger.tail()}; {_first_line(error)}")) from error
    if made is None:
        raise BackendError(_nothing(trt, what, logger.tail()))
    return made


def _nothing(trt: Any, what: str, why: str) -> str:
    return (
        f"TensorRT {trt.__version__} makes no {what} ({why}); check 'rsd-edge doctor', close other programs that use "
        "the GPU, and start again"
    )


def numpy_dtype(trt: Any, kind: Any) -> np.dtype[Any]:
    """Raises BackendError for what NumPy has no type for."""
    known = {
        trt.DataType.FLOAT: np.float32,
        trt.DataType.HALF: np.float16,
        trt.DataType.INT32: np.int32,
        trt.DataType.INT64: np.int64,
    }
    if kind not in known:
        raise BackendError(f"an engine with inputs or outputs of type {kind} cannot be run; export it in float")
    return np.dtype(known[kind])


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
