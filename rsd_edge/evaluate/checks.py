"""Whether images can be scored: found out by reading all of them, before any is upscaled or measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rsd_edge.errors import InputError
from rsd_edge.evaluate.image_sets import (
    NAMED,
    Images,
    Pair,
    TestSet,
    check_same,
    check_sizes,
    load_pair,
    load_result,
)
from rsd_edge.evaluate.lattice import check_lattice
from rsd_edge.evaluate.lpips import check_lpips
from rsd_edge.evaluate.metrics import Size, check_ssim, size_of
from rsd_edge.evaluate.scoring import LATTICE, EvaluationSettings
from rsd_edge.frames import SCALE
from rsd_edge.stream.images import read_image

_SSIM = ("ssim_y", "ssim_rgb")


def check_pairs(pairs: Sequence[Pair], settings: EvaluationSettings) -> None:
    """Read every file once. Raises InputError that counts and names the images that cannot be scored."""
    faults = []
    for pair in pairs:
        try:
            _check_pair(pair, settings)
        except InputError as error:
            faults.append(error)
    _raise(faults, len(pairs))


def check_sources(test_set: TestSet, settings: EvaluationSettings) -> Images:
    """The LR images of a set, after the same check of what is to be made of them: can all be read, does x4 fit?"""
    if test_set.sources is None:
        raise InputError("there are no LR images to upscale; give them with --lr")
    references = test_set.references
    if references is not None:
        check_same(test_set.sources, references)
    faults = []
    for stem, path in test_set.sources.paths.items():
        try:
            _check_source(path, None if references is None else references.paths[stem], settings)
        except InputError as error:
            faults.append(error)
    _raise(faults, len(test_set.sources.paths))
    return test_set.sources


def _check_pair(pair: Pair, settings: EvaluationSettings) -> None:
    image, reference = load_pair(pair, settings.protocol)
    expected = None if reference is None else size_of(reference)
    source = None if pair.source is None else size_of(read_image(pair.source))
    _check_measurable(str(pair.result), settings, size_of(image), expected, source)


def _check_source(path: Path, reference: Path | None, settings: EvaluationSettings) -> None:
    width, height = source = size_of(read_image(path))
    name, result = f"x4 of {path}", (SCALE * width, SCALE * height)
    expected = None
    if reference is not None:
        expected = size_of(load_result(reference))
        check_sizes(result, name, expected, reference, settings.protocol)
    _check_measurable(name, settings, result, expected, source)


def _check_measurable(
    name: str, settings: EvaluationSettings, result: Size, reference: Size | None, source: Size | None
) -> None:
    """Raises InputError with the name of a result that one of the metrics would refuse."""
    wanted = set(settings.metrics)
    try:
        if source is not None and wanted.intersection(LATTICE):
            check_lattice(result, source)
        measured = settings.protocol.measured(result, reference)
        if wanted.intersection(_SSIM):
            check_ssim(measured)
        if "lpips_squeeze" in wanted:
            check_lpips(measured)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def _raise(faults: Sequence[InputError], images: int) -> None:
    if len(faults) == 1:
        raise faults[0]
    if faults:
        named = " | ".join(str(fault) for fault in faults[:NAMED]) + (" | ..." if len(faults) > NAMED else "")
        raise InputError(f"{len(faults)} of {images} images cannot be scored: {named}")
