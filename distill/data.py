"""Training pairs: random HR crops, degraded on the fly, every sample seeded by its own index.

Sample i of a run depends on (seed, i) and the list of files alone: neither the number of workers nor a resumed run
changes what the networks see.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rsd_edge.distill.config import DataConfig
from rsd_edge.distill.degrade import PRESETS, degrade
from rsd_edge.errors import InputError

log = logging.getLogger(__name__)

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
VALIDATION_STREAM = 1
"""Second seed word of validation samples; training samples use 0."""


@dataclass(frozen=True)
class Batch:
    """x0 (n, 3, H, W) HR and y0 (n, 3, H / 4, W / 4) LR, RGB float32 in [-1, 1]."""

    x0: Tensor
    y0: Tensor


def list_images(folder: str) -> list[Path]:
    """All image files below `folder`, sorted. Raises InputError if there is no such folder or nothing in it."""
    root = Path(folder)
    if not folder or not root.is_dir():
        raise InputError(f"data folder '{folder}' does not exist; set data.train and data.val to folders of HR images")
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise InputError(f"data folder '{folder}' holds no image ({', '.join(sorted(SUFFIXES))})")
    return files


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """An image file as (h, w, 3) uint8 RGB. Raises InputError naming a file that cannot be decoded."""
    image = cv2.imdecode(np.fromfile(path, dtype=np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise InputError(f"training image {path} cannot be decoded; remove it or replace it")
    return np.ascontiguousarray(image[..., ::-1], dtype=np.uint8)


class CropDataset(Dataset[tuple[NDArray[np.uint8], NDArray[np.uint8]]]):
    """Map from sample index to one (HR, LR) uint8 pair. Decoded images are kept, in each worker, once read."""

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
        self._decoded: dict[int, NDArray[np.uint8]] = {}

    def image(self, index: int) -> NDArray[np.uint8]:
        if index not in self._decoded:
            image = read_rgb(self.files[index])
            if min(image.shape[:2]) < self.crop:
                raise InputError(
                    f"training image {self.files[index]} is {image.shape[1]}x{image.shape[0]}, "
                    f"smaller than the crop of {self.crop}; remove it or lower data.crop"
                )
            self._decoded[index] = image
        return self._decoded[index]

    def __getitem__(self, sample: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        rng = np.random.default_rng((self.seed, self.stream, sample))
        image = self.image(int(rng.integers(len(self.files))))
        top = int(rng.integers(image.shape[0] - self.crop + 1))
        left = int(rng.integers(image.shape[1] - self.crop + 1))
        hr = image[top : top + self.crop, left : left + self.crop]
        if rng.random() < 0.5:
            hr = hr[:, ::-1]
        hr = np.ascontiguousarray(hr)
        return hr, degrade(rng, hr, self.presets[int(rng.choice(len(self.presets), p=self.shares))])


def collate(pairs: Sequence[tuple[NDArray[np.uint8], NDArray[np.uint8]]]) -> Batch:
    return Batch(*(_to_model(np.stack(images)) for images in zip(*pairs, strict=True)))


def _to_model(images: NDArray[np.uint8]) -> Tensor:
    """(n, h, w, 3) uint8 to channels-last (n, 3, h, w) float32 in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().mul_(2 / 255).sub_(1)


def _one_thread(worker: int) -> None:
    del worker
    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def training_batches(config: DataConfig, crop: int, batch: int, seed: int, first_sample: int) -> Iterator[Batch]:
    """Endless batches from sample `first_sample` on (a resumed run passes the number it has consumed)."""
    dataset = CropDataset(list_images(config.train), config, crop, seed)
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
