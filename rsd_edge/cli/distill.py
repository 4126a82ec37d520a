"""`rsd-edge distill`: train a model, one stage at a time."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from rsd_edge.cli import missing_package
from rsd_edge.errors import InputError

_STAGES = ("autoencoder", "teacher", "student", "finetune")


@click.command("distill")
@click.argument("stage", default="student", type=click.Choice(_STAGES))
@click.option("--config", required=True, metavar="NAME|FILE", help="A ready-made configuration, or a YAML file.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="e.g. --set student.iterations=200")
def command(stage: str, config: str, overrides: tuple[str, ...]) -> int:
    """Train one STAGE: autoencoder, teacher, student (the default) or finetune, in this order.

    An interrupted stage goes on where its last checkpoint left it when the same command is given again.
    """
    try:
        from rsd_edge.distill.config import load_config
        from rsd_edge.distill.stages import run_stage
    except ModuleNotFoundError as error:
        raise missing_package("distill", "distill", error) from error
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    click.echo(str(run_stage(stage, load_config(_find(config), overrides))))
    return 0


def _find(config: str) -> Path:
    path = Path(config)
    if path.is_file():
        return path
    from rsd_edge import distill

    shipped = {file.stem: file for file in sorted((Path(distill.__path__[0]) / "configs").glob("*.yaml"))}
    if config in shipped:
        return shipped[config]
    raise InputError(f"configuration '{config}' is neither a file nor a ready-made one ({', '.join(shipped)})")
