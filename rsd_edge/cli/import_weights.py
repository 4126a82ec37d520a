"""`rsd-edge import-weights`: published checkpoints in, one safetensors file out."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from rsd_edge.cli import missing_package
from rsd_edge.cli.paths import GivenPath
from rsd_edge.errors import InputError
from rsd_edge.licences import licences_of, named
from rsd_edge.specs import PUBLISHED_FAMILIES


@click.command("import-weights")
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=GivenPath(path_type=Path))
@click.option("--family", required=True, type=click.Choice(PUBLISHED_FAMILIES), help="Whose generator it is.")
@click.option(
    "--config", metavar="YAML", type=GivenPath(path_type=Path), help="The configuration that came with the files."
)
@click.option("--accept-license", is_flag=True, help="Accept the licence of the weights without being asked.")
@click.option("--verbose", is_flag=True, help="Name every tensor that does not fit, not only the first ones.")
@click.option(
    "-o", "--output", required=True, metavar="MODEL.safetensors", type=GivenPath(path_type=Path), help="Result."
)
def command(
    files: tuple[Path, ...], family: str, config: Path | None, accept_license: bool, verbose: bool, output: Path
) -> int:
    """Convert the published checkpoints of ResShift, SinSR or RSD.

    FILE... is the generator's checkpoint and the autoencoder's (autoencoder_vq_f4.pth). Every tensor is checked; the
    result keeps the licence and the SHA-256 of what it was made from.
    """
    try:
        from rsd_edge.models.import_weights import Request, import_weights
        from rsd_edge.models.official import NAMED
    except ModuleNotFoundError as error:
        raise missing_package("import-weights", "distill", error) from error
    _ask(family, accept_license)
    request = Request(files, family, config, None if verbose else NAMED)
    checkpoint = import_weights(request, output)
    if request.steps_assumed:
        click.echo(
            f"warning: no configuration and no file name says how many steps this takes; {checkpoint.spec.steps} are "
            "assumed; for another number, give its configuration with --config",
            err=True,
        )
    click.echo(f"{output}: {family}, {checkpoint.spec.steps} of {checkpoint.spec.schedule.steps} steps by default")
    return 0


def _ask(family: str, accepted: bool) -> None:
    licences = licences_of(family)
    for part, licence in licences.items():
        click.echo(f"The weights of the {part} are under {licence.name}: {licence.url}", err=True)
    if accepted:
        return
    if not sys.stdin.isatty():
        raise InputError(f"nobody is here to accept {named(licences)}; read it and pass --accept-license")
    if not click.confirm("Non-commercial use only. Do you accept all of this?", err=True):
        raise InputError(f"{named(licences)} was not accepted; nothing was written")
