"""A sheet for each kind of content: bicubic, the shipped engines, a published model and the reference, side by side.

    python benchmarks/content_sheets.py --data ../shared/data --peer realesr-general-x4v3.ncnn.param \\
        realesr-general-x4v3.ncnn.bin -o assets/sheets/content

Crops of the frozen test sets at their own pixels, chosen for what is hard in them and not for their results; line art
and blocks of JPEG are made here, from lines that are drawn and from a photograph saved at quality 25.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from rsd_edge import SuperResolver
from rsd_edge.bench.peer import NcnnPeer
from rsd_edge.frames import SCALE
from rsd_edge.opencv import cv2
from rsd_edge.stream.images import read_image, write_image

Image = NDArray[np.uint8]
CELL = (240, 320)
"""Height and width of a crop, in pixels of the results."""
GAP, TITLE, LABEL = 6, 26, 18
JPEG_QUALITY = 25


@dataclass(frozen=True)
class Crop:
    """Of an image of a test set; y, x: its upper left corner in pixels of the reference."""

    images: str
    name: str
    y: int
    x: int


KINDS: dict[str, tuple[Crop, ...]] = {
    "flat": (Crop("val_real", "p071_04", 20, 180), Crop("val_light", "p097_06", 150, 20)),
    "skin": (Crop("kodak24_light", "kodim15", 100, 330), Crop("val_real", "p309_00", 100, 40)),
    "text": (Crop("val_light", "p198_03", 30, 60), Crop("val_real", "p198_01", 60, 40)),
    "foliage": (Crop("val_light", "p189_03", 120, 60), Crop("kodak24_real", "kodim13", 230, 380)),
    "night": (Crop("val_light", "p025_01", 150, 100), Crop("val_real", "p025_04", 150, 120)),
}


def line_art() -> Image:
    """Strokes, circles, hatching and letters, drawn at the size of a result."""
    page = np.full((CELL[0], CELL[1], 3), 255, np.uint8)
    for k, thickness in enumerate((1, 2, 3, 4)):
        cv2.line(page, (10, 20 + 14 * k), (150, 40 + 14 * k), (0, 0, 0), thickness, cv2.LINE_AA)
        cv2.circle(page, (230, 60), 12 + 11 * k, (0, 0, 0), thickness, cv2.LINE_AA)
    for k in range(14):
        cv2.line(page, (10 + 9 * k, 220), (60 + 9 * k, 120), (40, 40, 40), 1, cv2.LINE_AA)
    points = np.array([[200, 220], [240, 130], [300, 150], [290, 215]], np.int32)
    cv2.fillPoly(page, [points], (60, 160, 250), cv2.LINE_AA)
    cv2.polylines(page, [points], isClosed=True, color=(0, 0, 0), thickness=3, lineType=cv2.LINE_AA)
    cv2.putText(page, "Rg8&", (150, 180), cv2.FONT_HERSHEY_SIMPLEX, 0.9, (120, 20, 20), 2, cv2.LINE_AA)
    return page


def reduced(reference: Image, quality: int | None = None) -> Image:
    """A quarter of the size, averaged; through JPEG if a quality is given."""
    height, width = reference.shape[:2]
    small = np.asarray(cv2.resize(reference, (width // SCALE, height // SCALE), interpolation=cv2.INTER_AREA), np.uint8)
    if quality is None:
        return small
    done, coded = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    return np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)


Subject = tuple[str, Image, Image, tuple[int, int]]
"""Label, LR image, reference, corner of the crop."""


def subjects(data: Path) -> dict[str, list[Subject]]:
    """All pictures by kind."""
    found: dict[str, list[Subject]] = {
        kind: [
            (
                f"{crop.images} {crop.name}",
                read_image(data / "frozen" / crop.images / f"{crop.name}.png"),
                _reference(data, crop),
                (crop.y, crop.x),
            )
            for crop in crops
        ]
        for kind, crops in KINDS.items()
    }
    drawn = line_art()
    found["line-art"] = [
        ("drawn", reduced(drawn), drawn, (0, 0)),
        (f"drawn, JPEG {JPEG_QUALITY}", reduced(drawn, JPEG_QUALITY), drawn, (0, 0)),
    ]
    photos = (Crop("kodak24", "kodim23", 60, 130), Crop("kodak24", "kodim08", 180, 200))
    found["jpeg-blocks"] = []
    for photo in photos:
        reference = _reference(data, photo)
        label = f"{photo.name}, JPEG {JPEG_QUALITY}"
        found["jpeg-blocks"].append((label, reduced(reference, JPEG_QUALITY), reference, (photo.y, photo.x)))
    return found


def _reference(data: Path, crop: Crop) -> Image:
    folder = data / crop.images.partition("_")[0]
    return read_image(next(path for path in folder.iterdir() if path.stem == crop.name))


def sheet(rows: list[tuple[str, list[Image]]], titles: list[str]) -> Image:
    """Labelled rows of cells under their titles, on white."""
    step_y, step_x = CELL[0] + LABEL + GAP, CELL[1] + GAP
    page = np.full((TITLE + len(rows) * step_y, len(titles) * step_x - GAP, 3), 255, np.uint8)
    for column, title in enumerate(titles):
        cv2.putText(page, title, (column * step_x + 2, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (0, 0, 0), 1, cv2.LINE_AA)
    for row, (label, images) in enumerate(rows):
        top = TITLE + row * step_y
        cv2.putText(page, label, (2, top + 13), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (90, 90, 90), 1, cv2.LINE_AA)
        for column, image in enumerate(images):
            left = column * step_x
            page[top + LABEL : top + LABEL + CELL[0], left : left + CELL[1]] = image
    return page


@click.command()
@click.option("--data", required=True, type=click.Path(path_type=Path, exists=True), help="Folder with frozen, val ...")
@click.option("--peer", nargs=2, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path))
def main(data: Path, peer: tuple[Path, Path], output: Path) -> None:
    """Write the sheets."""
    output.mkdir(parents=True, exist_ok=True)
    network = NcnnPeer(*peer, 2)
    options = {"precision": "int8", "backend": "onnxruntime"}
    with SuperResolver.load("edge-s", **options) as edge_s, SuperResolver.load("edge-n", **options) as edge_n:  # type: ignore[arg-type]
        methods: dict[str, Callable[[Image], Image]] = {
            "bicubic": lambda lq: edge_s(lq, strength=0.0),
            "edge-n int8": edge_n,
            "edge-s int8": edge_s,
            peer[0].name.partition(".")[0]: network,
        }
        for kind, found in subjects(data).items():
            rows = []
            for label, lq, reference, (y, x) in found:
                images = [*(method(lq) for method in methods.values()), reference]
                rows.append((label, [image[y : y + CELL[0], x : x + CELL[1]] for image in images]))
            write_image(output / f"{kind}.jpg", sheet(rows, [*methods, "reference"]))
            click.echo(f"{output / kind}.jpg")


if __name__ == "__main__":
    main()
