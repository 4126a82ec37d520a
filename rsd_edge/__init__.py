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
        VideoInterrupted,
        VideoReadError,
    )
    from rsd_edge.resolver import SuperResolver
    from rsd_edge.video.settings import VideoResult, VideoSettings
    from rsd_edge.video.upscaler import VideoUpscaler

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
    "VideoInterrupted",
    "VideoReadError",
    "VideoResult",
    "VideoSettings",
    "VideoUpscaler",
    "__version__",
]


_MODULES = {
    "SuperResolver": "rsd_edge.resolver",
    "VideoResult": "rsd_edge.video.settings",
    "VideoSettings": "rsd_edge.video.settings",
    "VideoUpscaler": "rsd_edge.video.upscaler",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'rsd_edge' has no attribute '{name}'")
    return getattr(importlib.import_module(_MODULES.get(name, "rsd_edge.errors")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
