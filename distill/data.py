"""Training pairs: random HR crops with the LR crops made of them, or given, every sample seeded by its own index.

Sample i of a run depends on (seed, i) and the list of images alone: neither the number of workers, nor how ranks share
the samples, nor a resumed run changes what the networks see. Every epoch takes each image once, in an order of its own.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from rsd_edge.distill.blur_kernels import draw_index
from rsd_edge.distill.data_config import DataConfig
from rsd_edge.distill.degrade import degrade
from rsd_edge.distill.presets import PRESET_NAMES
from rsd_edge.distill.sources import Entry, list_images, pair, read_entry
from rsd_edge.distill.stop_signal import obey_only_the_parent, withheld_from_children
from rsd_edge.errors import InputError, RsdEdgeError
from rsd_edge.frames import SCALE, to_model
from rsd_edge.opencv import cv2

log = logging.getLogger(__name__)

TRAINING_STREAM, VALIDATION_STREAM, ORDER_STREAM = 0, 1, 2
"""Second seed words of samples; the order of epochs adds the last to that of its samples."""

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Batch:
    """x0 (n, 3, H, W) HR and y0 (n, 3, H / 4, W / 4) LR, RGB float32 in [-1, 1]."""

    x0: Tensor
    y0: Tensor
    skipped: tuple[Skipped, ...] = ()


class Skipped(NamedTuple):
    """An image that could not be used, and why."""

    name: str
    reason: str


class Sample(NamedTuple):
    """HR (H, W, 3) and LR (H / 4, W / 4, 3) crops, uint8 BGR, and the images that were passed over on the way."""

    hr: Image
    lr: Image
    skipped: tuple[Skipped, ...] = ()


class CropDataset(Dataset[Sample]):
    """Map from sample index to sample.

    Decoded images are kept, in each worker, up to `data.cache_mb`. In place of an image that cannot be read, is smaller
    than the crop or does not fit its LR image, the next one of the epoch is taken.
    """

    def __init__(self, config: DataConfig, crop: int, seed: int, *, validation: bool = False) -> None:
        """Raises InputError if there are no images, or HR images without LR images in paired data."""
        source, lr_source = (config.val, config.val_lr) if validation else (config.train, config.train_lr)
        self.entries: list[tuple[Entry, ...]] = [(entry,) for entry in list_images(source)]
        if lr_source:
            self.entries = list(pair([entry for (entry,) in self.entries], list_images(lr_source, "lr")))
        self.crop = crop
        self.rescale = config.rescale
        self.workers = config.workers
        shares = {name: config.degradations[name] for name in PRESET_NAMES if name in config.degradations}
        self.presets = [config.presets.named(name) for name in shares]
        self.shares = tuple(share / sum(shares.values()) for share in shares.values())
        self._seed = (seed, VALIDATION_STREAM if validation else TRAINING_STREAM)
        self._cache = _Cache(config.cache_mb * 10**6)
        self._unusable: dict[int, Skipped] = {}
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    def digest(self) -> str:
        """SHA-256 of what images there are, by their names and order: not of what they show, which is not read."""
        found = hashlib.sha256()
        for entry in itertools.chain.from_iterable(self.entries):
            row = f"{entry.key} {Path(entry.path).name} {entry.member} {entry.size}\n"
            found.update(row.encode(errors="surrogateescape"))
        return found.hexdigest()

    def __getitem__(self, sample: int) -> Sample:
        rng = np.random.default_rng((*self._seed, sample))
        images, skipped = self._images_for(sample)
        if len(images) == 1:
            hr = self._hr_crop(rng, images[0])
            hr = _mirrored(hr, rng.random() < 0.5)
            return Sample(hr, degrade(rng, hr, self.presets[draw_index(rng, self.shares)]), skipped)
        hr, lr = images
        side = self.crop // SCALE
        top, left = (int(rng.integers(length - side + 1)) for length in lr.shape[:2])
        flip = rng.random() < 0.5
        hr = hr[SCALE * top : SCALE * (top + side), SCALE * left : SCALE * (left + side)]
        lr = lr[top : top + side, left : left + side]
        return Sample(_mirrored(hr, flip), _mirrored(lr, flip), skipped)

    def image_of(self, sample: int) -> int:
        """Index of the image that a sample is cut from, if it can be used."""
        epoch, position = divmod(sample, len(self.entries))
        if self._order[0] != epoch:
            rng = np.random.default_rng((*self._seed, epoch, ORDER_STREAM))
            self._order = epoch, rng.permutation(len(self.entries))
        return int(self._order[1][position])

    def _images_for(self, sample: int) -> tuple[tuple[Image, ...], tuple[Skipped, ...]]:
        total = len(self.entries)
        start = sample - sample % total
        skipped: list[Skipped] = []
        for attempt in range(total):
            index = self.image_of(start + (sample + attempt) % total)
            if index not in self._unusable:
                try:
                    return self._images(index), tuple(skipped)
                except InputError as error:
                    self._unusable[index] = Skipped(self.entries[index][0].name, str(error))
            skipped.append(self._unusable[index])
        raise InputError(f"none of the {total} images can be used, the last because: {skipped[-1].reason}")

    def _images(self, index: int) -> tuple[Image, ...]:
        images = self._cache.get(index)
        if images is None:
            images = tuple(map(read_entry, self.entries[index]))
            self._check(images, self.entries[index])
            self._cache.put(index, images)
        return images

    def _check(self, images: tuple[Image, ...], entries: tuple[Entry, ...]) -> None:
        sizes = [f"{image.shape[1]}x{image.shape[0]}" for image in images]
        if min(images[0].shape[:2]) < self.crop:
            raise InputError(
                f"{entries[0].name} is {sizes[0]}, below the crop of {self.crop}; lower data.crop, or the stage's own"
            )
        if len(images) == 2 and images[0].shape[:2] != tuple(SCALE * side for side in images[1].shape[:2]):
            raise InputError(
                f"{entries[0].name} is {sizes[0]} and {entries[1].name} is {sizes[1]}; "
                f"an HR image must be {SCALE} times its LR image"
            )

    def _hr_crop(self, rng: Generator, image: Image) -> Image:
        side = min(image.shape[:2]) if self.rescale else self.crop
        top, left = (int(rng.integers(length - side + 1)) for length in image.shape[:2])
        square = image[top : top + side, left : left + side]
        if side == self.crop:
            return square
        return np.asarray(cv2.resize(square, (self.crop, self.crop), interpolation=cv2.INTER_AREA), np.uint8)


def _mirrored(image: Image, flip: bool) -> Image:
    return np.ascontiguousarray(image[:, ::-1] if flip else image)


class _Cache:
    """Images by index, the least recently used dropped beyond a number of bytes."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.size = 0
        self.images: OrderedDict[int, tuple[Image, ...]] = OrderedDict()

    def get(self, index: int) -> tuple[Image, ...] | None:
        images = self.images.get(index)
        if images is not None:
            self.images.move_to_end(index)
        return images

    def put(self, index: int, images: tuple[Image, ...]) -> None:
        self.images[index] = images
        self.size += sum(image.nbytes for image in images)
        while self.size > self.capacity:
            self.size -= sum(image.nbytes for image in self.images.popitem(last=False)[1])


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples of one size to a batch."""
    x0, y0 = _to_model([sample.hr for sample in samples]), _to_model([sample.lr for sample in samples])
    return Batch(x0, y0, tuple(skipped for sample in samples for skipped in sample.skipped))


def _to_model(images: Sequence[Image]) -> Tensor:
    """uint8 BGR (h, w, 3) each, to channels-last (n, 3, h, w) float32 RGB in [-1, 1]."""
    batch = np.empty((len(images), *images[0].shape), np.float32)
    for image, out in zip(images, batch, strict=True):
        to_model(image, out.transpose(2, 0, 1))
    return torch.from_numpy(batch).permute(0, 3, 1, 2)


class _BatchDataset(Dataset["Batch | InputError"]):
    """Batches by the indices of their samples. Errors are returned: a worker's exceptions come as tracebacks."""

    def __init__(self, samples: CropDataset) -> None:
        self.samples = samples

    def __getitem__(self, indices: Sequence[int]) -> Batch | InputError:
        try:
            return collate([self.samples[index] for index in indices])
        except InputError as error:
            return error


