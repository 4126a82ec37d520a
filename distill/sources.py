"""Where training images lie: folders, lists of files, WebDataset shards. All are indexed before the first is read.

A shard is an uncompressed tar file. Its members are read by their offsets, in any order: shards streamed through a
shuffle buffer could not be resumed at a sample, nor shared out between ranks without a copy of some.
"""

from __future__ import annotations

import logging
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rsd_edge.errors import ImageReadError, InputError
from rsd_edge.stream.images import decode_image, read_image
from rsd_edge.stream.results import IMAGE_SUFFIXES, to_bytes

log = logging.getLogger(__name__)

SHARD = ".tar"
LIST = ".txt"
LARGEST_IMAGE = 1 << 30
"""Pixels; training images are the user's own, so this only stops a header that lies."""

_NUMBERS = re.compile(r"\{(\d+)\.\.(\d+)\}")
_ROLES = ("hr", "lr")
_IN_FOLDERS = (*IMAGE_SUFFIXES, SHARD)


class Entry(NamedTuple):
    """One image: a file, or `size` bytes from `offset` of a shard."""

    key: str
    """What an HR image and its LR image have in common."""
    path: str
    member: str = ""
    offset: int = 0
    size: int = 0

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.path}:{self.member}" if self.member else self.path


def read_entry(entry: Entry) -> NDArray[np.uint8]:
    """Decode to uint8 (h, w, 3) BGR. Raises ImageReadError with the name of what cannot be used."""
    if not entry.member:
        return read_image(entry.path, LARGEST_IMAGE)
    try:
        with open(entry.path, "rb") as shard:
            shard.seek(entry.offset)
            data = shard.read(entry.size)
    except OSError as error:
        raise ImageReadError(f"{entry.name} cannot be read ({error.strerror}); check the path and the disk") from None
    if len(data) < entry.size:
        raise ImageReadError(f"{entry.name} is truncated; copy or download the shard again")
    return np.asarray(to_bytes(decode_image(data, entry.name, LARGEST_IMAGE).pixels), np.uint8)


def list_images(source: str, role: str = "hr") -> list[Entry]:
    """All images of a source, sorted: a folder (and its folders), a list of files, a shard, or `shard-{000..041}.tar`.

    A list has a path a line, relative to its own folder; lines that begin with # are comments (./#name is a file).
    Folders and lists may name shards, too. Links to folders are followed, and each folder is searched once. What a list
    names, or a link in a folder points to, and is not there counts as an image, to be named when it is met. Where
    members of a shard are called key.hr.png and key.lr.png, `role` tells which are wanted.
    Raises InputError if there is nothing there or no image in it.
    """
    entries: list[Entry] = []
    for path, key in _files(source):
        entries += _shard_entries(path, role) if path.suffix.lower() == SHARD else [Entry(key, str(path))]
    if not entries:
        raise InputError(f"data source '{source}' names no images; check data.train and data.val")
    return entries


def pair(hr: list[Entry], lr: list[Entry]) -> list[tuple[Entry, Entry]]:
    """Every HR image with the LR image of the same key.

    Raises InputError if an HR image has none, or if two images share a key.
    """
    by_key: dict[str, Entry] = {}
    for entries in (lr, hr):
        by_key = {}
        for entry in entries:
            other = by_key.setdefault(entry.key, entry)
            if other is not entry:
                raise InputError(f"{other.name} and {entry.name} are both '{entry.key}' of a pair; rename one")
    partners = {entry.key: entry for entry in lr}
    alone = [entry for entry in hr if entry.key not in partners]
    if alone:
        raise InputError(
            f"{len(alone)} of {len(hr)} HR images have no LR image of the same name, the first is {alone[0].name}; "
            "add the LR images or take these away"
        )
    return [(entry, partners[entry.key]) for entry in hr]


