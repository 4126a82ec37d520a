"""HR crop to LR crop: the second-order degradation of Real-ESRGAN with its official ranges, a lighter preset, bicubic.

Images are (h, w, 3) float32 in [0, 1] inside this module, BGR as OpenCV's codecs and conversions expect; every function
draws from the generator it is given and from nothing else, so a sample depends on its seed alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from rsd_edge.distill.blur_kernels import Kernel, random_kernel, random_sinc
from rsd_edge.frames import SCALE
from rsd_edge.opencv import cv2

Image = NDArray[np.float32]

RESIZERS = (cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC)


@dataclass(frozen=True)
class Pass:
    """Ranges of one blur-resize-noise pass."""

    blur: float
    kernel: int
    sigma: tuple[float, float]
    sinc: float
    up_down_keep: tuple[float, float, float]
    resize: tuple[float, float]
    gaussian_share: float
    gaussian: tuple[float, float]
    """Standard deviation in grey levels of 255."""
    poisson: tuple[float, float]
    gray_share: float


FIRST = Pass(1.0, 21, (0.2, 3.0), 0.1, (0.2, 0.7, 0.1), (0.15, 1.5), 0.5, (1, 30), (0.05, 3.0), 0.4)
SECOND = Pass(0.8, 15, (0.2, 1.5), 0.1, (0.3, 0.4, 0.3), (0.3, 1.2), 0.5, (1, 25), (0.05, 2.5), 0.4)
SECOND_SHARE = 0.5
JPEG = (30, 95)
FINAL_SINC_SHARE = 0.8
FINAL_SINC_KERNEL = 21


def filter2d(image: Image, kernel: Kernel) -> Image:
    return cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT_101)  # type: ignore[return-value]


def resize(rng: Generator, image: Image, height: int, width: int) -> Image:
    """Resize with area, bilinear or bicubic interpolation, drawn at random."""
    method = RESIZERS[int(rng.integers(len(RESIZERS)))]
    return cv2.resize(image, (width, height), interpolation=method)  # type: ignore[return-value]


def gaussian_noise(rng: Generator, image: Image, sigma: float, gray: bool) -> Image:
    """Add Gaussian noise of `sigma` grey levels, the same on all channels if `gray`."""
    shape = (*image.shape[:2], 1) if gray else image.shape
    return image + rng.standard_normal(shape, dtype=np.float32) * np.float32(sigma / 255)


def poisson_noise(rng: Generator, image: Image, scale: float, gray: bool) -> Image:
    """Add shot noise: counts at 2^ceil(log2(number of distinct values)) levels, its deviation times `scale`."""
    clean = np.clip(image, 0, 1)
    if gray:
        clean = np.asarray(cv2.cvtColor(clean, cv2.COLOR_BGR2GRAY), np.float32)[..., None]
    distinct = len(np.unique(np.round(clean * 255).astype(np.uint8)))
    peak = float(2 ** np.ceil(np.log2(max(distinct, 2))))
    noise = rng.poisson(clean * peak).astype(np.float32) / np.float32(peak) - clean
    return image + noise * np.float32(scale)


def jpeg(image: Image, quality: int) -> Image:
    """Compress and decompress as 8-bit JPEG."""
    coded = cv2.imencode(".jpg", to_uint8(image), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.float32) / np.float32(255)


def to_uint8(image: Image) -> NDArray[np.uint8]:
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


def apply_pass(rng: Generator, image: Image, settings: Pass, base: tuple[int, int]) -> Image:
    """Blur, resize to a random multiple of `base` (height, width), add noise."""
    if rng.random() < settings.blur:
        image = filter2d(image, random_kernel(rng, settings.kernel, settings.sigma, settings.sinc))
    low, high = settings.resize
    factor = (rng.uniform(1, high), rng.uniform(low, 1), 1.0)[int(rng.choice(3, p=settings.up_down_keep))]
    image = resize(rng, image, max(1, round(base[0] * factor)), max(1, round(base[1] * factor)))
    gray = rng.random() < settings.gray_share
    if rng.random() < settings.gaussian_share:
        image = gaussian_noise(rng, image, rng.uniform(*settings.gaussian), gray)
    else:
        image = poisson_noise(rng, image, rng.uniform(*settings.poisson), gray)
    return np.clip(image, 0, 1)


def degrade_real(rng: Generator, image: Image) -> Image:
    """The official chain: pass, JPEG, perhaps a second pass, then resize with sinc, and JPEG, in either order."""
    height, width = image.shape[:2]
    lr = (height // SCALE, width // SCALE)
    image = jpeg(apply_pass(rng, image, FIRST, (height, width)), int(rng.integers(JPEG[0], JPEG[1] + 1)))
    if rng.random() < SECOND_SHARE:
        image = apply_pass(rng, image, SECOND, lr)
    quality = int(rng.integers(JPEG[0], JPEG[1] + 1))
    jpeg_first = rng.random() < 0.5
    if jpeg_first:
        image = jpeg(image, quality)
    image = resize(rng, image, *lr)
    if rng.random() < FINAL_SINC_SHARE:
        image = filter2d(image, random_sinc(rng, FINAL_SINC_KERNEL))
    return image if jpeg_first else jpeg(image, quality)


def degrade_light(rng: Generator, image: Image) -> Image:
    """What a decent camera or web image suffers: mild blur, downscaling, a little noise, JPEG of good quality."""
    height, width = image.shape[:2]
    if rng.random() < 0.8:
        image = filter2d(image, random_kernel(rng, 15, (0.2, 2.2), 0.05))
    image = resize(rng, image, height // SCALE, width // SCALE)
    gray = rng.random() < 0.4
    if rng.random() < 0.5:
        image = gaussian_noise(rng, image, rng.uniform(1, 12), gray)
    elif rng.random() < 0.5:
        image = poisson_noise(rng, image, rng.uniform(0.05, 1.5), gray)
    return jpeg(image, int(rng.integers(50, 96))) if rng.random() < 0.9 else image


def degrade_bicubic(rng: Generator, image: Image) -> Image:
    """Antialiased bicubic downscaling, the classical benchmark's LR; deterministic."""
    del rng
    height, width = image.shape[:2]
    rows, columns = cubic_matrix(height), cubic_matrix(width)
    return np.asarray(np.einsum("ih,hwc,jw->ijc", rows, image, columns, optimize=True), np.float32)


