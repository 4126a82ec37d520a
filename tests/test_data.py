from __future__ import annotations

import itertools
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rsd_edge.distill.data import (
    Batch,
    CropDataset,
    collate,
    list_images,
    training_batches,
    validation_batch,
)
from rsd_edge.distill.data_config import DataConfig
from rsd_edge.distill.degrade import degrade
from rsd_edge.errors import InputError
from rsd_edge.stream.images import read_image, write_image

CROP = 64


@pytest.fixture
def config(hr_photos: Path) -> DataConfig:
    return DataConfig(str(hr_photos), str(hr_photos), crop=CROP, workers=0, val_crops=3)


def dataset(config: DataConfig, seed: int = 5) -> CropDataset:
    return CropDataset(list_images(config.train), config, CROP, seed)


def take(config: DataConfig, count: int, first: int = 0) -> list[Batch]:
    return list(itertools.islice(training_batches(config, CROP, 2, 5, first), count))


def same(a: list[Batch], b: list[Batch]) -> bool:
    pairs = zip(a, b, strict=True)
    return all(torch.equal(one.x0, two.x0) and torch.equal(one.y0, two.y0) for one, two in pairs)


def test_images_are_found_in_folders_of_folders(hr_photos: Path) -> None:
    files = list_images(str(hr_photos))
    assert [file.name for file in files] == ["a.png", "b.png", "c.png", "d.png"]
    assert files == sorted(files)


@pytest.mark.parametrize("folder", ["", "absent"])
def test_a_missing_folder_is_named(tmp_path: Path, folder: str) -> None:
    with pytest.raises(InputError, match=r"data folder '.*' does not exist; set data\.train"):
        list_images(folder and str(tmp_path / folder))


def test_a_folder_without_images_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "trap.png").mkdir()
    with pytest.raises(InputError, match="contains no images"):
        list_images(str(tmp_path))


def test_a_crop_is_a_part_of_its_image_perhaps_mirrored(config: DataConfig, hr_photos: Path) -> None:
    photos = [read_image(path) for path in list_images(str(hr_photos))]
    bicubic = replace(config, degradations={"bicubic": 1.0})
    plain = mirrored = 0
    for sample in range(12):
        hr, lq = dataset(bicubic)[sample]
        assert np.array_equal(lq, degrade(np.random.default_rng(0), hr, "bicubic"))
        plain += any(contains(photo, hr) for photo in photos)
        mirrored += any(contains(photo, hr[:, ::-1]) for photo in photos)
    assert plain + mirrored == 12
    assert plain > 0
    assert mirrored > 0


def contains(image: NDArray[np.uint8], part: NDArray[np.uint8]) -> bool:
    windows = np.lib.stride_tricks.sliding_window_view(image, part.shape)[:, :, 0]
    candidates = np.argwhere((windows[:, :, 0, 0] == part[0, 0]).all(axis=-1))
    return any(np.array_equal(windows[top, left], part) for top, left in candidates)


def test_a_sample_depends_on_seed_and_index(config: DataConfig) -> None:
    first, again, other = dataset(config), dataset(config), dataset(config, seed=6)
    list(map(again.__getitem__, range(5)))  # what was read before does not matter
    for mine, theirs in zip(first[7], again[7], strict=True):
        assert np.array_equal(mine, theirs)
    assert not np.array_equal(first[7][0], first[8][0])
    assert not np.array_equal(first[7][0], other[7][0])


def test_degradations_are_drawn_by_their_shares(config: DataConfig) -> None:
    """A preset with share 0 is never drawn, one with all shares always."""
    clean = dataset(replace(config, degradations={"real": 0.0, "bicubic": 2.0}))
    for sample in range(6):
        hr, lq = clean[sample]
        assert np.array_equal(lq, degrade(np.random.default_rng(0), hr, "bicubic"))


def test_an_unknown_degradation_is_named(config: DataConfig) -> None:
    with pytest.raises(InputError, match="unknown degradation 'rain'; choose from real, light, bicubic"):
        dataset(replace(config, degradations={"rain": 1.0}))


