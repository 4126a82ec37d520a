"""Detail that is averaged along what moves."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from live_doubles import WholeTileEngine
from numpy.typing import NDArray

from rsd_edge import SuperResolver
from rsd_edge.frames import bicubic_x4
from rsd_edge.live.frames import LiveFrame
from rsd_edge.live.path import LivePath
from rsd_edge.live.settings import StreamSettings
from rsd_edge.specs import TileSpec

Image = NDArray[np.uint8]
Photo = Callable[[int, int], Image]
STEP = 2


@pytest.fixture(scope="module")
def resolver() -> SuperResolver:
    return SuperResolver(WholeTileEngine(TileSpec(size=56)))


def panned(photo: Photo, frames: int) -> list[Image]:
    """A window of 64x96 that moves to the right by two pixels in each frame."""
    whole = photo(64, 96 + STEP * frames)
    return [np.ascontiguousarray(whole[:, STEP * k : STEP * k + 96]) for k in range(frames)]


def detail(image: Image, result: Image) -> NDArray[np.float32]:
    base = np.empty_like(result)
    bicubic_x4(image, base)
    return result.astype(np.float32) - base


def flicker(film: list[Image], results: list[Image]) -> float:
    """Grey levels by which detail that has moved along differs from one frame to the next, in the later half."""
    found = [detail(image, result) for image, result in zip(film, results, strict=True)][len(film) // 2 :]
    shift = 4 * STEP
    inner = slice(16, -16), slice(16, -16 - shift)
    pairs = pairwise(found)
    return float(np.mean([np.abs(now[:, :-shift] - last[:, shift:])[inner].mean() for last, now in pairs]))


def test_texture_that_moves_along_flickers_much_less(resolver: SuperResolver, photo: Photo) -> None:
    film = panned(photo, 12)
    fixed, blended = (flicker(film, list(resolver.stream(film, temporal=name))) for name in ("fixed", "blend"))
    assert fixed > 2  # the detail of this engine answers to noise that stays while the picture moves
    # An average over a dozen frames, a tenth of it new in each: a tenth remains, and what flow and rounding add.
    assert blended < 0.3 * fixed


@pytest.mark.parametrize("reuse", [True, False])
def test_a_still_film_is_still_and_is_what_it_is_without(resolver: SuperResolver, photo: Photo, *, reuse: bool) -> None:
    path = LivePath(resolver.engine, StreamSettings(temporal="blend", reuse=reuse))
    image = photo(70, 100)
    for index in range(5):
        work = path.prepare(LiveFrame(index, 0.0, image.copy()))
        path.infer(work)
        assert np.array_equal(path.finish(work), resolver(image))


def test_a_cut_another_film_and_what_appears_begin_anew(resolver: SuperResolver, photo: Photo) -> None:
    path = LivePath(resolver.engine, StreamSettings(temporal="blend"))

    def through(image: Image, epoch: int = 0) -> Image:
        work = path.prepare(LiveFrame(0, 0.0, image, epoch))
        path.infer(work)
        return path.finish(work)

    first = photo(70, 100)
    moved = np.roll(first, 3, axis=1)
    other = 255 - np.ascontiguousarray(first[::-1])
    through(first)
    assert not np.array_equal(through(moved), resolver(moved))
    assert np.array_equal(through(other), resolver(other))  # a cut
    through(moved)
    assert np.array_equal(through(first, epoch=1), resolver(first))  # the camera went away and came back
    assert np.array_equal(through(photo(48, 64), epoch=1), resolver(photo(48, 64)))
    through(first, epoch=1)
    appeared = first.copy()
    appeared[20:40, 30:60] = 255 - appeared[20:40, 30:60]
    inside = slice(4 * 24, 4 * 36), slice(4 * 34, 4 * 56)
    # One level for rounding: a weight of exp(-(100 / 8)^2) and less is left of what was there.
    assert np.abs(through(appeared, epoch=1)[inside].astype(int) - resolver(appeared)[inside]).max() <= 1


def test_frames_too_small_for_flow_and_a_strength_of_zero_work(resolver: SuperResolver, photo: Photo) -> None:
    small = [photo(12, 14), np.roll(photo(12, 14), 1, axis=0)]
    assert [result.shape for result in resolver.stream(small, temporal="blend")] == [(48, 56, 3)] * 2
    film = panned(photo, 3)
    for image, result in zip(film, resolver.stream(film, temporal="blend", strength=0.0), strict=True):
        assert not detail(image, result).any()


def test_an_array_that_is_filled_again_is_no_still_film(resolver: SuperResolver, photo: Photo) -> None:
    film = panned(photo, 4)
    expected = [result.copy() for result in resolver.stream(film, temporal="blend")]
    array = np.empty_like(film[0])

    def refilled() -> object:
        for image in film:
            array[:] = image
            yield array

    for result, wanted in zip(resolver.stream(refilled(), temporal="blend"), expected, strict=True):  # type: ignore[arg-type]
        assert np.array_equal(result, wanted)
