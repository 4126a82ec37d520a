"""Detail that is averaged along what moves."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import cast

import cv2
import numpy as np
import pytest
from live_doubles import WholeTileEngine
from numpy.typing import NDArray

from rsd_edge import SuperResolver
from rsd_edge.frames import bicubic_x4
from rsd_edge.live.blend import FilmAverage
from rsd_edge.live.frames import LiveFrame
from rsd_edge.live.path import LivePath
from rsd_edge.live.settings import StreamSettings
from rsd_edge.live.trust import Carry
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
    # Of an average over some twenty frames a twentieth changes with each; flow and rounding add as much again.
    assert blended < 0.3 * fixed


@pytest.mark.parametrize("period", [8, 12])
def test_detail_that_creeps_is_neither_sharpened_nor_blurred(period: int) -> None:
    """Half a pixel of the result along both axes in each frame is where interpolation errs most, and always alike."""
    height, width, frames = 32, 40, 200
    gray = np.full((height, width, 3), 128, np.uint8)
    y, x = np.mgrid[: 4 * height, : 4 * width]
    average, out = FilmAverage(height, width), np.empty((4 * height, 4 * width, 3), np.uint8)
    carry = Carry(np.full((height, width, 2), -1 / 8, np.float32), np.zeros((height, width), np.bool_))
    for frame in range(frames):
        wave = np.sin(2 * np.pi / period * (x - frame / 2)) * np.sin(2 * np.pi / period * (y - frame / 2))
        result = np.repeat(np.rint(128 + 60 * wave)[..., None], 3, axis=2).astype(np.uint8)
        average.add(gray, result, carry if frame else None, out)
    inner = slice(24, -24), slice(24, -24)
    # 1.00 and 1.10 by the interpolation's gain, and rounding to grey levels; cubic alone would have 41 and 2.2.
    assert 0.97 < out[inner].std() / result[inner].std() < 1.12


@pytest.mark.parametrize("reuse", [True, False])
def test_a_still_film_is_still_and_is_what_it_is_without(resolver: SuperResolver, photo: Photo, *, reuse: bool) -> None:
    path = LivePath(resolver.engine, StreamSettings(temporal="blend", reuse=reuse))
    image = photo(70, 100)
    for index in range(5):
        work = path.prepare(LiveFrame(index, 0.0, image.copy()))
        path.infer(work)
        assert np.array_equal(path.finish(work), resolver(image))


def test_tiles_that_rest_do_not_drift_with_a_picture_that_creeps(resolver: SuperResolver, photo: Photo) -> None:
    film = panned(cast(Photo, lambda height, width: cv2.GaussianBlur(photo(height, width), (0, 0), 2)), 4)
    shifts = [np.array([[1, 0, step / 4], [0, 1, 0]], np.float32) for step in range(1, 6)]
    creeping = [cv2.warpAffine(film[-1], shift, (96, 64), borderMode=cv2.BORDER_REPLICATE) for shift in shifts]
    settings = StreamSettings(temporal="blend", reuse_threshold=30, refresh=1000)
    path, results = LivePath(resolver.engine, settings), []
    for index, image in enumerate([*film, *creeping[:5], *creeping[4:5] * 40]):
        work = path.prepare(LiveFrame(index, 0.0, image))
        path.infer(work)
        assert (work.computed == 0) is (index >= len(film))
        results.append(path.finish(work).astype(np.float32))
    # The average goes over into what the tiles show, the last frame that was computed, and after a second of rest
    # settles there to 3 % of what was left. Taken along by the camera's motion it changed by 2.5 levels.
    steps = [float(np.abs(now - last).mean()) for last, now in pairwise(results[len(film) - 1 :])]
    assert max(steps[:20]) < 0.5
    assert np.abs(results[-1] - resolver(film[-1])).max() <= 2


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
    # One level for rounding: a weight of exp(-(100 / 16)^2) and less is left of what was there.
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

    for result, wanted in zip(resolver.stream(refilled(), temporal="blend"), expected, strict=True):
        assert np.array_equal(result, wanted)


def test_a_film_that_has_settled_gives_the_same_array_again(resolver: SuperResolver, photo: Photo) -> None:
    path, image, results = LivePath(resolver.engine, StreamSettings(temporal="blend")), photo(32, 40), []
    for index in range(60):
        work = path.prepare(LiveFrame(index, 0.0, image))
        path.infer(work)
        results.append(path.finish(work))
    assert results[-1] is results[-2]