class _RankBatches(Sampler[Sequence[int]]):
    """Endless indices of batches: each iteration shares out `batch` samples to every rank, one rank after the other."""

    def __init__(self, first: int, batch: int, rank: int, ranks: int) -> None:
        self.first, self.batch, self.rank, self.ranks = first, batch, rank, ranks

    def __iter__(self) -> Iterator[Sequence[int]]:
        start = self.first + self.rank * self.batch
        while True:
            yield range(start, start + self.batch)
            start += self.batch * self.ranks


class DataWorkerError(RsdEdgeError):
    """A process that reads images ended before its time."""


class TrainingData(Iterator[Batch]):
    """Endless batches of one rank."""

    def __init__(self, dataset: CropDataset, workers: int, sampler: _RankBatches) -> None:
        self.skipped: dict[str, str] = {}
        """Images that could not be used so far, and why."""
        self._total, self._workers = len(dataset.entries), workers
        loader = DataLoader(
            _BatchDataset(dataset),
            batch_size=None,
            sampler=sampler,
            num_workers=workers,
            collate_fn=_as_it_is,
            worker_init_fn=_begin_work,
            prefetch_factor=4 if workers else None,
            # A forked worker inherits OpenCV's thread pool without its threads and waits for them for ever.
            multiprocessing_context="spawn" if workers else None,
        )
        with withheld_from_children() if workers else nullcontext():
            self._batches = iter(loader)

    def __next__(self) -> Batch:
        """Raises InputError when no image can be used any more, DataWorkerError if a worker was killed."""
        try:
            batch: Batch | InputError = next(self._batches)
        except (RuntimeError, OSError, EOFError) as error:  # whichever of them meets the missing process first
            if not self._workers:
                raise
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise DataWorkerError(
                f"a worker that reads images ended ({reason}); if memory is short, lower data.workers or data.cache_mb"
            ) from error
        if isinstance(batch, InputError):
            raise batch
        for name, reason in batch.skipped:
            if name not in self.skipped:
                self.skipped[name] = reason
                log.warning("image skipped, %d of %d so far: %s", len(self.skipped), self._total, reason)
        return batch


