"""The one place that imports ONNX Runtime: `from rsd_edge.ort import ort`.

Some builds report usage to their vendor, and write an identifier of the machine into the user's cache folder as soon as
they are imported. The variable stops all of that.
"""

from __future__ import annotations

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from rsd_edge.errors import MissingDependencyError

try:
    import onnxruntime as ort
except ImportError as error:
    if isinstance(error, ModuleNotFoundError) and error.name == "onnxruntime":
        raise MissingDependencyError("ONNX Runtime is not installed; run 'pip install onnxruntime'") from error
    raise MissingDependencyError(
        f"ONNX Runtime cannot start ({error}); run 'pip install --force-reinstall onnxruntime'"
    ) from error

__all__ = ["ort"]

ort.disable_telemetry_events()
