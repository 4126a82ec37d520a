"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from rsd_edge.errors import OutputError

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_DESCRIPTORS = ("/proc/self/fd", "/dev/fd")
"""Of this process; /dev/stdout leads there."""


PARTS = ".rsd-edge-*.part"
"""Names that files have until they are whole."""


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes the place of `path` when the block ends, and leaves nothing behind when it fails.

    It is written beside `path`, in a folder that is made if it is missing. A device or a pipe is written to and stays
    what it is, and so does what /dev/stdout and other links to open files lead to: it goes on from where it is. Raises
    OutputError, with `errno` set, if the disk is full or the folder does not take files.
    """
    if _is_stream(path):
        with _stream(path) as file:
            yield file
        return
    make_folder(path.parent)
    # Not tempfile: its files are readable by their owner alone, whatever the umask says.
    partial = path.parent / f".rsd-edge-{secrets.token_hex(8)}.part"
    try:
        try:
            with open(partial, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())  # or a power cut may leave the name without the contents
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OutputError:
        raise
    except OSError as error:
        raise output_error(path, error) from error


def _is_stream(path: Path) -> bool:
    """Raises OutputError for a name that no file can have, or a folder that does not tell."""
    try:
        return path.exists() and (_descriptor(path) is not None or not (path.is_file() or path.is_dir()))
    except OSError as error:
        raise output_error(path, error) from error


def _descriptor(path: Path) -> int | None:
    """Of the open file of this process that a path leads to, link by link; None for any other path."""
    while True:
        parent = path.parent.resolve()
        if path.name.isdecimal() and parent in {Path(folder).resolve() for folder in _DESCRIPTORS}:
            return int(path.name)
        if not path.is_symlink():
            return None
        path = parent / path.readlink()


@contextlib.contextmanager
def _stream(path: Path) -> Iterator[BinaryIO]:
    try:
        descriptor = _descriptor(path)
        with open(path if descriptor is None else os.dup(descriptor), "wb") as file:
            yield file
    except OutputError:
        raise
    except OSError as error:
        raise output_error(path, error) from error


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write JSON atomically. Raises OutputError as `atomic_file` does."""
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_file(path) as file:
        # A file name that is not valid UTF-8 reaches us with lone surrogates; escaped, they are valid JSON.
        file.write(f"{text}\n".encode(errors="backslashreplace"))


def make_folder(path: Path) -> None:
    """Create a folder and its parents if they are missing. Raises OutputError if that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise OutputError(f"cannot write into {path}: it is a file; choose a folder") from None
    except OSError as error:
        raise output_error(path, error) from error


def check_writable(folder: Path) -> None:
    """Find out before the work whether files can be written into a folder, which need not exist yet; nothing is left.

    Raises OutputError.
    """
    present = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not present.is_dir():
        raise OutputError(f"cannot write into {folder}: {present} is a file; choose a folder")
    try:
        with tempfile.TemporaryDirectory(prefix=".rsd-edge-", dir=present):
            pass
    except OSError as error:
        raise output_error(folder, error) from error


def check_target(path: Path, spared: Iterable[Path] = ()) -> None:
    """Find out before the work whether `atomic_file` can write this file; nothing is left.

    spared: files that it must not replace. Raises OutputError.
    """
    is_stream = _is_stream(path)
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder; give a name for the file")
    real, *others = (os.path.normcase(os.path.realpath(each)) for each in (path, *spared))
    if real in others:
        raise OutputError(f"cannot write {path}: it is an input or a result of this run; give another name")
    if not is_stream:
        check_writable(path.parent)
    elif not os.access(path, os.W_OK):
        raise OutputError(f"cannot write {path}: Permission denied; choose something that you may write to")


@contextlib.contextmanager
def folder_for(path: Path) -> Iterator[None]:
    """The folder of a file that is about to be written, made if it is missing.

    What was made goes away with an error if nothing is in it, also where another run is about to write there: that one
    makes it again. Raises OutputError as `make_folder` does.
    """
    missing = [folder for folder in path.parents if not folder.exists()]
    make_folder(path.parent)
    try:
        yield
    except BaseException:
        for folder in missing:  # the deepest first
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def output_error(path: Path, error: OSError) -> OutputError:
    """The OutputError for an OSError met while writing `path`, with its `errno`."""
    if error.errno in _DISK_FULL:
        cure = "the disk is full; free some space or choose another folder"
    elif error.errno == errno.ENAMETOOLONG:
        cure = "its name is too long; choose a shorter one"
    elif error.errno == errno.EFBIG:
        cure = "the file system or a limit (ulimit -f) allows no larger file; choose another folder or raise the limit"
    else:
        cure = f"{error.strerror or error}; choose a folder that you may write to"
    raised = OutputError(f"cannot write {path}: {cure}")
    raised.errno = error.errno
    return raised


def is_disk_full(error: BaseException) -> bool:
    """True for an error of this module that says that the disk is full, so that more writing is in vain."""
    return isinstance(error, OSError) and error.errno in _DISK_FULL
