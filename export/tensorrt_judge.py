"""How close to float a plan is, and how fast, on the device that will run it."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsd_edge.backends.base import TileEngine
from rsd_edge.backends.onnx_parts import OnnxPartsEngine
from rsd_edge.backends.onnxruntime import OnnxRuntimeEngine
from rsd_edge.backends.tensorrt.engine import TensorRtEngine
from rsd_edge.backends.tensorrt.parts import TensorRtPartsEngine
from rsd_edge.bundle import DECODER, GRAPH, plan_name
from rsd_edge.errors import BackendError
from rsd_edge.export.calibration import held_out_tiles
from rsd_edge.export.graphs_only import Exchange, Reference
from rsd_edge.export.tensorrt_options import TensorRtOptions
from rsd_edge.frames import SCALE
from rsd_edge.machine import usable_cores
from rsd_edge.specs import EDGE_FAMILY, EngineSpec, Precision, TileSpec

Array = NDArray[np.float32]

_IMAGE_SPAN = 2.0
"""Of images in [-1, 1]."""
_ROUNDS = 25
"""Timed batches of each engine, in turns; the median bears with a dozen that were disturbed."""


@dataclass(frozen=True)
class DeviceGate:
    """The least that a plan has to keep, against float in ONNX Runtime."""

    psnr_db: float
    detail_db: float


GATES = {
    Precision.FP16: DeviceGate(50.0, 24.0),
    Precision.INT8: DeviceGate(40.0, 14.0),
}
"""INT8 as for the graphs. FP16 may stray three times as far as the graphs, since devices add up in FP16 where ONNX
Runtime does not; a wrong layer costs far more."""
_BEHIND_ONE_ANOTHER = DeviceGate(30.0, 5.0)
"""Of the whole of a published model, in any precision. Each plan alone, on what fp32 gave to its graph, is held to the
gates above; behind one another, the code book turns what is left into another code here and there, which changes pixels
and not pictures."""


def judge(
    folder: Path,
    spec: EngineSpec,
    options: TensorRtOptions,
    reference: Reference,
    rivals: Mapping[Precision, Path],
    *,
    stripped: bool,
) -> dict[str, Any]:
    """Parity and speed of the plans in a folder, for a manifest.

    rivals: folders of plans that they have to be faster than. Raises BackendError if they are
    not, or stray too far.
    """
    tile = TileSpec.of(spec.model, options.tile_of(spec.model), options.batch[1])
    lq, noise = reference.lq, reference.noise
    with ExitStack() as stack:
        engine = stack.enter_context(open_plans(folder, spec, tile, stripped=stripped))
        parity = closeness(run_once(engine, lq, noise), reference.detail) | {
            "reference": "fp32 in ONNX Runtime, on held-out crops"
        }
        if isinstance(engine, TensorRtPartsEngine):
            parity["parts"] = _judge_parts(engine, reference)
            check_gate(parity, spec, _BEHIND_ONE_ANOTHER)
        else:
            check_gate(parity, spec, GATES[spec.precision])
        others = [stack.enter_context(open_plans(path, spec, tile, stripped=stripped)) for path in rivals.values()]
        times = dict(zip([*rivals, spec.precision], median_ms([*others, engine], lq, noise), strict=True))
    speed = {
        "tile": tile.size,
        "batch": tile.batch,
        "threads": options.threads or usable_cores(),
        "median_ms": {precision.value: round(ms / tile.batch, 3) for precision, ms in times.items()},
    }
    slower = [other for other in rivals if not times[spec.precision] < times[other]]
    if slower:
        raise BackendError(
            f"{spec.precision.value} is not faster than {slower[0].value} on this GPU "
            f"({times[spec.precision]:.2f} against {times[slower[0]]:.2f} ms a batch); nothing was written; "
            f"use --precision {slower[0].value}"
        )
    return {"parity": parity, "speed": speed}


def open_plans(folder: Path, spec: EngineSpec, tile: TileSpec, *, stripped: bool) -> TileEngine:
    """The engine for plans beside their graphs."""
    if spec.model.family != EDGE_FAMILY:
        return TensorRtPartsEngine(folder, spec, tile=tile, weights=stripped)
    return TensorRtEngine(folder / plan_name(GRAPH), spec, tile=tile, weights=folder / GRAPH if stripped else None)


def run_once(engine: TileEngine, lq: Array, noise: Array) -> Array:
    """The detail of one batch, (n, 4h, 4w, 3)."""
    n, _, h, w = lq.shape
    detail = np.empty((n, SCALE * h, SCALE * w, 3), np.float32)
    engine.collect(engine.submit(lq, noise, detail))
    return detail


def _judge_parts(engine: TensorRtPartsEngine, reference: Reference) -> dict[str, Any]:
    """How close each plan is on what fp32 gave to its graph. Raises BackendError beyond the gate."""
    found = {}
    for part, (inputs, wanted) in reference.parts.items():
        span = _IMAGE_SPAN if part == DECODER else float(np.ptp(wanted))
        found[part] = closeness(engine.run_part(part, inputs), wanted, span)
        check_gate(found[part], engine.spec, GATES[engine.spec.precision], f"{plan_name(part)} of ")
    return found


def closeness(detail: Array, wanted: Array, span: float = _IMAGE_SPAN) -> dict[str, Any]:
    """Errors against the span of the values and against what is wanted itself, in dB."""
    error = float(np.mean((detail.astype(np.float64) - wanted) ** 2))
    power = float(np.mean(wanted.astype(np.float64) ** 2))
    return {
        "psnr_db": round(10 * math.log10(span**2 / max(error, 1e-24)), 1),
        "detail_db": round(10 * math.log10(max(power, 1e-24) / max(error, 1e-24)), 1),
        "max_abs": float(f"{np.abs(detail - wanted).max():.2e}"),
    }


def check_gate(parity: Mapping[str, Any], spec: EngineSpec, gate: DeviceGate, what: str = "") -> None:
    """Raise BackendError for an engine that strays further than its precision explains. what: the part of it."""
    if not (parity["psnr_db"] >= gate.psnr_db and parity["detail_db"] >= gate.detail_db):
        raise BackendError(
            f"{what}the {spec.precision.value} engine differs from float by {parity['psnr_db']} dB on the image and "
            f"{parity['detail_db']} dB on the detail (at least {gate.psnr_db:.0f} and {gate.detail_db:.0f} are "
            "needed); nothing was written; use another --precision or version of TensorRT"
        )


def median_ms(engines: Sequence[TileEngine], lq: Array, noise: Array) -> list[float]:
    """Of one batch from array to array, copies included, in turns so that all see the same clocks and temperature."""
    n, _, h, w = lq.shape
    detail = np.empty((n, SCALE * h, SCALE * w, 3), np.float32)
    for engine in engines:
        engine.prepare(n, h, w)
    taken: list[list[float]] = [[] for _ in engines]
    for _ in range(_ROUNDS):
        for engine, times in zip(engines, taken, strict=True):
            began = time.perf_counter()
            engine.collect(engine.submit(lq, noise, detail))
            times.append(1e3 * (time.perf_counter() - began))
    return [float(np.median(times)) for times in taken]


def made_by_float(graphs: Mapping[str, Path], spec: EngineSpec, options: TensorRtOptions) -> Reference:
    """What float graphs make of held-out crops in ONNX Runtime, for one batch."""
    lq, noise = held_out_tiles(spec.model, options.tile_of(spec.model), options.batch[1])
    tile = TileSpec.of(spec.model, lq.shape[2])
    if spec.model.family == EDGE_FAMILY:
        with OnnxRuntimeEngine(graphs[GRAPH], spec, options.threads, tile=tile) as engine:
            return Reference(lq, noise, run_once(engine, lq, noise))
    with tempfile.TemporaryDirectory() as scratch:
        for name, path in graphs.items():
            (Path(scratch) / name).symlink_to(path.resolve())
        with _Recorder(scratch, spec, options.threads, tile=tile) as parts:
            return Reference(lq, noise, run_once(parts, lq, noise), parts.first)


class _Recorder(OnnxPartsEngine):
    """The float engine, remembering what each of its graphs was given at first, and gave."""

    def __init__(self, folder: str, spec: EngineSpec, threads: int | None, *, tile: TileSpec) -> None:
        super().__init__(folder, spec, threads, tile=tile)
        self.first: dict[str, Exchange] = {}

    def _run(self, part: str, **inputs: NDArray[Any]) -> Array:
        output = super()._run(part, **inputs)
        self.first.setdefault(part, ({name: np.array(value) for name, value in inputs.items()}, np.array(output)))
        return output
