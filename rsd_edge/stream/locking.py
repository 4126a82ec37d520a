"""One process at a time."""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rsd_edge.errors import OutputError
from rsd_edge.stream.atomic import make_folder, output_error

log = logging.getLogger(__name__)


@contextmanager
def locked(folder: Path, name: str, verb: str, *, refusal: str = "") -> Iterator[None]:
    """One process makes what has this name in a folder; others wait, and then find it there.

    The lock goes with its process. verb: what that does, for the others. refusal: what they are told to do where they
    are not to wait. Raises OutputError then, and where the folder takes no files.
    """
    make_folder(folder)
    path = folder / f".{name}.lock"
    try:
        file = path.open("w")
    except OSError as error:
        raise output_error(path, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if refusal:
                raise OutputError(f"another process {verb} {folder / name}; {refusal}") from None
            log.warning("another process %s %s; waiting for it", verb, folder / name)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:  # some network folders have no locks, and one process at a time is the rule anyway
            log.info("%s cannot be locked: %s", path, error)
        yield
