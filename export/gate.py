"""When INT8 may stand in for float: how close it must come, layer by layer what it costs, and what is left in float."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnxruntime.quantization.calibrate import TensorsData

from rsd_edge.backends.base import TileEngine
from rsd_edge.errors import BackendError
from rsd_edge.evaluate.lpips import LpipsMetric
from rsd_edge.export.calibration import Samples
from rsd_edge.export.quantize import Method, Quantisable, collect_activations, quantise, ranges_of
from rsd_edge.frames import SCALE, DetailCompositor, Region

log = logging.getLogger(__name__)

Opener = Callable[[Path], TileEngine]
Detail = NDArray[np.float32]

_BATCH = 8
_SEARCH_TILES = 32
"""Calibration tiles on which methods and layers are compared; the held-out tiles only judge the end."""

_LEAST_POWER = 1e-20
"""Where zero begins: far below what float32 leaves of detail, and finite in dB."""


@dataclass(frozen=True)
class Gate:
    """Bounds of an INT8 engine against its float original."""

    psnr_db: float = 40.0
    detail_snr_db: float = 14.0
    """Power of the detail over power of its error: the bicubic base hides errors from the PSNR of the image."""
    lpips: float = 0.005


@dataclass(frozen=True)
class Closeness:
    """An INT8 engine against its float original."""

    psnr_db: float
    """Of the image, on the range [-1, 1]."""
    detail_snr_db: float
    lpips: float | None = None
    """LPIPS-squeeze to the reference image, INT8 minus float, mean over the tiles; None if it was not asked for."""

    def passes(self, gate: Gate) -> bool:
        near = self.psnr_db >= gate.psnr_db and self.detail_snr_db >= gate.detail_snr_db
        return near and (self.lpips is None or abs(self.lpips) <= gate.lpips)

    def record(self) -> dict[str, float]:
        """What was measured, for reports."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Quantised:
    """The result of the search, and its report."""

    graph: Path
    closeness: Closeness
    report: dict[str, Any]


class Judge:
    """Compares graphs with the float one on the same tiles."""

    def __init__(self, graph: Path, samples: Samples, opener: Opener, *, lpips: bool) -> None:
        self._samples, self._open = samples, opener
        self._metric = LpipsMetric() if lpips else None
        self.reference = self._detail(graph)
        self._distance = self._lpips(self.reference)

    def __call__(self, graph: Path) -> Closeness:
        """Raises ModelError if the graph cannot be opened, BackendError if it cannot be run."""
        detail = self._detail(graph)
        error = detail.astype(np.float64) - self.reference
        power = max(float(np.mean(error**2)), _LEAST_POWER)
        signal = max(float(np.mean(self.reference.astype(np.float64) ** 2)), _LEAST_POWER)
        distance = self._lpips(detail)
        return Closeness(
            psnr_db=round(10 * float(np.log10(4 / power)), 2),
            detail_snr_db=round(10 * float(np.log10(signal / power)), 2),
            lpips=None if distance is None or self._distance is None else round(distance - self._distance, 5),
        )

    def _detail(self, graph: Path) -> Detail:
        lq, noise = self._samples.lq, self._samples.noise
        n, _, h, w = lq.shape
        detail = np.empty((n, SCALE * h, SCALE * w, 3), np.float32)
        with self._open(graph) as engine:
            for start in range(0, n, _BATCH):
                part = slice(start, start + _BATCH)
                engine.collect(engine.submit(lq[part], noise[part], detail[part]))
        return detail

    def _lpips(self, detail: Detail) -> float | None:
        if self._metric is None or self._samples.hr is None:
            return None
        n, h, w, _ = self._samples.frames.shape
        compositor, whole = DetailCompositor(h, w, np.dtype(np.uint8)), Region(0, h, 0, w)
        image = np.empty((SCALE * h, SCALE * w, 3), np.uint8)
        distances = []
        for index in range(n):
            compositor.add(self._samples.frames[index], whole, detail[index], 1.0, image)
            distances.append(self._metric(image, self._samples.hr[index]))
        return float(np.mean(distances))


class Search:
    """Finds the INT8 graph that is as much integer as the gate allows."""

    def __init__(
        self, graph: Quantisable, calibration: Samples, judge: Judge, opener: Opener, folder: Path, weight_bits: int
    ) -> None:
        self._graph, self._judge, self._folder, self._weight_bits = graph, judge, folder, weight_bits
        self._activations = collect_activations(graph, calibration, folder)
        self._ranges: dict[Method, TensorsData] = {}
        few = slice(0, _SEARCH_TILES)
        seen = Samples(calibration.frames[few], calibration.lq[few], calibration.noise[few])
        self._compare = Judge(graph.path, seen, opener, lpips=False)

    def run(self, gate: Gate, methods: tuple[Method, ...] = tuple(Method)) -> Quantised:
        """Choose the calibration method, rank the layers, and leave the worst in float until the gate holds.

        Raises BackendError if it does not hold with all layers but one in float.
        """
        by_method = {method: self._compare(self._quantise(method)) for method in methods}
        method = max(by_method, key=lambda item: by_method[item].detail_snr_db)
        log.info("calibration %s: detail SNR %.1f dB", method.value, by_method[method].detail_snr_db)
        alone = self._sensitivity(method)
        worst_first = sorted(alone, key=lambda layer: alone[layer])
        for count in range(len(worst_first)):
            keep_float = worst_first[:count]
            target = self._quantise(method, keep_float)
            closeness = self._judge(target)
            log.info("%d layers in float: %s", count, closeness)
            if closeness.passes(gate):
                report = {
                    "gate": asdict(gate),
                    "closeness": closeness.record(),
                    "method": method.value,
                    "weight_bits": self._weight_bits,
                    "methods": {item.value: found.record() for item, found in by_method.items()},
                    "layers_in_float": keep_float,
                    "detail_snr_db_of_each_layer_alone": {layer: alone[layer] for layer in worst_first},
                }
                return Quantised(target, closeness, report)
        raise BackendError(
            f"INT8 stays outside its gate ({gate}) even with nearly all layers in float; nothing was written; "
            "use --precision fp32, or calibrate on images like yours with --calibration"
        )

    def _sensitivity(self, method: Method) -> dict[str, float]:
        """Detail SNR in dB with one layer in integers and all others in float, for each layer."""
        layers, alone = self._graph.layers, {}
        for layer in layers:
            target = self._quantise(method, [name for name in layers if name != layer])
            alone[layer] = self._compare(target).detail_snr_db
        return alone

    def _quantise(self, method: Method, keep_float: Sequence[str] = ()) -> Path:
        if method not in self._ranges:
            self._ranges[method] = ranges_of(self._activations, method)
        target = self._folder / "int8.onnx"
        quantise(self._graph, self._ranges[method], target, weight_bits=self._weight_bits, keep_float=keep_float)
        return target
