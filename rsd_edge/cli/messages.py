"""Stderr for commands whose messages are not the work."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_NOBODY_LISTENS = (errno.EPIPE, errno.EIO)
"""A pipe whose reader has ended, a terminal that has gone."""


@contextmanager
def lasting_stderr() -> Iterator[None]:
    """Within the block, stderr leads to os.devnull once nobody listens any more, instead of raising OSError.

    A stderr that another program has put in its place, or that is closed, stays as it is.
    """
    before = sys.__stderr__
    if before is None or sys.stderr is not before:
        yield
        return
    raw = io.BufferedWriter(_Lasting(before.fileno(), "wb", closefd=False))
    sys.stderr = io.TextIOWrapper(raw, before.encoding, before.errors, line_buffering=True)
    try:
        yield
    finally:
        sys.stderr.flush()
        sys.stderr = before


class _Lasting(io.FileIO):
    def write(self, data: Any) -> int:
        """As FileIO, which takes bytes."""
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in _NOBODY_LISTENS:
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())  # libraries write there by themselves
            os.close(nowhere)
            return super().write(data)
