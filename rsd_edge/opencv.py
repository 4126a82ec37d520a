"""The one place that imports OpenCV: `from rsd_edge.opencv import cv2`.

The wheels of opencv-python need shared libraries that slim Linux images leave out. The plain ImportError names a file
that nobody knows how to install; here it becomes a MissingDependencyError that names the package.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rsd_edge.errors import MissingDependencyError

__all__ = ["cv2", "quiet"]

_SILENT = 0
_CHANGING = threading.Lock()
_LEVELS: list[int] = []
"""Of OpenCV's log, as those who are within `quiet` met it."""

_DEBIAN_PACKAGES = {
    "libGL.so": "libgl1",
    "libgthread-2.0": "libglib2.0-0",
    "libglib-2.0": "libglib2.0-0",
    "libgobject-2.0": "libglib2.0-0",
    "libSM.so": "libsm6",
    "libICE.so": "libice6",
    "libXext.so": "libxext6",
    "libXrender.so": "libxrender1",
    "libX11.so": "libx11-6",
    "libxcb": "libxcb1",
}


def _explain(error: ImportError) -> MissingDependencyError:
    """The cure for a failed `import cv2`: which package to install, judged by what the loader could not find."""
    reason = str(error)
    for library, package in _DEBIAN_PACKAGES.items():
        if library in reason:
            return MissingDependencyError(
                f"OpenCV cannot start because a system library is missing ({reason}); "
                f"run 'apt-get install {package}', or 'pip uninstall -y opencv-python && "
                "pip install opencv-python-headless', which needs no display libraries"
            )
    if isinstance(error, ModuleNotFoundError) and error.name == "cv2":
        return MissingDependencyError("OpenCV is not installed; run 'pip install opencv-python'")
    return MissingDependencyError(
        f"OpenCV cannot start ({reason}); run 'pip install --force-reinstall opencv-python', "
        "and install the system library if one is named"
    )


try:
    import cv2
except ImportError as error:
    raise _explain(error) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep OpenCV's messages off the terminal: the caller gets one exception that says it all."""
    # OpenCV 5 moved these; in OpenCV 4 they are in the root.
    logging = getattr(cv2.utils, "logging", cv2)
    with _CHANGING:
        _LEVELS.append(logging.getLogLevel())
        logging.setLogLevel(_SILENT)
    try:
        yield
    finally:
        with _CHANGING:  # of several threads, the last to leave takes the level that the first one met
            logging.setLogLevel(_LEVELS.pop())
