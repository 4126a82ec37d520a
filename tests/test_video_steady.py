"""Films whose detail is averaged along what moves, and runs of them that go on."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from video_clips import Recipe, cubic, make, read

from rsd_edge import VideoSettings, VideoUpscaler
from rsd_edge.errors import InputError, OutputError
from rsd_edge.frames import PixelT
from rsd_edge.live.blend import FilmAverage
from rsd_edge.live.trust import Carry
from rsd_edge.resample import AreaReduction
from rsd_edge.video import journal
from rsd_edge.video.journal import Segment, WorkFolder
from rsd_edge.video.steady import Steadier

Photo = Callable[[int, int], NDArray[np.uint8]]
STEP = 2


class Textured:
    """Bicubic with texture of a strong amplitude that depends on everything in the picture: no two frames share it."""

    def __init__(self, stop_at: int = 0) -> None:
        self.calls, self._stop_at = 0, stop_at

    def __call__(
        self,
        image: NDArray[PixelT],
        *,
        seed: int = 0,
        strength: float = 1.0,
        scale: float = 4.0,
        out: NDArray[PixelT] | None = None,
    ) -> NDArray[PixelT]:
        self.calls += 1
        if self.calls == self._stop_at:
            raise ValueError("stop")
        unit = np.iinfo(image.dtype).max // 255
        result = cubic(image, seed=seed, strength=strength, scale=scale, out=None).astype(np.int64)
        generator = np.random.default_rng(int(image.astype(np.int64).sum()))
        result += unit * generator.integers(-20, 21, result.shape)
        clipped = np.clip(result, 0, 255 * unit).astype(image.dtype)
        if out is None:
            return clipped
        out[:] = clipped
        return out


def panned(photo: Photo, frames: int) -> list[NDArray[np.uint8]]:
    whole = photo(64, 96 + STEP * frames) // 2 + 60  # far from black and white
    return [np.ascontiguousarray(whole[:, STEP * k : STEP * k + 96]) for k in range(frames)]


def plainly(image: NDArray[PixelT]) -> NDArray[PixelT]:
    return cubic(image, seed=0, strength=0, scale=4)


def flicker(results: list[NDArray[Any]]) -> float:
    """Mean difference of frames, the motion undone, in the later half."""
    shift, inner = 4 * STEP, (slice(16, -16), slice(16, -24))
    pairs = pairwise(result.astype(np.float64) for result in results[len(results) // 2 :])
    return float(np.mean([np.abs(now[:, :-shift] - last[:, shift:])[inner].mean() for last, now in pairs]))


def steadied(film: list[NDArray[Any]], scale: float = 4) -> list[NDArray[Any]]:
    steadier, texture = Steadier(scale), Textured()
    return [steadier(image, texture(image)).copy() for image in film]


@pytest.mark.parametrize("bits", [8, 16])
def test_frames_differ_much_less_than_by_themselves(photo: Photo, bits: int) -> None:
    film = [image.astype(np.uint16) * 257 if bits == 16 else image for image in panned(photo, 12)]
    alone = [Textured()(image) for image in film]
    # Texture of no two frames is alike: they differ by 1.4 of its deviation, averages that take a twentieth anew by a
    # twentieth of that, and flow and rounding add a little.
    assert flicker(steadied(film)) < 0.2 * flicker(alone)


def test_sixteen_bits_are_averaged_like_eight(photo: Photo) -> None:
    eight, sixteen = Steadier(4), Steadier(4)
    for image in panned(photo, 4):
        wide = image.astype(np.uint16) * 257
        found = sixteen(wide, plainly(wide)).astype(np.float64) / 257
        assert np.abs(found - eight(image, plainly(image))).max() <= 1  # the base and the sum are rounded to 8 bits


def test_a_smaller_scale_is_the_film_reduced(photo: Photo) -> None:
    film = panned(photo, 3)
    for large, half in zip(steadied(film), steadied(film, scale=2), strict=True):
        height, width = large.shape[0] // 2, large.shape[1] // 2
        assert np.array_equal(half, AreaReduction(large.shape[:2], (height, width)).reduce(large, 0, 0, height))


def test_another_size_begins_anew(photo: Photo) -> None:
    assert np.array_equal(steadied([*panned(photo, 2), photo(40, 50)])[-1], Textured()(photo(40, 50)))


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv420p10le"])
def test_an_interrupted_film_goes_on_with_the_same_frames(tmp_path: Path, pixel_format: str) -> None:
    source = make(tmp_path / "a.mkv", Recipe(times=range(0, 14 * 512, 512), pixel_format=pixel_format))
    settings = VideoSettings(segment_frames=4)
    VideoUpscaler(Textured(), settings)(source, tmp_path / "whole.mkv")
    target, folder = tmp_path / "b.mkv", tmp_path / ".b.mkv.rsd-edge"
    with pytest.raises(ValueError, match="stop"):
        VideoUpscaler(Textured(11), settings)(source, target)
    # Of the one that is needed and, while it is not sure that it is, of the one before.
    assert "000002.state" in {path.name for path in folder.glob("*.state")} <= {"000001.state", "000002.state"}
    result = VideoUpscaler(Textured(), settings)(source, target)
    assert result.new_frames == 6
    assert read(target).hashes == read(tmp_path / "whole.mkv").hashes
    assert not folder.exists()


def test_frames_depend_on_those_before_an_interruption(tmp_path: Path) -> None:
    """Or the test before this one would prove nothing."""
    source = make(tmp_path / "a.mkv", Recipe())
    late = VideoSettings(start=4 / 25)
    VideoUpscaler(Textured(), VideoSettings())(source, tmp_path / "whole.mkv")
    VideoUpscaler(Textured(), late)(source, tmp_path / "rest.mkv")
    assert read(tmp_path / "rest.mkv").hashes != read(tmp_path / "whole.mkv").hashes[4:]


@pytest.mark.parametrize("damage", [b"", b"nothing", b"PK\x03\x04" + bytes(500)])
def test_a_damaged_state_is_refused_by_name(tmp_path: Path, damage: bytes) -> None:
    source, target = make(tmp_path / "a.mkv", Recipe()), tmp_path / "b.mkv"
    settings = VideoSettings(segment_frames=4)
    with pytest.raises(ValueError, match="stop"):
        VideoUpscaler(Textured(6), settings)(source, target)
    (tmp_path / ".b.mkv.rsd-edge" / "000001.state").write_bytes(damage)
    with pytest.raises(OutputError, match=r"is damaged \(000001\.state\); delete that folder to begin again"):
        VideoUpscaler(Textured(), settings)(source, target)


def test_large_states_are_kept_once_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make(tmp_path / "a.mkv", Recipe(times=range(0, 14 * 512, 512)))
    settings, target = VideoSettings(segment_frames=4), tmp_path / "b.mkv"
    VideoUpscaler(Textured(), settings)(source, tmp_path / "whole.mkv")
    monkeypatch.setattr(journal, "_SMALL_STATE", 0)
    with pytest.raises(ValueError, match="stop"):
        VideoUpscaler(Textured(14), settings)(source, target)
    folder = tmp_path / ".b.mkv.rsd-edge"
    assert [path.name for path in folder.glob("*.state")] == ["000001.state"]
    (folder / ".rsd-edge-1.part").write_bytes(b"of a run that was killed")
    with pytest.raises(ValueError, match="stop"):  # rewound, and stopped before anything was done anew
        VideoUpscaler(Textured(1), settings)(source, target)
    assert not (folder / ".rsd-edge-1.part").exists()
    assert VideoUpscaler(Textured(), settings)(source, target).new_frames == 10
    assert read(target).hashes == read(tmp_path / "whole.mkv").hashes


def test_a_run_that_was_rewound_and_stopped_again_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make(tmp_path / "a.mkv", Recipe(times=range(0, 14 * 512, 512)))
    settings, target = VideoSettings(segment_frames=4), tmp_path / "b.mkv"
    VideoUpscaler(Textured(), settings)(source, tmp_path / "whole.mkv")
    monkeypatch.setattr(journal, "_SMALL_STATE", 0)
    for stop_at in (14, 6):  # behind three segments, of which two are given up, and behind one more
        with pytest.raises(ValueError, match="stop"):
            VideoUpscaler(Textured(stop_at), settings)(source, target)
    assert VideoUpscaler(Textured(), settings)(source, target).new_frames == 6
    assert read(target).hashes == read(tmp_path / "whole.mkv").hashes


def work_folder(folder: Path) -> WorkFolder:
    return WorkFolder(folder / "b.mkv", {"threads": 1, "input": {}, "settings": {}, "engine": {}, "encoder": {}})


def piece(work: WorkFolder) -> Segment:
    work.next_file().write_bytes(b"1234")
    return Segment(work.next_file().name, 4, 4, ((4, 0, True),), 4)


def test_a_torn_line_is_gone_before_the_next_is_written(tmp_path: Path) -> None:
    with work_folder(tmp_path) as work:
        work.commit(piece(work))
    with (tmp_path / ".b.mkv.rsd-edge" / "journal.jsonl").open("ab") as file:
        file.write(b'{"segment": {"file": "0000')
    with work_folder(tmp_path) as work:
        work.commit(piece(work))
    with work_folder(tmp_path) as work:
        assert len(work.segments) == 2


def test_a_state_is_on_the_disk_before_it_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done, replace = [], os.replace
    monkeypatch.setattr(os, "fsync", lambda file: done.append(Path(f"/proc/self/fd/{file}").resolve().suffix))
    monkeypatch.setattr(os, "replace", lambda part, path: (done.append(path.suffix), replace(part, path)))
    with work_folder(tmp_path) as work:
        work.save_state({"detail": np.arange(3)})
    assert done == [".jsonl", ".part", ".state"]


def test_what_a_run_goes_on_from_outlives_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    with work_folder(tmp_path) as work:
        work.save_state({"detail": np.arange(3)})
        for _ in range(3):  # behind the first, none is kept, as if they were large
            work.commit(piece(work))
        with monkeypatch.context() as patch:
            patch.setattr(np, "savez", full)
            with pytest.raises(OutputError, match="the disk is full"):
                work.save_state({"detail": np.arange(4)})
    with work_folder(tmp_path) as work:
        assert work.rewind()["detail"].tolist() == [0, 1, 2]
        assert len(work.segments) == 1


def test_a_line_that_does_not_fit_is_told_and_forgotten(tmp_path: Path) -> None:
    with work_folder(tmp_path) as work:
        work.commit(piece(work))
        size, unlimited = (work.path / "journal.jsonl").stat().st_size, resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, unlimited[1]))
        try:
            with pytest.raises(OutputError, match=r"cannot write .*b\.mkv"):
                work.commit(piece(work))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert (tmp_path / ".b.mkv.rsd-edge" / "journal.jsonl").stat().st_size == size
    with work_folder(tmp_path) as work:
        assert len(work.segments) == 1


def test_a_run_stopped_after_its_last_piece_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make(tmp_path / "a.mkv", Recipe(times=range(0, 6 * 512, 512)))
    settings, target = VideoSettings(segment_frames=4), tmp_path / "b.mkv"
    VideoUpscaler(Textured(), settings)(source, tmp_path / "whole.mkv")
    with monkeypatch.context() as patch:
        patch.setattr(journal.WorkFolder, "commit_all", lambda folder: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            VideoUpscaler(Textured(), settings)(source, target)
    assert VideoUpscaler(Textured(), settings)(source, target).frames == 6
    assert read(target).hashes == read(tmp_path / "whole.mkv").hashes


def test_frames_too_wide_to_be_moved_are_refused() -> None:
    with pytest.raises(InputError, match=r"frames of 8192x8 cannot be averaged.*give --temporal fixed"):
        FilmAverage(8, 8192)


def test_what_decides_the_frames_must_stay(tmp_path: Path) -> None:
    source, target = make(tmp_path / "a.mkv", Recipe()), tmp_path / "b.mkv"
    with pytest.raises(ValueError, match="stop"):
        VideoUpscaler(Textured(6), VideoSettings(segment_frames=4))(source, target)
    with pytest.raises(OutputError, match="temporal blend then, fixed now"):
        VideoUpscaler(Textured(), VideoSettings(segment_frames=4, temporal="fixed"))(source, target)


@pytest.mark.parametrize("io", ["av", "opencv"])
@pytest.mark.parametrize(
    ("changed", "averaged"), [({}, True), ({"temporal": "fixed"}, False), ({"strength": 0}, False)]
)
def test_files_are_averaged_unless_told_otherwise(
    tmp_path: Path, io: str, changed: dict[str, Any], averaged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    class Watched(Steadier):
        def __call__(self, pixels: NDArray[PixelT], result: NDArray[PixelT]) -> NDArray[PixelT]:
            calls.append(result.shape)
            return super().__call__(pixels, result)

    for module in ("upscaler", "opencv_io"):
        monkeypatch.setattr(f"rsd_edge.video.{module}.Steadier", Watched)
    settings = VideoSettings(io=io, scale=2, **changed)
    result = VideoUpscaler(Textured(), settings)(make(tmp_path / "a.mp4", Recipe()), tmp_path / "b.mp4")
    assert result.output_size == (128, 96)
    assert calls == ([(192, 256, 3)] * 8 if averaged else [])


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(InputError, match="temporal is 'flow'; it must be one of blend, fixed"):
        VideoSettings(temporal="flow")


def test_what_does_not_change_is_left_alone_for_a_second(photo: Photo) -> None:
    """The texture of this network is another one in every frame, since something moves in a corner."""
    film = [photo(64, 96) for _ in range(4)]
    for index, image in enumerate(film):
        image[:16, 8 * index : 8 * index + 16] = 255
    results = steadied(film)
    calm = slice(4 * 20, None)
    for result in results[1:]:
        assert np.array_equal(result[calm], results[0][calm])
        assert not np.array_equal(result[: 4 * 16], results[0][: 4 * 16])


def test_what_has_passed_by_leaves_no_trace(photo: Photo) -> None:
    calm = photo(64, 96) // 2 + 60
    passing = [calm.copy() for _ in range(10)]
    for index, image in enumerate(passing):
        image[20:36, 8 * index : 8 * index + 16] = 250
    results = steadied([calm, *passing, *[calm] * 60])
    assert np.abs(results[20].astype(int) - results[0]).max() > 4
    # Settled: of what was there, 0.8 ** 16 = 3 % are left, of a texture of 20 levels and of what the average had.
    assert np.abs(results[-1].astype(int) - results[0]).max() <= 1
    assert np.array_equal(results[-1], results[-2])


def test_a_fade_to_black_ends_in_black(photo: Photo) -> None:
    scene = photo(64, 96)
    fade = [np.rint(scene * (1 - step / 30)).astype(np.uint8) for step in range(31)]
    results = steadied([scene, *fade, *[fade[-1]] * 60])
    alone = Textured()(fade[-1])
    assert np.abs(results[-1].astype(int) - alone).max() <= 1


def test_noise_is_averaged_but_a_step_is_not_late(photo: Photo) -> None:
    generator = np.random.default_rng(5)
    calm = (photo(64, 96) // 2 + 60).astype(np.int64)
    noisy = [(calm + generator.integers(-2, 3, calm.shape)).astype(np.uint8) for _ in range(30)]
    steadier = Steadier(4)
    results = np.stack([steadier(image, plainly(image)).copy() for image in noisy])[10:].astype(float)
    plain = np.stack([plainly(image) for image in noisy])[10:].astype(float)
    # An average that keeps 0.7 leaves 0.42 of the deviation. Of what differs by two levels it keeps less, the flow of
    # noise moves it about, and rounding to 8 bits adds 0.3 levels; without it, all of it is left.
    assert results.std(axis=0).mean() < 0.9 * plain.std(axis=0).mean()
    brighter = (noisy[-1] + 40).astype(np.uint8)
    assert np.abs(steadier(brighter, plainly(brighter)).astype(int) - plainly(brighter)).max() <= 1


def test_what_comes_in_at_an_edge_is_its_own(photo: Photo) -> None:
    film = [np.ascontiguousarray(photo(64, 200)[:, 8 * k : 8 * k + 96]) for k in range(6)]
    last = steadied(film)[-1]
    edge = np.s_[32:-32, -4 * 6 :]  # of eight pixels that were outside, those away from the flow's blur
    off = np.abs(last[edge].astype(int) - Textured()(film[-1])[edge])
    assert np.median(off) <= 1


def test_nothing_fades_in_a_long_rest(photo: Photo) -> None:
    image = photo(24, 32)
    average, result = FilmAverage(24, 32), Textured()(image)
    rest = Carry(np.zeros((24, 32, 2), np.float32), np.ones((24, 32), bool))
    out = result.copy()
    for _ in range(2000):
        out = average.add(image, result, rest, np.empty_like(result))
    assert np.array_equal(out, result)
    assert average.settled
    stored = average.checkpoint()["detail"]
    assert np.array_equal(stored, 64 * (result.astype(np.int64) - plainly(image)))
