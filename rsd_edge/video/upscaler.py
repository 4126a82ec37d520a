"""`VideoUpscaler`: a video file in, an enlarged one out, with everything else that was in it."""

from __future__ import annotations

import contextlib
import math
import queue
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsd_edge.errors import OutputError, VideoInterrupted, VideoReadError
from rsd_edge.frames import SCALE
from rsd_edge.stream.atomic import folder_for, is_disk_full
from rsd_edge.stream.passwords import without_password
from rsd_edge.video.colour import is_deep
from rsd_edge.video.decoding import Damage, TimedFrame, timed_frames
from rsd_edge.video.encoder import Encoder
from rsd_edge.video.encoder_choice import choose_encoder
from rsd_edge.video.formats import is_live
from rsd_edge.video.joining import Film, join
from rsd_edge.video.journal import Segment, State, WorkFolder
from rsd_edge.video.opencv_io import upscale_with_opencv
from rsd_edge.video.segments import EnlargedFrame, SegmentWriter
from rsd_edge.video.settings import Forecast, FrameResolver, Progress, VideoResult, VideoSettings
from rsd_edge.video.source import Clip, survey
from rsd_edge.video.steady import Steadier
from rsd_edge.video.threads import Prefetch, Sink
from rsd_edge.video.tracks import Tracks, plan_tracks

_AHEAD = 2
_BEHIND = 1
_TICK = 0.1
_KEPT_BYTES = 250
"""Two states of an average, for each pixel of a frame."""


@dataclass(frozen=True)
class _Plan:
    clip: Clip
    encoder: Encoder
    tracks: Tracks
    notes: tuple[str, ...]

    @property
    def predicted_bytes(self) -> int | None:
        """Of the pictures, roughly; None where the file does not tell its length."""
        if self.clip.frames is None:
            return None
        return round(self.clip.frames * self.encoder.width * self.encoder.height * self.encoder.bits_per_pixel / 8)


@dataclass(frozen=True)
class _Made:
    """What an engine made, and of what."""

    pixels: NDArray[Any]
    frame: EnlargedFrame


class _Finisher:
    """What is left to do with frames once the engine is free for the next; serves one thread."""

    def __init__(self, settings: VideoSettings, work: WorkFolder, writer: SegmentWriter) -> None:
        self._settings, self._work, self._writer = settings, work, writer
        self._done = work.frames
        self.steadier = Steadier(settings.scale)

    def finish(self, made: _Made) -> None:
        """Average a frame with those before it, if that is wanted, and encode it. Raises OutputError."""
        frame = made.frame
        self._done += 1
        if self._settings.blends:
            frame = replace(frame, pixels=self.steadier(made.pixels, frame.pixels))
            if self._done % self._settings.segment_frames == 0:
                # Taken whether it is kept or not: it rounds the average, and every run has to round alike.
                self._work.save_state(self.steadier.checkpoint())
        self._writer.add(frame)


