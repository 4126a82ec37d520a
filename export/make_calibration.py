"""Makes the crops that INT8 engines are calibrated and judged on, from photographs free of conditions.

    python -P -m rsd_edge.export.make_calibration --train DIR TABLE --held-out DIR TABLE

The tables have one row a crop of a photograph with at least `crop` (its file) and the CREDIT_FIELDS of publish.py.
Crops are stored as mosaics; see calibration.py for how they are read.
"""

from __future__ import annotations

import csv
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from rsd_edge.distill.degrade import degrade
from rsd_edge.distill.presets import Presets
from rsd_edge.errors import InputError
from rsd_edge.export.calibration import CALIBRATION, CREDITS, DATA, HELD_OUT_HR, HELD_OUT_LR, SIDE
from rsd_edge.export.publish import credits_table
from rsd_edge.frames import SCALE
from rsd_edge.opencv import cv2
from rsd_edge.stream.atomic import atomic_file
from rsd_edge.stream.images import read_image

Crop = NDArray[np.uint8]
Row = dict[str, str]

COLUMNS = 8
SHARES = {"calibration": {"real": 128, "light": 80, "bicubic": 48}, "held-out": {"real": 8, "light": 8, "bicubic": 8}}
_FREE = ("CC0", "Public domain")
_JPEG_QUALITY = 95


def free_rows(table: Path, count: int) -> list[Row]:
    """`count` rows under no conditions, spread over the photographs. Raises InputError if there are too few."""
    with table.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["licence"].startswith(_FREE)]
    if len(rows) < count:
        raise InputError(f"{table} has {len(rows)} crops under {' or '.join(_FREE)}; {count} are needed")
    return [rows[index * len(rows) // count] for index in range(count)]


def pairs(folder: Path, rows: list[Row], shares: dict[str, int], seed: int) -> list[tuple[Crop, Crop]]:
    """(HR, LR) crops, one of each row; the HR side has been through JPEG, as it will be stored."""
    presets = [name for name, count in shares.items() for _ in range(count)]
    rng = np.random.default_rng(seed)
    rng.shuffle(presets)
    made = []
    for row, preset in zip(rows, presets, strict=True):
        photo = read_image(folder / row["crop"])
        y, x = (int(rng.integers(side - SCALE * SIDE + 1)) for side in photo.shape[:2])
        crop = photo[y : y + SCALE * SIDE, x : x + SCALE * SIDE]
        hr = np.asarray(cv2.imdecode(np.frombuffer(_jpeg(crop), np.uint8), cv2.IMREAD_COLOR), np.uint8)
        made.append((hr, degrade(rng, hr, Presets().named(preset))))
    return made


def mosaic(crops: list[Crop]) -> Crop:
    """Crops in rows of COLUMNS."""
    rows = [np.hstack(crops[start : start + COLUMNS]) for start in range(0, len(crops), COLUMNS)]
    return np.vstack(rows)


def _write(name: str, data: bytes) -> None:
    with atomic_file(DATA / name) as file:
        file.write(data)


def _jpeg(image: Crop) -> bytes:
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes()


def _png(image: Crop) -> bytes:
    return cv2.imencode(".png", image)[1].tobytes()


@click.command()
@click.option("--train", required=True, nargs=2, type=click.Path(path_type=Path, exists=True))
@click.option("--held-out", "held_out", required=True, nargs=2, type=click.Path(path_type=Path, exists=True))
def main(train: tuple[Path, Path], held_out: tuple[Path, Path]) -> None:
    """Write the mosaics and their credits beside calibration.py."""
    used: list[Row] = []
    made = {}
    for seed, (name, (folder, table)) in enumerate({"calibration": train, "held-out": held_out}.items()):
        rows = free_rows(table, sum(SHARES[name].values()))
        made[name] = pairs(folder, rows, SHARES[name], seed)
        used += rows
    _write(CALIBRATION, _png(mosaic([lr for _, lr in made["calibration"]])))
    _write(HELD_OUT_LR, _png(mosaic([lr for _, lr in made["held-out"]])))
    _write(HELD_OUT_HR, _jpeg(mosaic([hr for hr, _ in made["held-out"]])))
    _write(CREDITS, credits_table({row["photo_id"]: row for row in used}.values()).encode())


if __name__ == "__main__":
    main()
