"""The tiles that show a quantiser what an engine will see, and those that judge what it made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rsd_edge.errors import ImageReadError, InputError
from rsd_edge.frames import SCALE, to_model
from rsd_edge.noise import NoiseField
from rsd_edge.specs import ModelSpec
from rsd_edge.stream.discovery import images_in
from rsd_edge.stream.images import read_image

SIDE = 48
"""LR pixels of a crop."""
COUNT = 256
"""Crops taken from a folder of the user's."""
DATA = Path(__file__).with_name("calibration_data")
CALIBRATION = "calibration_lr.png"
HELD_OUT_LR = "held_out_lr.png"
HELD_OUT_HR = "held_out_hr.jpg"
CREDITS = "credits.csv"

_FIRST_HELD_OUT_SEED = 1 << 32
_NAMED = 5
"""Unreadable images in one line."""


@dataclass(frozen=True)
class Samples:
    """Tiles as the frame path makes them.

    frames: uint8 BGR (n, h, w, 3). lq: float32 (n, 3, h, w), RGB in [-1, 1]. noise: float32 (n, c, h, w), of the noise
    field, another seed for each tile. hr: references, uint8 BGR (n, 4h, 4w, 3), or None.
    """

    frames: NDArray[np.uint8]
    lq: NDArray[np.float32]
    noise: NDArray[np.float32]
    hr: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.frames)

    def first(self, count: int) -> Samples:
        """The first tiles, or all if there are no more, without references."""
        return Samples(self.frames[:count], self.lq[:count], self.noise[:count])


def calibration_samples(model: ModelSpec, folder: Path | None = None) -> Samples:
    """Tiles to calibrate on: the packaged ones, or random crops of the images in a folder, taken as LR images.

    The packaged ones are degraded crops of photographs that the shipped models were trained on. Raises InputError for a
    folder without an image of at least 48 x 48 pixels, or with one that cannot be read.
    """
    if folder is None:
        return _samples(model, _split(read_image(DATA / CALIBRATION), SIDE), first_seed=0)
    return _samples(model, _random_crops(folder), first_seed=0)


def held_out_samples(model: ModelSpec) -> Samples:
    """The packaged tiles that judge an engine: from photographs that no shipped model was trained or calibrated on."""
    lr = _split(read_image(DATA / HELD_OUT_LR), SIDE)
    hr = _split(read_image(DATA / HELD_OUT_HR), SCALE * SIDE)
    return _samples(model, lr, first_seed=_FIRST_HELD_OUT_SEED, hr=hr)


def held_out_tiles(
    model: ModelSpec, side: int, count: int | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The packaged crops that no model was trained on, side by side in tiles of another size.

    Returns lq (count, 3, side, side) and noise (count, c, side, side). count: None for so many that every crop is seen.
    """
    crops = held_out_samples(model).lq
    across = -(-side // SIDE)
    count = -(-len(crops) // across**2) if count is None else count
    chosen = crops[np.arange(count * across**2) % len(crops)].reshape(count, across, across, 3, SIDE, SIDE)
    joined = chosen.transpose(0, 3, 1, 4, 2, 5).reshape(count, 3, across * SIDE, across * SIDE)
    fields = [NoiseField(_FIRST_HELD_OUT_SEED + i) for i in range(count)]
    noise = np.stack([field.normal(model.noise_channels, 0, 0, side, side) for field in fields])
    return np.ascontiguousarray(joined[:, :, :side, :side]), noise


def _random_crops(folder: Path) -> NDArray[np.uint8]:
    """COUNT crops (COUNT, SIDE, SIDE, 3), spread evenly over the images of a folder, or over COUNT of them."""
    rng = np.random.default_rng(0)
    crops_of: list[NDArray[np.uint8]] = []
    paths = images_in(folder)
    unreadable: dict[Path, ImageReadError] = {}
    for index in rng.permutation(len(paths)):
        try:
            image = read_image(paths[index])
        except ImageReadError as error:
            unreadable[paths[index]] = error
            continue
        # With one that is unreadable there will be no crops, and the others like it are all that is looked for.
        if unreadable or min(image.shape[:2]) < SIDE:
            continue
        # As many as will be needed if no image after this one is large enough; only crops are kept, not the image.
        count = -(-COUNT // (len(crops_of) + 1))
        top, left = (rng.integers(side - SIDE + 1, size=count) for side in image.shape[:2])
        crops_of.append(np.stack([image[y : y + SIDE, x : x + SIDE] for y, x in zip(top, left, strict=True)]))
        if len(crops_of) == COUNT:
            break
    if unreadable:
        raise _unreadable(folder, unreadable)
    if not crops_of:
        raise InputError(
            f"{folder} holds no image of at least {SIDE}x{SIDE} pixels to calibrate on; name a folder that does"
        )
    return np.stack([crops_of[index % len(crops_of)][index // len(crops_of)] for index in range(COUNT)])


def _unreadable(folder: Path, found: Mapping[Path, ImageReadError]) -> ImageReadError:
    if len(found) == 1:
        told = str(*found.values())
        reason = told.rpartition("; ")[0] or told  # its cure may be an option of another command
        return ImageReadError(f"{reason}; mend it, or take it out of the calibration folder")
    names = ", ".join(sorted(path.name for path in found)[:_NAMED])
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return ImageReadError(
        f"{folder} has {len(found)} images that cannot be read: {names}{more}; mend them, or take them out of it"
    )


def _split(mosaic: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    rows, columns = mosaic.shape[0] // side, mosaic.shape[1] // side
    tiles = mosaic.reshape(rows, side, columns, side, 3).swapaxes(1, 2)
    return np.ascontiguousarray(tiles.reshape(rows * columns, side, side, 3))


def _samples(
    model: ModelSpec, frames: NDArray[np.uint8], first_seed: int, hr: NDArray[np.uint8] | None = None
) -> Samples:
    lq = np.empty((len(frames), 3, SIDE, SIDE), np.float32)
    for index, frame in enumerate(frames):
        to_model(frame, lq[index])
    noise = [NoiseField(first_seed + i).normal(model.noise_channels, 0, 0, SIDE, SIDE) for i in range(len(frames))]
    return Samples(frames, lq, np.stack(noise), hr)
