"""The loop over image files: read, upscale, write, go on when one of them fails."""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from importlib import metadata
from typing import Any

from rsd_edge import __version__
from rsd_edge.errors import BackendError, InputError, RsdEdgeError
from rsd_edge.frames import SCALE
from rsd_edge.pipeline import check_strength
from rsd_edge.resample import Size, check_scale, result_size
from rsd_edge.stream.atomic import folder_for, is_disk_full
from rsd_edge.stream.discovery import Job
from rsd_edge.stream.enlarge import Resolver, enlarge, plan_enlarged
from rsd_edge.stream.images import MAX_PIXELS, LoadedImage, load_image
from rsd_edge.stream.results import ResultPlan
from rsd_edge.video.settings import VideoSettings


@dataclass(frozen=True)
class RunSettings:
    """Everything that decides what a run writes."""

    engine: str = "edge-s"
    precision: str | None = None
    backend: str | None = None
    steps: int | None = None
    device: str | None = None
    frame_path: str | None = None
    scale: float = 4.0
    size: Size | None = None
    """(width, height) of every result, instead of the scale."""
    max_side: int | None = None
    """Longest side that a result may have, instead of the scale."""
    seed: int = 0
    strength: float = 1.0
    tile: int | None = None
    batch: int = 1
    threads: int | None = None
    max_pixels: int = MAX_PIXELS
    skip_existing: bool = False
    strip: bool = False
    """Leave EXIF, XMP and colour profiles out."""

    def __post_init__(self) -> None:
        check_scale(self.scale)
        check_strength(self.strength)
        if not 0 <= self.seed < 2**64:
            raise InputError(f"seed is {self.seed}; use 0 to 2^64 - 1")
        for name in ("tile", "batch", "threads", "max_pixels", "max_side", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name.replace('_', '-')} is {value}; it must be at least 1")
        if (self.scale != SCALE) + (self.size is not None) + (self.max_side is not None) > 1:
            raise InputError("scale, size and max-side exclude each other; give one of them")

    def result_size(self, size: Size) -> Size:
        """(width, height) of the result for an image of that size. Raises InputError if it cannot be made."""
        if self.max_side is None:
            return result_size(size, self.scale, self.size)
        longest = max(size)
        if self.max_side < longest:
            raise InputError(
                f"max-side {self.max_side} is less than the {longest} pixels of the image; "
                "choose more, or reduce the image with another tool"
            )
        return result_size(size, min(SCALE, self.max_side / longest))


class Status(str, Enum):
    """How a file ended."""

    DONE = "done"
    SKIPPED = "skipped"
    """Its result existed already."""
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    """By Ctrl-C, while it was made."""
    NOT_STARTED = "not started"
    """The run stopped before it, because the disk is full or of Ctrl-C."""


@dataclass(frozen=True)
class FileResult:
    """What became of one job. Sizes are (width, height); seconds cover reading, upscaling and writing."""

    job: Job
    status: Status
    input_size: Size | None = None
    output_size: Size | None = None
    seconds: float = 0.0
    error: str | None = None
    notes: tuple[str, ...] = field(default=())
    read: Mapping[str, Any] | None = None
    """What kind of image the source is: format, mode, bits, alpha, metadata."""
    written: Mapping[str, Any] | None = None
    """The same of the result, and the metadata that it lacks."""
    frames: int = 1
    details: Mapping[str, Any] = field(default_factory=dict)
    """What a report tells of a video beside this."""
    disk_full: bool = False
    """It failed for that, and nothing more is to be started."""

    @property
    def megapixels_per_second(self) -> float | None:
        """Output megapixels for each second, or None unless the file is done."""
        if self.output_size is None or self.seconds == 0:
            return None
        return self.output_size[0] * self.output_size[1] * self.frames / 1e6 / self.seconds


class Observer:
    """Told what happens within a job; the methods of this class do nothing."""

    def start(self, index: int, job: Job) -> None:
        """Job number `index`, counted from 0, begins."""

    def load(self, output_pixels: int) -> None:
        """The image of the current job has been read; its result will have this many pixels."""

    def advance(self, done: int, total: int) -> None:
        """`done` of `total` tiles of the current job are finished."""


def run_jobs(
    jobs: Sequence[Job], resolver: Resolver, settings: RunSettings, observer: Observer | None = None
) -> Iterator[FileResult]:
    """Upscale the jobs one after the other and yield what became of each. A file that fails does not stop the others.

    After a full disk nothing more is started. Other exceptions than RsdEdgeError and MemoryError are bugs and pass.
    """
    watch = observer or Observer()
    stopped = False
    for index, job in enumerate(jobs):
        if stopped:
            yield FileResult(job, Status.NOT_STARTED, error="not started because the disk is full")
            continue
        watch.start(index, job)
        result = _run_job(job, resolver, settings, watch)
        stopped = result.disk_full
        yield result


