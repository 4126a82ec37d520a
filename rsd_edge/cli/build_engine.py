"""`rsd-edge build-engine`: a model in, an engine bundle out."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from rsd_edge.cli import missing_package
from rsd_edge.export.build import build_engine
from rsd_edge.export.parts_options import DEFAULT_TILE, PartsOptions
from rsd_edge.specs import Backend, Precision


@click.command("build-engine")
@click.option(
    "--model", default="edge-s", show_default=True, metavar="NAME|FILE", help="Shipped model, bundle or checkpoint."
)
@click.option(
    "--backend",
    default=Backend.ONNXRUNTIME.value,
    show_default=True,
    type=click.Choice([backend.value for backend in Backend if backend is not Backend.TORCH]),
    help="Runtime that will execute the engine.",
)
@click.option(
    "--precision",
    default=Precision.FP32.value,
    show_default=True,
    type=click.Choice([precision.value for precision in Precision if precision is not Precision.BF16]),
    help="Arithmetic of the engine.",
)
@click.option(
    "-o", "--output", default="engines", show_default=True, type=click.Path(path_type=Path), help="Parent folder."
)
@click.option("--threads", type=int, help="CPU threads for parity and speed; all cores if not given.")
@click.option(
    "--calibration",
    metavar="FOLDER",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="LR images like those the INT8 engine will see; packaged crops if not given.",
)
@click.option("--tile", type=int, help="Of a published model: side in input pixels, halo included; 64 if not given.")
@click.option("--no-lookup", is_flag=True, help="Of a published model: decode the latent without the code book.")
def command(
    model: str,
    backend: str,
    precision: str,
    output: Path,
    threads: int | None,
    calibration: Path | None,
    tile: int | None,
    no_lookup: bool,
) -> int:
    """Compile a model into an engine bundle, checked against its reference and timed on this machine.

    INT8 takes a minute or two: ranges are collected, layers that cost too much stay in float, and the engine is kept
    only if it is close to fp32 and faster here.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("rsd_edge.export").setLevel(logging.INFO)
    try:
        bundle = build_engine(
            model,
            output,
            backend=Backend(backend),
            precision=Precision(precision),
            threads=threads,
            calibration=calibration,
            published=PartsOptions(tile or DEFAULT_TILE, lookup=not no_lookup) if tile or no_lookup else None,
        )
    except ModuleNotFoundError as error:
        raise missing_package("build-engine", "export", error) from error
    parity, speed = bundle.manifest["parity"], bundle.manifest["speed"]
    times = ", ".join(f"{name} {ms} ms" for name, ms in speed["median_ms"].items())
    click.echo(
        f"{bundle.path}: {parity['psnr_db']} dB against {parity['reference']}; "
        f"a {speed['tile']}x{speed['tile']} tile on {speed['threads']} threads: {times}"
    )
    return 0
