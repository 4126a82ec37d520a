"""`rsd-edge build-kernels`: the GPU kernels as cubins, compiled without a GPU."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from rsd_edge.cli import missing_package
from rsd_edge.cli.paths import GivenPath


def _architectures(context: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"'{value}' is no list of compute capabilities; write 87,90") from None


@click.command("build-kernels")
@click.option(
    "--sm",
    "architectures",
    required=True,
    metavar="LIST",
    callback=_architectures,
    help="Compute capabilities, with commas: 87 is Jetson Orin, 90 H100 and H200, 110 Jetson Thor, 120 RTX 50.",
)
@click.option(
    "--dtype",
    "dtypes",
    multiple=True,
    default=("fp32", "fp16", "bf16"),
    show_default=True,
    type=click.Choice(["fp32", "fp16", "bf16"]),
    help="Dtypes of latents, details and network inputs; may be repeated.",
)
@click.option(
    "-o", "--output", required=True, type=GivenPath(path_type=Path), help="Folder to create; must not exist yet."
)
def command(architectures: tuple[int, ...], dtypes: tuple[str, ...], output: Path) -> int:
    """Compile the GPU kernels for devices that have no Triton.

    No GPU is needed. A manifest beside the cubins says how each is launched, and what it takes in registers and memory;
    rsd_edge.kernels.launch reads it. The same versions give the same bytes. A compute capability takes about a minute.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        from rsd_edge.kernels.aot import build_kernels
    except ModuleNotFoundError as error:
        raise missing_package("build-kernels", "kernels", error) from error
    manifest = build_kernels(architectures, output, dtypes=dtypes)
    spilling = sum(entry["spill_bytes"] > 0 for entry in manifest["kernels"])
    click.echo(f"{output}: {len(manifest['kernels'])} cubins, {spilling} of which spill registers")
    return 0
