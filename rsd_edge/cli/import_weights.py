"""`rsd-edge import-weights`: published checkpoints in, one safetensors file out."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from rsd_edge.cli import missing_package
from rsd_edge.errors import InputError
from rsd_edge.licences import LICENCES
from rsd_edge.specs import PUBLISHED_FAMILIES


@click.command("import-weights")
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
@click.option("--family", required=True, type=click.Choice(PUBLISHED_FAMILIES), help="Whose generator it is.")
@click.option(
    "--config", metavar="YAML", type=click.Path(path_type=Path), help="The configuration that came with the files."
)
@click.option("--accept-license", is_flag=True, help="Accept the licence of the weights without being asked.")
@click.option(
    "-o", "--output", required=True, metavar="MODEL.safetensors", type=click.Path(path_type=Path), help="Result."
)
def command(files: tuple[Path, ...], family: str, config: Path | None, accept_license: bool, output: Path) -> int:
    """Convert the published checkpoints of ResShift, SinSR or RSD.

    FILE... is the generator's checkpoint and the autoencoder's (autoencoder_vq_f4.pth). Every tensor is checked; the
    result keeps the licence and the SHA-256 of what it was made from.
    """
    _ask(family, accept_license)
    try:
        from rsd_edge.models.import_weights import Request, import_weights
    except ModuleNotFoundError as error:
        raise missing_package("import-weights", "distill", error) from error
    checkpoint = import_weights(Request(files, family, config), output)
    click.echo(f"{output}: {family}, {checkpoint.spec.steps} of {checkpoint.spec.schedule.steps} steps by default")
    return 0


def _ask(family: str, accepted: bool) -> None:
    licence = LICENCES[family]
    click.echo(f"The weights of {family} are under {licence.name}: {licence.url}", err=True)
    if accepted:
        return
    if not sys.stdin.isatty():
        raise InputError(f"nobody is here to accept {licence.name}; read it and pass --accept-license")
    if not click.confirm("Non-commercial use only. Do you accept it?", err=True):
        raise InputError(f"{licence.name} was not accepted; nothing was written")
