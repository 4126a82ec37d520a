"""What edge-s, the engine inside the package, promises; shown on photographs in assets/."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from rsd_edge.bundle import load_bundle, resolve_engine, shipped_engines
from rsd_edge.opencv import cv2
from rsd_edge.pipeline import SuperResolver

Image = NDArray[np.uint8]

ENGINE = "edge-s"
REFERENCES = Path(__file__).resolve().parents[1] / "assets" / "reference"
PHOTOS = ("foliage", "night")
CROP = (181, 251)  # LR pixels, primes: tiles of 192 still cut both sides in two
WHOLE = 320  # one tile that holds all of it
BLOCK = 16  # LR pixels: the grain at which areas count as textured or flat

pytestmark = pytest.mark.skipif(ENGINE not in shipped_engines(), reason=f"{ENGINE} is not in rsd_edge/zoo yet")


def low_resolution(name: str) -> Image:
    """The middle of a photograph at half its size, which hides its own JPEG blocks and sensor noise."""
    image = cv2.imdecode(np.fromfile(REFERENCES / f"{name}.jpg", np.uint8), cv2.IMREAD_COLOR)
    half = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    top, left = (half.shape[0] - CROP[0]) // 2, (half.shape[1] - CROP[1]) // 2
    return half[top : top + CROP[0], left : left + CROP[1]].copy()


def psnr(a: Image, b: Image) -> float:
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-12)))


@pytest.fixture(scope="module", params=PHOTOS)
def frame(request: pytest.FixtureRequest) -> Image:
    return low_resolution(request.param)


@pytest.fixture(scope="module")
def whole(frame: Image) -> Image:
    with SuperResolver.load(ENGINE, tile=WHOLE) as resolver:
        return resolver(frame, seed=1)


@pytest.mark.parametrize("tile", [64, 128, 192])
@pytest.mark.parametrize("batch", [1, 4])
def test_tiles_and_batches_do_not_show(frame: Image, whole: Image, tile: int, batch: int) -> None:
    """The bounds are the promise made in the documentation."""
    with SuperResolver.load(ENGINE, tile=tile, batch=batch) as resolver:
        tiled = resolver(frame, seed=1)
    assert np.abs(tiled.astype(int) - whole).max() <= 3
    assert psnr(tiled, whole) >= 50


def test_the_network_adds_detail(frame: Image, whole: Image) -> None:
    """Guards the tests above and below: an engine without output would pass them."""
    with SuperResolver.load(ENGINE) as resolver:
        bicubic = resolver(frame, strength=0.0)
    assert np.abs(whole.astype(int) - bicubic).mean() > 0.5
    np.testing.assert_array_equal(
        bicubic, cv2.resize(frame, (bicubic.shape[1], bicubic.shape[0]), interpolation=cv2.INTER_CUBIC)
    )


def test_the_same_seed_gives_identical_bytes(frame: Image) -> None:
    results = []
    for _ in range(2):
        with SuperResolver.load(ENGINE) as resolver:
            results += [resolver(frame, seed=1).tobytes(), resolver(frame, seed=1).tobytes()]
    assert len(set(results)) == 1


def test_two_seeds_differ_in_texture_and_agree_on_flat_areas(frame: Image, whole: Image) -> None:
    """std of the difference: at least a grey level in the quarter of the blocks with most texture, under half of that
    in the flattest quarter."""
    with SuperResolver.load(ENGINE, tile=WHOLE) as resolver:
        other = resolver(frame, seed=2)
    activity = block_stds(frame.astype(np.float64), BLOCK)
    difference = block_stds(other.astype(np.float64) - whole, 4 * BLOCK)
    low, high = np.quantile(activity, [0.25, 0.75])
    textured, flat = difference[activity >= high], difference[activity <= low]
    texture_std, flat_std = (float(np.sqrt(np.mean(group**2))) for group in (textured, flat))
    assert texture_std >= 1.0
    assert flat_std < 0.5 * texture_std


def block_stds(image: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """Standard deviation of gray in each whole side x side block, raster order."""
    gray = image.mean(axis=2)
    rows, columns = gray.shape[0] // side, gray.shape[1] // side
    blocks = gray[: rows * side, : columns * side].reshape(rows, side, columns, side)
    return blocks.std(axis=(1, 3)).ravel()


def test_the_bundle_is_complete_and_small() -> None:
    bundle = resolve_engine(ENGINE)
    assert bundle.spec.model.name == ENGINE
    assert bundle.graph_path.stat().st_size <= 12e6
    for key in ("versions", "device", "parity", "speed", "licence", "training"):
        assert bundle.manifest[key], key
    assert load_bundle(bundle.path).digest == bundle.digest
