from __future__ import annotations

import cv2
import numpy as np
import pytest

from rsd_edge.errors import InputError
from rsd_edge.resample import AreaReduction, Bands, reduce_bands, result_size, shrink


def noise(height: int, width: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(height).integers(0, np.iinfo(dtype).max + 1, (height, width, 3)).astype(dtype)


def cut(image: np.ndarray, *edges: int) -> Bands:
    """Bands that take each other's place in one buffer, as those of a resolver do."""
    buffer = np.empty_like(image)
    for start, stop in zip([0, *edges], [*edges, len(image)], strict=True):
        buffer[: stop - start] = image[start:stop]
        yield buffer[: stop - start]


def test_shrink_averages_areas() -> None:
    image = np.zeros((4, 8, 3), np.uint8)
    image[:2, :2] = [[[10], [20]], [[30], [40]]]
    out = np.empty((2, 4, 3), np.uint8)
    shrink(image, out)
    assert out[0, 0].tolist() == [25, 25, 25]
    assert not out[1:].any()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("target", [(40, 60), (20, 60), (41, 60), (61, 88), (79, 31), (80, 119), (20, 30), (80, 120)])
def test_every_size_is_opencvs_area_average(target: tuple[int, int], dtype: type) -> None:
    image = noise(80, 120, dtype)
    out = np.empty((*target, 3), dtype)
    shrink(image, out)
    expected = cv2.resize(image, target[::-1], interpolation=cv2.INTER_AREA)
    # Both sum in float32, in another order, and may round a half to either side.
    assert np.abs(out.astype(int) - expected).max() <= 1
    assert np.mean(out != expected) < 0.01


@pytest.mark.parametrize("edges", [(), (1,), (40,), (3, 4, 5, 77), tuple(range(1, 80))])
@pytest.mark.parametrize("target", [(40, 60), (27, 60), (61, 88), (80, 119), (20, 30)])
def test_bands_give_the_bytes_of_the_whole(target: tuple[int, int], edges: tuple[int, ...]) -> None:
    image = noise(80, 120)
    out = np.empty((*target, 3), np.uint8)
    shrink(image, out)
    bands = [band.copy() for band in reduce_bands(cut(image, *edges), AreaReduction((80, 120), target))]
    np.testing.assert_array_equal(np.concatenate(bands), out)


def test_rows_in_small_chunks_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    image, whole, chunked = noise(80, 120), np.empty((61, 88, 3), np.uint8), np.empty((61, 88, 3), np.uint8)
    shrink(image, whole)
    monkeypatch.setattr("rsd_edge.resample._CHUNK_BYTES", 1)
    shrink(image, chunked)
    np.testing.assert_array_equal(chunked, whole)


def test_planes_without_channels() -> None:
    image = noise(80, 120)
    out = np.empty((61, 88, 3), np.uint8)
    shrink(image, out)
    plane = AreaReduction((80, 120), (61, 88)).reduce(np.ascontiguousarray(image[..., 1]), 0, 0, 61)
    np.testing.assert_array_equal(plane, out[..., 1])


def test_closing_the_result_closes_the_bands() -> None:
    bands = cut(noise(80, 120), 40)
    reduced = reduce_bands(bands, AreaReduction((80, 120), (61, 88)))
    next(reduced)
    reduced.close()
    with pytest.raises(StopIteration):
        next(bands)


def test_result_size() -> None:
    assert result_size((7, 5)) == (28, 20)
    assert result_size((7, 5), 1.5) == (10, 8)
    assert result_size((7, 5), 4.0, (7, 20)) == (7, 20)
    with pytest.raises(InputError, match="size 6x20 is smaller than the image of 7x5; choose a larger one"):
        result_size((7, 5), 4.0, (6, 20))
    with pytest.raises(InputError, match="size 28x21 is more than 4 times the image of 7x5; choose at most 28x20"):
        result_size((7, 5), 4.0, (28, 21))
