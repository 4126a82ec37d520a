"""The one place that imports ONNX Runtime: `from rsd_edge.ort import ort`.

Some builds report usage to their vendor, and write an identifier of the machine into the user's cache folder as soon as
they are imported. The variable stops all of that.
"""

from __future__ import annotations

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

__all__ = ["ort"]

ort.disable_telemetry_events()
