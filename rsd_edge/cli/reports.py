"""Where the JSON or CSV of a command goes: a file that is none of the user's pictures and models, or stdout."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from rsd_edge.bundle import PICKLES
from rsd_edge.errors import OutputError
from rsd_edge.resolver import CHECKPOINT_SUFFIX
from rsd_edge.stream.atomic import check_target, write_json
from rsd_edge.stream.discovery import PICTURES_AND_FILMS

STDOUT = Path("-")
_REPORTS = (".json", ".csv")
_NEVER_REPORTS = (*PICTURES_AND_FILMS, CHECKPOINT_SUFFIX, *PICKLES)


def check_report(path: Path, spared: Iterable[Path] = (), kind: str = "JSON") -> None:
    """As `check_target`, before the work. kind: JSON or CSV. Raises OutputError also for a name that ends like the
    other one, a picture or a model.

    Where the name of the report is forgotten before a pattern, as in `--report *.jpg`, the shell gives the first match.
    """
    if path == STDOUT:
        return
    check_target(path, spared)
    suffix = f".{kind.lower()}"
    if path.suffix.lower() in (*_NEVER_REPORTS, *_REPORTS) and path.suffix.lower() != suffix:
        raise OutputError(
            f"cannot write {path}: a report is {kind}, not '{path.suffix}'; give a name that ends in {suffix}"
        )


def write_report(path: Path, document: Mapping[str, Any]) -> None:
    """Write it to the file, or to stdout. Raises OutputError as `write_json` does."""
    if path == STDOUT:
        click.echo(json.dumps(document, indent=2, allow_nan=False))
    else:
        write_json(path, document)
