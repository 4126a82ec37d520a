"""The README's picture: bicubic, a shipped engine and the reference, side by side on the photos in assets/.

python benchmarks/contact_sheet.py -o assets/sheets/contact-sheet.jpg
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from rsd_edge import SuperResolver
from rsd_edge.opencv import cv2
from rsd_edge.stream.images import read_image, write_image

ASSETS = Path(__file__).parents[1] / "assets"
SUBJECTS = ("face", "text", "foliage", "night")
CELL = (300, 420)
"""Height and width of a picture on the sheet, in output pixels: nothing is resampled."""
GAP = 8
TITLE = 30

Image = NDArray[np.uint8]


def cell(image: Image) -> Image:
    """The middle of an image."""
    top, left = (image.shape[0] - CELL[0]) // 2, (image.shape[1] - CELL[1]) // 2
    return image[top : top + CELL[0], left : left + CELL[1]]


def sheet(rows: list[list[Image]], titles: list[str]) -> Image:
    """Rows of cells under their titles, on white."""
    height = TITLE + len(rows) * (CELL[0] + GAP)
    page = np.full((height, len(titles) * (CELL[1] + GAP) - GAP, 3), 255, np.uint8)
    for column, title in enumerate(titles):
        left = column * (CELL[1] + GAP)
        cv2.putText(page, title, (left + 4, 21), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 0), 1, cv2.LINE_AA)
        for row, images in enumerate(rows):
            top = TITLE + row * (CELL[0] + GAP)
            page[top : top + CELL[0], left : left + CELL[1]] = cell(images[column])
    return page


@click.command()
@click.option("--engine", default="edge-s", show_default=True)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path))
def main(engine: str, output: Path) -> None:
    """Write the sheet."""
    rows = []
    with SuperResolver.load(engine, precision="fp32", backend="onnxruntime") as enlarge:
        for subject in SUBJECTS:
            lq = read_image(ASSETS / f"{subject}.png")
            reference = read_image(ASSETS / "reference" / f"{subject}.jpg")
            rows.append([enlarge(lq, strength=0.0), enlarge(lq), reference])
    write_image(output, sheet(rows, ["bicubic", engine, "reference"]))


if __name__ == "__main__":
    main()