def test_a_small_memory_changes_no_sample(config: DataConfig) -> None:
    small = dataset(replace(config, cache_mb=0))
    large = dataset(config)
    for sample in range(8):
        assert np.array_equal(small[sample][1], large[sample][1])
    assert small._cache.size == 0
    assert large._cache.size == sum(image.nbytes for image in large._cache.images.values()) > 0


def test_the_least_recently_used_image_leaves_the_memory(config: DataConfig) -> None:
    cache = dataset(config)._cache
    cache.capacity = 250
    images = [np.full(100, value, np.uint8) for value in range(3)]
    cache.put(0, images[0])
    cache.put(1, images[1])
    assert cache.get(0) is images[0]
    cache.put(2, images[2])
    assert [cache.get(index) is not None for index in range(3)] == [True, False, True]
    assert cache.size == 200


def test_batches_go_on_where_a_run_stopped(config: DataConfig) -> None:
    whole = take(config, 5)
    assert same(take(config, 2, first=6), whole[3:])
    assert not same(whole[:1], whole[1:2])


def test_batches_do_not_depend_on_workers(config: DataConfig) -> None:
    workers = training_batches(replace(config, workers=2), CROP, 2, 5, 0)
    assert same(list(itertools.islice(workers, 3)), take(config, 3))


def test_batches_are_rgb_in_model_range() -> None:
    black, white = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
    white[..., 2] = 51  # red, in the order of frames
    batch = collate([(black, black[:2, :2]), (white, white[:2, :2])])
    assert batch.x0.shape == (2, 3, 8, 8)
    assert batch.y0.shape == (2, 3, 2, 2)
    assert batch.x0.dtype == torch.float32
    assert batch.x0.is_contiguous(memory_format=torch.channels_last)
    assert set(batch.x0[0].flatten().tolist()) == {-1.0}
    assert batch.y0[1, :, 0, 0].tolist() == pytest.approx([-0.6, 1.0, 1.0], abs=1e-6)  # float32


def test_validation_is_fixed_and_of_its_own(config: DataConfig) -> None:
    first = validation_batch(config, CROP, 5)
    assert len(first.x0) == 3
    assert same([first], [validation_batch(config, CROP, 5)])
    training = collate([dataset(config)[sample] for sample in range(3)])
    assert not torch.equal(first.x0, training.x0)


@pytest.fixture
def spoilt(hr_photos: Path, tmp_path: Path, photo: Callable[[int, int], NDArray[np.uint8]]) -> Path:
    """Two good images, an empty one, a truncated one and one that is too small."""
    for name in ("a", "b"):
        shutil.copy(hr_photos / f"{name}.png", tmp_path)
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "half.png").write_bytes((tmp_path / "a.png").read_bytes()[:2000])
    write_image(tmp_path / "small.png", photo(80, CROP - 2))
    return tmp_path


def test_images_that_cannot_be_used_are_named_counted_and_replaced(
    spoilt: Path, config: DataConfig, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(config, train=str(spoilt))
    with caplog.at_level(logging.WARNING):
        samples = dataset(config)
        pairs = [samples[sample] for sample in range(20)]
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 3  # once each
    assert messages[-1].startswith("image skipped, 3 of 5 so far: ")
    for name in ("empty.jpg is empty", "half.png is truncated", "small.png is 62x80, smaller than the crop of 64"):
        assert sum(name in message for message in messages) == 1, messages
    # A sample that met a bad image is the same for a worker that has not met it before.
    for sample in (3, 11, 17):
        assert np.array_equal(dataset(config)[sample][1], pairs[sample][1])


def test_a_folder_of_unusable_images_is_an_error(spoilt: Path, config: DataConfig) -> None:
    for name in ("a", "b"):
        (spoilt / f"{name}.png").unlink()
    with pytest.raises(InputError, match=r"none of the 3 images can be used, the last because: .*") as caught:
        training_batches(replace(config, train=str(spoilt), workers=2), CROP, 2, 5, 0)
    assert "\n" not in str(caught.value)
