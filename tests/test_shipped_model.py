"""What edge-s, the engine inside the package, promises; shown on photographs in assets/."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from rsd_edge.bundle import load_bundle, resolve_engine
from rsd_edge.evaluate.folder import METRICS, evaluate_folders
from rsd_edge.opencv import cv2
from rsd_edge.pipeline import SuperResolver
from rsd_edge.stream.discovery import images_in
from rsd_edge.stream.images import read_image, write_image

Image = NDArray[np.uint8]

ENGINE = "edge-s"
REFERENCES = Path(__file__).resolve().parents[1] / "assets" / "reference"
PHOTOS = ("foliage", "night")
CROP = (181, 251)  # LR pixels, primes: tiles of 192 still cut both sides in two
WHOLE = 320  # one tile that holds all of it
BLOCK = 8  # LR pixels: the grain at which areas count as textured or flat


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


def test_it_is_closer_to_the_photograph_than_bicubic_and_free_of_a_lattice(tmp_path: Path) -> None:
    """On the four cleanly reduced photographs in assets: LPIPS at least 30 % below bicubic on average (measured 37),
    PSNR-Y at most 1 dB below, and the lattice within the model's bars of 0.5 and 0.3."""
    means = {}
    with SuperResolver.load(ENGINE) as resolver:
        for strength in (0.0, 1.0):
            folder = tmp_path / f"{strength}"
            folder.mkdir()
            for path in images_in(REFERENCES.parent):
                write_image(folder / path.name, resolver(read_image(path), strength=strength))
            scores = evaluate_folders(folder, REFERENCES, lq=REFERENCES.parent)
            means[strength] = {metric: scores.mean(metric) or 0.0 for metric in METRICS}
    assert means[1.0]["lpips_squeeze"] <= 0.7 * means[0.0]["lpips_squeeze"]
    assert means[1.0]["psnr_y"] >= means[0.0]["psnr_y"] - 1
    assert means[1.0]["lattice_spread"] <= 0.5
    assert means[1.0]["lattice_mean"] <= 0.3


def test_the_same_seed_gives_identical_bytes(frame: Image) -> None:
    results = []
    for _ in range(2):
        with SuperResolver.load(ENGINE) as resolver:
            results += [resolver(frame, seed=1).tobytes(), resolver(frame, seed=1).tobytes()]
    assert len(set(results)) == 1


@pytest.mark.parametrize("name", ["text", "foliage"])
def test_two_seeds_differ_in_texture_and_agree_on_flat_areas(name: str) -> None:
    """Root mean square difference of two seeds: at least a grey level where the LR image is textured (deviation of 10
    or more in blocks of 8), and under half of that where it is flat (2 or less: paper, a wall)."""
    lq = read_image(REFERENCES.parent / f"{name}.png")
    with SuperResolver.load(ENGINE) as resolver:
        difference = resolver(lq, seed=1).astype(np.float64) - resolver(lq, seed=2)
    activity = block_stds(lq.astype(np.float64), BLOCK)
    rms = np.sqrt(blocks(difference**2, 4 * BLOCK).mean(axis=(1, 3))).ravel()
    textured, flat = rms[activity >= 10], rms[activity <= 2]
    assert len(flat) >= 20  # both photographs have such areas
    assert textured.mean() >= 1.0
    assert flat.mean() < 0.5 * textured.mean()


def blocks(image: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """Gray of whole side x side blocks: (rows, side, columns, side)."""
    gray = image.mean(axis=2)
    rows, columns = gray.shape[0] // side, gray.shape[1] // side
    return gray[: rows * side, : columns * side].reshape(rows, side, columns, side)


def block_stds(image: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """Standard deviation of gray in each whole side x side block, raster order."""
    return blocks(image, side).std(axis=(1, 3)).ravel()


def test_the_bundle_is_complete_and_small() -> None:
    bundle = resolve_engine(ENGINE)
    assert bundle.spec.model.name == ENGINE
    assert bundle.graph_path.stat().st_size <= 12e6
    for key in ("versions", "device", "parity", "speed", "licence", "training"):
        assert bundle.manifest[key], key
    assert load_bundle(bundle.path).digest == bundle.digest
