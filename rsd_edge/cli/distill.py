"""`rsd-edge distill`: train a model, one stage at a time."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from rsd_edge.cli import missing_package
from rsd_edge.errors import InputError
from rsd_edge.signals import INTERRUPTED

_STAGES = ("autoencoder", "teacher", "student", "finetune")


@click.command("distill")
@click.argument("stage", default="student", type=click.Choice(_STAGES))
@click.option("--config", required=True, metavar="NAME|FILE", help="A ready-made configuration, or a YAML file.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="e.g. --set student.iterations=200")
@click.option("--device", metavar="cpu|cuda|cuda:N", help="Where to train; by default on a GPU if there is one.")
@click.option("--dry-run", is_flag=True, help="Build everything, take a few steps and estimate memory and time.")
def command(stage: str, config: str, overrides: tuple[str, ...], device: str | None, dry_run: bool) -> int:
    """Train one STAGE: autoencoder, teacher, student (the default) or finetune, in this order.

    The student stage alone distils from a published teacher. An interrupted stage goes on where its last checkpoint
    left it when the same command is given again. For several processes: torchrun --nproc-per-node N -m rsd_edge distill
    """
    try:
        return _distill(stage, config, overrides, device, dry_run=dry_run)
    except KeyboardInterrupt:  # the loop has told what is kept, if it came that far
        click.echo("interrupted", err=True)
        return INTERRUPTED


def _distill(stage: str, config: str, overrides: tuple[str, ...], device: str | None, *, dry_run: bool) -> int:
    try:
        from rsd_edge.distill import stages
        from rsd_edge.distill.config import load_config
        from rsd_edge.distill.dry_run import rehearse
        from rsd_edge.distill.runtime import Runtime
    except ModuleNotFoundError as error:
        raise missing_package("distill", "distill", error) from error
    settings = load_config(find_config(config), overrides)
    runtime = Runtime(device, settings.precision)
    _log_to_console(logging.INFO if runtime.is_main else logging.WARNING)
    if dry_run:
        for line in rehearse(stage, settings, runtime):
            if runtime.is_main:
                click.echo(line)
        return 0
    path = stages.run_stage(stage, settings, runtime)
    if runtime.is_main:
        click.echo(str(path))
    return 0


def _log_to_console(level: int) -> None:
    """Lines on stderr, above the progress bar where there is one."""
    from rich.console import Console
    from rich.logging import RichHandler

    console = Console(stderr=True)
    plain = logging.StreamHandler()
    handler = RichHandler(console=console, show_path=False, show_level=False) if console.is_terminal else plain
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", handlers=[handler])


def find_config(config: str) -> Path:
    """The file of a configuration, or a ready-made one by its name. Raises InputError if there is neither."""
    path = Path(config)
    if path.is_file():
        return path
    from rsd_edge import distill

    shipped = {file.stem: file for file in sorted((Path(distill.__path__[0]) / "configs").glob("*.yaml"))}
    if config in shipped:
        return shipped[config]
    raise InputError(f"configuration '{config}' is neither a file nor a ready-made one ({', '.join(shipped)})")
