"""Which files belong together: results, references and the LR images behind them, matched by stem."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rsd_edge.errors import InputError
from rsd_edge.evaluate.metrics import Image, Size, size_of
from rsd_edge.evaluate.protocol import Protocol
from rsd_edge.frames import SCALE
from rsd_edge.stream.discovery import images_in
from rsd_edge.stream.images import MAX_PIXELS, read_image

_PIXELS = SCALE * SCALE * MAX_PIXELS
NAMED = 3
"""How many of several faults an error names."""


@dataclass(frozen=True)
class Images:
    """Image files by stem."""

    place: str
    """What errors call where they are."""
    paths: Mapping[str, Path]


@dataclass(frozen=True)
class TestSet:
    """What results are measured against. Either part may be missing."""

    __test__ = False  # it is no class of tests, whatever pytest makes of the name

    references: Images | None = None
    sources: Images | None = None
    """The LR images that were upscaled."""
    own_sources: bool = False
    """Of a set of the literature, whose own LR images they take the place of."""

    @property
    def anything(self) -> Images | None:
        """A part that tells which images there are."""
        return self.references or self.sources

    def files(self) -> list[Path]:
        """Of both parts."""
        return [path for part in (self.references, self.sources) if part is not None for path in part.paths.values()]

    def first(self, limit: int | None) -> TestSet:
        """The first `limit` images by stem, or all."""
        every = self.anything
        if limit is None or every is None:
            return self
        stems = sorted(every.paths)[:limit]
        references, sources = (part and _only(part, stems) for part in (self.references, self.sources))
        return TestSet(references, sources, self.own_sources)


@dataclass(frozen=True)
class Pair:
    """The files of one image."""

    stem: str
    result: Path
    reference: Path | None
    source: Path | None


def folder_images(folder: Path, suffixes: Sequence[str] = ()) -> Images:
    """The images of a folder by stem; one of `suffixes` at the end of a stem does not count.

    Raises InputError if there is no such folder, no image in it, or two of one stem.
    """
    if not folder.is_dir():
        state = "is not a folder" if folder.exists() else "does not exist"
        raise InputError(f"{folder} {state}; give a folder of images")
    return Images(str(folder), by_stem(images_in(folder), suffixes))


def by_stem(paths: Iterable[Path], suffixes: Sequence[str] = ()) -> dict[str, Path]:
    """Files by stem without its suffix. Raises InputError for two of one stem."""
    found: dict[str, Path] = {}
    for path in paths:
        stem = path.stem
        for suffix in suffixes:
            stem = stem.removesuffix(suffix)
        other = found.setdefault(stem, path)
        if other is not path:
            raise InputError(f"{other} and {path.name} have the same stem; keep one of them in the folder")
    return found


def match(results: Images, test_set: TestSet, *, subset: bool = False) -> list[Pair]:
    """Every result with its partners, sorted by stem. subset: of the results, only those that the set names count.

    Raises InputError if a file has no partner.
    """
    parts = [part for part in (test_set.references, test_set.sources) if part is not None]
    if subset and (every := test_set.anything) is not None:
        results = _only(results, every.paths)
    for part in parts:
        _check_partners(results, part)
    for part in parts[:1]:
        _check_partners(part, results)
    return [
        Pair(stem, results.paths[stem], _path(test_set.references, stem), _path(test_set.sources, stem))
        for stem in sorted(results.paths)
    ]


def check_same(these: Images, those: Images) -> None:
    """Raises InputError if one of two folders of results has an image that the other has not."""
    _check_partners(these, those)
    _check_partners(those, these)


def load_result(path: Path) -> Image:
    """uint8 (h, w, 3) BGR of an image that may be as large as results get. Raises ImageReadError."""
    return read_image(path, _PIXELS)


def load_pair(pair: Pair, protocol: Protocol) -> tuple[Image, Image | None]:
    """Result and reference, as the files have them. Raises ImageReadError, and InputError if their sizes do not fit."""
    image = load_result(pair.result)
    if pair.reference is None:
        return image, None
    reference = load_result(pair.reference)
    check_sizes(size_of(image), str(pair.result), size_of(reference), pair.reference, protocol)
    return image, reference


def check_sizes(size: Size, name: str, expected: Size, path: Path, protocol: Protocol) -> None:
    """Raises InputError if a result and its reference, the file `path`, cannot be compared for their sizes."""
    if not protocol.fits(size, expected):
        sizes = f"{size[0]}x{size[1]} and {expected[0]}x{expected[1]}"
        raise InputError(
            f"{name} and {path} differ in size ({sizes}); compare images of the same size, or choose a --resize"
        )


def _check_partners(these: Images, those: Images) -> None:
    alone = sorted(set(these.paths) - set(those.paths))
    if alone:
        names = ", ".join(alone[:NAMED]) + (", ..." if len(alone) > NAMED else "")
        raise InputError(
            f"{len(alone)} images of {these.place} have no partner in {those.place} ({names}); add or remove files "
            "until both hold the same stems, or name what those of results and LR images end with besides (--ending)"
        )


def _only(images: Images, stems: Iterable[str]) -> Images:
    return Images(images.place, {stem: images.paths[stem] for stem in stems if stem in images.paths})


def _path(images: Images | None, stem: str) -> Path | None:
    return None if images is None else images.paths[stem]
