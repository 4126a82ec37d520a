"""`build-engine` for CPUs: graph, parity, INT8 if asked for, speed, bundle."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsd_edge.backends import open_engine
from rsd_edge.backends.base import TileEngine
from rsd_edge.bundle import BuildRecord, Bundle, hash_file, resolve_engine, shipped_engines, write_bundle
from rsd_edge.errors import BackendError, InputError, ModelError
from rsd_edge.export.parts_options import PartsOptions
from rsd_edge.export.probe import probe
from rsd_edge.machine import cpu_name, int8_weight_bits, usable_cores
from rsd_edge.ort import ort
from rsd_edge.selection import TILE as SPEED_TILE
from rsd_edge.selection import median_seconds
from rsd_edge.specs import EDGE_FAMILY, Backend, EngineSpec, ModelSpec, Precision, TileSpec
from rsd_edge.stream.atomic import check_writable
from rsd_edge.versions import versions_of

log = logging.getLogger(__name__)

Tile = NDArray[np.float32]
Reference = Callable[[Tile, Tile], Tile]

PARITY_FLOOR_DB = 80.0
"""fp32 against fp32: only the order of additions differs, which measured 155 dB. Errors of 1e-4 of the range mean a
wrong graph."""
PARITY_TILE = 64
REPORT = "quantization.json"


@dataclass(frozen=True)
class Provenance:
    """What a bundle says about its weights."""

    licence: str
    training: dict[str, Any]
    model: str | None = None
    """What they are called in a bundle; None for the path that they were read from."""


@dataclass(frozen=True)
class Source:
    """A float graph on disk, what it is, and an independent way to compute the same."""

    model: ModelSpec
    graph: Path
    reference: Reference
    provenance: Provenance
    origin: dict[str, str]
    """What the graph was made from: `model` and `digest`."""
    exporter: tuple[str, ...]
    """Packages that wrote the graph just now; none for a graph that a bundle held."""


@dataclass(frozen=True)
class Made:
    """A graph that may be shipped, and what was found out about it."""

    spec: EngineSpec
    graph: Path
    parity: dict[str, Any]
    reports: dict[str, Any]


def build_engine(
    model: str,
    output: Path,
    *,
    backend: Backend = Backend.ONNXRUNTIME,
    precision: Precision = Precision.FP32,
    threads: int | None = None,
    name: str | None = None,
    provenance: Provenance | None = None,
    calibration: Path | None = None,
    published: PartsOptions | None = None,
) -> Bundle:
    """Build a bundle in the folder `output`.

    model: a shipped name, a bundle folder, or a checkpoint (.safetensors) of `rsd-edge distill`. name: of the bundle's
    folder, None to derive it from the contents. provenance: None takes what the model says of itself. calibration: for
    INT8, a folder of LR images like those the engine will see; None takes the packaged ones.
    Raises BackendError for a precision that this backend cannot build, an engine that fails its parity check or its
    gate, or an INT8 engine that is not faster than fp32 here; ModelError for a model that cannot be used, InputError
    for a calibration folder that cannot, OutputError if the output cannot be written. Nothing is written then.
    """
    if backend is Backend.TENSORRT:
        raise BackendError("tensorrt engines are not built for CPUs; use rsd_edge.export.typed_build.build_tensorrt")
    if precision in (Precision.FP16, Precision.BF16):
        raise BackendError(
            f"{backend.value} engines for CPUs cannot be built in {precision.value}; use --precision fp32 or int8"
        )
    if calibration is not None and precision is not Precision.INT8:
        raise InputError(f"calibration images serve INT8 engines and this one is {precision.value}; leave them out")
    check_writable(output)
    if model.endswith(".safetensors"):
        from rsd_edge.export.build_published import build_published
        from rsd_edge.models.checkpoint import load_checkpoint

        checkpoint = load_checkpoint(Path(model))
        if checkpoint.spec.family != EDGE_FAMILY:
            spec = EngineSpec(checkpoint.spec, backend, precision)
            options = replace(published or PartsOptions(), threads=threads, name=name)
            return build_published(Path(model), checkpoint, output, spec, options)
    if published is not None:
        raise InputError(
            f"tile and code-book lookup are options of published models, and '{model}' is none; leave them out, or "
            "give the tile to --backend tensorrt"
        )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source = from_checkpoint(Path(model), folder) if model.endswith(".safetensors") else from_bundle(model)
        made = _float(source, backend, threads)
        graphs = {Precision.FP32: made}
        if precision is Precision.INT8:
            made = _int8(source, made, folder, threads, calibration)
            graphs[Precision.INT8] = made
        known = provenance or source.provenance
        quantiser = ("onnxruntime", "onnx") if precision is Precision.INT8 else ()
        record = BuildRecord(
            versions=versions_of(backend.value, *source.exporter, *quantiser, "numpy"),
            device=f"{cpu_name()}, {threads or usable_cores()} threads",
            parity=made.parity,
            speed=_speed(graphs, threads),
            licence=known.licence,
            training=known.training,
            source=_origin(source, known, calibration),
        )
        return write_bundle(output, made.spec, made.graph, record, name=name, reports=made.reports)


def _origin(source: Source, provenance: Provenance, calibration: Path | None) -> dict[str, str]:
    model = {"model": provenance.model} if provenance.model else {}
    images = {"calibration": str(calibration.absolute())} if calibration else {}
    return {**source.origin, **model, **images}


def from_checkpoint(path: Path, folder: Path) -> Source:
    """The tile of an edge checkpoint, its graph written into the folder."""
    import torch

    from rsd_edge.export.deploy import DeployedTile
    from rsd_edge.export.onnx_export import export_tile
    from rsd_edge.models.checkpoint import load_checkpoint
    from rsd_edge.models.edge_tile import edge_tile

    checkpoint = load_checkpoint(path)
    tile = edge_tile(checkpoint)
    graph = folder / "graph.onnx"
    export_tile(DeployedTile(edge_tile(checkpoint)), graph)

    def reference(lq: Tile, noise: Tile) -> Tile:
        with torch.no_grad():
            rgb = np.asarray(tile(torch.from_numpy(lq), torch.from_numpy(noise)))
        return rgb[:, ::-1].transpose(0, 2, 3, 1)

    origin = {"model": str(path), "digest": hash_file(path)}
    said = Provenance(str(checkpoint.record.get("licence", "not stated")), checkpoint.record)
    return Source(checkpoint.spec, graph, reference, said, origin, exporter=("torch", "onnx"))


def from_bundle(model: str) -> Source:
    """A shipped model or an fp32 bundle of an edge model. Raises ModelError for anything else."""
    if model not in shipped_engines() and not Path(model).is_dir():
        names = ", ".join(shipped_engines())
        raise ModelError(
            f"'{model}' is neither a shipped engine ({names}) nor a bundle folder nor a .safetensors checkpoint"
        )
    bundle = resolve_engine(model)
    if bundle.spec.model.family != EDGE_FAMILY:
        raise ModelError(
            f"'{model}' holds three graphs of family {bundle.spec.model.family}, and its engines are built from a "
            f"checkpoint; give the one that it was built from ({bundle.manifest['source'].get('model', 'not stated')})"
        )
    if bundle.spec.precision is not Precision.FP32:
        names = ", ".join(shipped_engines())
        raise ModelError(f"'{model}' is {bundle.spec.precision.value}; engines are built from fp32 models: {names}")

    def reference(lq: Tile, noise: Tile) -> Tile:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        plain = ort.InferenceSession(str(bundle.graph_path), options, providers=["CPUExecutionProvider"])
        return np.asarray(plain.run(["detail"], {"lq": lq, "noise": noise})[0])

    manifest = bundle.manifest
    said = Provenance(str(manifest["licence"]), dict(manifest["training"]))
    origin = {"model": model, "digest": bundle.digest}
    return Source(bundle.spec.model, bundle.graph_path, reference, said, origin, exporter=())


def _float(source: Source, backend: Backend, threads: int | None) -> Made:
    spec = EngineSpec(source.model, backend)
    with _open(spec, source.graph, threads) as engine:
        return Made(spec, source.graph, _parity(engine, source.reference), {})


def _int8(source: Source, floating: Made, folder: Path, threads: int | None, images: Path | None) -> Made:
    from rsd_edge.export.calibration import calibration_samples, held_out_samples
    from rsd_edge.export.gate import RANK_TILES, Gate, Judge, Search
    from rsd_edge.export.quantize import Quantiser, prepare

    spec = replace(floating.spec, precision=Precision.INT8, weight_bits=int8_weight_bits())

    def opener(graph: Path) -> TileEngine:
        return _open(floating.spec, graph, threads)

    calibration = calibration_samples(source.model, images)
    graph = prepare(source.graph, folder)
    judge = Judge(source.graph, held_out_samples(source.model), opener, lpips=True)
    # With 32 tiles only, entropy looked best for one model, and lost it 2.5 dB of detail on the held-out tiles.
    compare = Judge(graph.path, calibration, opener, lpips=False)
    rank = Judge(graph.path, calibration.first(RANK_TILES), opener, lpips=False)
    found = Search(Quantiser(graph, calibration, folder, int8_weight_bits()), judge, compare, rank=rank).run(Gate())
    parity = {**found.report["closeness"], "reference": "fp32 on held-out crops"}
    report = found.report | {
        "weight_bits": spec.weight_bits,
        "calibration": "packaged" if images is None else f"{len(calibration)} crops of own images",
    }
    return Made(spec, found.graph, parity, {REPORT: report})


def _open(spec: EngineSpec, graph: Path, threads: int | None) -> TileEngine:
    return open_engine(graph, spec, tile=TileSpec.of(spec.model), threads=threads)


def _parity(engine: TileEngine, reference: Reference) -> dict[str, Any]:
    lq, noise = probe(engine.spec.model, 2, PARITY_TILE)
    detail = np.empty((2, 4 * PARITY_TILE, 4 * PARITY_TILE, 3), np.float32)
    engine.collect(engine.submit(lq, noise, detail))
    error = detail.astype(np.float64) - reference(lq, noise)
    psnr = float(20 * np.log10(2 / max(float(np.sqrt(np.mean(error**2))), 1e-12)))
    if not psnr >= PARITY_FLOOR_DB:
        raise BackendError(
            f"the engine differs from its reference ({psnr:.1f} dB, at least {PARITY_FLOOR_DB:.0f} dB needed); "
            f"nothing was written; try another version of {engine.spec.backend.value}"
        )
    return {"psnr_db": round(psnr, 1), "max_abs": float(f"{np.abs(error).max():.2e}"), "reference": "the network"}


def _speed(graphs: dict[Precision, Made], threads: int | None) -> dict[str, Any]:
    """Times of all graphs, taken in turns. Raises BackendError if the last one is not the fastest."""
    with ExitStack() as stack:
        engines = [stack.enter_context(_open(made.spec, made.graph, threads)) for made in graphs.values()]
        times = dict(zip(graphs, median_seconds(engines), strict=True))
    milliseconds = {precision.value: round(1e3 * seconds, 2) for precision, seconds in times.items()}
    wanted, best = list(times)[-1], min(times, key=lambda precision: times[precision])
    if wanted is not best:
        raise BackendError(
            f"{wanted.value} is not faster than {best.value} on this machine ({milliseconds[wanted.value]} against "
            f"{milliseconds[best.value]} ms a tile); nothing was written; use --precision {best.value}"
        )
    return {"tile": SPEED_TILE, "threads": threads or usable_cores(), "median_ms": milliseconds}
