"""`build-engine --backend tensorrt`: typed graphs, and an engine of them here or the command for elsewhere."""

from __future__ import annotations

import logging
import shlex
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

from rsd_edge.bundle import Bundle
from rsd_edge.errors import BackendError, InputError
from rsd_edge.export.gate import Gate, closeness
from rsd_edge.export.graphs_only import GraphsOnly, Io, write_graphs
from rsd_edge.export.lint import lint
from rsd_edge.export.rounding import run_by_default, run_graph
from rsd_edge.export.tensorrt_build import build_bundle, open_site
from rsd_edge.export.tensorrt_judge import made_by_float
from rsd_edge.export.tensorrt_network import BuildProgress
from rsd_edge.export.tensorrt_options import REPORT, TensorRtOptions
from rsd_edge.export.torch_tensorrt import torch_parts
from rsd_edge.export.typed import TypedGraph, typed_graph
from rsd_edge.export.typed_prepare import with_sizes
from rsd_edge.export.typed_sources import Part, Parts, model_parts
from rsd_edge.specs import Backend, EngineSpec, Precision
from rsd_edge.stream.atomic import check_writable
from rsd_edge.versions import versions_of

log = logging.getLogger(__name__)

LINTED = ("10.3", "10.16", "11.4")
"""The installed base on boards, the last before 11, and the newest."""


def build_tensorrt(
    model: str,
    output: Path,
    *,
    precision: Precision = Precision.FP16,
    options: TensorRtOptions | None = None,
    lookup: bool = True,
    calibration: Path | None = None,
    onnx_only: bool = False,
    progress: BuildProgress | None = None,
) -> Bundle | GraphsOnly:
    """Type the graphs of a model, and compile them, in a folder within `output`.

    model: a shipped name, a bundle folder or a checkpoint. lookup: of a published model, decode by way of its code
    book. calibration: a folder of LR images like those the engine will see; None takes the packaged ones. onnx_only:
    write the graphs and how to compile them, which needs neither TensorRT nor a GPU.
    Raises BackendError for a precision that is not FP16 or INT8 and for a graph that misses its gate or that TensorRT
    would not read; MissingDependencyError or BackendError without TensorRT and `onnx_only`; ModelError, InputError and
    OutputError. Nothing is written then.
    """
    options = options or TensorRtOptions()
    if precision not in (Precision.FP16, Precision.INT8):
        raise BackendError(
            f"tensorrt engines are built in fp16 or int8, not in {precision.value}; use --precision fp16"
        )
    if onnx_only and (options.kernels is not None or options.compiler != "onnx"):
        name = "--kernels" if options.kernels is not None else "--compiler"
        raise InputError(
            f"{name} serves engines that are built here, and --onnx-only builds none; leave one of them out"
        )
    check_writable(output)
    if not onnx_only:
        open_site().cuda.close()  # typing takes minutes; what is missing can be said at once
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source = model_parts(model, folder, options, lookup=lookup, calibration=calibration)
        graphs, reports = _saved(source, precision, folder / precision.value)
        again = _again(options, lookup=lookup, calibration=calibration, elsewhere=onnx_only)
        record = replace(
            source.record,
            versions=versions_of("onnx", "onnx-ir", "onnxruntime", "numpy"),
            parity=_worst(reports),
            source={**source.record.source, **again},
        )
        spec = EngineSpec(source.model, Backend.TENSORRT, precision)
        if onnx_only:
            reference = made_by_float({name: part.graph for name, part in source.parts.items()}, spec, options)
            return write_graphs(output, spec, graphs, io_of(graphs), record, options, reference, reports)
        rival = None
        if precision is Precision.INT8:
            rival, _ = _saved(source, Precision.FP16, folder / "rival")
        return build_bundle(
            graphs,
            spec,
            output,
            record,
            reference={name: part.graph for name, part in source.parts.items()},
            options=options,
            faster_than=rival,
            reports={REPORT: reports},
            modules=torch_parts(model, options, lookup=lookup) if options.compiler == "torch-tensorrt" else None,
            progress=progress,
        )


