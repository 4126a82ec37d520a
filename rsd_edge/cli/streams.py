"""Standard streams that are closed, narrow or full, as daemons, old terminals and disks have them."""

from __future__ import annotations

import io
import os
import sys


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
