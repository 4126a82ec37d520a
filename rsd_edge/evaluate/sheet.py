"""A contact sheet of chosen images: LR, bicubic base, each result and the reference, where a result errs most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rsd_edge.evaluate.catalogue import CATALOGUE
from rsd_edge.evaluate.folder import Results
from rsd_edge.evaluate.image_sets import TestSet, load_result
from rsd_edge.evaluate.metrics import Image, to_y
from rsd_edge.evaluate.report import Evaluation
from rsd_edge.evaluate.upscaling import BICUBIC, bicubic
from rsd_edge.frames import SCALE
from rsd_edge.opencv import cv2
from rsd_edge.stream.images import read_image

CELL = 256
"""Side of a picture on the sheet, in pixels of the results: nothing is reduced. A multiple of SCALE."""
_GAP = 8
_LINE = 18
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_FONT_SCALE = 0.42
_WHITE, _BLACK, _GRAY = 255, (0, 0, 0), (110, 110, 110)
_ERROR_BLUR = 24.0
"""Sigma in pixels: what a cell shows is about this large."""


@dataclass(frozen=True)
class _Window:
    top: int
    left: int

    def of(self, image: Image, step: int = 1) -> Image:
        side = CELL // step
        top, left = self.top // step, self.left // step
        return image[top : top + side, left : left + side]


def draw_sheet(
    stems: Sequence[str],
    results: Sequence[Results],
    evaluations: Sequence[Evaluation],
    test_set: TestSet,
    metric: str,
) -> Image:
    """uint8 (h, w, 3) BGR: a row of 256x256 windows for each stem, with `metric` and another score below.

    The window is where the luma of the first result is furthest from that of the reference, or without reference from
    the bicubic base, or else the middle. Raises ImageReadError for files that are gone.
    """
    rows = [_row(stem, results, evaluations, test_set, metric) for stem in stems]
    width = max(row.shape[1] for row in rows)
    gap = np.full((_GAP, width, 3), _WHITE, np.uint8)
    head = np.full((_LINE, width, 3), _WHITE, np.uint8)
    title = f"{len(stems)} of {len(evaluations[0].rows)} images, the worst of {_short(evaluations[0].name)} in {metric}"
    _write(head, title, _LINE - 5, _BLACK)
    return np.concatenate([head, gap, *(part for row in rows for part in (_padded(row, width), gap))])


def _row(
    stem: str, results: Sequence[Results], evaluations: Sequence[Evaluation], test_set: TestSet, metric: str
) -> Image:
    images = [load_result(result.images.paths[stem]) for result in results]
    reference = None if test_set.references is None else load_result(test_set.references.paths[stem])
    lq = None if test_set.sources is None else read_image(test_set.sources.paths[stem])
    base = None if lq is None else bicubic(lq)
    if reference is not None:
        images = [evaluations[0].protocol.align(image, reference)[0] for image in images]
    window = _window(images[0], base if reference is None else reference)
    cells = []
    if lq is not None and base is not None:
        pixels = np.repeat(np.repeat(window.of(lq, SCALE), SCALE, axis=0), SCALE, axis=1)
        cells.append(_cell(pixels, "LR", f"{stem}  {lq.shape[1]}x{lq.shape[0]}"))
        if BICUBIC not in {result.name for result in results}:
            cells.append(_cell(window.of(base), BICUBIC, "the base of the results"))
    for image, evaluation in zip(images, evaluations, strict=True):
        cells.append(_cell(window.of(image), _short(evaluation.name), _score(evaluation, stem, metric)))
    if reference is not None:
        cells.append(_cell(window.of(reference), "reference", f"{stem}  {reference.shape[1]}x{reference.shape[0]}"))
    return np.concatenate([part for cell in cells for part in (cell, _space())][:-1], axis=1)


def _window(image: Image, other: Image | None) -> _Window:
    """Inside the image, on the LR lattice."""
    height, width = image.shape[:2]
    top, left = (height - CELL) // 2, (width - CELL) // 2
    if other is not None:
        rows, columns = min(height, other.shape[0]), min(width, other.shape[1])
        error = np.abs(to_y(image[:rows, :columns]) - to_y(other[:rows, :columns]))
        spread = cv2.GaussianBlur(error, (0, 0), _ERROR_BLUR, borderType=cv2.BORDER_REPLICATE)
        y, x = np.unravel_index(int(np.argmax(spread)), spread.shape)
        top, left = int(y) - CELL // 2, int(x) - CELL // 2
    top, left = min(top, height - CELL), min(left, width - CELL)
    return _Window(max(0, top) // SCALE * SCALE, max(0, left) // SCALE * SCALE)


def _cell(pixels: Image, title: str, foot: str) -> Image:
    page = np.full((_LINE + CELL + _LINE, CELL, 3), _WHITE, np.uint8)
    page[_LINE : _LINE + pixels.shape[0], : pixels.shape[1]] = pixels
    _write(page, title, _LINE - 5, _BLACK)
    _write(page, foot, _LINE + CELL + 13, _GRAY)
    return page


def _write(page: Image, text: str, line: int, colour: tuple[int, int, int]) -> None:
    """OpenCV's font has ASCII only; other characters become question marks."""
    shown = text.encode("ascii", "replace").decode()
    cv2.putText(page, shown, (2, line), _FONT, _FONT_SCALE, colour, 1, cv2.LINE_AA)


def _score(evaluation: Evaluation, stem: str, metric: str) -> str:
    scores: Mapping[str, float] = {
        name: value
        for name in (metric, *evaluation.metrics)
        if (value := evaluation.values(name).get(stem)) is not None
    }
    return "  ".join(f"{name} {value:.{CATALOGUE[name].decimals}f}" for name, value in list(scores.items())[:2])


def _short(name: str) -> str:
    """The end of a path, which tells most."""
    return str(Path(*Path(name).parts[-2:]))[-34:]


def _space() -> Image:
    return np.full((2 * _LINE + CELL, _GAP, 3), _WHITE, np.uint8)


def _padded(row: Image, width: int) -> Image:
    return np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=_WHITE)
