"""`build-engine` for the published models: three graphs, each compared with its network, timed, and bundled."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rsd_edge.backends.onnx_parts import OnnxPartsEngine
from rsd_edge.bundle import BuildRecord, Bundle, hash_file, write_bundle
from rsd_edge.errors import BackendError
from rsd_edge.export.parts import Part, export_parts, parts_of
from rsd_edge.export.parts_options import PartsOptions
from rsd_edge.machine import cpu_name, usable_cores
from rsd_edge.models.checkpoint import Checkpoint
from rsd_edge.models.published import published_model
from rsd_edge.ort import ort
from rsd_edge.specs import Backend, EngineSpec, Precision
from rsd_edge.versions import versions_of

PARITY = 1e-3
"""Largest error of a part, for values around 1: order of sums through forty layers. A wrong graph is off by 0.1."""


def build_published(
    path: Path, checkpoint: Checkpoint, output: Path, spec: EngineSpec, options: PartsOptions
) -> Bundle:
    """A bundle of encoder, generator and decoder in the folder `output`.

    Raises BackendError for a backend or precision that cannot run them or a part that differs from its network,
    InputError for a tile size that they cannot take, OutputError. Nothing is written then.
    """
    if spec.backend is not Backend.ONNXRUNTIME or spec.precision is not Precision.FP32:
        raise BackendError(
            f"{checkpoint.spec.family} models are built for onnxruntime in fp32, not for {spec.backend.value} in "
            f"{spec.precision.value}; use --backend onnxruntime --precision fp32"
        )
    model = published_model(checkpoint, quantise=options.lookup)
    parts = parts_of(model, options.tile)
    with tempfile.TemporaryDirectory() as scratch:
        graphs = export_parts(parts, Path(scratch))
        parity = {name: part_error(graphs[name], part) for name, part in parts.items()}
        _check(parity)
        record = BuildRecord(
            versions=versions_of("onnxruntime", "torch", "onnx", "numpy"),
            device=f"{cpu_name()}, {options.threads or usable_cores()} threads",
            parity={
                "psnr_db": round(-20 * float(np.log10(max(*parity.values(), 1e-9) / 2)), 1),
                "max_abs": {name: float(f"{error:.2e}") for name, error in parity.items()},
                "reference": "the networks, by the largest error of a part",
                "code_book_lookup": options.lookup,
            },
            speed=_speed(Path(scratch), spec, options),
            licence=str(checkpoint.record.get("licence", "not stated")),
            training=checkpoint.record,
            source={"model": str(path), "digest": hash_file(path), "options": options.words},
        )
        return write_bundle(output, spec, graphs, record, name=options.name)


@torch.no_grad()
def part_error(graph: Path, part: Part) -> float:
    """Largest difference between ONNX Runtime and torch on a batch of two."""
    network, inputs, _ = part
    batch = {name: x if name == "t" else torch.cat([x, x.flip(3)]) for name, x in inputs.items()}
    session = ort.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    found = session.run(None, {name: x.numpy() for name, x in batch.items()})[0]
    return float(np.abs(found - network(*batch.values()).numpy()).max())


def _check(parity: Mapping[str, float]) -> None:
    for name, error in parity.items():
        if not error <= PARITY:
            raise BackendError(
                f"{name} differs from its network by {error:.1e} (at most {PARITY:.0e} is allowed); nothing was "
                "written; try another version of onnxruntime"
            )


def _speed(folder: Path, spec: EngineSpec, options: PartsOptions) -> dict[str, Any]:
    side = options.tile
    rng = np.random.default_rng(0)
    lq = rng.uniform(-1, 1, (1, 3, side, side)).astype(np.float32)
    noise = rng.standard_normal((1, spec.model.noise_channels, side, side), np.float32)
    detail = np.empty((1, 4 * side, 4 * side, 3), np.float32)
    with OnnxPartsEngine(folder, spec, options.threads) as engine:
        seconds = []
        for _ in range(1 + 3):  # the first run is slower and does not count; each takes seconds
            began = time.perf_counter()
            engine.collect(engine.submit(lq, noise, detail))
            seconds.append(time.perf_counter() - began)
    milliseconds = {spec.precision.value: round(1e3 * statistics.median(seconds[1:]), 1)}
    return {"tile": side, "threads": options.threads or usable_cores(), "median_ms": milliseconds}
