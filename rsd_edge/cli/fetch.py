"""`rsd-edge fetch`: a published checkpoint into the cache."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from rsd_edge.cli.paths import GivenPath
from rsd_edge.licences import LICENCES
from rsd_edge.models.fetch import PUBLISHED, fetch


@click.command("fetch")
@click.argument("name", type=click.Choice(list(PUBLISHED)))
@click.option(
    "--from-file", metavar="FILE", type=GivenPath(path_type=Path), help="Take this copy instead of downloading."
)
@click.option("--offline", is_flag=True, help="Use what is in the cache, or fail.")
def command(name: str, from_file: Path | None, offline: bool) -> int:
    """Download a published checkpoint and print its path; an interrupted download goes on where it stopped.

    NAME is a generator (resshift-v1, -v2, -v3, sinsr-v1, -v2, rsd) or the autoencoder, which all of them need. Their
    licences exclude commercial use. RSD's is on Google Drive, which often serves no programs: then download it in a
    browser and give it with --from-file.
    """
    published = PUBLISHED[name]
    licence = LICENCES[published.family]
    click.echo(f"{published.file} is under {licence.name}: {licence.url}", err=True)
    columns = (TextColumn(published.file, markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    terminal = sys.stderr.isatty()
    console = Console(stderr=True, force_terminal=terminal)
    with Progress(*columns, console=console, disable=not terminal, transient=True) as bar:
        task = bar.add_task("", total=None)
        path = fetch(
            published,
            from_file=from_file,
            offline=offline,
            progress=lambda done, total: bar.update(task, completed=done, total=total or None),
        )
    click.echo(str(path))
    return 0
