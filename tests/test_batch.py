from __future__ import annotations

import errno
import json
import os
import struct
import zlib
from collections.abc import Callable, Generator, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from rsd_edge.errors import BackendError, InputError
from rsd_edge.live.settings import StreamSettings
from rsd_edge.pipeline import check_strength
from rsd_edge.resample import result_size
from rsd_edge.stream.atomic import output_error, write_json
from rsd_edge.stream.batch import FileResult, Observer, RunSettings, Status, report, run_jobs
from rsd_edge.stream.discovery import Job
from rsd_edge.stream.encoders import Layout
from rsd_edge.stream.images import MAX_PIXELS, read_image, write_image
from rsd_edge.stream.metadata import Metadata
from rsd_edge.stream.results import ResultPlan, plan_result
from rsd_edge.video.settings import VideoSettings

Image = npt.NDArray[np.uint8]


class Resolver:
    """Repeats pixels, and remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, float, tuple[int, int] | None]] = []

    def bands(
        self,
        image_bgr: Image,
        *,
        seed: int = 0,
        strength: float = 1.0,
        size: tuple[int, int] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Generator[Image, None, None]:
        self.calls.append((seed, strength, size))
        if progress is not None:
            progress(1, 2)
            progress(2, 2)
        if image_bgr[0, 0, 0] == 13:
            raise MemoryError
        assert size is not None
        yield image_bgr.repeat(4, axis=0).repeat(4, axis=1)[: size[1], : size[0]]


class Recorder(Observer):
    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def start(self, index: int, job: Job) -> None:
        self.events.append((index, job.source.name))

    def load(self, output_pixels: int) -> None:
        self.events.append((output_pixels,))

    def advance(self, done: int, total: int) -> None:
        self.events.append((done, total))


def make_jobs(folder: Path, *values: int) -> list[Job]:
    """One image of 3x2 pixels for each value; negative values make files that are no image."""
    jobs = []
    for index, value in enumerate(values):
        source = folder / f"{index}.png"
        if value < 0:
            source.write_bytes(b"no image")
        else:
            write_image(source, np.full((2, 3, 3), value, np.uint8))
        jobs.append(Job(source, folder / "out" / f"{index}.png"))
    return jobs


def test_files_are_upscaled_into_new_folders(tmp_path: Path) -> None:
    (job,) = make_jobs(tmp_path, 7)
    resolver = Resolver()
    (result,) = run_jobs([job], resolver, RunSettings(seed=5, strength=0.5, scale=3))
    assert np.array_equal(read_image(job.target), np.full((6, 9, 3), 7))
    assert resolver.calls == [(5, 0.5, (9, 6))]
    assert (result.status, result.input_size, result.output_size) == (Status.DONE, (3, 2), (9, 6))
    assert result.megapixels_per_second == pytest.approx(54e-6 / result.seconds)


def test_a_bad_file_does_not_stop_the_others(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path, 1, -1, 3)
    results = list(run_jobs(jobs, Resolver(), RunSettings()))
    assert [result.status for result in results] == [Status.DONE, Status.FAILED, Status.DONE]
    assert results[1].error is not None
    assert "1.png is not an image" in results[1].error
    assert not jobs[1].target.exists()


def test_too_little_memory_does_not_stop_the_others(tmp_path: Path) -> None:
    results = list(run_jobs(make_jobs(tmp_path, 13, 1), Resolver(), RunSettings()))
    assert [result.status for result in results] == [Status.FAILED, Status.DONE]
    assert results[0].error is not None
    assert "not enough memory for" in results[0].error


def test_an_engine_that_fails_is_told_with_the_image(tmp_path: Path) -> None:
    class Broken(Resolver):
        def bands(self, image_bgr: Image, **_: Any) -> Iterator[Image]:
            raise BackendError("not enough memory for 1 tiles of 8 x 8; give a smaller --tile")

    (result,) = run_jobs(make_jobs(tmp_path, 1), Broken(), RunSettings())
    assert result.error == f"{tmp_path / '0.png'}: not enough memory for 1 tiles of 8 x 8; give a smaller --tile"


def test_bugs_are_not_hidden(tmp_path: Path) -> None:
    class Broken(Resolver):
        def bands(self, image_bgr: Image, **_: Any) -> Iterator[Image]:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(run_jobs(make_jobs(tmp_path, 1), Broken(), RunSettings()))


@pytest.mark.parametrize("why", [errno.ENOSPC, errno.EDQUOT])
def test_nothing_is_started_after_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: int) -> None:
    def full(plan: ResultPlan, bands: Iterator[Image]) -> None:
        next(bands)
        raise output_error(plan.path, OSError(why, os.strerror(why)))

    jobs = make_jobs(tmp_path, 1, 2, 3)
    monkeypatch.setattr(ResultPlan, "write", full)
    resolver = Resolver()
    results = list(run_jobs(jobs, resolver, RunSettings()))
    assert [result.status for result in results] == [Status.FAILED, Status.NOT_STARTED, Status.NOT_STARTED]
    assert results[0].error is not None
    assert "the disk is full" in results[0].error
    assert len(resolver.calls) == 1


def test_other_write_errors_concern_one_file(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path, 1, 2)
    blocked = Job(jobs[0].source, jobs[0].source / "below a file" / "x.png")
    results = list(run_jobs([blocked, jobs[1]], Resolver(), RunSettings()))
    assert [result.status for result in results] == [Status.FAILED, Status.DONE]


def test_an_unwritable_place_is_noticed_before_the_work(tmp_path: Path) -> None:
    (job,) = make_jobs(tmp_path, 1)
    resolver = Resolver()
    list(run_jobs([Job(job.source, job.source / "x" / "y.png")], resolver, RunSettings()))
    assert resolver.calls == []


def test_existing_results_are_kept_on_request(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path, 1, 2)
    jobs[0].target.parent.mkdir()
    jobs[0].target.write_bytes(b"older")
    results = list(run_jobs(jobs, Resolver(), RunSettings(skip_existing=True)))
    assert [result.status for result in results] == [Status.SKIPPED, Status.DONE]
    assert jobs[0].target.read_bytes() == b"older"
    list(run_jobs(jobs, Resolver(), RunSettings()))
    assert jobs[0].target.read_bytes() != b"older"


def test_the_observer_sees_each_file_and_its_tiles(tmp_path: Path) -> None:
    recorder = Recorder()
    list(run_jobs(make_jobs(tmp_path, 1, 2), Resolver(), RunSettings(), recorder))
    assert recorder.events == [(0, "0.png"), (96,), (1, 2), (2, 2), (1, "1.png"), (96,), (1, 2), (2, 2)]


def test_report_says_what_happened(tmp_path: Path) -> None:
    settings = RunSettings(seed=9, tile=128)
    results = list(run_jobs(make_jobs(tmp_path, 1, -1), Resolver(), settings))
    write_json(tmp_path / "report.json", report(results, settings, {"digest": "0f3a"}))
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["settings"]["seed"] == 9
    assert data["settings"]["tile"] == 128
    assert data["engine"] == {"digest": "0f3a"}
    assert set(data["versions"]) >= {"python", "platform", "numpy", "onnxruntime"}
    assert "torch" not in data["versions"]  # which had no part in this
    assert ("openvino" in data["versions"]) == (find_spec("openvino") is not None)
    assert (data["settings"]["precision"], data["settings"]["backend"]) == (None, None)
    assert data["totals"]["done"] == data["totals"]["failed"] == 1
    done, failed = data["files"]
    assert (done["input_size"], done["output_size"], done["error"]) == ([3, 2], [12, 8], None)
    assert done["megapixels_per_second"] > 0
    assert done["output"] == str(tmp_path / "out" / "0.png")
    assert (failed["status"], failed["output_size"], failed["megapixels_per_second"]) == ("failed", None, None)
    assert "not an image" in failed["error"]


def test_report_says_what_kind_of_image_it_was(tmp_path: Path) -> None:
    source, target = tmp_path / "a.png", tmp_path / "b.jpg"
    exif = struct.pack("<2sHIHHHIHHI", b"II", 42, 8, 1, 274, 3, 1, 6, 0, 0)
    deep = np.zeros((2, 3, 2), np.uint16)
    plan_result(source, Layout.of(deep), Metadata(exif, b"<x/>")).write([deep])
    (result,) = run_jobs([Job(source, target)], Resolver(), RunSettings())
    (entry,) = report([result], RunSettings(), {})["files"]
    kinds = ["EXIF", "XMP"]
    assert entry["read"] == {
        "format": "PNG",
        "mode": "gray",
        "bits": 16,
        "alpha": True,
        "metadata": kinds,
        "orientation": 6,
    }
    common = {"format": "JPEG", "mode": "gray", "bits": 8, "alpha": False}
    assert entry["written"] == {**common, "metadata": kinds, "metadata_dropped": []}
    assert entry["output_size"] == (8, 12)  # upright
    (result,) = run_jobs([Job(source, target)], Resolver(), RunSettings(strip=True))
    assert result.written == {**common, "metadata": [], "metadata_dropped": kinds}
    (entry,) = report([FileResult(Job(source, target), Status.SKIPPED)], RunSettings(), {})["files"]
    assert (entry["read"], entry["written"]) == (None, None)


def test_the_print_size_is_not_missed_in_a_stripped_result(tmp_path: Path) -> None:
    (job,) = make_jobs(tmp_path, 1)
    content = b"pHYs" + struct.pack(">IIB", 11811, 11811, 1)
    plain, checksum = job.source.read_bytes(), struct.pack(">I", zlib.crc32(content))
    job.source.write_bytes(plain[:33] + struct.pack(">I", 9) + content + checksum + plain[33:])
    notes = [next(run_jobs([job], Resolver(), RunSettings(strip=strip))).notes for strip in (False, True)]
    assert notes == [("its 300 DPI left out",), ()]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (120, 80)),
        ({"scale": 1.5}, (45, 30)),
        ({"size": (30, 80)}, (30, 80)),
        ({"max_side": 100}, (100, 67)),
        ({"max_side": 30}, (30, 20)),
        ({"max_side": 121}, (120, 80)),
    ],
)
def test_size_of_results(settings: dict[str, Any], expected: tuple[int, int]) -> None:
    assert RunSettings(**settings).result_size((30, 20)) == expected


def test_sizes_that_cannot_be_made_fail_before_the_work(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path, 1, 2)
    resolver = Resolver()
    results = list(run_jobs(jobs, resolver, RunSettings(max_side=2)))
    assert [result.status for result in results] == [Status.FAILED, Status.FAILED]
    assert results[0].error == (
        f"{jobs[0].source}: max-side 2 is less than the 3 pixels of the image; "
        "choose more, or reduce the image with another tool"
    )
    assert resolver.calls == []


def test_report_of_names_that_are_no_unicode(tmp_path: Path) -> None:
    job = Job(Path("\udcff.png"), Path("写.png"))
    write_json(tmp_path / "report.json", report([FileResult(job, Status.SKIPPED)], RunSettings(), {}))
    (entry,) = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["files"]
    assert (entry["input"], entry["output"]) == ("\udcff.png", "写.png")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 0.5}, "scale is 0.5; it must lie between 1 and 4"),
        ({"scale": 4.01}, "scale is 4.01"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"strength": -0.1}, "strength is -0.1; it must lie between 0"),
        ({"strength": 1.5}, "strength is 1.5"),
        ({"seed": 2**64}, "use 0 to"),
        ({"seed": -1}, "use 0 to"),
        ({"tile": 0}, "tile is 0; it must be at least 1"),
        ({"batch": 0}, "batch is 0"),
        ({"threads": -1}, "threads is -1"),
        ({"max_pixels": 0}, "max-pixels is 0"),
        ({"max_side": 0}, "max-side is 0"),
        ({"max_side": 9, "size": (9, 9)}, "exclude each other"),
        ({"scale": 2, "size": (9, 9)}, "exclude each other"),
    ],
)
def test_settings_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RunSettings(**options)


@pytest.mark.parametrize(
    "values",
    [{"scale": 5.0}, {"scale": 0.99}, {"strength": 1.25}, {"strength": -0.5}, {"strength": float("nan")}],
    ids=str,
)
def test_all_settings_refuse_alike(values: dict[str, float]) -> None:
    messages = set()
    for settings in (RunSettings, VideoSettings, StreamSettings):
        with pytest.raises(InputError) as raised:
            settings(**values)
        messages.add(str(raised.value))
    with pytest.raises(InputError) as raised:
        check_strength(values["strength"]) if "strength" in values else result_size((3, 2), values["scale"])
    assert messages == {str(raised.value)}


def test_all_limits_are_one() -> None:
    assert RunSettings().max_pixels == VideoSettings().max_pixels == MAX_PIXELS
