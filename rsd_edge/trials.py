"""Whether optional runtimes work, tried in processes of their own.

A broken library may end the process that loads it, OpenVINO and torch have crashed at random in one process, and both
together take no longer than the slower of them.
"""

from __future__ import annotations

import importlib
import signal
import subprocess
import sys

from rsd_edge.errors import RsdEdgeError
from rsd_edge.specs import Backend
from rsd_edge.versions import installed

_PATIENCE_SECONDS = 120
"""A first import of torch from a memory card takes half a minute."""
_LIBRARIES = {Backend.OPENVINO: ("openvino", "openvino"), Backend.TORCH: ("torch", "export")}
"""The package that each runtime is, and the extra that brings it."""
TRIED = tuple(_LIBRARIES)
_SIGNALS = {kind.value: kind.name for kind in signal.Signals}
"""Those of real time have numbers alone, but for the first and the last."""
# The path comes first, without the folder that -c puts before it, in which anything may lie.
_CHILD = """
import sys
backend, *sys.path[:] = sys.argv[1:]
from rsd_edge.trials import problem_of
found = problem_of(backend)
print(found or "")
sys.exit(found is not None)
"""


class Trial:
    """A backend of TRIED, being loaded by another process from now on; none is started where it is not installed."""

    def __init__(self, backend: Backend) -> None:
        self._name, self._extra = _LIBRARIES[backend]
        self._process: subprocess.Popen[str] | None = None
        if installed(self._name):
            command = [sys.executable, "-c", _CHILD, backend.value, *sys.path]
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )

    def problem(self) -> str | None:
        """Why it cannot run here, once that is known, with the cure; None if it can."""
        if self._process is None:
            return f"'{self._name}' is not installed; run: pip install 'rsd-edge[{self._extra}]'"
        try:
            said, _ = self._process.communicate(timeout=_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            return f"'{self._name}' did not load within {_PATIENCE_SECONDS} s; close other programs and try again"
        code = self._process.returncode
        if code < 0:
            return (
                f"'{self._name}' ends its process when it is loaded ({_SIGNALS.get(-code, f'signal {-code}')}); "
                "install a version that fits this processor"
            )
        told = said.strip().rpartition("\n")[2]
        return (told or f"'{self._name}' cannot be loaded (exit code {code}); install it again") if code else None


def problem_of(backend: str) -> str | None:
    """What `Trial` asks for, within this process."""
    kind = Backend(backend)
    name, extra = _LIBRARIES[kind]
    try:
        if kind is Backend.OPENVINO:
            from rsd_edge.backends.openvino import check_openvino

            check_openvino()
        else:
            importlib.import_module("rsd_edge.models.detail")
    except RsdEdgeError as error:
        return str(error)
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        missing = isinstance(error, ModuleNotFoundError)
        cure = f"pip install 'rsd-edge[{extra}]'" if missing else f"pip install --force-reinstall {name}"
        return f"'{name}' cannot be loaded ({why}); run: {cure}"
    return None