def _files(source: str) -> Iterator[tuple[Path, str]]:
    """Image files and shards, with the keys of image files."""
    numbers = _NUMBERS.search(source)
    root = Path(source)
    if numbers:
        first, last = numbers.groups()
        for number in range(int(first), int(last) + 1):
            shard = Path(source[: numbers.start()] + str(number).zfill(len(first)) + source[numbers.end() :])
            yield _existing(shard, source), shard.stem
    elif source and root.is_dir():
        for path in _in_folder(root):
            yield path, path.relative_to(root).with_suffix("").as_posix()
    elif source and root.suffix.lower() == LIST and root.is_file():
        for path in _listed(root):
            yield path, path.stem
    else:
        yield _existing(root, source), root.stem


def _existing(path: Path, source: str) -> Path:
    if not source or not path.is_file():
        raise InputError(
            f"data source '{path if source else ''}' does not exist; set data.train and data.val to a folder of "
            f"images, a list of files ({LIST}) or shards ({SHARD})"
        )
    if path.suffix.lower() not in _IN_FOLDERS:
        raise InputError(f"data source '{path}' is no folder, list ({LIST}), shard ({SHARD}) or image; choose one")
    return path


def _in_folder(root: Path) -> list[Path]:
    """Images and shards below a folder, sorted, with the links whose targets are missing."""

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename} cannot be listed ({error.strerror}); allow this user to read it")

    found: list[Path] = []
    searched: set[str] = set()
    for parent, folders, names in os.walk(root, onerror=refuse, followlinks=True):
        where = os.path.realpath(parent)
        if where in searched:  # a link may lead back up
            folders.clear()
            continue
        searched.add(where)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = (Path(parent, name) for name in names if not name.startswith("."))
        found += [path for path in paths if path.suffix.lower() in _IN_FOLDERS and _is_file_or_dangling(path)]
    if not found:
        raise InputError(f"{root} contains no images ({' '.join(IMAGE_SUFFIXES)}) or shards ({SHARD}); name another")
    return sorted(found)


def _is_file_or_dangling(path: Path) -> bool:
    return path.is_file() or not path.exists()


def _listed(path: Path) -> list[Path]:
    try:
        # Windows begins its text with a mark, and names of files elsewhere may be of any bytes.
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise InputError(f"list {path} cannot be read ({error.strerror}); check its permissions") from None
    if "\0" in text:
        raise InputError(f"list {path} is no text in UTF-8; save it as such, with a path a line")
    # Files that are missing are met, named and counted like damaged ones: a long list may well have some.
    names = [line.strip() for line in text.splitlines()]
    return [path.parent / name for name in names if name and not name.startswith("#")]


def _shard_entries(path: Path, role: str) -> list[Entry]:
    found: list[tuple[str, Entry]] = []
    try:
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                suffix = PurePosixPath(member.name).suffix.lower()
                if member.isfile() and suffix in IMAGE_SUFFIXES:
                    found.append(_member(path, member))
    except FileNotFoundError:
        raise InputError(f"shard {path} does not exist; check the list") from None
    except (OSError, tarfile.TarError) as error:
        if not found:
            raise InputError(
                f"shard {path} cannot be read ({error}); it must be an uncompressed tar file, make or copy it again"
            ) from None
        log.warning("shard %s is damaged (%s): its first %d images are used", path, error, len(found))
    split = any(own for own, _ in found)
    neither = sum(not own for own, _ in found)
    if split and neither:
        log.warning("shard %s: %d images that are neither .hr nor .lr are left out, since others are", path, neither)
    return [entry for own, entry in found if not split or own == role]


def _member(path: Path, member: tarfile.TarInfo) -> tuple[str, Entry]:
    """(role, entry); the key ends at the first dot of the file's name, as in WebDataset."""
    name = PurePosixPath(member.name)
    stem, _, extension = name.name.partition(".")
    role = extension.partition(".")[0]
    key = (name.parent / stem).as_posix()
    return role if role in _ROLES else "", Entry(key, str(path), member.name, member.offset_data, member.size)