def _typed(name: str, part: Part, precision: Precision) -> TypedGraph:
    log.info("%s in %s", name, precision.value)
    kind: Literal["fp16", "int8"] = "int8" if precision is Precision.INT8 else "fp16"
    graph = typed_graph(onnx.load(part.graph), kind, part.calibration, held_out=part.held_out, peak=part.span)
    model = with_sizes(graph.model, part.sizes)
    findings = {version: lint(model, version) for version in LINTED}
    for version, found in findings.items():
        if found:
            raise BackendError(
                f"TensorRT {version} would not take {name}: {found[0]}; report this with the model's name"
            )
    return replace(graph, model=model, report=graph.report | {"lint": findings})


def _again(options: TensorRtOptions, *, lookup: bool, calibration: Path | None, elsewhere: bool) -> dict[str, str]:
    """What the command that builds the engine again needs, apart for TensorRT and for any backend.

    elsewhere: on another machine, whose threads and caches are others.
    """
    if elsewhere:
        options = replace(options, threads=None, timing_cache=None)
    known = {
        "calibration": str(calibration.absolute()) if calibration else "",
        "options": "" if lookup else "--no-lookup",
        "tensorrt": shlex.join(options.words),
    }
    return {name: value for name, value in known.items() if value}


def _worst(reports: Mapping[str, Any]) -> dict[str, Any]:
    """Of all parts, the figures of the one that is least close."""

    def least(key: str) -> dict[str, float]:
        return {name: min(report[key][name] for report in reports.values()) for name in ("psnr_db", "detail_snr_db")}

    return {**least("closeness"), "default_session": least("default_session"), "reference": "fp32 on held-out crops"}


def _saved(source: Parts, precision: Precision, folder: Path) -> tuple[dict[str, Path], dict[str, Any]]:
    """The files of all parts, and their reports. Raises BackendError as `build_tensorrt` does."""
    folder.mkdir()
    graphs, reports = {}, {}
    for name, part in source.parts.items():
        typed = _typed(name, part, precision)
        graphs[name] = folder / name
        onnx.save(typed.model, graphs[name])
        reports[name] = typed.report | {"default_session": _by_default(graphs[name], part, typed)}
    return graphs, reports


def _by_default(graph: Path, part: Part, typed: TypedGraph) -> dict[str, float]:
    """How close the file is in a session such as anybody would open it with. Raises BackendError beyond the gate."""
    reference = run_graph(onnx.load(part.graph), part.at_size)
    span = float(np.ptp(reference)) if part.span is None else part.span
    found = closeness(run_by_default(graph, part.at_size), reference, span)
    gate = Gate(**typed.report["gate"], lpips=0)
    if not found.passes(gate):
        raise BackendError(
            f"{graph.name} in {typed.precision} differs from fp32 by {found.psnr_db} dB, detail {found.detail_snr_db} "
            f"dB, in a default session of ONNX Runtime (at least {gate.psnr_db:.0f} and {gate.detail_snr_db:.0f} are "
            "needed); nothing was written; try another version of onnxruntime, or another --precision"
        )
    return found.record()


def io_of(graphs: Mapping[str, Path]) -> dict[str, Io]:
    """What plans of these graphs take and give."""
    found = {}
    for name, path in graphs.items():
        graph = onnx.load(path).graph
        found[name] = {"inputs": _tensors(graph.input), "outputs": _tensors(graph.output)}
    return found


def _tensors(values: Iterable[onnx.ValueInfoProto]) -> dict[str, dict[str, Any]]:
    return {
        item.name: {
            "dtype": onnx.helper.tensor_dtype_to_np_dtype(item.type.tensor_type.elem_type).name,
            "shape": [dim.dim_value or -1 for dim in item.type.tensor_type.shape.dim],
        }
        for item in values
    }