def cubic_matrix(side: int) -> NDArray[np.float32]:
    """(side // 4, side) weights of bicubic downscaling by 4: a = -0.5, support stretched, ends reflected."""
    out = side // SCALE
    centre = (np.arange(out) + 0.5) * SCALE - 0.5
    taps = np.arange(-2 * SCALE, 2 * SCALE + 1)
    source = np.round(centre)[:, None].astype(int) + taps
    distance = np.abs(source - centre[:, None]) / SCALE
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    weight = np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
    period = 2 * side
    folded = np.mod(source, period)
    folded = np.where(folded >= side, period - 1 - folded, folded)
    matrix = np.zeros((out, side))
    np.add.at(matrix, (np.arange(out)[:, None], folded), weight)
    return np.asarray(matrix / matrix.sum(axis=1, keepdims=True), np.float32)


PRESETS: dict[str, Callable[[Generator, Image], Image]] = {
    "real": degrade_real,
    "light": degrade_light,
    "bicubic": degrade_bicubic,
}


def degrade(rng: Generator, hr: NDArray[np.uint8], preset: str) -> NDArray[np.uint8]:
    """HR (h, w, 3) uint8 BGR, sides multiples of 4, to LR (h / 4, w / 4, 3) uint8 BGR."""
    return to_uint8(PRESETS[preset](rng, hr.astype(np.float32) / np.float32(255)))