def _as_it_is(batch: Any) -> Any:
    return batch


def _begin_work(worker: int) -> None:
    del worker
    obey_only_the_parent()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def training_batches(
    dataset: CropDataset, batch: int, first_sample: int, *, rank: int = 0, ranks: int = 1
) -> TrainingData:
    """Endless batches of `batch` samples for one of several ranks, from `first_sample` on.

    The ranks' batches of one iteration are together the batch of one process whose batch is `ranks` times as large.
    A run that goes on passes the number of samples that all ranks have taken together. Raises InputError if no image
    can be used.
    """
    dataset[first_sample]
    return TrainingData(dataset, dataset.workers, _RankBatches(first_sample, batch, rank, ranks))


def validation_batch(config: DataConfig, crop: int, seed: int) -> Batch:
    """`config.val_crops` fixed pairs, the same for every run with this seed, and what was skipped for them."""
    dataset = CropDataset(config, crop, seed, validation=True)
    return collate([dataset[sample] for sample in range(config.val_crops)])


def log_skipped(validation: Batch) -> None:
    """Name the images that could not be validated on, once each, and count them."""
    for count, (_, reason) in enumerate(dict.fromkeys(validation.skipped), start=1):
        log.warning("validation image skipped, %d so far, others stand for it: %s", count, reason)
