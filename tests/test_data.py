from __future__ import annotations

import itertools
import logging
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from test_loop import OneWeight

from rsd_edge.distill.config import DistillConfig
from rsd_edge.distill.data import (
    Batch,
    CropDataset,
    Sample,
    TrainingData,
    collate,
    training_batches,
    validation_batch,
)
from rsd_edge.distill.data_config import DataConfig
from rsd_edge.distill.degrade import degrade
from rsd_edge.distill.loop import _batches, _dataset
from rsd_edge.distill.presets import Bicubic
from rsd_edge.distill.sources import list_images
from rsd_edge.errors import InputError
from rsd_edge.opencv import cv2
from rsd_edge.stream.images import read_image, write_image

CROP = 64


@pytest.fixture
def config(hr_photos: Path) -> DataConfig:
    return DataConfig(str(hr_photos), str(hr_photos), crop=CROP, workers=0, val_crops=3)


def dataset(config: DataConfig, seed: int = 5) -> CropDataset:
    return CropDataset(config, CROP, seed)


def take(config: DataConfig, count: int, first: int = 0) -> list[Batch]:
    return list(itertools.islice(training_batches(CropDataset(config, CROP, 5), 2, first), count))


def same(a: list[Batch], b: list[Batch]) -> bool:
    pairs = zip(a, b, strict=True)
    return all(torch.equal(one.x0, two.x0) and torch.equal(one.y0, two.y0) for one, two in pairs)


def test_a_crop_is_a_part_of_its_image_perhaps_mirrored(config: DataConfig, hr_photos: Path) -> None:
    photos = [read_image(entry.path) for entry in list_images(str(hr_photos))]
    bicubic = replace(config, degradations={"bicubic": 1.0})
    plain = mirrored = 0
    for sample in range(12):
        hr, lq, _ = dataset(bicubic)[sample]
        assert np.array_equal(lq, degrade(np.random.default_rng(0), hr, Bicubic()))
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
    for mine, theirs in zip(first[7][:2], again[7][:2], strict=True):
        assert np.array_equal(mine, theirs)
    assert not np.array_equal(first[7][0], first[8][0])
    assert not np.array_equal(first[7][0], other[7][0])