class VideoUpscaler:
    """Enlarges video files with one resolver.

        with SuperResolver.load("edge-n") as resolver:
            result = VideoUpscaler(resolver, VideoSettings(crf=20))("clip.mp4", "clip_x4.mp4")

    Frames stream through in bounded memory. What is finished is kept beside the target until the result is whole, so
    that the same call goes on after a crash; it is left to one call at a time.
    """

    def __init__(self, resolver: FrameResolver, settings: VideoSettings | None = None) -> None:
        """resolver: a `SuperResolver`, or anything that is called like one."""
        self.resolver = resolver
        self.settings = settings or VideoSettings()

    def __call__(
        self,
        source: Path | str,
        target: Path | str,
        *,
        progress: Progress | None = None,
        forecast: Callable[[Forecast], None] | None = None,
    ) -> VideoResult:
        """Enlarge a file.

        source: a file or, with io="opencv", also a camera's device or the address of a stream.
        target: its suffix (.mp4, .mov, .m4v, .mkv, .webm, .avi) is the container.
        progress: called after each frame with frames done, frames expected or None, and seconds.
        forecast: called once, before the work, with what the result will be like.
        Raises VideoReadError for a source that cannot be read, InputError for one that is refused, OutputError for a
        target that cannot be written, VideoInterrupted after Ctrl-C, once what is done is playable or,
        where that was all, kept.
        """
        began = time.perf_counter()
        live = is_live(source)
        address: Path | str = str(source) if live else Path(source)
        source, target = Path(source), Path(target)
        if target.exists() and source.exists() and target.samefile(source):
            raise OutputError(f"{target} is the input; choose another -o")
        if self.settings.io == "opencv":
            return upscale_with_opencv(self.resolver, self.settings, address, target, progress)
        if live:
            shown = without_password(str(address))
            raise VideoReadError(f"{shown} is a device or a stream; read it with --video-io opencv")
        plan = self._plan(source, target)
        if forecast is not None:
            size = (plan.encoder.width, plan.encoder.height)
            forecast(Forecast(plan.clip.frames, size, plan.encoder.name, plan.predicted_bytes))
        with folder_for(target), WorkFolder(target, self._header(plan)) as work, self._further_told(work):
            plan = replace(plan, encoder=replace(plan.encoder, threads=work.threads))
            notes = (*plan.notes, *_check_room(plan, work, _KEPT_BYTES if self.settings.blends else 0))
            state = work.rewind() if self.settings.blends and not work.complete else {}
            earlier = work.frames
            damage = Damage()
            if not work.complete:
                self._encode(plan, work, state, damage, progress, began)
            if not work.segments:
                raise VideoReadError(f"{source} holds no frame that can be decoded; copy or download it again")
            film = self._film(plan, work, work.segments)
            try:
                track_notes = join(film, target)
            except KeyboardInterrupt:
                what = f"interrupted while {target} was put together"
                raise VideoInterrupted(f"{source}: {what}; {self._further(work)}") from None
            work.remove()
        return VideoResult(
            source=source,
            target=target,
            frames=work.frames,
            duration=float(film.duration),
            input_size=plan.clip.upright_size,
            output_size=(plan.encoder.width, plan.encoder.height),
            encoder=plan.encoder.name,
            encoder_options=dict(plan.encoder.options),
            bytes=target.stat().st_size,
            seconds=time.perf_counter() - began,
            new_frames=work.frames - earlier,
            notes=(*notes, *damage.notes(plan.clip), *_missing(plan.clip, work.frames), *track_notes),
        )

    def _plan(self, source: Path, target: Path) -> _Plan:
        clip = survey(source, self.settings)
        width, height = (round(side * self.settings.scale) for side in clip.upright_size)
        even = (width + width % 2, height + height % 2)
        encoder, notes = choose_encoder(clip, target, even, self.settings)
        if even != (width, height):
            notes = (*notes, f"{width}x{height} made {even[0]}x{even[1]} by doubling the edge, because 4:2:0 is even")
        tracks = plan_tracks(clip, encoder.container)
        return _Plan(clip, encoder, tracks, (*clip.notes, *notes, *tracks.notes))

    def _header(self, plan: _Plan) -> dict[str, Any]:
        """What must be the same for a run to go on: all that decides which packets come out.

        The threads are the journal's to keep.
        """
        encoder = asdict(plan.encoder)
        threads = encoder.pop("threads")
        return {
            "settings": {key: value for key, value in asdict(self.settings).items() if key != "max_pixels"},
            "input": plan.clip.digest,
            "engine": _engine_identity(self.resolver),
            "encoder": {key: str(value) for key, value in encoder.items()},
            "threads": threads,
        }

    def _film(self, plan: _Plan, work: WorkFolder, segments: list[Segment]) -> Film:
        clip = plan.clip
        end = None if clip.end is None else clip.end * clip.time_base - clip.shift
        if not work.complete or work.frames == self.settings.max_frames:
            end = segments[-1].end * plan.encoder.time_base
        return Film(clip, plan.encoder, plan.tracks, work.path, tuple(segments), end, self.settings.strip)

    def _encode(
        self,
        plan: _Plan,
        work: WorkFolder,
        state: State,
        damage: Damage,
        progress: Progress | None,
        began: float,
    ) -> None:
        writer = SegmentWriter(work, plan.encoder, self.settings.segment_frames)
        finisher = _Finisher(self.settings, work, writer)
        if state:
            finisher.steadier.resume(state, _dtype(plan))
        try:
            if self._stream(plan, finisher, work.frames, damage, progress, began):
                writer.finish()
            else:
                raise VideoInterrupted(self._save(plan, work, writer))
        finally:
            writer.abandon()

    def _stream(
        self,
        plan: _Plan,
        finisher: _Finisher,
        done: int,
        damage: Damage,
        progress: Progress | None,
        began: float,
    ) -> bool:
        """Decode, enlarge and encode what is not there yet, in three threads; False after Ctrl-C."""
        dtype = _dtype(plan)
        frames = timed_frames(plan.clip, done, self.settings.max_frames, dtype == np.uint16, damage)
        scale = SCALE if self.settings.blends else self.settings.scale
        width, height = plan.clip.upright_size
        buffers = _buffers((round(scale * height), round(scale * width)), dtype)
        source = Prefetch(frames, _AHEAD)
        sink = Sink(finisher.finish, _BEHIND)
        try:
            for frame in source:
                sink.put(self._enlarge(plan.clip, frame, scale, buffers, sink))
                done += 1
                if progress is not None:
                    progress(done, plan.clip.frames, time.perf_counter() - began)
        except KeyboardInterrupt:
            return False  # a second one, in what follows, is not caught
        finally:
            # Also after an error: what has been enlarged is encoded, and no thread is left behind.
            source.close()
            sink.finish()
        return True

    def _enlarge(
        self,
        clip: Clip,
        frame: TimedFrame,
        scale: float,
        buffers: queue.Queue[NDArray[Any]],
        sink: Sink[_Made],
    ) -> _Made:
        while True:
            try:
                out = buffers.get(timeout=_TICK)
                break
            except queue.Empty:
                sink.check()
        self.resolver(frame.pixels, seed=self.settings.seed, strength=self.settings.strength, scale=scale, out=out)
        seconds = frame.time * clip.time_base - clip.shift
        enlarged = EnlargedFrame(seconds, frame.duration * clip.time_base, out, lambda: buffers.put(out))
        return _Made(frame.pixels, enlarged)

    def _save(self, plan: _Plan, work: WorkFolder, writer: SegmentWriter) -> str:
        """Make what is done playable, under a name of its own; what to tell about it."""
        rest = writer.break_off()
        segments = [*work.segments, *([rest] if rest else [])]
        if not segments:
            return f"{plan.clip.path}: interrupted before the first frame was done"
        frames, partial = sum(segment.frames for segment in segments), work.partial_path()
        if frames > work.partial_frames or not partial.exists():  # an earlier run may have come further into a piece
            join(self._film(plan, work, segments), partial)
            work.note_partial(frames)
        playable = f"the first {work.partial_frames} frames are in {partial}"
        return f"{plan.clip.path}: {playable}; {self._further(work)}"

    def _further(self, work: WorkFolder) -> str:
        """What the same command will do."""
        if work.complete:
            return "all frames are kept, and the same command goes on"
        length = self.settings.segment_frames
        kept = sum(segment.frames for segment in work.segments[: work.resumable if self.settings.blends else None])
        further = f"goes on after frame {kept}" if kept else "begins anew"
        return f"the same command {further}, since whole pieces of {length} are kept"

    @contextlib.contextmanager
    def _further_told(self, work: WorkFolder) -> Iterator[None]:
        """An error of a full disk also tells what the same command will do once there is room."""
        try:
            yield
        except OutputError as error:
            if not is_disk_full(error):
                raise
            told = OutputError(f"{error}; {self._further(work)}")
            told.errno = error.errno
            raise told from error


