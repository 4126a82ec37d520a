"""Training pairs: random HR crops, degraded on the fly, every sample seeded by its own index.

Sample i of a run depends on (seed, i) and the list of files alone: neither the number of workers nor a resumed run
changes what the networks see.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rsd_edge.distill.data_config import DataConfig
from rsd_edge.distill.degrade import PRESETS, degrade
from rsd_edge.errors import InputError
from rsd_edge.frames import to_model
from rsd_edge.opencv import cv2
from rsd_edge.stream.discovery import images_in
from rsd_edge.stream.images import read_image

log = logging.getLogger(__name__)

LARGEST_IMAGE = 1 << 30
"""Pixels; training images are the user's own, so this only stops a header that lies."""
VALIDATION_STREAM = 1
"""Second seed word of validation samples; training samples use 0."""


@dataclass(frozen=True)
class Batch:
    """x0 (n, 3, H, W) HR and y0 (n, 3, H / 4, W / 4) LR, RGB float32 in [-1, 1]."""

    x0: Tensor
    y0: Tensor


def list_images(folder: str) -> list[Path]:
    """All image files below `folder`, sorted. Raises InputError if there is no such folder or no image in it."""
    root = Path(folder)
    if not folder or not root.is_dir():
        raise InputError(f"data folder '{folder}' does not exist; set data.train and data.val to folders of HR images")
    return images_in(root, recursive=True)


class CropDataset(Dataset[tuple[NDArray[np.uint8], NDArray[np.uint8]]]):
    """Map from sample index to one (HR, LR) pair, uint8 BGR.

    Decoded images are kept, in each worker, up to `data.cache_mb`. An image that cannot be read or is smaller than the
    crop is named once, and another is drawn in its place: by the same generator, so that the sample still depends on
    its index alone.
    """

    def __init__(self, files: Sequence[Path], config: DataConfig, crop: int, seed: int, *, stream: int = 0) -> None:
        for preset in config.degradations:
            if preset not in PRESETS:
                raise InputError(f"unknown degradation '{preset}'; choose from {', '.join(PRESETS)}")
        self.files = list(files)
        self.crop = crop
        self.seed = seed
        self.stream = stream
        self.presets = list(config.degradations)
        shares = np.array([config.degradations[preset] for preset in self.presets], dtype=np.float64)
        self.shares = shares / shares.sum()
        self._cache = _Cache(config.cache_mb * 10**6)
        self._unusable: set[int] = set()

    def __getitem__(self, sample: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        rng = np.random.default_rng((self.seed, self.stream, sample))
        image = self._draw(rng)
        top = int(rng.integers(image.shape[0] - self.crop + 1))
        left = int(rng.integers(image.shape[1] - self.crop + 1))
        hr = image[top : top + self.crop, left : left + self.crop]
        if rng.random() < 0.5:
            hr = hr[:, ::-1]
        hr = np.ascontiguousarray(hr)
        return hr, degrade(rng, hr, self.presets[int(rng.choice(len(self.presets), p=self.shares))])

    def _draw(self, rng: np.random.Generator) -> NDArray[np.uint8]:
        while True:
            index = int(rng.integers(len(self.files)))
            if index in self._unusable:
                continue
            try:
                return self._image(index)
            except InputError as error:
                self._unusable.add(index)
                count, total = len(self._unusable), len(self.files)
                if count == total:
                    raise InputError(f"none of the {total} images can be used, the last because: {error}") from None
                log.warning("image skipped, %d of %d so far: %s", count, total, error)

    def _image(self, index: int) -> NDArray[np.uint8]:
        image = self._cache.get(index)
        if image is None:
            image = read_image(self.files[index], LARGEST_IMAGE)
            if min(image.shape[:2]) < self.crop:
                size = f"{image.shape[1]}x{image.shape[0]}, smaller than the crop of {self.crop}"
                raise InputError(f"{self.files[index]} is {size}; lower data.crop")
            self._cache.put(index, image)
        return image


class _Cache:
    """Images by index, the least recently used dropped beyond a number of bytes."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.size = 0
        self.images: OrderedDict[int, NDArray[np.uint8]] = OrderedDict()

    def get(self, index: int) -> NDArray[np.uint8] | None:
        image = self.images.get(index)
        if image is not None:
            self.images.move_to_end(index)
        return image

    def put(self, index: int, image: NDArray[np.uint8]) -> None:
        self.images[index] = image
        self.size += image.nbytes
        while self.size > self.capacity:
            self.size -= self.images.popitem(last=False)[1].nbytes


def collate(pairs: Sequence[tuple[NDArray[np.uint8], NDArray[np.uint8]]]) -> Batch:
    return Batch(*(_to_model(images) for images in zip(*pairs, strict=True)))


def _to_model(images: Sequence[NDArray[np.uint8]]) -> Tensor:
    """uint8 BGR (h, w, 3) each, to channels-last (n, 3, h, w) float32 RGB in [-1, 1]."""
    batch = np.empty((len(images), 3, *images[0].shape[:2]), np.float32)
    for image, out in zip(images, batch, strict=True):
        to_model(image, out)
    return torch.from_numpy(batch).contiguous(memory_format=torch.channels_last)


def _one_thread(worker: int) -> None:
    del worker
    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def training_batches(config: DataConfig, crop: int, batch: int, seed: int, first_sample: int) -> Iterator[Batch]:
    """Endless batches from sample `first_sample` on (a resumed run passes the number it has consumed).

    Raises InputError if the folder holds no usable image.
    """
    dataset = CropDataset(list_images(config.train), config, crop, seed)
    dataset[first_sample]  # what fails here would fail in a worker too, wrapped in the worker's traceback
    loader = DataLoader(
        dataset,
        batch_size=batch,
        sampler=_Endless(first_sample),
        num_workers=config.workers,
        collate_fn=collate,
        worker_init_fn=_one_thread,
        prefetch_factor=4 if config.workers else None,
        # A forked worker inherits OpenCV's thread pool without its threads and waits for them for ever.
        multiprocessing_context="spawn" if config.workers else None,
    )
    return iter(loader)


class _Endless(torch.utils.data.Sampler[int]):
    def __init__(self, first: int) -> None:
        self.first = first

    def __iter__(self) -> Iterator[int]:
        sample = self.first
        while True:
            yield sample
            sample += 1


def validation_batch(config: DataConfig, crop: int, seed: int) -> Batch:
    """`config.val_crops` fixed pairs, the same for every run with this seed."""
    dataset = CropDataset(list_images(config.val), config, crop, seed, stream=VALIDATION_STREAM)
    return collate([dataset[sample] for sample in range(config.val_crops)])
