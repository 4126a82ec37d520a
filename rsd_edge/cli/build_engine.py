"""`rsd-edge build-engine`: a model in, an engine bundle out."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from rsd_edge.backends.tensorrt.device import check_device
from rsd_edge.bundle import Bundle
from rsd_edge.cli import missing_for_tensorrt, missing_package
from rsd_edge.cli.build_progress import TerminalProgress
from rsd_edge.cli.paths import GivenPath
from rsd_edge.cli.tensorrt_options import Asked, take_tensorrt_options, tensorrt_options
from rsd_edge.errors import InputError, RsdEdgeError
from rsd_edge.export.build import build_engine
from rsd_edge.export.parts_options import DEFAULT_TILE, PartsOptions
from rsd_edge.export.tensorrt_options import TensorRtOptions
from rsd_edge.specs import Backend, Precision

_COUNT = click.IntRange(min=1)


@click.command("build-engine")
@click.option(
    "--model", default="edge-s", show_default=True, metavar="NAME|FILE", help="Shipped model, bundle or checkpoint."
)
@click.option(
    "--backend",
    type=click.Choice([backend.value for backend in Backend if backend is not Backend.TORCH]),
    help="Runtime that will execute the engine; if not given, tensorrt for fp16, and for no precision where it can "
    "build here, else onnxruntime.",
)
@click.option(
    "--precision",
    type=click.Choice([precision.value for precision in Precision if precision is not Precision.BF16]),
    help="Arithmetic of the engine; fp32 if not given, fp16 for tensorrt.",
)
@click.option(
    "-o", "--output", default="engines", show_default=True, type=GivenPath(path_type=Path), help="Parent folder."
)
@click.option("--threads", type=_COUNT, help="CPU threads for parity and speed; all cores if not given.")
@click.option(
    "--calibration",
    metavar="FOLDER",
    type=GivenPath(path_type=Path, exists=True, file_okay=False),
    help="LR images like those the INT8 engine will see; packaged crops if not given.",
)
@click.option(
    "--tile",
    type=_COUNT,
    help="Side in input pixels, halo included, of a published model or a TensorRT engine; 64 or 208 if not given.",
)
@click.option("--no-lookup", is_flag=True, help="Of a published model: decode the latent without the code book.")
@tensorrt_options
def command(
    model: str,
    backend: str | None,
    precision: str | None,
    output: Path,
    threads: int | None,
    calibration: Path | None,
    tile: int | None,
    no_lookup: bool,
    **tensorrt: Any,
) -> int:
    """Compile a model into an engine bundle, checked against its reference and timed on this machine.

    INT8 takes a minute or two: ranges are collected, layers that cost too much stay in float, and the engine is kept
    only if it is close to fp32 and faster here.

    TensorRT without building there: --onnx-only writes graphs and the trtexec commands for the device; with the plans
    beside them, --from-plan FOLDER checks them there and makes the bundle. That needs neither torch nor onnx.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("rsd_edge.export").setLevel(logging.INFO)
    asked = take_tensorrt_options(tensorrt)
    explicit = bool(asked.names)
    runtime, why = (Backend(backend), "") if backend else _own_choice(precision, calibration, explicit=explicit)
    try:
        if runtime is not Backend.TENSORRT and explicit:
            raise InputError(f"{asked.names[0]} serves --backend tensorrt, not {runtime.value}; leave it out")
        if asked.from_plan is not None or asked.rival is not None:
            return _from_plan(asked, output)
        if runtime is Backend.TENSORRT:
            options = TensorRtOptions(tile=tile, threads=threads, **asked.fields)
            wanted = Precision(precision or Precision.FP16)
            lookup = not no_lookup
            return _tensorrt(model, output, wanted, options, calibration, lookup=lookup, onnx_only=asked.onnx_only)
        bundle = build_engine(
            model,
            output,
            backend=runtime,
            precision=Precision(precision or Precision.FP32),
            threads=threads,
            calibration=calibration,
            published=PartsOptions(tile or DEFAULT_TILE, lookup=not no_lookup) if tile or no_lookup else None,
        )
    except ModuleNotFoundError as error:
        if runtime is Backend.TENSORRT:
            raise missing_for_tensorrt("build-engine", error) from error
        raise missing_package("build-engine", "export", error) from error
    if why:
        click.echo(f"built for onnxruntime, not for tensorrt: {why}", err=True)
    _tell(bundle)
    return 0


def _own_choice(precision: str | None, calibration: Path | None, *, explicit: bool) -> tuple[Backend, str]:
    """TensorRT if its options or fp16 ask for it, or if it may be chosen and can build here; else why it cannot."""
    if explicit or precision == Precision.FP16.value:
        return Backend.TENSORRT, ""
    if precision is not None or calibration is not None:
        return Backend.ONNXRUNTIME, ""
    try:
        check_device()
    except RsdEdgeError as error:
        return Backend.ONNXRUNTIME, str(error)
    return Backend.TENSORRT, ""


def _tensorrt(
    model: str,
    output: Path,
    precision: Precision,
    options: TensorRtOptions,
    calibration: Path | None,
    *,
    lookup: bool,
    onnx_only: bool,
) -> int:
    from rsd_edge.export.graphs_only import GraphsOnly
    from rsd_edge.export.typed_build import build_tensorrt

    with TerminalProgress() as progress:
        made = build_tensorrt(
            model,
            output,
            precision=precision,
            options=options,
            lookup=lookup,
            calibration=calibration,
            onnx_only=onnx_only,
            progress=progress,
        )
    if not isinstance(made, GraphsOnly):
        _tell(made)
        return 0
    parity = made.manifest["parity"]
    plain = parity["default_session"]
    click.echo(
        f"{made.path}: {parity['psnr_db']} dB, detail {parity['detail_snr_db']} dB against {parity['reference']}; "
        f"in a default session of ONNX Runtime {plain['psnr_db']} dB, detail {plain['detail_snr_db']} dB\n"
        "On the device, in that folder:"
    )
    for family, lines in made.manifest["trtexec"].items():
        for line in lines:
            click.echo(f"  TensorRT {family}: {line}")
    click.echo(f"Then: rsd-edge build-engine --backend tensorrt --from-plan {made.path.name}")
    click.echo(f"note: {made.manifest['trtexec_lacks']}", err=True)
    return 0


def _from_plan(asked: Asked, output: Path) -> int:
    from rsd_edge.export.from_plan import bundle_plans

    if asked.from_plan is None:
        raise InputError("--rival goes with --from-plan; leave it out, or add that")
    context = click.get_current_context()
    settled = ("model", "precision", "tile", "no_lookup", "calibration", "threads")
    known = [name for name in settled if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    words = [f"--{name.replace('_', '-')}" for name in known]
    words += [name for name in asked.names if name not in ("--from-plan", "--rival")]
    if words:
        raise InputError(
            f"{words[0]} was settled when the graphs were written, and --from-plan takes it from there; leave it out"
        )
    _tell(bundle_plans(asked.from_plan, output, rival=asked.rival))
    return 0


def _tell(bundle: Bundle) -> None:
    parity, speed = bundle.manifest["parity"], bundle.manifest["speed"]
    times = ", ".join(f"{name} {ms} ms" for name, ms in speed["median_ms"].items())
    click.echo(
        f"{bundle.path}: {parity['psnr_db']} dB against {parity['reference']}; "
        f"a {speed['tile']}x{speed['tile']} tile on {speed['threads']} threads: {times}"
    )
