"""Checkpoints on runtimes that execute graphs: `rsd-edge run` builds the engine once and keeps it in the cache."""

from __future__ import annotations

import hashlib
import json
import shlex
from pathlib import Path

import click

from rsd_edge import __version__
from rsd_edge.backends import check_device
from rsd_edge.bundle import FORMAT, MANIFEST, hash_file, load_bundle
from rsd_edge.cli import missing_package
from rsd_edge.engines import engine_folder, room_for_engines
from rsd_edge.errors import BackendError, ModelError
from rsd_edge.specs import EDGE_FAMILY, Backend, FramePathKind, Precision
from rsd_edge.stream.batch import RunSettings
from rsd_edge.stream.locking import locked

_KEY_LENGTH = 16


def kept_engine(checkpoint: Path, backend: Backend, settings: RunSettings) -> Path:
    """The bundle that `build-engine` makes of a checkpoint in fp32, from the cache or built now, which is told.

    It is kept under a hash of the checkpoint, of what it was built for and of what builds it; one process builds it,
    and others wait. Raises ModelError or BackendError for what cannot be built, OutputError where there is no room.
    """
    check_device(settings.device, backend, FramePathKind(settings.frame_path) if settings.frame_path else None)
    try:
        from rsd_edge.export.build import build_engine
        from rsd_edge.export.parts_options import DEFAULT_TILE, PartsOptions
        from rsd_edge.models.checkpoint import read_spec
        from rsd_edge.sampling import with_steps
    except ModuleNotFoundError as error:
        raise missing_package("run", "export", error) from error
    spec = with_steps(read_spec(checkpoint), settings.steps)
    if settings.precision not in (None, Precision.FP32.value):
        raise _not_in_fp32(checkpoint, spec.family, backend, Precision(settings.precision))
    # Graphs of a published model are made for one size of tiles, those of an edge model take any.
    options = PartsOptions(settings.tile or DEFAULT_TILE) if spec.family != EDGE_FAMILY else None
    sha256 = hash_file(checkpoint)
    key = _key(sha256, backend.value, options.words if options else "")
    folder = engine_folder() / f"{checkpoint.stem}-{backend.value}-{key}"
    if _flaw(folder) is None:
        return folder
    with locked(room_for_engines(), folder.name, "builds"):
        flaw = _flaw(folder)
        if flaw is None:  # another process has built it in the meantime
            return folder
        if flaw:
            click.echo(f"warning: {flaw}; that is done now", err=True)
        size = f" for tiles of {options.tile}" if options else ""
        told = f"building the {backend.value} engine{size}, once; it is kept in {folder}"
        click.echo(f"{checkpoint} (sha256 {sha256[:12]}): {told}", err=True)
        return build_engine(
            str(checkpoint),
            folder.parent,
            backend=backend,
            threads=settings.threads,
            name=folder.name,
            published=options,
        ).path


def _not_in_fp32(checkpoint: Path, family: str, backend: Backend, precision: Precision) -> BackendError:
    told = f"checkpoints are run on {backend.value} in fp32; leave --precision out"
    if precision is not Precision.INT8:
        return BackendError(f"{told}, or use --backend {Backend.TORCH.value}")
    if family != EDGE_FAMILY:
        return BackendError(told)
    words = ["build-engine", "--model", str(checkpoint), "--backend", backend.value, "--precision", precision.value]
    return BackendError(f"{told}, or build an engine with 'rsd-edge {shlex.join(words)}' and run that")


def _key(*question: str) -> str:
    """With the sources that make graphs, because clones of one version may differ in them."""
    from rsd_edge import export, models, sampling, schedule

    files = [Path(str(module.__file__)) for module in (sampling, schedule)]
    for package in (export, models):
        files += [file for folder in package.__path__ for file in sorted(Path(folder).glob("*.py"))]
    facts = [*question, FORMAT, __version__, *map(hash_file, files)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:_KEY_LENGTH]


def _flaw(folder: Path) -> str | None:
    """What is wrong with an engine, empty where there is none; None if it can be run."""
    if not (folder / MANIFEST).is_file():
        return ""
    try:
        load_bundle(folder)
    except ModelError as error:
        return str(error)
    return None
