"""LPIPS on SqueezeNet 1.1 (Zhang et al., CVPR 2018, version 0.1) through ONNX Runtime: no torch needed."""

from __future__ import annotations

from importlib import resources

import numpy as np
import numpy.typing as npt

from rsd_edge.errors import InputError
from rsd_edge.evaluate.metrics import Image, Size, size_of
from rsd_edge.ort import ort

_SMALLEST_SIDE = 16
"""Below this the deepest feature map is a single position."""


class LpipsMetric:
    """The packaged graph, loaded once. Memory grows with the image: about 0.5 GB a megapixel."""

    def __init__(self, threads: int | None = None) -> None:
        """Use `threads` CPU threads, or as many as ONNX Runtime chooses."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.enable_cpu_mem_arena = False
        graph = (resources.files("rsd_edge.evaluate") / "lpips_squeeze.onnx").read_bytes()
        self._session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def __call__(self, image: Image, reference: Image) -> float:
        """LPIPS of two uint8 (h, w, 3) BGR images of one shape: 0 for equal images, about 0.7 for unrelated ones.

        Raises InputError if the shapes differ or a side is below 16.
        """
        if image.shape != reference.shape:
            raise InputError(f"images of different shape cannot be compared: {image.shape} and {reference.shape}")
        check_lpips(size_of(image))
        (distance,) = self._session.run(None, {"x": _to_model(image), "y": _to_model(reference)})
        return float(distance[0])


def check_lpips(size: Size) -> None:
    """Raise InputError for images that are too small for the network."""
    if min(size) < _SMALLEST_SIDE:
        width, height = size
        raise InputError(
            f"LPIPS needs sides of at least {_SMALLEST_SIDE} pixels, not {width}x{height}; use larger images"
        )


def _to_model(image: Image) -> npt.NDArray[np.float32]:
    """uint8 (h, w, 3) BGR -> float32 (1, 3, h, w) RGB in [-1, 1]."""
    planes = image[:, :, ::-1].transpose(2, 0, 1)[np.newaxis].astype(np.float32)
    planes /= 127.5
    planes -= 1
    return planes
