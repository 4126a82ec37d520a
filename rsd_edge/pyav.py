"""Where PyAV, FFmpeg's libraries, is imported first: `from rsd_edge.pyav import av`.

Whatever serves films or cameras comes by here before other modules import more of its parts, so that a machine without
it is told in one line.
"""

from __future__ import annotations

from rsd_edge.errors import MissingDependencyError

__all__ = ["av"]

try:
    import av
except ImportError as error:
    if isinstance(error, ModuleNotFoundError) and error.name == "av":
        raise MissingDependencyError("films and cameras need PyAV; run 'pip install av'") from error
    raise MissingDependencyError(f"PyAV cannot start ({error}); run 'pip install --force-reinstall av'") from error
