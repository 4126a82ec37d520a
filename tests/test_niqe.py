from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from scipy.ndimage import correlate
from scipy.optimize import brentq
from scipy.special import gamma, gammaincinv

from rsd_edge.evaluate.niqe import NiqeModel, fit_aggd, fit_ggd, niqe, packaged_model, patch_features
from rsd_edge.stream.images import read_image

ASSETS = Path(__file__).resolve().parents[1] / "assets"

Image = npt.NDArray[np.uint8]
Plane = npt.NDArray[np.float64]


def half_quantiles(shape: float, scale: float, count: int) -> Plane:
    """`count` evenly likely values of |x| for a generalised Gaussian: a sample without chance."""
    return np.asarray(scale * gammaincinv(1 / shape, (np.arange(count) + 0.5) / count) ** (1 / shape))


@pytest.mark.parametrize("shape", [0.7, 1.0, 2.0, 4.0])  # 1 is Laplace's distribution, 2 the normal one
def test_the_generalised_gaussian_is_recovered(shape: float) -> None:
    half = half_quantiles(shape, 3.0, 100_000)
    found, scale = fit_ggd(np.stack([np.concatenate([half, -half]), np.concatenate([half, -half]) * 10]))
    # The outermost 1 / 200000 of a tail is cut to its median, which moves the moments of shape 0.7 by less than this.
    assert found == pytest.approx([shape, shape], rel=1e-3)
    assert scale == pytest.approx([3, 30], rel=2e-3)


@pytest.mark.parametrize(("shape", "left", "right"), [(0.8, 1.0, 2.0), (1.0, 3.0, 1.0), (2.0, 1.0, 1.0)])
def test_the_asymmetric_gaussian_is_recovered(shape: float, left: float, right: float) -> None:
    # The sides are as likely as they are wide.
    sides = [half_quantiles(shape, scale, int(60_000 * scale)) for scale in (left, right)]
    samples = np.concatenate([-sides[0], sides[1]])
    found = np.concatenate(fit_aggd(samples[np.newaxis]))
    # Cut tails, as above; the mean is a difference of the sides.
    assert found[[0, 2, 3]] == pytest.approx([shape, left, right], rel=3e-3)
    assert found[1] == pytest.approx(samples.mean(), abs=3e-3)


def inverse(ratio: float) -> float:
    return float(brentq(lambda a: gamma(2 / a) ** 2 / gamma(1 / a) / gamma(3 / a) - ratio, 0.2, 10))


def independent_normal(plane: Plane) -> tuple[Plane, Plane]:
    steps = np.arange(-3, 4)
    line = np.exp(-(steps**2) / (2 * (7 / 6) ** 2))
    window = np.outer(line, line) / line.sum() ** 2
    mean = correlate(plane, window, mode="nearest")
    deviation = np.sqrt(np.abs(correlate(plane**2, window, mode="nearest") - mean**2))
    return (plane - mean) / (deviation + 1), deviation


