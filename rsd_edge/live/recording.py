"""The sink that writes a video file while the frames come."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import av
import numpy as np
from av.video.frame import PictureType
from numpy.typing import NDArray

from rsd_edge.errors import OutputError
from rsd_edge.live.frames import LiveResult, Picture
from rsd_edge.live.letterbox import letterboxed
from rsd_edge.stream.atomic import check_target, make_folder, output_error
from rsd_edge.video.colour import Colour, FromBgr, is_deep
from rsd_edge.video.encoder import Encoder, fitted
from rsd_edge.video.encoder_choice import choose_encoder
from rsd_edge.video.formats import CONTAINERS
from rsd_edge.video.settings import VideoSettings
from rsd_edge.video.source import Clip, Orientation

log = logging.getLogger(__name__)

_TICKS = Fraction(1, 1000)
"""What Matroska counts in: it would give frames the same time that finer ticks tell apart, and players show one."""
_BT709 = 1
_KEYFRAME_SECONDS = 2
_BOX = struct.Struct(">I4s")
"""Length and kind, at the beginning of each part of an MP4 file."""
_FRAGMENTED = {"movflags": "empty_moov+default_base_moof", "frag_duration": "1000000"}
"""A fragment holds a second of capture: what breaks later costs no more than that, however slow the frames come."""


class VideoSink:
    """Encodes results at the times at which they were captured.

    The file grows as live.partial.mkv, where a power cut would leave it, and becomes live.mkv when it is closed, or
    after an error if something of it plays. No camera can be asked again, so that no recording replaces a file: where
    either name is taken it is live-2.mkv, and a warning says so. A film whose size changes on the way keeps the size
    that it began with; what has another shape gets bars.
    """

    def __init__(self, target: Path, settings: VideoSettings, source: str, rate: float = 25.0) -> None:
        """rate: frames per second to expect, for the encoder's planning. Raises OutputError for a format that cannot
        be written frame by frame, and for a target that cannot be written."""
        container = CONTAINERS.get(target.suffix.lower())
        if container is None or container.fixed_rate:
            known = ", ".join(suffix for suffix, kind in CONTAINERS.items() if not kind.fixed_rate)
            raise OutputError(f"cannot write {target} from a camera, whose frames have times; use one of {known}")
        check_target(target)
        self._wanted = self._target = target
        self._settings, self._source, self._rate = settings, source, rate
        self._film: _Film | None = None
        self.frames = 0
        """In the file; while it grows, some of them still on their way."""
        self._take_free_name()

    def write(self, result: LiveResult) -> None:
        """See Sink."""
        try:
            if self._film is None:
                self._film = self._begin(result)
            self._film.add(result)
            self.frames += 1
        except (av.FFmpegError, OSError) as error:
            raise error if isinstance(error, OutputError) else self._broken(error) from None

    def close(self) -> None:
        """See Sink."""
        if self._film is None:
            return
        try:
            self._film.close()
        except (av.FFmpegError, OSError) as error:
            raise self._broken(error) from None
        except BaseException:  # a second signal: what is there is kept all the same
            kept = self._keep()
            if self._partial.exists():  # and nobody else says where
                log.warning("%s%s", self._target, kept)
            raise
        self._film.abandon()
        self._film = None
        if (failure := self._publish()) is not None:
            raise failure

    def _broken(self, error: Exception) -> OutputError:
        """End the recording with what can be played of it, and say what that is."""
        failure = output_error(self._target, error) if isinstance(error, OSError) else OutputError(f"{error}")
        kept = self._keep()
        raised = OutputError(f"{failure}{kept}")
        raised.errno = getattr(error, "errno", None)
        return raised

    def _keep(self) -> str:
        film, self._film = self._film, None
        if film is None:
            return ""
        film.abandon()
        if film.fragmented:
            cut_torn_fragment(self._partial)
        self.frames, seconds = playable(self._partial)
        if not self.frames:
            with suppress(OSError):  # the folder may be what broke
                self._partial.unlink(missing_ok=True)
            return "; nothing of the recording can be played, and none is kept"
        where = "there" if self._publish() is None else f"in {self._partial}"
        return f"; the first {seconds:.1f} s are kept {where}"

    def _publish(self) -> OutputError | None:
        """Give the recording its name; what to raise, with the place where it lies, if that cannot be."""
        try:
            if os.path.lexists(self._target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            os.replace(self._partial, self._target)
        except OSError as error:
            cause = output_error(self._target, error)
            failure = OutputError(f"{cause}; the recording is kept in {self._partial}")
            failure.errno = cause.errno
            return failure
        return None

    def _begin(self, result: LiveResult) -> _Film:
        encoder = self._encoder(result.pixels)
        file = self._open()
        try:
            return _Film(file, encoder, result.frame.captured)
        except BaseException:
            file.close()
            self._partial.unlink(missing_ok=True)
            raise

    def _open(self) -> IO[bytes]:
        make_folder(self._target.parent)
        while True:
            self._take_free_name()  # again: another recording may have taken it before the first frame came
            try:
                return open(self._partial, "x+b")  # closed with the film
            except FileExistsError:
                continue
            except OSError as error:
                raise output_error(self._target, error) from error

    def _take_free_name(self) -> None:
        before = self._target
        self._target = next(
            path
            for path in _numbered(self._wanted)
            # In this order: what another recording writes is under the first, and then under the second.
            if not (os.path.lexists(_partial(path)) or os.path.lexists(path))
        )
        self.name, self._partial = str(self._target), _partial(self._target)
        if self._target != before:
            log.warning("%s is taken, and no recording replaces another; this one is %s", before, self._target)

    def _encoder(self, picture: Picture) -> Encoder:
        """Tried out, as for any video. Raises OutputError if there is none."""
        height, width = (side + side % 2 for side in picture.shape[:2])
        colour = Colour(_BT709, False, _BT709, _BT709, 8)
        clip = Clip(
            path=Path(self._source),
            index=0,
            width=width,
            height=height,
            time_base=_TICKS,
            rate=Fraction(self._rate).limit_denominator(1001),
            fixed_rate=False,
            frames=None,
            first=0,
            begin=None,
            end=None,
            entries=(),
            shift=Fraction(0),
            colour=colour,
            orientation=Orientation(),
            sample_aspect=None,
            notes=(),
            max_pixels=self._settings.max_pixels,
            digest="",
        )
        return choose_encoder(clip, self._target, (width, height), self._settings)[0]


def _numbered(path: Path) -> Iterator[Path]:
    """live.mkv, live-2.mkv, live-3.mkv and so on."""
    yield path
    for number in itertools.count(2):
        yield path.with_stem(f"{path.stem}-{number}")


def _partial(target: Path) -> Path:
    return target.with_stem(f"{target.stem}.partial")


class _Film:
    """An open file with one stream."""

    def __init__(self, file: IO[bytes], encoder: Encoder, began: float) -> None:
        self._file, self._encoder, self._began = file, encoder, began
        self.fragmented = encoder.container.name in ("mp4", "mov")
        options = _FRAGMENTED if self.fragmented else {}
        self._output: Any = av.open(file, "w", format=encoder.container.name, container_options=options)
        stream = encoder.add_to(self._output)
        stream.codec_context.max_b_frames = 0  # they would begin before zero, which fragments cannot say
        stream.codec_context.gop_size = max(1, round(_KEYFRAME_SECONDS * encoder.rate))
        self._stream = stream
        self._convert = FromBgr(encoder.colour, encoder.pixel_format)
        self._last = -1
        self._next_key = 0

    def add(self, result: LiveResult) -> None:
        """Encode one frame. Raises FFmpegError, OSError."""
        frame = self._convert(self._fitted(result.pixels))
        ticks = round(Fraction(result.frame.captured - self._began) / self._encoder.time_base)
        frame.pts = self._last = max(ticks, self._last + 1)
        frame.time_base = self._encoder.time_base
        if self._last >= self._next_key:  # by the time of capture: the rate of a camera is seldom what it says
            frame.pict_type = PictureType.I
            self._next_key = self._last + round(_KEYFRAME_SECONDS / self._encoder.time_base)
        self._output.mux(self._stream.encode(frame))

    def _fitted(self, picture: Picture) -> NDArray[np.uint8] | NDArray[np.uint16]:
        """In the size and the bits that the encoder takes."""
        width, height = self._encoder.width, self._encoder.height
        h, w = picture.shape[:2]
        changed = (w + w % 2, h + h % 2) != (width, height)
        whole = letterboxed(picture, width, height) if changed else fitted(picture, width, height)
        return whole.astype(np.uint16) * 257 if is_deep(self._encoder.pixel_format) else whole

    def close(self) -> None:
        """Write what the encoder still holds, and the end of the file. Raises FFmpegError, OSError."""
        self._output.mux(self._stream.encode(None))
        self._output.close()
        self._file.flush()
        os.fsync(self._file.fileno())

    def abandon(self) -> None:
        """Close the file, whatever state it is in."""
        with suppress(av.FFmpegError, OSError):
            self._output.close()
        with suppress(OSError):
            self._file.close()


def cut_torn_fragment(path: Path) -> None:
    """Leave out the last fragment (moof and mdat) of an MP4 file if the disk could not take all of it: players stumble
    over samples that end too soon."""
    with open(path, "r+b") as file:
        size, at, whole = path.stat().st_size, 0, 0
        while at + _BOX.size <= size:
            file.seek(at)
            length, kind = _BOX.unpack(file.read(_BOX.size))
            at += length
            if length < _BOX.size or at > size:  # fragments are too short for a length in 64 bits
                break
            if kind != b"moof":
                whole = at
        file.truncate(whole)


def playable(path: Path) -> tuple[int, float]:
    """How many packets a film has that may be torn, 0 if not one frame can be shown, and the seconds from the first to
    the last."""
    frames, last = 0, 0.0
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            if next(container.decode(stream), None) is None:
                return frames, last
        with av.open(str(path)) as container, suppress(av.FFmpegError):  # what comes after the tear
            for packet in container.demux(container.streams.video[0]):
                if packet.pts is not None and packet.time_base is not None:
                    frames += 1
                    last = max(last, float(packet.pts * packet.time_base))
    except (av.FFmpegError, IndexError, OSError):
        return 0, 0.0
    return frames, last