def test_degradations_are_drawn_by_their_shares(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A preset with share 0 is never drawn, one with all shares always, others in proportion."""
    clean = dataset(replace(config, degradations={"real": 0.0, "bicubic": 2.0}))
    for sample in range(6):
        hr, lq, _ = clean[sample]
        assert np.array_equal(lq, degrade(np.random.default_rng(0), hr, Bicubic()))
    mixed = dataset(replace(config, degradations={"real": 3.0, "bicubic": 1.0}))
    assert mixed.shares == (0.75, 0.25)
    drawn: list[str] = []
    monkeypatch.setattr("rsd_edge.distill.data.degrade", lambda rng, hr, preset: drawn.append(type(preset).__name__))
    for sample in range(400):
        mixed[sample]
    counts = Counter(drawn)
    assert set(counts) == {"SecondOrder", "Bicubic"}
    assert counts["SecondOrder"] == pytest.approx(300, abs=26)  # three standard deviations


def test_the_order_of_the_degradations_changes_no_sample(config: DataConfig) -> None:
    """Which a resumed run could not see: settings are compared by name."""
    shares = {"bicubic": 0.5, "real": 0.5}
    orders = [dict(items) for items in (shares.items(), reversed(shares.items()))]
    assert same(*(take(replace(config, degradations=order), 6) for order in orders))


def test_a_small_memory_changes_no_sample(config: DataConfig) -> None:
    small = dataset(replace(config, cache_mb=0))
    large = dataset(config)
    for sample in range(8):
        assert np.array_equal(small[sample][1], large[sample][1])
    assert small._cache.size == 0
    assert large._cache.size == sum(image.nbytes for (image,) in large._cache.images.values()) > 0


def test_the_least_recently_used_image_leaves_the_memory(config: DataConfig) -> None:
    cache = dataset(config)._cache
    cache.capacity = 250
    images = [np.full(100, value, np.uint8) for value in range(3)]
    cache.put(0, (images[0],))
    cache.put(1, (images[1],))
    assert cache.get(0) == (images[0],)
    cache.put(2, (images[2],))
    assert [cache.get(index) is not None for index in range(3)] == [True, False, True]
    assert cache.size == 200


def test_batches_depend_on_neither_workers_nor_where_a_run_stopped(config: DataConfig) -> None:
    """A resumed run needs the number of samples taken alone, whatever the workers have fetched ahead."""
    whole = take(config, 5)
    assert not same(whole[:1], whole[1:2])
    run = training_batches(CropDataset(replace(config, workers=2), CROP, 5), 2, 0)
    assert same(list(itertools.islice(run, 3)), whole[:3])
    taken = 3 * 2
    assert same(take(config, 2, first=taken), whole[3:])
    resumed = training_batches(CropDataset(config, CROP, 5), 1, taken, rank=1, ranks=2)
    assert torch.equal(next(resumed).x0, whole[3].x0[1:])


def test_batches_are_rgb_in_model_range() -> None:
    black, white = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
    white[..., 2] = 51  # red, in the order of frames
    batch = collate([Sample(black, black[:2, :2]), Sample(white, white[:2, :2])])
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


def test_images_that_cannot_be_used_are_passed_over(spoilt: Path, config: DataConfig) -> None:
    config = replace(config, train=str(spoilt))
    samples = dataset(config)
    drawn = [samples[sample] for sample in range(20)]
    assert {Path(name).name for sample in drawn for name, _ in sample.skipped} == {"empty.jpg", "half.png", "small.png"}
    assert any(not sample.skipped for sample in drawn)
    # A sample that met a bad image is the same for a worker that has not met it before.
    for sample in range(20):
        again = dataset(config)[sample]
        assert np.array_equal(again.lr, drawn[sample].lr)
        assert again.skipped == drawn[sample].skipped


def test_one_usable_image_is_enough(spoilt: Path, config: DataConfig) -> None:
    (spoilt / "b.png").unlink()
    samples = dataset(replace(config, train=str(spoilt)))
    drawn = [samples[sample] for sample in range(8)]
    assert {len(sample.skipped) for sample in drawn} == {0, 1, 2, 3}
    photo = read_image(spoilt / "a.png")
    assert all(contains(photo, sample.hr) or contains(photo, sample.hr[:, ::-1]) for sample in drawn)


def test_images_that_cannot_be_validated_on_are_named_once_and_counted(
    spoilt: Path, tiny_config: Callable[..., DistillConfig], caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_config()
    data = replace(config.data, val=str(spoilt), val_crops=10)  # two epochs
    stage = OneWeight(replace(config, data=data))
    with caplog.at_level(logging.WARNING):
        assert stage.validation.x0.shape == (10, 3, CROP, CROP)
    messages = [record.getMessage() for record in caplog.records]
    assert [message.partition(",")[0] for message in messages] == ["validation image skipped"] * 3
    assert ", 3 so far, " in messages[2]
    for name in ("empty.jpg is empty", "half.png is truncated", "small.png is 62x80, below the crop of 64"):
        assert sum(name in message for message in messages) == 1, messages
    caplog.clear()
    other = OneWeight(replace(config, data=data))
    other.runtime.rank = 1
    with caplog.at_level(logging.WARNING):
        assert torch.equal(other.validation.x0, stage.validation.x0)
    assert not caplog.records  # one process talks


def test_skipped_images_are_named_once_and_counted(
    spoilt: Path, config: DataConfig, caplog: pytest.LogCaptureFixture
) -> None:
    data = training_batches(CropDataset(replace(config, train=str(spoilt)), CROP, 5), 2, 0)
    with caplog.at_level(logging.WARNING):
        for _ in range(5):  # two epochs
            next(data)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == len(data.skipped) == 3
    assert messages[-1].startswith("image skipped, 3 of 5 so far: ")
    for name in ("empty.jpg is empty", "half.png is truncated", "small.png is 62x80, below the crop of 64"):
        assert sum(name in message for message in messages) == 1, messages
        assert sum(name in reason for reason in data.skipped.values()) == 1


def test_a_folder_of_unusable_images_is_an_error(spoilt: Path, config: DataConfig) -> None:
    for name in ("a", "b"):
        (spoilt / f"{name}.png").unlink()
    with pytest.raises(InputError, match=r"none of the 3 images can be used, the last because: .*") as caught:
        training_batches(CropDataset(replace(config, train=str(spoilt), workers=2), CROP, 5), 2, 0)
    assert "\n" not in str(caught.value)


def test_images_that_vanish_end_a_run_with_one_line(spoilt: Path, config: DataConfig) -> None:
    """A worker reports what it skips and why it ends to the process that trains."""
    data = training_batches(CropDataset(replace(config, train=str(spoilt), workers=1, cache_mb=0), CROP, 5), 2, 0)
    for _ in range(3):  # an epoch
        next(data)
    assert len(data.skipped) == 3
    for name in ("a", "b"):
        (spoilt / f"{name}.png").unlink()
    with pytest.raises(InputError, match="none of the 5 images can be used, the last because") as caught:
        list(itertools.islice(data, 50))  # past what the worker has fetched already
    assert "\n" not in str(caught.value)


def test_an_epoch_takes_every_image_once_in_an_order_of_its_own(config: DataConfig) -> None:
    samples = dataset(config)
    orders = [[samples.image_of(4 * epoch + position) for position in range(4)] for epoch in range(12)]
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    assert len({tuple(order) for order in orders}) > 4  # of 24: fewer in 12 draws once in 1e8
    assert [samples.image_of(position) for position in (5, 2)] == [orders[1][1], orders[0][2]]
    other = dataset(config, seed=6)
    assert [other.image_of(index) for index in range(12)] != [index for order in orders[:3] for index in order]


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_the_batch_of_one_process(config: DataConfig, ranks: int) -> None:
    """Their batches, one after the other, are the batch of one process that is that many times as large."""
    shares = [training_batches(CropDataset(config, CROP, 5), 2, 6, rank=rank, ranks=ranks) for rank in range(ranks)]
    whole = training_batches(CropDataset(config, CROP, 5), 2 * ranks, 6)
    for _ in range(3):
        parts = [next(share) for share in shares]
        joined = Batch(torch.cat([part.x0 for part in parts]), torch.cat([part.y0 for part in parts]))
        assert same([joined], [next(whole)])


@pytest.fixture
def pairs(config: DataConfig, tmp_path: Path, photo: Callable[[int, int], NDArray[np.uint8]]) -> DataConfig:
    for name, height, width in (("a", 80, 96), ("b", 64, 128)):
        hr = photo(height, width)
        for side, image in (("hr", hr), ("lr", cv2.resize(hr, (width // 4, height // 4)))):
            (tmp_path / side).mkdir(exist_ok=True)
            write_image(tmp_path / side / f"{name}.png", np.asarray(image, np.uint8))
    hr_folder, lr_folder = str(tmp_path / "hr"), str(tmp_path / "lr")
    return replace(config, train=hr_folder, train_lr=lr_folder, val=hr_folder, val_lr=lr_folder)


def test_pairs_are_cut_and_mirrored_together(pairs: DataConfig) -> None:
    samples = dataset(pairs)
    full = {entry.key: read_image(entry.path) for entry in list_images(pairs.train)}
    small = {entry.key: read_image(entry.path) for entry in list_images(pairs.train_lr)}
    seen = Counter[str]()
    for sample in range(16):
        hr, lr, _ = samples[sample]
        assert (hr.shape, lr.shape) == ((64, 64, 3), (16, 16, 3))
        for flip in (1, -1):
            for key, image in full.items():
                for top, left in itertools.product(range(0, len(image) - 63, 4), range(0, image.shape[1] - 63, 4)):
                    if np.array_equal(image[top : top + 64, left : left + 64], hr[:, ::flip]):
                        part = small[key][top // 4 : top // 4 + 16, left // 4 : left // 4 + 16]
                        assert np.array_equal(part, lr[:, ::flip])
                        seen[f"{key}{flip}"] += 1
    assert set(seen) == {"a1", "a-1", "b1", "b-1"}
    assert sum(seen.values()) == 16
    assert validation_batch(pairs, CROP, 5).y0.shape == (3, 3, 16, 16)


def test_pairs_of_the_wrong_size_are_skipped(pairs: DataConfig, photo: Callable[[int, int], NDArray[np.uint8]]) -> None:
    write_image(Path(pairs.train_lr) / "b.png", photo(16, 31))
    skipped = {skip for sample in range(4) for skip in dataset(pairs)[sample].skipped}
    ((name, reason),) = skipped
    assert name.endswith("hr/b.png")
    assert "b.png is 128x64 and " in reason
    assert "b.png is 31x16; an HR image must be 4 times its LR image" in reason


def test_rescaled_crops_show_the_whole_of_a_square(config: DataConfig, hr_photos: Path) -> None:
    samples = dataset(replace(config, rescale=True, degradations={"bicubic": 1.0}))
    for sample in range(8):
        image = read_image(samples.entries[samples.image_of(sample)][0].path)
        side = min(image.shape[:2])
        hr = samples[sample].hr
        assert hr.shape == (64, 64, 3)
        candidates = [
            cv2.resize(image[y : y + side, x : x + side], (64, 64), interpolation=cv2.INTER_AREA)
            for y in range(image.shape[0] - side + 1)
            for x in range(image.shape[1] - side + 1)
        ]
        assert any(np.array_equal(one, hr) or np.array_equal(one[:, ::-1], hr) for one in candidates)


def test_training_data_is_an_iterator_of_batches(config: DataConfig) -> None:
    data = training_batches(CropDataset(config, CROP, 5), 2, 4)
    assert isinstance(data, TrainingData)
    assert next(data).x0.shape == (2, 3, CROP, CROP)
    assert data.skipped == {}


def test_each_stage_sees_crops_of_its_own(tiny_config: Callable[..., DistillConfig]) -> None:
    stages = [OneWeight(tiny_config()) for _ in range(2)]
    stages[1].name = "teacher"
    assert not same(*([next(_batches(stage, _dataset(stage), 0))] for stage in stages))
