"""Numbers that callers give: refused in one line that names them, before anything fails on them in its own words."""

from __future__ import annotations

import operator
from numbers import Real
from typing import Any

from rsd_edge.errors import InputError
from rsd_edge.machine import usable_cores

_THREADS_A_CORE = 8
"""More than one a core only take turns; runtimes start all of them at once, and fail or hang on thousands."""
_THREADS_ANYWHERE = 256
"""For settings that are shared between machines."""


def check_whole(name: str, value: Any) -> None:
    """Raise InputError for what is not a whole number of at least 1."""
    try:
        number = operator.index(value)
    except TypeError:
        raise InputError(f"{name} is {value!r}; it must be a whole number") from None
    if number < 1:
        raise InputError(f"{name} is {number}; it must be at least 1")


def check_threads(threads: int | None) -> None:
    """Raise InputError for a number of CPU threads that no machine like this one can use; None is all cores."""
    if threads is None:
        return
    check_whole("threads", threads)
    most = max(_THREADS_ANYWHERE, _THREADS_A_CORE * usable_cores())
    if threads > most:
        raise InputError(f"threads is {threads}; it must be at most {most} on this machine")


def check_real(name: str, value: Any) -> None:
    """Raise InputError for what is not a real number, be it Python's or NumPy's."""
    if not isinstance(value, Real):
        raise InputError(f"{name} is {value!r}; it must be a number")
