"""NIQE: how far an image's statistics lie from those of photographs, without a reference; lower is better.

Mittal, Soundararajan and Bovik, "Making a completely blind image quality analyzer", IEEE Signal Processing Letters
20(3), 2013. The statistics of photographs in `niqe_model.npz` are a fit of our own: `rsd_edge.export.fit_niqe` made
them from 1026 crops, saved as JPEG of quality 92, of the photographs that zoo/edge-s/credits.csv names. Values
therefore do not compare with those of the original fit or of other programs, only with each other. Too much detail
scores as badly as too little, and single images scatter: compare means over a set, and with the references' own value.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from importlib import resources

import numpy as np
import numpy.typing as npt

from rsd_edge.evaluate.metrics import Image, Plane, to_y
from rsd_edge.opencv import cv2

PATCH = 96
"""Side of a patch in pixels; half of it at the second scale."""
FEATURES = 36
MODEL_FILE = "niqe_model.npz"

_WINDOW = 7
_WINDOW_SIGMA = 7 / 6
_CONTRAST_FLOOR = 1.0
"""The constant in equation 1 of the paper, in grey levels."""
_NOTHING = 1e-9
"""Rounding errors of float64 in flat areas stay below this; one grey level of blue within the window does not."""
_SHAPES = np.arange(0.2, 10.0, 0.001)
"""Where the shape of a distribution is looked for."""
_HALVING = (-0.01171875, -0.03515625, 0.11328125, 0.43359375, 0.43359375, 0.11328125, -0.03515625, -0.01171875)
"""The cubic kernel (a = -0.5) stretched to twice its width: its values at odd multiples of a quarter, halved."""
_log_gamma = np.vectorize(math.lgamma, otypes=[np.float64])


@dataclass(frozen=True)
class NiqeModel:
    """A multivariate Gaussian of the features of sharp patches of photographs."""

    mean: Plane
    """(36,)"""
    covariance: Plane
    """(36, 36)"""

    def distance(self, features: Plane) -> float:
        """Equation 10 of the paper between this Gaussian and that of patches (n, 36), of which n must be 2 or more."""
        difference = self.mean - features.mean(axis=0)
        pooled = (self.covariance + np.cov(features, rowvar=False)) / 2
        return math.sqrt(max(0.0, float(difference @ np.linalg.pinv(pooled, hermitian=True) @ difference)))


@functools.lru_cache(maxsize=1)
def packaged_model() -> NiqeModel:
    """The statistics that ship with the package."""
    with (resources.files("rsd_edge.evaluate") / MODEL_FILE).open("rb") as file, np.load(file) as data:
        return NiqeModel(data["mean"], data["covariance"])


def niqe(image: Image, model: NiqeModel | None = None) -> float | None:
    """NIQE of a uint8 (h, w, 3) BGR image: 0 or more, without unit, lower is nearer to photographs.

    The image is cut at the right and bottom to whole patches of 96x96, and all of them count but flat ones, which have
    no shape. None if fewer than two are left, since one patch has no covariance: images below 96x192 and 192x96, and
    those without texture, have no NIQE.
    """
    features, _ = patch_features(image)
    features = features[np.isfinite(features).all(axis=1)]
    return (model or packaged_model()).distance(features) if len(features) >= 2 else None


def patch_features(image: Image) -> tuple[Plane, Plane]:
    """Features (n, 36) and sharpness (n,) of the n whole patches of a uint8 (h, w, 3) BGR image, row by row.

    At each of two scales: shape and scale of the generalised Gaussian of the normalised luma (BT.601 studio range, not
    rounded), then shape, mean, left and right scale of the asymmetric one for its products with the right, lower, lower
    right and lower left neighbour in the patch. NaN where a patch is too flat for that. Sharpness is the mean local
    deviation at full size.
    """
    rows, columns = (side // PATCH for side in image.shape[:2])
    if rows * columns == 0:
        return np.empty((0, FEATURES)), np.empty(0)
    plane = to_y(image[: rows * PATCH, : columns * PATCH])
    full, deviation = _normalise(plane)
    half, _ = _normalise(_halve(plane))
    features = [_scale_features(_blocks(full, PATCH)), _scale_features(_blocks(half, PATCH // 2))]
    return np.concatenate(features, axis=1), _blocks(deviation, PATCH).mean(axis=(1, 2))


def fit_ggd(samples: Plane) -> tuple[Plane, Plane]:
    """Shape and scale (n,) of the generalised Gaussian of zero mean for each of n rows of samples (n, m).

    The density is proportional to exp(-(|x| / scale)^shape); both by matching the first two absolute moments. NaN for a
    row of zeros. Shapes are limited to [0.2, 10].
    """
    power = np.square(samples).mean(axis=1)
    with np.errstate(invalid="ignore"):
        shape = _shape(np.square(np.abs(samples).mean(axis=1)) / power)
    return shape, np.sqrt(power) * _scale_of_unit_power(shape)


def fit_aggd(samples: Plane) -> tuple[Plane, Plane, Plane, Plane]:
    """Shape, mean, left and right scale (n,) of the asymmetric generalised Gaussian for each row of samples (n, m).

    By moments, as Lasmar, Stitou and Berthoumieu (ICIP 2009) have it. NaN for a row without values on both sides of 0.
    """
    squares = np.square(samples)
    with np.errstate(invalid="ignore"):
        left, right = (np.sqrt((squares * side).sum(axis=1) / side.sum(axis=1)) for side in (samples < 0, samples > 0))
        ratio = left / right
        skew = (ratio**3 + 1) * (ratio + 1) / np.square(ratio**2 + 1)
        shape = _shape(np.square(np.abs(samples).mean(axis=1)) / squares.mean(axis=1) * skew)
    scale = _scale_of_unit_power(shape)
    mean = (right - left) * scale * np.exp(_log_gamma(2 / shape) - _log_gamma(1 / shape))
    return shape, mean, left * scale, right * scale


def _scale_features(patches: Plane) -> Plane:
    """Patches (n, p, p) to the 18 features of one scale."""
    neighbours = (
        patches[:, :, :-1] * patches[:, :, 1:],
        patches[:, :-1] * patches[:, 1:],
        patches[:, :-1, :-1] * patches[:, 1:, 1:],
        patches[:, :-1, 1:] * patches[:, 1:, :-1],
    )
    count = len(patches)
    columns = list(fit_ggd(patches.reshape(count, -1)))
    for products in neighbours:
        columns += fit_aggd(products.reshape(count, -1))
    return np.stack(columns, axis=1)


def _normalise(plane: Plane) -> tuple[Plane, Plane]:
    """Luma less its local mean, over its local deviation plus a constant; and that deviation (equations 1 to 3)."""
    kernel = cv2.getGaussianKernel(_WINDOW, _WINDOW_SIGMA, cv2.CV_64F)

    def window_mean(values: Plane) -> Plane:
        return np.asarray(cv2.sepFilter2D(values, cv2.CV_64F, kernel, kernel, borderType=cv2.BORDER_REPLICATE))

    mean = window_mean(plane)
    deviation = np.sqrt(np.abs(window_mean(plane * plane) - mean * mean))
    normal = (plane - mean) / (deviation + _CONTRAST_FLOOR)
    normal[np.abs(normal) < _NOTHING] = 0
    return normal, deviation


def _halve(plane: Plane) -> Plane:
    """Half the width and height, low-pass filtered; both must be even."""
    kernel = np.array(_HALVING)
    before = len(_HALVING) // 2 - 1  # the centre lies between this tap and the next
    smooth = cv2.sepFilter2D(plane, cv2.CV_64F, kernel, kernel, anchor=(before, before), borderType=cv2.BORDER_REFLECT)
    return np.asarray(smooth[::2, ::2], np.float64)


def _blocks(plane: Plane, side: int) -> Plane:
    """(rows * side, columns * side) -> (rows * columns, side, side)."""
    rows, columns = (length // side for length in plane.shape)
    return plane.reshape(rows, side, columns, side).swapaxes(1, 2).reshape(-1, side, side)


def _shape(ratio: Plane) -> Plane:
    """The shape whose (mean absolute value)^2 / mean square is `ratio`; NaN for NaN."""
    return np.asarray(np.interp(ratio, _moment_ratios(), _SHAPES), np.float64)


@functools.lru_cache(maxsize=1)
def _moment_ratios() -> npt.NDArray[np.float64]:
    once, twice, thrice = (_log_gamma(factor / _SHAPES) for factor in (1, 2, 3))
    return np.asarray(np.exp(2 * twice - once - thrice), np.float64)


def _scale_of_unit_power(shape: Plane) -> Plane:
    return np.asarray(np.exp((_log_gamma(1 / shape) - _log_gamma(3 / shape)) / 2), np.float64)
