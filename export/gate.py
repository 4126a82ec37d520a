"""When INT8 may stand in for float: how close it must come, layer by layer what it costs, and what is left in float."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from rsd_edge.backends.base import TileEngine
from rsd_edge.errors import BackendError
from rsd_edge.evaluate.lpips import LpipsMetric
from rsd_edge.export.calibration import Samples
from rsd_edge.export.ranges import Method
from rsd_edge.frames import SCALE, DetailCompositor, Region

log = logging.getLogger(__name__)

Opener = Callable[[Path], TileEngine]
Detail = NDArray[np.float32]
GraphT = TypeVar("GraphT", covariant=True)

_BATCH = 8
RANK_TILES = 32
"""Calibration tiles on which layers are ranked."""

_LEAST_POWER = 1e-20
"""Where zero begins: far below what float32 leaves of detail, and finite in dB."""
_WORST_POWER = 1e20
"""Of an error that is not finite, likewise."""


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

    def __str__(self) -> str:
        judged = "" if self.lpips is None else f", LPIPS {self.lpips:+.4f}"
        return f"image {self.psnr_db:.1f} dB, detail {self.detail_snr_db:.1f} dB{judged}"

    def passes(self, gate: Gate) -> bool:
        near = self.psnr_db >= gate.psnr_db and self.detail_snr_db >= gate.detail_snr_db
        return near and (self.lpips is None or abs(self.lpips) <= gate.lpips)

    def record(self) -> dict[str, float]:
        """What was measured, for reports."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Quantised(Generic[GraphT]):
    """The result of the search, and its report."""

    graph: GraphT
    closeness: Closeness
    report: dict[str, Any]


def closeness(result: Detail, reference: Detail, peak: float = 2.0) -> Closeness:
    """PSNR for values that span `peak`, and the power of the reference over that of the error."""
    power = max(
        _power(one.astype(np.float64) - other for one, other in zip(result, reference, strict=True)), _LEAST_POWER
    )
    if not np.isfinite(power):
        power = _WORST_POWER
    signal = max(_power(one.astype(np.float64) for one in reference), _LEAST_POWER)
    return Closeness(
        psnr_db=round(10 * float(np.log10(peak**2 / power)), 2),
        detail_snr_db=round(10 * float(np.log10(signal / power)), 2),
    )


def _power(tiles: Iterable[NDArray[np.float64]]) -> float:
    """Mean square of tiles of one size; of one at a time, since 256 in float64 take 226 MB, and each step as much."""
    return float(np.mean([np.mean(tile**2) for tile in tiles]))


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
        distance = self._lpips(detail)
        worse = None if distance is None or self._distance is None else round(distance - self._distance, 5)
        return replace(closeness(detail, self.reference), lpips=worse)

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


class Maker(Protocol[GraphT]):
    """Makes reduced graphs of a float one, all layers but some."""

    layers: tuple[str, ...]

    def __call__(self, method: Method, keep_float: Sequence[str] = ()) -> GraphT: ...


class Search(Generic[GraphT]):
    """Finds the graph that is as much reduced as the gate allows."""

    def __init__(
        self,
        make: Maker[GraphT],
        judge: Callable[[GraphT], Closeness],
        compare: Callable[[GraphT], Closeness],
        *,
        rank: Callable[[GraphT], Closeness],
        precision: str = "int8",
        instead: str = "--precision fp32",
    ) -> None:
        """
        judge: against the gate. compare: on the tiles by which methods are chosen; many, since what ranges cut off
        shows in few of them. rank: on those by which layers are; few, since there are many layers.
        precision: what is sought. instead: options that do without.
        """
        self._make, self._judge, self._compare, self._rank = make, judge, compare, rank
        self._precision, self._instead = precision, instead

    def run(self, gate: Gate, methods: tuple[Method, ...] = tuple(Method)) -> Quantised[GraphT]:
        """Choose the calibration method and, unless the gate holds at once, leave the worst layers in float until so.

        Raises BackendError if it does not hold with all layers but one in float.
        """
        by_method = {method: self._compare(self._make(method)) for method in methods}
        method = max(by_method, key=lambda item: by_method[item].detail_snr_db)
        log.info("calibration %s: detail SNR %.1f dB", method.value, by_method[method].detail_snr_db)
        alone: dict[str, float] = {}
        for count in range(len(self._make.layers)):
            if count == 1:
                alone = self._sensitivity(method)
            keep_float = list(alone)[:count]
            graph = self._make(method, keep_float)
            closeness = self._judge(graph)
            log.info("%d layers in float: %s", count, closeness)
            if closeness.passes(gate):
                report = {
                    "gate": asdict(gate),
                    "closeness": closeness.record(),
                    "method": method.value,
                    "methods": {item.value: found.record() for item, found in by_method.items()},
                    "layers_in_float": keep_float,
                    "detail_snr_db_of_each_layer_alone": alone,
                }
                return Quantised(graph, closeness, report)
        raise BackendError(
            f"{self._precision.upper()} stays outside its gate ({gate}) even with nearly all layers in float; nothing "
            f"was written; use {self._instead}, or calibrate on images like yours with --calibration"
        )

    def _sensitivity(self, method: Method) -> dict[str, float]:
        """Detail SNR in dB with one layer in integers and all others in float, for each layer, worst first."""
        layers, alone = self._make.layers, {}
        for layer in layers:
            graph = self._make(method, [name for name in layers if name != layer])
            alone[layer] = self._rank(graph).detail_snr_db
        return dict(sorted(alone.items(), key=lambda item: item[1]))
