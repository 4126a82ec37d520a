"""Where a report comes from, the same in all of them."""

from __future__ import annotations

import json
import shlex
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click

from rsd_edge.bench import environment
from rsd_edge.machine import cpu_name


def origin() -> dict[str, Any]:
    """When, how, where, and with which packages."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "machine": cpu_name(),
        "versions": environment.versions(),
    }


def begun_report(path: Path) -> dict[str, Any]:
    """A report that is to be gone on with; empty if there is none.

    Raises ClickException if it was made on another machine or with other packages: one header speaks for all its rows.
    """
    if not path.is_file():
        return {}
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    now = origin()
    for what in ("machine", "versions"):
        if known.get(what) != now[what]:
            raise click.ClickException(
                f"{path} has rows of {what} {known.get(what)}, not {now[what]}; delete it or take another file"
            )
    return known
