"""Where a report comes from, the same in all of them."""

from __future__ import annotations

import shlex
import sys
from datetime import datetime, timezone
from typing import Any

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
