"""One-step diffusion super-resolution for edge devices.

`from rsd_edge import SuperResolver` is the way in. Names are imported when they are first used, so that importing the
package itself costs nothing and needs none of its dependencies.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rsd_edge.errors import (
        BackendError,
        ImageReadError,
        InputError,
        MissingDependencyError,
        ModelError,
        OutputError,
        RsdEdgeError,
    )
    from rsd_edge.pipeline import SuperResolver

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "ImageReadError",
    "InputError",
    "MissingDependencyError",
    "ModelError",
    "OutputError",
    "RsdEdgeError",
    "SuperResolver",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'rsd_edge' has no attribute '{name}'")
    module = "rsd_edge.pipeline" if name == "SuperResolver" else "rsd_edge.errors"
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
