"""The float graphs of a model, and the inputs that calibrate and judge each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from rsd_edge.backends.onnx_parts import OnnxPartsEngine
from rsd_edge.bundle import DECODER, GRAPH, BuildRecord, hash_file
from rsd_edge.errors import InputError
from rsd_edge.export.build import Source, from_bundle, from_checkpoint
from rsd_edge.export.calibration import Samples, calibration_samples, held_out_samples, held_out_tiles
from rsd_edge.export.quantize import BATCH, batches_of
from rsd_edge.export.ranges import Feeds
from rsd_edge.export.tensorrt_options import TensorRtOptions
from rsd_edge.export.typed_prepare import with_sizes
from rsd_edge.frames import SCALE
from rsd_edge.specs import EDGE_FAMILY, EngineSpec, ModelSpec

_PARTS_CALIBRATION, _PARTS_HELD_OUT = 8, 2
"""Tiles: each takes a published model seconds on a CPU, and holds as many pixels as two of the crops."""
_IMAGE_SPAN = 2.0


@dataclass(frozen=True)
class Part:
    """One float graph."""

    graph: Path
    calibration: list[Feeds]
    held_out: list[Feeds]
    span: float | None
    """Between the least and the greatest value that matter; None for what the graph gives, as with latents."""
    sizes: dict[str, int]
    """Symbolic dimensions to be fixed once the graph is typed."""
    at_size: list[Feeds]
    """Held-out inputs of those sizes."""


@dataclass(frozen=True)
class Parts:
    """A model as graphs, by the names that they have in a bundle, and where it comes from."""

    model: ModelSpec
    parts: dict[str, Part]
    record: BuildRecord


def model_parts(
    model: str, folder: Path, options: TensorRtOptions, *, lookup: bool = True, calibration: Path | None = None
) -> Parts:
    """The graphs of a shipped model, a bundle or a checkpoint, written into a folder where they are not files yet.

    calibration: a folder of LR images; None takes the packaged ones. Raises ModelError, InputError and BackendError as
    `build_engine` does.
    """
    if _is_published(model):
        return _published(Path(model), folder, options, lookup, calibration)
    if not lookup:
        raise InputError(f"code-book lookup is an option of published models, and '{model}' is none; leave it out")
    checkpoint = model.endswith(".safetensors")
    return _edge(from_checkpoint(Path(model), folder) if checkpoint else from_bundle(model), options, calibration)


def _is_published(model: str) -> bool:
    if not model.endswith(".safetensors"):
        return False
    from rsd_edge.models.checkpoint import load_checkpoint

    return load_checkpoint(Path(model)).spec.family != EDGE_FAMILY


def _edge(source: Source, options: TensorRtOptions, images: Path | None) -> Parts:
    side = options.tile_of(source.model)
    part = Part(
        source.graph,
        batches_of(calibration_samples(source.model, images), BATCH),
        batches_of(held_out_samples(source.model), BATCH),
        _IMAGE_SPAN,
        {"h": side, "w": side},
        [{"lq": lq[None], "noise": noise[None]} for lq, noise in zip(*held_out_tiles(source.model, side), strict=True)],
    )
    known = source.provenance
    record = BuildRecord(licence=known.licence, training=known.training, source=source.origin)
    return Parts(source.model, {GRAPH: part}, record)


def _published(path: Path, folder: Path, options: TensorRtOptions, lookup: bool, images: Path | None) -> Parts:
    from rsd_edge.export.parts import export_parts, parts_of
    from rsd_edge.models.checkpoint import load_checkpoint
    from rsd_edge.models.published import published_model

    checkpoint = load_checkpoint(path)
    spec = checkpoint.spec
    graphs = export_parts(parts_of(published_model(checkpoint, quantise=lookup), options.tile_of(spec)), folder)
    if options.batch == (1, 1, 1):  # what depends on the batch, such as the masks of windows, is then constant
        for graph in graphs.values():
            onnx.save(with_sizes(onnx.load(graph), {"n": 1}), graph)
    seen = _recorded(folder, spec, calibration_samples(spec, images).first(_PARTS_CALIBRATION), options.threads)
    judged = _recorded(folder, spec, held_out_samples(spec).first(_PARTS_HELD_OUT), options.threads)
    parts = {
        name: Part(graph, seen[name], judged[name], _IMAGE_SPAN if name == DECODER else None, {}, judged[name])
        for name, graph in graphs.items()
    }
    origin = {"model": str(path), "digest": hash_file(path)}
    licence = str(checkpoint.record.get("licence", "not stated"))
    return Parts(spec, parts, BuildRecord(licence=licence, training=checkpoint.record, source=origin))


class _Recorder(OnnxPartsEngine):
    """The float engine, remembering what each of its graphs was given."""

    def __init__(self, folder: Path, spec: EngineSpec, threads: int | None) -> None:
        super().__init__(folder, spec, threads)
        self.seen: dict[str, list[Feeds]] = {}

    def _run(self, part: str, **inputs: NDArray[Any]) -> NDArray[np.float32]:
        self.seen.setdefault(part, []).append({name: np.ascontiguousarray(value) for name, value in inputs.items()})
        return super()._run(part, **inputs)


def _recorded(folder: Path, spec: ModelSpec, samples: Samples, threads: int | None) -> Mapping[str, list[Feeds]]:
    with _Recorder(folder, EngineSpec(spec), threads) as engine:
        side = engine.tile.size
        lq, noise = (_filled(tiles, side) for tiles in (samples.lq, samples.noise))
        detail = np.empty((1, SCALE * side, SCALE * side, 3), np.float32)
        for index in range(len(samples)):
            one = slice(index, index + 1)
            engine.collect(engine.submit(lq[one], noise[one], detail))
        return engine.seen


def _filled(tiles: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """(n, c, 48, 48) to (n, c, side, side): cut, or mirrored beyond the edges."""
    cut = tiles[:, :, :side, :side]
    short = side - cut.shape[2]
    return np.ascontiguousarray(np.pad(cut, ((0, 0), (0, 0), (0, short), (0, short)), mode="symmetric"))
