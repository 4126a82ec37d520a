"""`rsd-edge run --auto-build`: the TensorRT engine for this GPU, built first where there is none."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from rsd_edge.bundle import KERNELS, Bundle, load_bundle, rebuild_command, shipped_engines
from rsd_edge.cli import missing_for_tensorrt
from rsd_edge.cli.build_progress import TerminalProgress
from rsd_edge.engines import cannot_run, engine_folder, tensorrt_engine
from rsd_edge.errors import BackendError, InputError, ModelError, NoEngineError
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


def _found_or_built(
    model: str, precision: Precision | None, settings: RunSettings, like: Mapping[str, Any] | None = None
) -> Path:
    """like: options of an engine in whose place this one comes."""
    options: dict[str, Any] = {"batch": (1, settings.batch, settings.batch), **(like or {})}
    options["threads"] = settings.threads
    options["batch"] = _with(settings.batch, options["batch"])
    options["tile"] = settings.tile or options.get("tile")
    wanted, kernels = precision or Precision.FP16, "kernels" in options
    try:
        return tensorrt_engine(model, wanted, tile=options["tile"], batch=settings.batch, kernels=kernels).path
    except NoEngineError:
        return _build(model, wanted, options)


def _with(tiles: int, batch: Sequence[int]) -> tuple[int, int, int]:
    """Limits of a batch that hold this many tiles, too."""
    fewest, usual, most = batch
    return min(fewest, tiles), usual if tiles <= most else tiles, max(most, tiles)


def _of_bundle(folder: Path, settings: RunSettings) -> Path:
    """The bundle itself, or one built again from the model that it came from."""
    bundle = load_bundle(folder)
    if bundle.spec.backend is not Backend.TENSORRT:
        raise InputError(f"{folder} is an engine for {bundle.spec.backend.value}; leave --auto-build out")
    against = cannot_run(bundle)
    if not against:
        return folder
    source = str(bundle.manifest["source"].get("model"))
    if source not in shipped_engines():
        raise BackendError(
            f"{folder} cannot run here ({', '.join(against)}), and what it was built from, '{source}', does not ship; "
            f"run '{rebuild_command(bundle)}' where it is"
        )
    return _found_or_built(source, bundle.spec.precision, settings, _options_of(bundle))


def _options_of(bundle: Bundle) -> dict[str, Any]:
    """What a bundle was built with and can be built with here; kernels that this GPU does not run are told of."""
    known = (bundle.manifest.get("target") or {}).get("options") or {}
    options = {name: known[name] for name in ("tile", "batch", "workspace_mib", "level") if name in known}
    options["flags"] = tuple(known.get("flags", ()))
    if known.get("kernels"):
        try:
            options["kernels"] = _kernels_of(bundle)
        except ModelError as error:
            click.echo(
                f"warning: {error}, then build-engine with --kernels; until then frames are cut and merged on the CPU",
                err=True,
            )
    return options


def _kernels_of(bundle: Bundle) -> Path:
    """A pack that is to be had without compiling. Raises ModelError where it is for another GPU."""
    from rsd_edge.backends.tensorrt.cuda import Cuda
    from rsd_edge.kernels.manifest import pack_files
    from rsd_edge.kernels.sequences import FRAME_KERNELS

    cuda = Cuda()
    try:
        pack_files(bundle.path / KERNELS, cuda.device.sm, FRAME_KERNELS)
    finally:
        cuda.close()
    return bundle.path / KERNELS


def _build(model: str, precision: Precision, options: Mapping[str, Any]) -> Path:
    try:
        from rsd_edge.export.tensorrt_options import TensorRtOptions
        from rsd_edge.export.typed_build import build_tensorrt
    except ModuleNotFoundError as error:
        raise missing_for_tensorrt("run --auto-build", error) from error
    asked = TensorRtOptions(**options)
    click.echo(f"building a TensorRT engine of {model} in {precision.value} for this GPU; once, minutes", err=True)
    sys.stderr.flush()
    with TerminalProgress() as progress:
        bundle = build_tensorrt(model, engine_folder(), precision=precision, options=asked, progress=progress)
    click.echo(f"built {bundle.path}", err=True)
    return bundle.path
