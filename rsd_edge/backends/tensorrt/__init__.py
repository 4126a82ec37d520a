"""Engines on TensorRT 10.3 to 11.x, without torch: `tensorrt`, `cuda-python` and NumPy.

library.py finds TensorRT, cuda.py is the part of CUDA that is used, plan.py a loaded engine. engine.py runs tiles of an
edge model, parts.py those of a published one, frame_path.py whole frames with the ahead-of-time kernels;
bundle.py opens them where device.py says that they may. Nothing here imports
`tensorrt` or `cuda` before it is asked to.
"""

from __future__ import annotations
