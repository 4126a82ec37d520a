"""PSNR and SSIM on luma, as the super-resolution literature reports them, or on the three channels."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from rsd_edge.errors import InputError
from rsd_edge.opencv import cv2

Image = npt.NDArray[np.uint8]
Plane = npt.NDArray[np.float64]
Size = tuple[int, int]
"""(width, height) in pixels."""

BGR_TO_Y = (24.966 / 255, 128.553 / 255, 65.481 / 255)
"""BT.601 studio-range luma weights for grey levels."""
_SSIM_WINDOW = 11
_SSIM_SIGMA = 1.5
_SSIM_C1 = (0.01 * 255) ** 2
_SSIM_C2 = (0.03 * 255) ** 2


def size_of(image: Image) -> Size:
    """Of an image (h, w, 3)."""
    return image.shape[1], image.shape[0]


def to_y(image: Image, *, rounded: bool = False) -> Plane:
    """BT.601 studio-range luma: uint8 (h, w, 3) BGR -> float64 (h, w) in [16, 235], rounded to whole levels or not."""
    luma = 16 + image.astype(np.float64) @ np.array(BGR_TO_Y)
    return np.asarray(np.rint(luma) if rounded else luma, dtype=np.float64)


def psnr_y(image: Image, reference: Image, *, rounded: bool = False) -> float:
    """PSNR in dB of the luma of two uint8 (h, w, 3) BGR images, peak 255, no border cut. Infinite if they are equal.

    rounded: luma in whole levels, as MATLAB has it. Raises InputError if the shapes differ.
    """
    check_pair(image, reference)
    return _psnr(to_y(image, rounded=rounded), to_y(reference, rounded=rounded))


def psnr_rgb(image: Image, reference: Image) -> float:
    """PSNR in dB over all three channels of two uint8 (h, w, 3) BGR images, otherwise as `psnr_y`."""
    check_pair(image, reference)
    return _psnr(image.astype(np.float64), reference.astype(np.float64))


def ssim_y(image: Image, reference: Image, *, rounded: bool = False, clipped: bool = False) -> float:
    """Mean SSIM of the luma of two uint8 (h, w, 3) BGR images (Wang et al. 2004).

    Gaussian window 11x11 with sigma 1.5, K1 = 0.01, K2 = 0.03, dynamic range 255, averaged where the window fits inside
    the image. rounded: as in `psnr_y`. clipped: where contrast and structure make a negative factor, it counts as 0, as
    in pyiqa. Raises InputError if the shapes differ or a side is below 11.
    """
    check_pair(image, reference)
    check_ssim(size_of(image))
    return _ssim(to_y(image, rounded=rounded), to_y(reference, rounded=rounded), clipped=clipped)


def ssim_rgb(image: Image, reference: Image) -> float:
    """Mean of the SSIM of the three channels of two uint8 (h, w, 3) BGR images, otherwise as `ssim_y`."""
    check_pair(image, reference)
    check_ssim(size_of(image))
    x, y = image.astype(np.float64), reference.astype(np.float64)
    return float(np.mean([_ssim(x[:, :, channel], y[:, :, channel]) for channel in range(3)]))


def _psnr(values: npt.NDArray[np.float64], expected: npt.NDArray[np.float64]) -> float:
    error = float(np.mean((values - expected) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def check_ssim(size: Size) -> None:
    """Raise InputError for images that the window does not fit into."""
    if min(size) < _SSIM_WINDOW:
        width, height = size
        raise InputError(f"SSIM needs sides of at least {_SSIM_WINDOW} pixels, not {width}x{height}; use larger images")


def _ssim(x: Plane, y: Plane, *, clipped: bool = False) -> float:
    mean_x, mean_y = _window_mean(x), _window_mean(y)
    var_x = _window_mean(x * x) - mean_x**2
    var_y = _window_mean(y * y) - mean_y**2
    covariance = _window_mean(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _SSIM_C1) / (mean_x**2 + mean_y**2 + _SSIM_C1)
    structure = (2 * covariance + _SSIM_C2) / (var_x + var_y + _SSIM_C2)
    return float(np.mean(luminance * (np.maximum(structure, 0) if clipped else structure)))


def _window_mean(plane: Plane) -> Plane:
    kernel = cv2.getGaussianKernel(_SSIM_WINDOW, _SSIM_SIGMA, cv2.CV_64F)
    radius = _SSIM_WINDOW // 2
    filtered = cv2.sepFilter2D(plane, cv2.CV_64F, kernel, kernel)
    return np.asarray(filtered[radius:-radius, radius:-radius], np.float64)


def check_pair(image: Image, reference: Image) -> None:
    """Raise InputError unless both images have the same shape."""
    if image.shape != reference.shape:
        raise InputError(f"images of different shape cannot be compared: {image.shape} and {reference.shape}")
