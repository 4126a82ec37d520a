"""Standard streams that are closed, narrow, full or without a reader, as daemons, old terminals and disks have them.

And lines for them, which no name of a file can break out of.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_NOBODY_LISTENS = (errno.EPIPE, errno.EIO)
"""A pipe whose reader has ended, a terminal that has gone."""
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def mend_streams() -> None:
    """Make writing to standard streams safe: what is closed leads nowhere, what an encoding lacks is escaped."""
    # In this order, as each takes the lowest number that is free: nothing else may come to be what C calls stderr.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))
        elif mode == "w" and isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def output_is_lost() -> bool:
    """Whether stdout takes no more, in which case what is left of it is dropped, also by Python at its end."""
    try:
        sys.stdout.write("\n")  # of a stream without a buffer, a flush alone says nothing
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        return True
    return False


def one_line(text: str) -> str:
    """Without line breaks, and with control characters escaped: names may have them, and a terminal obeys them."""
    return _CONTROLS.sub(lambda found: repr(found[0])[1:-1], " ".join(text.split()))


class OneLine(logging.Formatter):
    """For log records."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """As Formatter, in one line."""
        return one_line(super().formatMessage(record))


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
