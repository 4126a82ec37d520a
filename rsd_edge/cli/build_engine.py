"""`rsd-edge build-engine`: a model in, an engine bundle out."""

from __future__ import annotations

from pathlib import Path

import click

from rsd_edge.cli import missing_package
from rsd_edge.export.build import build_engine
from rsd_edge.specs import Backend, Precision


@click.command("build-engine")
@click.option(
    "--model", default="edge-s", show_default=True, metavar="NAME|FILE", help="Shipped model, bundle or checkpoint."
)
@click.option(
    "--backend",
    default=Backend.ONNXRUNTIME.value,
    show_default=True,
    type=click.Choice([backend.value for backend in Backend]),
    help="Runtime that will execute the engine.",
)
@click.option(
    "--precision",
    default=Precision.FP32.value,
    show_default=True,
    type=click.Choice([precision.value for precision in Precision]),
    help="Arithmetic of the engine.",
)
@click.option(
    "-o", "--output", default="engines", show_default=True, type=click.Path(path_type=Path), help="Parent folder."
)
@click.option("--threads", type=int, help="CPU threads for parity and speed; all cores if not given.")
def command(model: str, backend: str, precision: str, output: Path, threads: int | None) -> int:
    """Compile a model into an engine bundle, checked against its reference and timed on this machine."""
    try:
        bundle = build_engine(model, output, backend=Backend(backend), precision=Precision(precision), threads=threads)
    except ModuleNotFoundError as error:
        raise missing_package("build-engine", "export", error) from error
    parity, speed = bundle.manifest["parity"], bundle.manifest["speed"]
    click.echo(
        f"{bundle.path}: {parity['psnr_db']} dB against the reference, "
        f"{speed['median_ms']} ms a {speed['tile']}x{speed['tile']} tile on {speed['threads']} threads"
    )
    return 0