def _dtype(plan: _Plan) -> np.dtype[Any]:
    return np.dtype(np.uint16 if is_deep(plan.encoder.pixel_format) else np.uint8)


def _buffers(size: tuple[int, int], dtype: np.dtype[Any]) -> queue.Queue[NDArray[Any]]:
    """Arrays for results: one in the works, those that wait, and one that is being converted."""
    buffers: queue.Queue[NDArray[Any]] = queue.Queue()
    for _ in range(_BEHIND + 2):
        buffers.put(np.empty((*size, 3), dtype))
    return buffers


def _check_room(plan: _Plan, work: WorkFolder, kept_bytes: int) -> tuple[str, ...]:
    """A note if the disk may become full. Raises OutputError if it surely will: what a film takes is a rough guess, and
    little where it hardly changes, but what a run goes on from is not.

    kept_bytes: for each pixel of a frame, to go on from.
    """
    if plan.predicted_bytes is None or not plan.clip.frames:
        return ()
    predicted, folder = plan.predicted_bytes, work.target.parent
    missing = predicted * max(0, plan.clip.frames - work.frames) // plan.clip.frames
    free = shutil.disk_usage(folder).free
    kept = kept_bytes * math.prod(plan.clip.upright_size)
    words = (
        f"about {_size(predicted)} expected and {_size(predicted + kept)} on the way, {_size(free)} free in {folder}"
    )
    if free < kept:
        raise OutputError(f"cannot write {work.target}: {words}; free some space or choose another folder")
    return (f"{words}: this may not fit",) if free < missing + kept + predicted else ()


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _missing(clip: Clip, frames: int) -> tuple[str, ...]:
    if clip.frames is None or frames >= clip.frames:
        return ()
    return (f"{frames} of {clip.frames} frames could be read",)


def _engine_identity(resolver: FrameResolver) -> dict[str, Any]:
    """What tells two `SuperResolver`s apart whose results differ; of anything else the caller has to know."""
    engine = getattr(resolver, "engine", None)
    if engine is None:
        return {}
    record: dict[str, Any] = getattr(resolver, "record", dict)()
    kept = {key: value for key, value in record.items() if key != "times_ms"}
    return {**kept, "tile": engine.tile.size, "batch": engine.tile.batch}