def _run_job(job: Job, resolver: Resolver, settings: RunSettings, watch: Observer) -> FileResult:
    if settings.skip_existing and job.target.exists():
        return FileResult(job, Status.SKIPPED)
    begin = time.perf_counter()
    try:
        return _upscale_file(job, resolver, settings, watch)
    except RsdEdgeError as error:
        seconds = time.perf_counter() - begin
        return FileResult(job, Status.FAILED, seconds=seconds, error=str(error), disk_full=is_disk_full(error))
    except MemoryError:
        seconds = time.perf_counter() - begin
        message = f"not enough memory for {job.source}; close other programs, give a smaller --tile or cut it up"
        return FileResult(job, Status.FAILED, seconds=seconds, error=message)


def _upscale_file(job: Job, resolver: Resolver, settings: RunSettings, watch: Observer) -> FileResult:
    if job.problem:
        raise InputError(job.problem)
    begin = time.perf_counter()
    loaded = load_image(job.source, settings.max_pixels)
    try:
        size = settings.result_size(loaded.size)
    except InputError as error:
        raise InputError(f"{job.source}: {error}") from None
    plan = plan_enlarged(loaded, size, job.target, strip=settings.strip)
    watch.load(size[0] * size[1])
    with folder_for(job.target):  # before the work, so that an unwritable place is noticed early
        try:
            enlarge(loaded, plan, resolver, seed=settings.seed, strength=settings.strength, progress=watch.advance)
        except BackendError as error:
            raise BackendError(f"{job.source}: {error}") from error
    notes = (*loaded.losses(strip=settings.strip), *plan.notes, *([job.note] if job.note else []))
    seconds = time.perf_counter() - begin
    read, written = _read(loaded), _written(loaded, plan)
    return FileResult(job, Status.DONE, loaded.size, size, seconds, notes=notes, read=read, written=written)


def _read(loaded: LoadedImage) -> dict[str, Any]:
    return {
        "format": loaded.header.format,
        "mode": loaded.mode,
        "bits": loaded.bits,
        "alpha": loaded.header.alpha,
        "metadata": list(loaded.header.metadata.kinds),
        "orientation": loaded.header.metadata.orientation,
    }


def _written(loaded: LoadedImage, plan: ResultPlan) -> dict[str, Any]:
    kept = plan.metadata.kinds
    return {
        "format": plan.format,
        "mode": "gray" if plan.layout.channels < 3 else "RGB",
        "bits": plan.layout.bits,
        "alpha": plan.layout.channels in (2, 4),
        "metadata": list(kept),
        "metadata_dropped": [kind for kind in loaded.header.metadata.kinds if kind not in kept],
    }


def count(results: Iterable[FileResult], status: Status) -> int:
    """How many results have a status."""
    return sum(result.status is status for result in results)


def report(
    results: Sequence[FileResult],
    settings: RunSettings,
    engine: Mapping[str, Any],
    videos: VideoSettings | None = None,
) -> dict[str, Any]:
    """A JSON-ready account of a run: settings, engine, versions, totals, and one entry for each file.

    engine: what ran, as `SuperResolver.record` tells; the name in the settings may mean another one tomorrow.
    videos: their settings, where there are any.
    """
    seconds = sum(result.seconds for result in results)
    return {
        "rsd_edge": __version__,
        "settings": dataclasses.asdict(settings),
        **({} if videos is None else {"video_settings": dataclasses.asdict(videos)}),
        "engine": dict(engine),
        "versions": {
            **_versions(torch=engine.get("backend") == "torch"),
            **({} if videos is None else {"ffmpeg": _ffmpeg_version()}),
        },
        "totals": {
            **{status.name.lower(): count(results, status) for status in Status},
            "seconds": round(seconds, 4),
        },
        "files": [_entry(result) for result in results],
    }


def _entry(result: FileResult) -> dict[str, Any]:
    rate = result.megapixels_per_second
    return {
        "input": result.job.name,
        "output": str(result.job.target),
        "status": result.status.value,
        "input_size": result.input_size,
        "output_size": result.output_size,
        "read": result.read,
        "written": result.written,
        "seconds": round(result.seconds, 4),
        "megapixels_per_second": None if rate is None else round(rate, 4),
        "error": result.error,
        "notes": list(result.notes),
        **result.details,
    }


def _versions(*, torch: bool) -> dict[str, str]:
    packages = ("numpy", "opencv-python", "av", "onnxruntime", "openvino", *(("torch",) if torch else ()))
    installed = {item: version for item in packages if (version := _version(item))}
    return {"python": platform.python_version(), "platform": platform.platform(), **installed}


def _ffmpeg_version() -> str:
    import av  # FFmpeg's libraries, which images do not need

    return str(av.ffmpeg_version_info)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None  # it is optional, or comes under another name, such as opencv-python-headless
