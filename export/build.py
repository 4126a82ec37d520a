"""`build-engine` on ONNX Runtime: graph, parity, speed, bundle."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from rsd_edge import __version__
from rsd_edge.backends.onnxruntime import OnnxRuntimeEngine
from rsd_edge.bundle import BuildRecord, Bundle, resolve_engine, shipped_engines, write_bundle
from rsd_edge.errors import BackendError, ModelError
from rsd_edge.machine import cpu_name
from rsd_edge.noise import NoiseField
from rsd_edge.specs import Backend, EngineSpec, ModelSpec, Precision

Tile = NDArray[np.float32]
Reference = Callable[[Tile, Tile], Tile]

PARITY_FLOOR_DB = 80.0
"""fp32 against fp32: only the order of additions differs, which measured 155 dB. Errors of 1e-4 of the range mean a
wrong graph."""
SPEED_TILE = 64
SPEED_RUNS = 15


@dataclass(frozen=True)
class Provenance:
    """What a bundle says about its weights."""

    licence: str
    training: dict[str, Any]


@dataclass(frozen=True)
class Source:
    """A graph on disk, what it is, and an independent way to compute the same."""

    model: ModelSpec
    graph: Path
    reference: Reference
    provenance: Provenance


def build_engine(
    model: str,
    output: Path,
    *,
    backend: Backend = Backend.ONNXRUNTIME,
    precision: Precision = Precision.FP32,
    threads: int | None = None,
    name: str | None = None,
    provenance: Provenance | None = None,
) -> Bundle:
    """Build a bundle in the folder `output`.

    model: a shipped name, a bundle folder, or a checkpoint (.safetensors) of `rsd-edge distill`. name: of the bundle's
    folder, None to derive it from the contents. provenance: None takes what the model says of itself.
    Raises BackendError for a precision that this backend cannot build or an engine that fails its parity check,
    ModelError for a model that cannot be used, OutputError if the folder cannot be written.
    """
    if precision is not Precision.FP32:
        raise BackendError(
            f"{backend.value} engines in {precision.value} cannot be built by this version; use --precision fp32"
        )
    with tempfile.TemporaryDirectory() as folder:
        source = _from_checkpoint(Path(model), Path(folder)) if model.endswith(".safetensors") else _from_bundle(model)
        spec = EngineSpec(source.model, backend, precision)
        known = provenance or source.provenance
        with OnnxRuntimeEngine(source.graph, spec, threads) as engine:
            record = BuildRecord(
                versions={"rsd_edge": __version__, "onnxruntime": ort.__version__, "numpy": np.__version__},
                device=f"{cpu_name()}, {engine.threads} threads",
                parity=_parity(engine, source.reference),
                speed=_speed(engine),
                licence=known.licence,
                training=known.training,
            )
        return write_bundle(output, spec, source.graph, record, name=name)


def _from_checkpoint(path: Path, folder: Path) -> Source:
    import torch

    from rsd_edge.export.onnx_export import edge_tile, export_tile
    from rsd_edge.models.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(path)
    tile = edge_tile(checkpoint)
    graph = folder / "graph.onnx"
    export_tile(tile, graph)

    def reference(lq: Tile, noise: Tile) -> Tile:
        with torch.no_grad():
            return np.asarray(tile(torch.from_numpy(lq), torch.from_numpy(noise)))

    return Source(checkpoint.spec, graph, reference, Provenance("not stated", checkpoint.record))


def _from_bundle(model: str) -> Source:
    if model not in shipped_engines() and not Path(model).is_dir():
        names = ", ".join(shipped_engines())
        raise ModelError(
            f"'{model}' is neither a shipped engine ({names}) nor a bundle folder nor a .safetensors checkpoint"
        )
    bundle = resolve_engine(model)
    if bundle.spec.precision is not Precision.FP32:
        names = ", ".join(shipped_engines())
        raise ModelError(f"'{model}' is {bundle.spec.precision.value}; engines are built from fp32 models: {names}")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain = ort.InferenceSession(str(bundle.graph_path), options, providers=["CPUExecutionProvider"])

    def reference(lq: Tile, noise: Tile) -> Tile:
        return np.asarray(plain.run(["detail"], {"lq": lq, "noise": noise})[0])

    manifest = bundle.manifest
    said = Provenance(str(manifest["licence"]), dict(manifest["training"]))
    return Source(bundle.spec.model, bundle.graph_path, reference, said)


def _probe(model: ModelSpec, n: int, side: int) -> tuple[Tile, Tile]:
    """A tile with the spectrum of a photograph (1 / f) in [-1, 1], and noise of the field."""
    white = NoiseField(1).normal(3 * n, 0, 0, side, side).reshape(n, 3, side, side)
    fy, fx = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)
    pink = np.fft.irfft2(np.fft.rfft2(white) / np.maximum(np.hypot(fy, fx), 1 / side), s=(side, side))
    lq = np.clip(0.5 * pink / pink.std(), -1, 1).astype(np.float32)
    noise = NoiseField(2).normal(n * model.noise_channels, 0, 0, side, side)
    return lq, noise.reshape(n, model.noise_channels, side, side)


def _run(engine: OnnxRuntimeEngine, lq: Tile, noise: Tile) -> Tile:
    n, _, h, w = lq.shape
    detail = np.empty((n, 3, 4 * h, 4 * w), np.float32)
    engine.collect(engine.submit(lq, noise, detail))
    return detail


def _parity(engine: OnnxRuntimeEngine, reference: Reference) -> dict[str, Any]:
    lq, noise = _probe(engine.spec.model, 2, SPEED_TILE)
    error = _run(engine, lq, noise).astype(np.float64) - reference(lq, noise)
    psnr = float(20 * np.log10(2 / max(float(np.sqrt(np.mean(error**2))), 1e-12)))
    if not psnr >= PARITY_FLOOR_DB:
        raise BackendError(
            f"the engine differs from its reference ({psnr:.1f} dB, at least {PARITY_FLOOR_DB:.0f} dB needed); "
            "nothing was written; try another onnxruntime version"
        )
    return {"psnr_db": round(psnr, 1), "max_abs": float(f"{np.abs(error).max():.2e}"), "range": "[-1, 1]"}


def _speed(engine: OnnxRuntimeEngine) -> dict[str, Any]:
    lq, noise = _probe(engine.spec.model, 1, SPEED_TILE)
    _run(engine, lq, noise)
    seconds = []
    for _ in range(SPEED_RUNS):
        began = time.perf_counter()
        _run(engine, lq, noise)
        seconds.append(time.perf_counter() - began)
    median, slowest = float(np.median(seconds)), max(seconds)
    return {
        "tile": SPEED_TILE,
        "threads": engine.threads,
        "median_ms": round(1e3 * median, 2),
        "slowest_ms": round(1e3 * slowest, 2),
        "runs": SPEED_RUNS,
    }