def halving_matrix(size: int) -> Plane:
    """Cubic convolution with a = -0.5, stretched to twice its width, mirrored at the ends."""
    matrix = np.zeros((size // 2, size))
    for row in range(size // 2):
        for column in range(2 * row - 3, 2 * row + 5):
            t = abs(column - 2 * row - 0.5) / 2
            weight = 1.5 * t**3 - 2.5 * t**2 + 1 if t <= 1 else -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
            inside = -1 - column if column < 0 else column
            matrix[row, 2 * size - 1 - inside if inside >= size else inside] += weight / 2
    return matrix


def independent_features(patch: Plane) -> list[float]:
    """The 18 features of one patch, written out from the paper with SciPy's gamma function and a root finder."""
    shape = inverse(float(np.mean(np.abs(patch)) ** 2 / np.mean(patch**2)))
    features = [shape, float(np.sqrt(np.mean(patch**2) * gamma(1 / shape) / gamma(3 / shape)))]
    side = len(patch)
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        products = np.array(
            [
                patch[i, j] * patch[i + down, j + right]
                for i in range(side - down)
                for j in range(max(0, -right), side - max(0, right))
            ]
        )
        left_std = np.sqrt(np.mean(products[products < 0] ** 2))
        right_std = np.sqrt(np.mean(products[products > 0] ** 2))
        g = left_std / right_std
        shape = inverse(np.mean(np.abs(products)) ** 2 / np.mean(products**2) * (g**3 + 1) * (g + 1) / (g**2 + 1) ** 2)
        left, right_scale = (std * np.sqrt(gamma(1 / shape) / gamma(3 / shape)) for std in (left_std, right_std))
        features += [shape, (right_scale - left) * gamma(2 / shape) / gamma(1 / shape), left, right_scale]
    return features


def test_features_follow_the_definition() -> None:
    image = read_image(ASSETS / "reference" / "face.jpg")[100:300, 100:210]  # two patches and a rest
    cut = image[:192, :96].astype(np.float64)
    luma = 16 + cut @ np.array([24.966, 128.553, 65.481]) / 255
    full, deviation = independent_normal(luma)
    half, _ = independent_normal(halving_matrix(192) @ luma @ halving_matrix(96).T)
    expected = [
        independent_features(full[:96]) + independent_features(half[:48]),
        independent_features(full[96:]) + independent_features(half[48:]),
    ]
    features, sharpness = patch_features(image)
    # Shapes come from a table of steps of 0.001, interpolated, whose curvature leaves errors below 1e-6; the means
    # (about 0.01) are differences of the scales.
    assert features == pytest.approx(np.array(expected), rel=1e-4, abs=1e-6)
    assert sharpness == pytest.approx([deviation[:96].mean(), deviation[96:].mean()], rel=1e-9)


def test_distance_of_known_gaussians() -> None:
    model = NiqeModel(np.array([1.0, 2.0, 3.0]), np.eye(3))
    # Mean (1, 2, 5); covariance 2 * 2^2 = 8 along the first axis alone.
    assert model.distance(np.array([[3.0, 2, 5], [-1, 2, 5]])) == pytest.approx(2 / np.sqrt(0.5), rel=1e-12)
    # Mean (3, 2, 3): the difference lies along the axis in which the patches scatter, (1 + 8) / 2.
    assert model.distance(np.array([[5.0, 2, 3], [1, 2, 3]])) == pytest.approx(2 / np.sqrt(4.5), rel=1e-12)
    # A direction in which nothing varies does not count: the inverse is a pseudo-inverse.
    model = NiqeModel(np.zeros(3), np.diag([1.0, 1, 0]))
    assert model.distance(np.array([[1.0, 0, 5], [-1, 0, 5]])) == pytest.approx(0, abs=1e-12)


def test_the_packaged_model_is_of_photographs() -> None:
    model = packaged_model()
    assert model.mean.shape == (36,)
    assert np.linalg.eigvalsh(model.covariance).min() > 0
    # A lossless photograph, so that no decoder moves the value; a mean or covariance 1 % larger moves it 0.5 %.
    assert niqe(read_image(ASSETS / "foliage.png")) == pytest.approx(7.07036, rel=1e-4)


@pytest.mark.parametrize("name", ["face", "foliage", "night", "text"])
def test_damage_is_worse_than_the_photograph(name: str) -> None:
    image = read_image(ASSETS / "reference" / f"{name}.jpg")
    height, width = image.shape[:2]
    noise = np.random.default_rng(0).normal(0, 15, image.shape)
    damaged = (
        np.clip(image + noise, 0, 255).astype(np.uint8),
        cv2.GaussianBlur(image, (0, 0), 2),
        cv2.resize(read_image(ASSETS / f"{name}.png"), (width, height), interpolation=cv2.INTER_CUBIC),
    )
    original = niqe(image)
    assert original is not None
    for other in damaged:
        assert (niqe(np.asarray(other, np.uint8)) or 0) > original + 0.5


def texture(height: int, width: int) -> Image:
    return np.random.default_rng(1).integers(60, 190, (height, width, 3)).astype(np.uint8)


def test_only_whole_patches_count() -> None:
    image = texture(200, 290)
    assert niqe(image) == niqe(image[:192, :288]) != niqe(image[8:, 2:])


@pytest.mark.parametrize(
    ("height", "width", "measured"),
    [(96, 192, True), (192, 96, True), (96, 191, False), (95, 400, False), (5, 5, False)],
)
def test_two_patches_are_needed(height: int, width: int, measured: bool) -> None:
    assert (niqe(texture(height, width)) is not None) == measured


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (11, 222, 133)])
def test_flat_patches_are_left_out(colour: tuple[int, int, int]) -> None:
    image = np.full((192, 384, 3), colour, np.uint8)
    assert niqe(image) is None
    image[:, :200] = texture(192, 200)
    features, _ = patch_features(image)
    flat = np.isnan(features).any(axis=1)
    # The third patch of each row is flat but for 8 columns.
    assert flat.tolist() == [False, False, False, True] * 2
    assert niqe(image) == packaged_model().distance(features[~flat])


@pytest.mark.parametrize("brighter", [1, 10, 33])
def test_brightness_does_not_matter(brighter: int) -> None:
    """Half of each patch is flat: rounding errors there must not count as values left or right of zero."""
    image = texture(192, 192)
    image[:, 40:88] = image[:, 136:184] = (20, 90, 160)
    features, _ = patch_features(image)
    # Deviations are square roots of differences of squares near 2e4, exact to about 1e-6 in flat areas.
    assert patch_features(image + np.uint8(brighter))[0] == pytest.approx(features, rel=1e-5, abs=1e-7)
