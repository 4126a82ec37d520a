"""The tiles that INT8 engines are calibrated and judged on."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from rsd_edge.bundle import ZOO
from rsd_edge.errors import ImageReadError, InputError
from rsd_edge.export import calibration
from rsd_edge.export.calibration import CREDITS, DATA, SIDE, Samples, calibration_samples, held_out_samples
from rsd_edge.noise import NoiseField
from rsd_edge.specs import ModelSpec
from rsd_edge.stream.images import write_image

MODEL = ModelSpec("any")


@pytest.fixture(scope="module")
def packaged() -> Samples:
    return calibration_samples(MODEL)


@pytest.fixture(scope="module")
def held_out() -> Samples:
    return held_out_samples(MODEL)


def test_a_few_hundred_crops_are_packaged(packaged: Samples, held_out: Samples) -> None:
    assert (len(packaged), len(held_out)) == (256, 24)
    for samples in (packaged, held_out):
        n = len(samples)
        assert (samples.frames.shape, samples.frames.dtype) == ((n, SIDE, SIDE, 3), np.uint8)
        assert (samples.lq.shape, samples.lq.dtype) == ((n, 3, SIDE, SIDE), np.float32)
        assert (samples.noise.shape, samples.noise.dtype) == ((n, 5, SIDE, SIDE), np.float32)
    assert packaged.hr is None
    assert held_out.hr is not None
    assert held_out.hr.shape == (24, 4 * SIDE, 4 * SIDE, 3)


def test_tiles_are_what_the_frame_path_makes(packaged: Samples) -> None:
    """RGB from BGR, 0 to 255 onto -1 to 1; to float32's rounding."""
    expected = packaged.frames[..., ::-1].transpose(0, 3, 1, 2) / 127.5 - 1
    np.testing.assert_allclose(packaged.lq, expected, rtol=0, atol=1e-6)
    assert packaged.lq.min() < -0.99  # photographs that use the range
    assert packaged.lq.max() > 0.99


def test_noise_is_of_the_field_with_a_seed_for_each_tile(packaged: Samples, held_out: Samples) -> None:
    """And none of the seeds that calibrate is one of those that judge."""
    for index in (0, 1, 255):
        np.testing.assert_array_equal(packaged.noise[index], NoiseField(index).normal(5, 0, 0, SIDE, SIDE))
    corners = np.concatenate([packaged.noise, held_out.noise])[:, :, :2, :2].reshape(280, -1)
    assert len(np.unique(corners, axis=0)) == 280


def test_the_model_decides_how_much_noise() -> None:
    assert held_out_samples(ModelSpec("more", steps=2)).noise.shape[1] == 9


def test_tiles_that_judge_are_not_those_that_calibrate(packaged: Samples, held_out: Samples) -> None:
    """8 x 8 means of the nearest pair are 8.6 grey levels apart on average; a copy would be at 1 or 2."""
    seen, judged = (means(samples.frames, SIDE // 8) for samples in (packaged, held_out))
    distance = np.abs(judged[:, None] - seen[None]).mean(axis=(2, 3, 4))
    assert distance.min() > 4


def test_every_reference_belongs_to_its_tile(held_out: Samples) -> None:
    """Of all references, its own is the nearest; another order of the mosaic would pair strangers."""
    assert held_out.hr is not None
    tiles, references = means(held_out.frames, SIDE // 8), means(held_out.hr, SIDE // 2)
    distance = np.abs(tiles[:, None] - references[None]).mean(axis=(2, 3, 4))
    np.testing.assert_array_equal(distance.argmin(axis=1), np.arange(24))


def means(images: NDArray[np.uint8], side: int) -> NDArray[np.float64]:
    n, h, w, _ = images.shape
    return images.reshape(n, h // side, side, w // side, side, 3).mean(axis=(2, 4))


def test_packaged_photographs_come_without_conditions() -> None:
    with (DATA / CREDITS).open(encoding="utf-8", newline="") as file:
        credited = list(csv.DictReader(file))
    with (ZOO / "edge-s" / "credits.csv").open(encoding="utf-8", newline="") as file:
        trained_on = {row["photo_id"] for row in csv.DictReader(file)}
    assert len(credited) == len({row["photo_id"] for row in credited}) > 100
    assert all(row["licence"].startswith(("CC0", "Public domain")) for row in credited)
    assert all(row["source_repo"] and row["source_file"] for row in credited)
    # Those that judge were not trained on, those that calibrate were.
    strangers = [row for row in credited if row["photo_id"] not in trained_on]
    assert 0 < len(strangers) < 24


def coded(height: int, width: int, code: int) -> NDArray[np.uint8]:
    """An image whose pixels say where they are: (row, column, image)."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y, x, np.full_like(y, code)], axis=-1).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for code, (height, width) in enumerate([(60, 200), (SIDE, SIDE), (SIDE - 1, 200)]):
        write_image(tmp_path / f"{code}.png", coded(height, width, code))
    return tmp_path


def test_a_folder_gives_random_crops_of_its_images(folder: Path) -> None:
    samples = calibration_samples(MODEL, folder)
    assert len(samples) == 256
    corners = samples.frames[:, 0, 0].astype(int)
    for frame, (y, x, code) in zip(samples.frames, corners, strict=True):
        np.testing.assert_array_equal(frame, coded(256, 256, code)[y : y + SIDE, x : x + SIDE])
    large = corners[corners[:, 2] == 0]
    assert sorted(corners[:, 2]) == [0] * 128 + [1] * 128  # evenly, and the image that is too small is left out
    assert {0, 12} <= set(large[:, 0])  # to the first and the last row
    assert len(set(large[:, 1])) > 60  # of 153 places
    again = calibration_samples(MODEL, folder)
    np.testing.assert_array_equal(samples.frames, again.frames)


def test_of_many_images_each_gives_one_crop(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "COUNT", 4)
    for code in range(3, 9):
        write_image(folder / f"{code}.png", coded(50, 50, code))
    frames = calibration_samples(MODEL, folder).frames
    assert len(set(frames[:, 0, 0, 2])) == 4


def test_folders_that_cannot_calibrate_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"contains no images"):
        calibration_samples(MODEL, tmp_path)
    write_image(tmp_path / "small.png", coded(SIDE - 1, 200, 0))
    with pytest.raises(InputError, match=r"holds no image of at least 48x48 pixels"):
        calibration_samples(MODEL, tmp_path)


@pytest.mark.parametrize("keep", [0, 20, -30])
def test_an_unreadable_image_is_named(folder: Path, keep: int) -> None:
    whole = (folder / "0.png").read_bytes()
    (folder / "torn.png").write_bytes(whole[:keep])
    with pytest.raises(
        ImageReadError, match=r"torn\.png .*; mend it, or take it out of the calibration folder"
    ) as caught:
        calibration_samples(MODEL, folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("count", "told"),
    [
        (2, r" has 2 images that cannot be read: bad0\.png, bad1\.png; mend them, or take them out of it$"),
        (7, r" has 7 images .*: bad0\.png, bad1\.png, bad2\.png, bad3\.png, bad4\.png and 2 more; mend them"),
    ],
)
def test_all_unreadable_images_are_told_at_once(folder: Path, count: int, told: str) -> None:
    for index in range(count):
        (folder / f"bad{index}.png").write_bytes(b"no image")
    with pytest.raises(ImageReadError, match=told):
        calibration_samples(MODEL, folder)
