"""`rsd-edge run --auto-build`: the TensorRT engine for this GPU, built first where there is none."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import click

from rsd_edge.bundle import load_bundle, shipped_engines
from rsd_edge.cli import missing_for_tensorrt
from rsd_edge.cli.build_progress import TerminalProgress
from rsd_edge.engines import cannot_run, engine_folder, tensorrt_engine
from rsd_edge.errors import BackendError, InputError, NoEngineError
from rsd_edge.resolver import CHECKPOINT_SUFFIX
from rsd_edge.specs import Backend, Precision
from rsd_edge.stream.batch import RunSettings


def with_engine(settings: RunSettings) -> RunSettings:
    """The settings with the path of an engine that runs here.

    Raises InputError for what TensorRT does not serve, MissingDependencyError or BackendError if nothing can be built.
    """
    if settings.backend not in (None, Backend.TENSORRT.value):
        raise InputError(f"--auto-build builds TensorRT engines, not for {settings.backend}; leave --backend out")
    precision = Precision(settings.precision) if settings.precision else None
    if precision not in (None, Precision.FP16, Precision.INT8):
        raise InputError(f"--auto-build builds fp16 and int8 engines, not {precision.value}; use --precision fp16")
    engine = str(settings.engine)
    if engine in shipped_engines():
        path = _found_or_built(engine, precision, settings)
    elif Path(engine).is_dir():
        path = _of_bundle(Path(engine), settings)
    elif engine.endswith(CHECKPOINT_SUFFIX):
        path = _found_or_built(engine, precision, settings)
    else:
        raise InputError(f"'{engine}' is neither a shipped model nor a bundle nor a checkpoint; leave --auto-build out")
    return replace(settings, engine=str(path), backend=None, precision=None)


def _found_or_built(model: str, precision: Precision | None, settings: RunSettings) -> Path:
    wanted = precision or Precision.FP16
    try:
        found = tensorrt_engine(model, wanted)
    except NoEngineError:
        return _build(model, wanted, settings)
    built = found.manifest["target"]["options"]
    fits = settings.tile in (None, built["tile"]) and built["batch"][0] <= settings.batch <= built["batch"][2]
    return found.path if fits else _build(model, wanted, settings)


def _of_bundle(folder: Path, settings: RunSettings) -> Path:
    """The bundle itself, or one built again from the model that it came from."""
    bundle = load_bundle(folder)
    if bundle.spec.backend is not Backend.TENSORRT:
        raise InputError(f"{folder} is an engine for {bundle.spec.backend.value}; leave --auto-build out")
    if not cannot_run(bundle):
        return folder
    source = str(bundle.manifest["source"].get("model"))
    if source not in shipped_engines():
        raise BackendError(
            f"{folder} cannot run here ({', '.join(cannot_run(bundle))}), and what it was built from, '{source}', does "
            f"not ship; run 'rsd-edge build-engine --model {source} --backend tensorrt' where it is"
        )
    return _build(source, bundle.spec.precision, settings)


def _build(model: str, precision: Precision, settings: RunSettings) -> Path:
    try:
        from rsd_edge.export.tensorrt_options import TensorRtOptions
        from rsd_edge.export.typed_build import build_tensorrt
    except ModuleNotFoundError as error:
        raise missing_for_tensorrt("run --auto-build", error) from error
    options = TensorRtOptions(tile=settings.tile, batch=(1, settings.batch, settings.batch), threads=settings.threads)
    click.echo(f"building a TensorRT engine of {model} in {precision.value} for this GPU; once, minutes", err=True)
    sys.stderr.flush()
    with TerminalProgress() as progress:
        bundle = build_tensorrt(model, engine_folder(), precision=precision, options=options, progress=progress)
    click.echo(f"built {bundle.path}", err=True)
    return bundle.path
