"""A published model to stand beside: any ncnn network with input `data` (RGB in 0..1) and output `output` (x4)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rsd_edge.errors import MissingDependencyError, ModelError


class NcnnPeer:
    """Runs whole frames without tiles, as its authors do for small ones."""

    def __init__(self, param: Path, weights: Path, threads: int) -> None:
        """Raises MissingDependencyError without ncnn, ModelError for files that it cannot load."""
        try:
            import ncnn
        except ModuleNotFoundError as error:
            raise MissingDependencyError("the peer needs 'ncnn'; run: pip install ncnn") from error
        self._ncnn = ncnn
        self._net = ncnn.Net()
        self._net.opt.num_threads = threads
        if self._net.load_param(str(param)) or self._net.load_model(str(weights)):
            raise ModelError(f"ncnn cannot load {param} with {weights}; give a .param and its .bin")

    def __call__(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """uint8 BGR (h, w, 3) to uint8 BGR (4h, 4w, 3)."""
        rgb = np.ascontiguousarray(frame[..., ::-1].transpose(2, 0, 1), np.float32) / np.float32(255)
        enlarged = self.network(rgb)()
        return np.round(np.clip(enlarged, 0, 1) * 255).astype(np.uint8)[::-1].transpose(1, 2, 0)

    def network(self, rgb: NDArray[np.float32]) -> Callable[[], NDArray[np.float32]]:
        """The network alone, on one input float32 (3, h, w), ready to run."""
        source = self._ncnn.Mat(rgb)

        def run() -> NDArray[np.float32]:
            extractor = self._net.create_extractor()
            extractor.input("data", source)
            return np.asarray(extractor.extract("output")[1], np.float32)

        return run
