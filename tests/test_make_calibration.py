"""How the packaged crops were made: from which photographs, degraded how, stored how."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from rsd_edge.distill.degrade import degrade
from rsd_edge.distill.presets import Bicubic
from rsd_edge.errors import InputError
from rsd_edge.export import calibration, make_calibration
from rsd_edge.export.calibration import CALIBRATION, CREDITS, HELD_OUT_HR, HELD_OUT_LR, SIDE
from rsd_edge.export.make_calibration import SHARES, free_rows, main, mosaic, pairs
from rsd_edge.export.publish import CREDIT_FIELDS
from rsd_edge.stream.images import read_image, write_image

Photo = Callable[[int, int], NDArray[np.uint8]]
LICENCES = ("CC0-1.0", "CC-BY-4.0", "Public domain (NASA)", "CC0")


def write_table(path: Path, crops: list[tuple[str, str, str]]) -> Path:
    """(file, photograph, licence) of each crop."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["crop", *CREDIT_FIELDS])
        writer.writerows(
            [crop, photo, "A. Author", licence, "README", "https://x", f"{photo}.jpg"] for crop, photo, licence in crops
        )
    return path


@pytest.fixture
def photos(photo: Photo, tmp_path: Path) -> tuple[Path, Path]:
    """Eight crops of four photographs, two of them under conditions; and their table."""
    crops = [(f"{i}.png", f"p{i // 2}", LICENCES[i // 2]) for i in range(8)]
    for index, (name, _, _) in enumerate(crops):
        write_image(tmp_path / name, photo(4 * SIDE + 3 * index, 4 * SIDE + index))
    return tmp_path, write_table(tmp_path / "table.csv", crops)


def test_photographs_under_conditions_are_left_out_and_the_rest_is_spread(photos: tuple[Path, Path]) -> None:
    _, table = photos
    assert [row["crop"] for row in free_rows(table, 6)] == ["0.png", "1.png", "4.png", "5.png", "6.png", "7.png"]
    assert [row["photo_id"] for row in free_rows(table, 3)] == ["p0", "p2", "p3"]
    with pytest.raises(InputError, match=r"table\.csv has 6 crops under CC0 or Public domain; 7 are needed"):
        free_rows(table, 7)


def test_a_pair_is_a_crop_and_what_the_degradation_makes_of_it(photos: tuple[Path, Path]) -> None:
    folder, table = photos
    made = pairs(folder, free_rows(table, 6), {"bicubic": 6}, seed=3)
    for (hr, lr), row in zip(made, free_rows(table, 6), strict=True):
        assert hr.shape == (4 * SIDE, 4 * SIDE, 3)
        np.testing.assert_array_equal(lr, degrade(np.random.default_rng(0), hr, Bicubic()))
        source = read_image(folder / row["crop"]).astype(int)
        offsets = [(y, x) for y in range(source.shape[0] - 191) for x in range(source.shape[1] - 191)]
        nearest = min(np.abs(hr - source[y : y + 192, x : x + 192]).mean() for y, x in offsets)
        assert nearest < 6  # measured 4.5 to 4.8, JPEG on sharp colours and noise; other places are at 11 to 31


def test_the_seed_decides_everything(photos: tuple[Path, Path]) -> None:
    folder, table = photos
    shares = {"real": 2, "light": 2, "bicubic": 2}
    first, again, other = (pairs(folder, free_rows(table, 6), shares, seed) for seed in (0, 0, 1))
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a[1], b[1]) for a, b in zip(first, other, strict=True))


def test_a_mosaic_is_read_back_in_its_order() -> None:
    crops = list(np.random.default_rng(0).integers(0, 256, (24, SIDE, SIDE, 3), np.uint8))
    np.testing.assert_array_equal(calibration._split(mosaic(crops), SIDE), crops)


def test_shares_fill_whole_rows_and_match_what_is_packaged() -> None:
    counts = {name: sum(shares.values()) for name, shares in SHARES.items()}
    assert counts == {"calibration": 256, "held-out": 24}
    assert all(count % make_calibration.COLUMNS == 0 for count in counts.values())


def test_the_script_writes_mosaics_and_credits(photos: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, table = photos
    other = write_table(folder / "other.csv", [("6.png", "p3", "CC0"), ("0.png", "p0", "CC0-1.0")])
    data = folder / "data"
    data.mkdir()
    monkeypatch.setattr(make_calibration, "DATA", data)
    monkeypatch.setattr(make_calibration, "COLUMNS", 2)
    monkeypatch.setattr(make_calibration, "SHARES", {"calibration": {"light": 4}, "held-out": {"bicubic": 2}})
    arguments = ["--train", folder, table, "--held-out", folder, other]
    result = CliRunner().invoke(main, [str(item) for item in arguments], catch_exceptions=False)
    assert (result.exit_code, result.output) == (0, "")
    assert sorted(path.name for path in data.iterdir()) == sorted([CALIBRATION, HELD_OUT_HR, HELD_OUT_LR, CREDITS])
    assert read_image(data / CALIBRATION).shape == (2 * SIDE, 2 * SIDE, 3)
    # The stored pair: LR of the stored HR, but for one more pass of JPEG over the latter.
    lr, hr = (
        calibration._split(read_image(data / HELD_OUT_LR), SIDE),
        calibration._split(read_image(data / HELD_OUT_HR), 4 * SIDE),
    )
    for small, large in zip(lr, hr, strict=True):
        again = degrade(np.random.default_rng(0), large, Bicubic())
        assert np.abs(small.astype(int) - again).mean() < 1  # measured 0.6
    with (data / CREDITS).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(CREDIT_FIELDS)
    assert [row["photo_id"] for row in rows] == ["p0", "p2", "p3"]  # each once, whatever was cropped from it
