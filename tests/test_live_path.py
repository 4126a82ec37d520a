"""The three-part frame path against the whole one, the reuse of tiles, and noise that moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from live_doubles import WholeTileEngine
from numpy.typing import NDArray

from rsd_edge import SuperResolver
from rsd_edge.errors import BackendError, InputError
from rsd_edge.live.frames import LiveFrame
from rsd_edge.live.motion import FixedNoise, FlowNoise
from rsd_edge.live.path import LivePath
from rsd_edge.live.settings import StreamSettings
from rsd_edge.noise import NoiseField
from rsd_edge.specs import TileSpec
from rsd_edge.tiling import plan_tiles

Image = NDArray[np.uint8]
Photo = Callable[[int, int], Image]


@pytest.fixture(scope="module")
def resolver() -> SuperResolver:
    return SuperResolver(WholeTileEngine(TileSpec(size=56)))


def through(path: LivePath, pixels: Image, index: int = 0, epoch: int = 0) -> tuple[Image, int]:
    """The result and how many tiles were computed for it."""
    work = path.prepare(LiveFrame(index, 0.0, pixels, epoch))
    path.infer(work)
    return path.finish(work), work.computed


def spot(image: Image, y: int, x: int) -> Image:
    changed = image.copy()
    changed[y : y + 3, x : x + 3] ^= 128
    return changed


@pytest.mark.parametrize(
    "settings", [{}, {"scale": 2.5, "seed": 3}, {"strength": 0.5}, {"strength": 0.0}, {"reuse": False}]
)
def test_results_equal_those_of_the_whole_path(
    resolver: SuperResolver, photo: Photo, settings: dict[str, float]
) -> None:
    path = LivePath(resolver.engine, StreamSettings(**settings))
    options = {name: value for name, value in settings.items() if name != "reuse"}
    first = photo(70, 100)
    for image in (first, first, spot(first, 40, 60), spot(first, 2, 2), photo(50, 61), first):
        expected = resolver(image, **options)
        assert np.array_equal(through(path, image)[0], expected)


def test_without_detail_no_tile_counts_as_reused(resolver: SuperResolver, photo: Photo) -> None:
    work = LivePath(resolver.engine, StreamSettings(strength=0.0)).prepare(LiveFrame(0, 0.0, photo(70, 100)))
    assert (work.tiles, work.computed) == (0, 0)


def test_only_tiles_that_see_a_change_are_computed(resolver: SuperResolver, photo: Photo) -> None:
    path = LivePath(resolver.engine)
    image = photo(70, 100)
    plan = plan_tiles(70, 100, resolver.engine.tile)
    assert (plan.y.count, plan.x.count) == (3, 5)
    assert through(path, image)[1] == 15
    before = through(path, image)
    assert before[1] == 0
    for y, x in ((0, 0), (30, 50), (67, 97)):
        changed = spot(image, y, x)
        seen = 0
        for index in range(plan.count):
            top, left = plan.origin(index)
            # Reflections beyond the frame see the change, too, and no other tile may be missed or wasted.
            rows = np.abs(np.pad(np.arange(70), (16, 60), mode="reflect")[top + 16 :][: plan.tile_h])
            columns = np.abs(np.pad(np.arange(100), (16, 60), mode="reflect")[left + 16 :][: plan.tile_w])
            seen += bool(np.isin(rows, range(y, y + 3)).any() and np.isin(columns, range(x, x + 3)).any())
        result, computed = through(path, changed)
        assert computed == seen < 15
        assert np.array_equal(result, resolver(changed))
        through(path, image)


class Failing(WholeTileEngine):
    """Works ahead, and is gone at the fourth tile."""

    ahead = 3

    def __init__(self) -> None:
        super().__init__(TileSpec(size=56))
        self.in_flight: list[int] = []

    def submit(self, *batch: Any) -> int:
        if self.runs == 3:
            raise BackendError("the device is gone")
        super().submit(*batch)
        self.in_flight.append(self.runs)
        return self.runs

    def collect(self, ticket: int) -> None:
        self.in_flight.remove(ticket)


def test_a_failed_engine_is_left_writing_into_no_buffer(photo: Photo) -> None:
    engine = Failing()
    with pytest.raises(BackendError, match="the device is gone"):
        through(LivePath(engine), photo(70, 100))
    assert (engine.runs, engine.in_flight) == (3, [])


def test_results_handed_out_stay_as_they_are(resolver: SuperResolver, photo: Photo) -> None:
    path = LivePath(resolver.engine)
    image = photo(70, 100)
    first = through(path, image)[0]
    copy = first.copy()
    again = through(path, image)[0]
    assert again is first
    with pytest.raises(ValueError, match="read-only"):
        first[0, 0, 0] = 1
    through(path, spot(image, 20, 20))
    assert np.array_equal(first, copy)


def test_noise_of_a_sensor_is_below_the_threshold_and_a_finger_above(resolver: SuperResolver, photo: Photo) -> None:
    path = LivePath(resolver.engine, StreamSettings(reuse_threshold=4.0, refresh=1000))
    rng = np.random.default_rng(0)
    image = np.clip(photo(70, 100), 20, 235)
    noisy = [np.clip(image + np.rint(rng.normal(0, 1.5, image.shape)), 0, 255).astype(np.uint8) for _ in range(6)]
    first, _ = through(path, noisy[0])
    rested = [through(path, picture) for picture in noisy[1:]]
    # Noise stays below the lower threshold, too, which is that of tiles that were computed for the frame before.
    assert [computed for _, computed in rested] == [0] * 5
    assert all(result is first or np.array_equal(result, first) for result, _ in rested)
    finger = noisy[-1].copy()
    finger[30:42, 40:52] = 255 - finger[30:42, 40:52]
    moved, computed = through(path, finger)
    assert 0 < computed < 15
    fresh = resolver(finger)
    inside = slice(4 * 32, 4 * 40), slice(4 * 42, 4 * 50)
    assert np.array_equal(moved[inside], fresh[inside])
    # Tile 4 at the upper right sees nothing of the finger, and has a neighbour that does: beyond their seam, and two
    # pixels that the base reaches over, it is what it was.
    assert np.array_equal(moved[: 4 * 18, 4 * 86 :], first[: 4 * 18, 4 * 86 :])
    assert not np.array_equal(moved[: 4 * 18, 4 * 60 : 4 * 76], first[: 4 * 18, 4 * 60 : 4 * 76])


def test_only_what_depends_on_a_computed_tile_is_drawn_again_and_all_of_it(
    resolver: SuperResolver, photo: Photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = StreamSettings(reuse_threshold=4.0, refresh=1000)
    frugal, thorough = LivePath(resolver.engine, settings), LivePath(resolver.engine, settings)
    rng = np.random.default_rng(0)
    image = np.clip(photo(70, 100), 20, 235)
    for index in range(16):
        noisy = np.clip(image + np.rint(rng.normal(0, 1.5, image.shape)), 0, 255).astype(np.uint8)
        y, x = min(6 * index, 54), 10 * index % 90
        noisy[y : y + 9, x : x + 9] = 255
        result, computed = through(frugal, noisy)
        with monkeypatch.context() as patch:
            patch.setattr("rsd_edge.live.path._touched", lambda plan, computed: set(range(plan.count)))
            assert np.array_equal(through(thorough, noisy)[0], result)
        assert index == 0 or computed < 15


def test_tiles_of_a_fixed_batch_live_on_while_others_of_it_are_computed_again(photo: Photo) -> None:
    resolver = SuperResolver(WholeTileEngine(TileSpec(size=56, batch=4, fixed=True)))
    path = LivePath(resolver.engine)
    image = photo(70, 100)
    for y, x in ((0, 0), (40, 60), (2, 2), (66, 90), (30, 50), (31, 51), (2, 90), (60, 3)):
        image = spot(image, y, x)
        assert np.array_equal(through(path, image)[0], resolver(image))


def test_buffers_are_used_again(resolver: SuperResolver, photo: Photo) -> None:
    path = LivePath(resolver.engine)
    seen = set()
    for index in range(12):
        work = path.prepare(LiveFrame(index, 0.0, np.roll(photo(70, 100), index, axis=0)))
        seen |= {id(batch.detail) for batch in work.batches}
        path.infer(work)
        path.finish(work)
    assert len(seen) <= 2 * 15  # those of a frame on its way, and those of the one before


def test_a_moving_tile_rests_only_well_below_the_threshold(resolver: SuperResolver) -> None:
    path = LivePath(resolver.engine, StreamSettings(reuse_threshold=8.0, refresh=1000))
    levels = [100, 104, 108, 112, 120, 127, 132, 134, 141, 142]
    computed = [through(path, np.full((24, 24, 3), level, np.uint8))[1] for level in levels]
    # It begins as one that moves: 104 is not more than 6 away, so it rests at 100 until 112, which is more than 8 away;
    # there it moves again, and still with 120 (8 more) and 127 (7 more), until 132 (5 more than 127) lets it rest.
    assert computed == [1, 0, 0, 1, 1, 1, 0, 0, 1, 0]


def test_resting_tiles_are_computed_in_turns(resolver: SuperResolver, photo: Photo) -> None:
    path = LivePath(resolver.engine, StreamSettings(reuse_threshold=2.0, refresh=30))
    image = photo(70, 100)
    counts = [through(path, image)[1] for _ in range(61)]
    assert counts[0] == 15
    assert sum(counts[1:31]) == sum(counts[31:61]) == 15
    assert max(counts[1:]) == 1


def test_a_film_of_another_size_begins_anew(resolver: SuperResolver, photo: Photo) -> None:
    path = LivePath(resolver.engine)
    small, large = photo(48, 64), photo(70, 100)
    waiting = path.prepare(LiveFrame(0, 0.0, small))
    after = path.prepare(LiveFrame(1, 0.0, large))  # before the other one is finished, as threads do it
    for work, image in ((waiting, small), (after, large)):
        path.infer(work)
        assert np.array_equal(path.finish(work), resolver(image))


def test_overlapping_parts_give_the_same_as_one_after_the_other(resolver: SuperResolver, photo: Photo) -> None:
    path = LivePath(resolver.engine)
    image = photo(70, 100)
    films = [image, spot(image, 5, 5), spot(image, 5, 5), spot(image, 50, 80), image]
    works = [path.prepare(LiveFrame(i, 0.0, pixels)) for i, pixels in enumerate(films)]
    for work in works:
        path.infer(work)
    for work, pixels in zip(works, films, strict=True):
        assert np.array_equal(path.finish(work), resolver(pixels))


def test_bad_settings_are_told() -> None:
    for settings in (
        {"temporal": "wild"},
        {"reuse_threshold": -1.0},
        {"reuse_threshold": 3.0, "reuse": False},
        {"refresh": 0},
        {"scale": 5.0},
        {"strength": 2.0},
        {"seed": -1},
    ):
        with pytest.raises(InputError):
            StreamSettings(**settings)


PLAN = plan_tiles(96, 128, TileSpec(size=192))


def texture(shift_x: float = 0.0, shift_y: float = 0.0, zoom: float = 1.0) -> Image:
    y, x = np.mgrid[:96, :128].astype(np.float64)
    u, v = (x - 64) / zoom + 64 - shift_x, (y - 48) / zoom + 48 - shift_y
    picture = (
        128 + 45 * np.sin(u / 3.1) * np.cos(v / 4.3) + 45 * np.sin((u + 2 * v) / 7.7) + 30 * np.sin(v / 2.3 - u / 9)
    )
    return np.repeat(np.clip(picture, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def noise_of(pictures: list[Image], anew: int | None = None) -> list[NDArray[np.float32]]:
    noise = FlowNoise(NoiseField(0), 5, PLAN)
    taken = []
    for index, picture in enumerate(pictures):
        noise.advance(picture, anew=index in (0, anew))
        taken.append(noise.take(0))
    return taken


def test_still_pictures_keep_the_fixed_noise_even_if_a_sensor_trembles() -> None:
    fixed = FixedNoise(NoiseField(0), 5, PLAN).take(0)
    rng = np.random.default_rng(0)
    picture = texture()
    picture[:, 50:] = 128  # flat ground, where flow guesses
    still = [np.clip(picture + np.rint(rng.normal(0, 2.0, (96, 128, 3))), 0, 255).astype(np.uint8) for _ in range(40)]
    for taken in noise_of([picture, picture, *still]):
        assert np.array_equal(taken, fixed)


def test_noise_goes_where_the_picture_goes_and_stays_white() -> None:
    frames = noise_of([texture(1.5 * i, -0.75 * i) for i in range(21)])
    inner = slice(40, 72), slice(50, 80)
    moved = frames[-1][:, 40 - 15 + 16 : 72 - 15 + 16, 50 + 30 + 16 : 80 + 30 + 16]
    first = frames[0][:, inner[0].start + 16 : inner[0].stop + 16, inner[1].start + 16 : inner[1].stop + 16]
    matches = [
        float(np.corrcoef(first.ravel(), np.roll(moved, shift, (1, 2)).ravel())[0, 1])
        for shift in [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    ]
    # Flow is right to a fraction of a pixel and addresses are whole ones, so most samples are found, one off at most.
    assert sum(max(match, 0) for match in matches) > 0.6
    assert abs(np.corrcoef(first.ravel(), frames[-1][:, 56:88, 66:96].ravel())[0, 1]) < 0.1  # not where they were
    for samples in frames[5::5]:
        # 5 x 128 x 160 samples: the mean is within 4 / sqrt(102400) = 0.0125, correlations likewise.
        assert abs(float(samples.mean())) < 0.02
        assert float(samples.var()) == pytest.approx(1.0, abs=0.03)
        assert abs(float(np.mean(samples[:, :, 1:] * samples[:, :, :-1]))) < 0.02
        assert abs(float(np.mean(samples[:, 1:] * samples[:, :-1]))) < 0.02


def test_noise_follows_a_picture_that_creeps() -> None:
    noise = FlowNoise(NoiseField(0), 5, PLAN)
    for index in range(41):
        noise.advance(texture(0.1 * index), anew=index == 0)
    inside = noise._shift[20:-20, 20:-20]
    assert float(np.median(inside[..., 0])) == pytest.approx(-4.0, abs=0.5)  # flow is right to a tenth of the way
    assert float(np.median(inside[..., 1])) == pytest.approx(0.0, abs=0.5)


def test_noise_stays_white_while_the_picture_grows() -> None:
    samples = noise_of([texture(zoom=1.0 + 0.04 * i) for i in range(26)])[-1]
    assert float(samples.var()) == pytest.approx(1.0, abs=0.03)
    for product in (samples[:, :, 1:] * samples[:, :, :-1], samples[:, 1:] * samples[:, :-1]):
        assert abs(float(np.mean(product))) < 0.02  # shared samples would make it a half at twice the size


def test_noise_begins_anew_at_cuts_and_after_interruptions() -> None:
    fixed = FixedNoise(NoiseField(0), 5, PLAN).take(0)
    pan = [texture(2.0 * i) for i in range(6)]
    other = np.full((96, 128, 3), 235, np.uint8)
    assert not np.array_equal(noise_of(pan)[-1], fixed)
    assert np.array_equal(noise_of([*pan, other])[-1], fixed)
    assert np.array_equal(noise_of([*pan, texture(12.0)], anew=6)[-1], fixed)


def test_moving_noise_is_a_change_of_its_tile_only(resolver: SuperResolver, photo: Photo) -> None:
    path = LivePath(resolver.engine, StreamSettings(temporal="flow"))
    image = photo(70, 100)
    through(path, image)
    assert through(path, image)[1] == 0
    moved = np.roll(image, 3, axis=1)
    assert through(path, moved)[1] == 15
    assert through(path, moved)[1] == 0
    assert through(path, moved, epoch=1)[1] > 0  # the noise begins anew under the same picture
    assert np.array_equal(through(path, moved, epoch=1)[0], resolver(moved))


def test_pictures_too_small_for_flow_keep_their_noise(resolver: SuperResolver, photo: Photo) -> None:
    path = LivePath(resolver.engine, StreamSettings(temporal="flow"))
    for image in (photo(9, 12), photo(9, 13)):
        assert np.array_equal(through(path, image)[0], resolver(image))


def test_a_film_from_python_gives_what_single_calls_give(resolver: SuperResolver, photo: Photo) -> None:
    image = photo(48, 64)
    film = [image, image, spot(image, 9, 9), photo(40, 52)]
    taken: list[int] = []

    def frames() -> Iterator[Image]:
        for index, picture in enumerate(film):
            taken.append(index)
            yield picture

    results = resolver.stream(frames(), seed=4, scale=3.0)
    assert taken == []
    first = next(results)
    assert taken == [0]
    assert np.array_equal(resolver(image, seed=4, scale=3.0), first)  # in between, the engine is free
    others = list(results)
    assert others[0] is first
    for picture, made in zip(film[1:], others, strict=True):
        assert np.array_equal(made, resolver(picture, seed=4, scale=3.0))


def test_bad_films_are_told(resolver: SuperResolver) -> None:
    with pytest.raises(InputError, match="temporal"):
        resolver.stream([], temporal="wild")
    with pytest.raises(InputError, match="image 0 of the film has dtype uint16"):
        next(resolver.stream([np.zeros((8, 8, 3), np.uint16)]))
    with pytest.raises(InputError, match="gray"):
        next(resolver.stream([np.zeros((8, 8), np.uint8)]))
