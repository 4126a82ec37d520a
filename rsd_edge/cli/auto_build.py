"""`rsd-edge run --auto-build`: the TensorRT engine for this GPU, built first where there is none."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from rsd_edge.bundle import KERNELS, Bundle, rebuild_command, resolve_engine, shipped_engines
from rsd_edge.cli import missing_for_tensorrt
from rsd_edge.cli.build_progress import TerminalProgress
from rsd_edge.engines import cannot_run, room_for_engines, tensorrt_engine
from rsd_edge.errors import BackendError, InputError, ModelError, NoEngineError
from rsd_edge.resolver import CHECKPOINT_SUFFIX
from rsd_edge.specs import Backend, Precision
from rsd_edge.stream.batch import RunSettings


def with_engine(settings: RunSettings) -> RunSettings:
    """The settings with the path of an engine that runs here.

    Raises InputError for what TensorRT does not serve, ModelError for a bundle that is damaged or of another precision,
    MissingDependencyError, BackendError or OutputError if nothing can be built.
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
        path = _of_bundle(Path(engine), precision, settings)
    elif engine.endswith(CHECKPOINT_SUFFIX):
        path = _found_or_built(engine, precision, settings)
    else:
        raise InputError(f"'{engine}' is neither a shipped model nor a bundle nor a checkpoint; leave --auto-build out")
    return replace(settings, engine=str(path), backend=None, precision=None)


def _found_or_built(
    model: str,
    precision: Precision | None,
    settings: RunSettings,
    like: Mapping[str, Any] | None = None,
    calibration: str | None = None,
) -> Path:
    """like, calibration: options of an engine in whose place this one comes, and the folder of its own images."""
    options: dict[str, Any] = {"batch": (1, settings.batch, settings.batch), **(like or {})}
    options["threads"] = settings.threads
    options["batch"] = _with(settings.batch, options["batch"])
    options["tile"] = settings.tile or options.get("tile")
    wanted, kernels = precision or Precision.FP16, "kernels" in options
    try:
        return tensorrt_engine(
            model, wanted, tile=options["tile"], batch=settings.batch, kernels=kernels, calibration=calibration
        ).path
    except NoEngineError:
        return _build(model, wanted, options, calibration)


def _with(tiles: int, batch: Sequence[int]) -> tuple[int, int, int]:
    """Limits of a batch that hold this many tiles, too."""
    fewest, usual, most = batch
    return min(fewest, tiles), usual if tiles <= most else tiles, max(most, tiles)


def _of_bundle(folder: Path, precision: Precision | None, settings: RunSettings) -> Path:
    """The bundle itself, or one built again from the model that it came from."""
    bundle = resolve_engine(folder, precision)
    if bundle.spec.backend is not Backend.TENSORRT:
        raise InputError(f"{folder} is an engine for {bundle.spec.backend.value}; leave --auto-build out")
    against = cannot_run(bundle)
    if not against:
        return folder
    source = bundle.manifest["source"]
    model, images = str(source.get("model")), source.get("calibration")
    lacking = "" if images is None or Path(images).is_dir() else f"the images for its calibration, '{images}', are gone"
    if model not in shipped_engines():
        lacking = f"what it was built from, '{model}', does not ship"
    if lacking:
        raise BackendError(
            f"{folder} cannot run here ({', '.join(against)}), and {lacking}; run '{rebuild_command(bundle)}' where "
            "that is"
        )
    return _found_or_built(model, bundle.spec.precision, settings, _options_of(bundle), images)


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


def _build(model: str, precision: Precision, options: Mapping[str, Any], calibration: str | None) -> Path:
    try:
        from rsd_edge.export.tensorrt_options import TensorRtOptions
        from rsd_edge.export.typed_build import build_tensorrt
    except ModuleNotFoundError as error:
        raise missing_for_tensorrt("run --auto-build", error) from error
    asked, folder = TensorRtOptions(**options), room_for_engines()
    click.echo(f"building a TensorRT engine of {model} in {precision.value} for this GPU; once, minutes", err=True)
    sys.stderr.flush()
    with TerminalProgress() as progress:
        bundle = build_tensorrt(
            model,
            folder,
            precision=precision,
            options=asked,
            calibration=Path(calibration) if calibration else None,
            progress=progress,
        )
    click.echo(f"built {bundle.path}", err=True)
    return bundle.path
