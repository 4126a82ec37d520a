"""The single steps of a degradation: filter, resize, noise, JPEG.

Images are (h, w, 3) float32 in [0, 1], BGR as OpenCV's codecs and conversions expect; every function draws from the
generator it is given and from nothing else, so a sample depends on its seed alone.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from rsd_edge.distill import blur_kernels
from rsd_edge.distill.blur_kernels import Kernel, Shape, draw_index, draw_shape
from rsd_edge.distill.noise_tables import shot_noise, standard_normal
from rsd_edge.distill.presets import Blur, Noise, Pass, Range
from rsd_edge.frames import SCALE
from rsd_edge.opencv import cv2

Image = NDArray[np.float32]

RESIZERS = (cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC)

DIRECT_SIDE = 11
"""Up to here OpenCV filters directly; beyond, it transforms, which takes several times as long."""
LARGE_IMAGE = 50_000
"""Pixels beyond which the transform is slower still."""
MOST_TERMS, MOST_TERMS_LARGE = 4, 6
"""Separable filters that together are still faster than one large filter that is not separable."""
NEGLIGIBLE = 5e-4
"""Sum of absolute weights that a filter may neglect: an eighth of a grey level at the very most."""


def blur(rng: Generator, image: Image, settings: Blur) -> Image:
    """Blur by a random kernel, or not."""
    return filtered(image, draw_shape(rng, settings)) if rng.random() < settings.share else image


def filtered(image: Image, shape: Shape) -> Image:
    """Filter by a kernel, reflecting the image at its borders."""
    if shape.kind == "iso":
        line = blur_kernels.gaussian(shape.size, shape.sigma_x, shape.sigma_x, 0.0).sum(axis=0)
        return separable(image, line, line)
    return filter2d(image, blur_kernels.make(shape))


def filter2d(image: Image, kernel: Kernel) -> Image:
    """Filter by weights (k, k), as a sum of separable filters if few are enough."""
    kernel = trimmed(kernel)
    if len(kernel) > DIRECT_SIDE:
        terms = separable_terms(kernel)
        large = image.shape[0] * image.shape[1] > LARGE_IMAGE
        if len(terms) <= (MOST_TERMS_LARGE if large else MOST_TERMS):
            total = separable(image, *terms[0])
            for columns, rows in terms[1:]:
                total += separable(image, columns, rows)
            return total
    return np.asarray(cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT_101), np.float32)


def separable(image: Image, columns: NDArray[np.float32], rows: NDArray[np.float32]) -> Image:
    """Filter by the outer product of weights (k,) down the columns and (k,) along the rows."""
    return np.asarray(cv2.sepFilter2D(image, -1, rows, columns, borderType=cv2.BORDER_REFLECT_101), np.float32)


def trimmed(kernel: Kernel) -> Kernel:
    """The kernel without outer rings that weigh next to nothing, its sum still 1."""
    weights = np.abs(kernel)
    total, centre, reach = float(weights.sum()), len(kernel) // 2, len(kernel) // 2
    while reach and total - float(weights[_middle(centre, reach - 1)].sum()) < NEGLIGIBLE:
        reach -= 1
    inner = kernel[_middle(centre, reach)]
    return np.ascontiguousarray(inner / inner.sum())


def _middle(centre: int, reach: int) -> tuple[slice, slice]:
    side = slice(centre - reach, centre + reach + 1)
    return side, side


def separable_terms(kernel: Kernel) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """As few (columns, rows) as add up to the kernel but for what is negligible, by its singular values."""
    left, strengths, right = np.linalg.svd(kernel)
    terms: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
    rest = kernel
    while np.abs(rest).sum() > NEGLIGIBLE and len(terms) < len(kernel):
        index = len(terms)
        terms.append((left[:, index] * strengths[index], right[index]))
        rest = rest - np.outer(*terms[-1])
    return terms


def resize(rng: Generator, image: Image, height: int, width: int) -> Image:
    """Resize with area, bilinear or bicubic interpolation, drawn at random."""
    method = RESIZERS[int(rng.integers(len(RESIZERS)))]
    return np.asarray(cv2.resize(image, (width, height), interpolation=method), np.float32)


def draw_factor(rng: Generator, up_down_keep: tuple[float, float, float], factor: Range) -> float:
    """A factor of up, down or no resizing."""
    direction = draw_index(rng, up_down_keep)
    return float((rng.uniform(1, factor[1]), rng.uniform(factor[0], 1), 1.0)[direction])


def add_noise(rng: Generator, image: Image, settings: Noise) -> Image:
    """Add Gaussian or Poisson noise, or none."""
    if rng.random() >= settings.share:
        return image
    gray = rng.random() < settings.gray_share
    if rng.random() < settings.gaussian_share:
        return gaussian_noise(rng, image, rng.uniform(*settings.gaussian), gray)
    return poisson_noise(rng, image, rng.uniform(*settings.poisson), gray)


def gaussian_noise(rng: Generator, image: Image, sigma: float, gray: bool) -> Image:
    """Add Gaussian noise of `sigma` grey levels, the same on all channels if `gray`."""
    shape = (*image.shape[:2], 1) if gray else image.shape
    return image + standard_normal(rng, shape) * np.float32(sigma / 255)


def poisson_noise(rng: Generator, image: Image, scale: float, gray: bool) -> Image:
    """Add shot noise, its deviation times `scale`: at 2^k >= 2 levels, no fewer than there are distinct values."""
    levels = to_uint8(image)
    if gray:
        levels = np.asarray(cv2.cvtColor(levels, cv2.COLOR_BGR2GRAY), np.uint8)[..., None]
    distinct = int(np.count_nonzero(np.bincount(levels.ravel(), minlength=256)))
    peak = 1 << max(1, (distinct - 1).bit_length())
    return image + shot_noise(rng, levels, peak) * np.float32(scale)


def apply_pass(rng: Generator, image: Image, settings: Pass, base: tuple[int, int]) -> Image:
    """Blur, resize to a random multiple of `base` (height, width), add noise."""
    image = blur(rng, image, settings.blur)
    factor = draw_factor(rng, settings.resize.up_down_keep, settings.resize.factor)
    image = resize(rng, image, max(1, int(base[0] * factor)), max(1, int(base[1] * factor)))
    return np.clip(add_noise(rng, image, settings.noise), 0, 1)


def jpeg(image: Image, quality: int) -> Image:
    """Compress and decompress as 8-bit JPEG."""
    coded = cv2.imencode(".jpg", to_uint8(image), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return from_uint8(np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8))


def draw_quality(rng: Generator, qualities: tuple[int, int]) -> int:
    """A JPEG quality, both ends of the range included."""
    return int(rng.integers(qualities[0], qualities[1] + 1))


def to_uint8(image: Image) -> NDArray[np.uint8]:
    return np.asarray(cv2.convertScaleAbs(np.clip(image, 0, 1), alpha=255), np.uint8)


def from_uint8(image: NDArray[np.uint8]) -> Image:
    return image * np.float32(1 / 255)


def bicubic_reduced(image: Image) -> Image:
    """Antialiased bicubic reduction by 4 of an image with sides that are multiples of 4, reflected at its borders."""
    taps = cubic_taps()
    smooth = cv2.sepFilter2D(image, -1, taps, taps, borderType=cv2.BORDER_REFLECT)
    return np.ascontiguousarray(smooth[SCALE // 2 :: SCALE, SCALE // 2 :: SCALE])


@functools.cache
def cubic_taps() -> NDArray[np.float32]:
    """(17,) weights of bicubic reduction by 4 (a = -0.5) around the third pixel of each four, half a pixel off centre.

    The reduction is by an integer, so they are the same for every pixel.
    """
    distance = np.abs(np.arange(-2 * SCALE, 2 * SCALE + 1) + 0.5) / SCALE
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    weights = np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
    return np.asarray(weights / weights.sum(), np.float32)
