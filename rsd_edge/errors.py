"""Exceptions a caller can catch by kind.

Every message is one line that names the thing, says why it failed, and says what to do about it. The command line
prints that line and exits with code 2; the Python API raises it.
"""


class RsdEdgeError(Exception):
    """Base of every error raised on purpose by this package."""


class InputError(RsdEdgeError, ValueError):
    """A value, option or array given by the caller cannot be used."""


class ImageReadError(InputError):
    """An image file is missing, empty, truncated, too large or not an image."""


class VideoReadError(InputError):
    """A video file is missing, empty, damaged beyond use, too large or not a video."""


class VideoInterrupted(KeyboardInterrupt):
    """Ctrl-C within a video; the message says what was saved. Given again, the same command goes on."""


class OutputError(RsdEdgeError, OSError):
    """A result cannot be written: unwritable folder, full disk, unsupported format."""


class ModelError(RsdEdgeError):
    """A model, bundle or checkpoint is missing, damaged, stale or made for something else."""


class BackendError(RsdEdgeError):
    """A backend was asked for something that it cannot do on this machine."""


class NoEngineError(BackendError):
    """No engine of a model was built for this device yet."""


class MissingDependencyError(RsdEdgeError, ImportError):
    """An optional package or a system library that the request needs is not installed."""


class FetchError(RsdEdgeError):
    """A published file cannot be downloaded, or is not what it should be."""


class CameraError(RsdEdgeError):
    """A camera or stream cannot be opened, or stayed silent for too long."""
