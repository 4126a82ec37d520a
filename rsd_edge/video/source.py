"""Opening a video: what is in it, how long it is, how its colours and its orientation are to be read."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.stream import Stream
from av.video.stream import VideoStream

from rsd_edge.errors import InputError, VideoReadError
from rsd_edge.frames import Frame
from rsd_edge.stream.missing import missing
from rsd_edge.video.colour import Colour, colour_of, is_hdr
from rsd_edge.video.packet_times import PacketTimes
from rsd_edge.video.settings import VideoSettings, check_pixels

_DEMUXERS = (
    "matroska,webm",
    "mov,mp4,m4a,3gp,3g2,mj2",
    "avi",
    "mpegts",
    "mpeg",
    "mpegvideo",
    "flv",
    "asf",
    "ogg",
    "mxf",
    "h264",
    "hevc",
    "av1",
    "obu",
    "ivf",
    "m4v",
    "yuv4mpegpipe",
    "nut",
)
"""Files that hold a video. Playlists stay out, because they open other files, and pictures have their own reader."""

_RUNNING_CLOCK = ("mpegts", "mpeg")
"""Formats whose first time means nothing."""

_SITED = ("yuv4mpegpipe",)
"""Formats whose headers tell where chroma lies."""

_SLACK = Fraction(1, 10)
"""Seconds by which the headers of intact files are off."""

_RATES = (Fraction(1, 100), Fraction(1000))
_USUAL_RATE = Fraction(25)
_INTERLACED = (2, 3, 4, 5)


@dataclass(frozen=True)
class Orientation:
    """How pixels are turned to stand upright: first mirrored or not, then turned by quarters."""

    mirrored: bool = False
    quarters: int = 0
    """Counter-clockwise."""

    @property
    def swaps(self) -> bool:
        """True if width and height change places."""
        return self.quarters % 2 == 1

    def apply(self, image: Frame) -> Frame:
        """The upright image, contiguous."""
        turned: Frame = np.ascontiguousarray(  # type: ignore[assignment]
            np.rot90(image[:, ::-1] if self.mirrored else image, self.quarters)
        )
        return turned


@dataclass(frozen=True)
class Clip:
    """A video stream and the part of it that was asked for. Times are in ticks of `time_base`."""

    path: Path
    index: int
    """Of the stream in the file."""
    width: int
    """Of decoded frames, before they are turned."""
    height: int
    time_base: Fraction
    rate: Fraction
    fixed_rate: bool
    """All frames are equally far apart, to one tick, but that some may have been dropped."""
    frames: int | None
    """Expected; None where the file does not tell."""
    first: int
    """Time of the first frame, as far as the file tells."""
    begin: int | None
    """First time that is wanted; None for all."""
    end: int | None
    """First time that is not wanted any more."""
    entries: tuple[int, ...]
    """Packets, counted from 0, from which on decoding leads to the first frame that is wanted; the best comes first."""
    shift: Fraction
    """Seconds to take off every time of the file, of all its streams."""
    colour: Colour
    orientation: Orientation
    sample_aspect: Fraction | None
    max_pixels: int
    """Of frames that are decoded; larger ones count as damaged."""
    digest: str
    """The same for a copy of the file, another one for any other packets or times."""
    notes: tuple[str, ...]

    @property
    def upright_size(self) -> tuple[int, int]:
        """(width, height) of turned frames."""
        return (self.height, self.width) if self.orientation.swaps else (self.width, self.height)

    @property
    def step(self) -> int:
        """Ticks from one frame to the next, on average."""
        return max(1, round(1 / (self.rate * self.time_base)))


@contextmanager
def opened(path: Path) -> Iterator[InputContainer]:
    """The open file. Raises VideoReadError if it is missing, empty, no video, or damaged beyond opening."""
    if not path.exists():
        raise VideoReadError(missing(path))
    if not path.is_file():
        raise VideoReadError(f"{path} is no regular file; name a video file")
    try:
        if path.stat().st_size == 0:
            raise VideoReadError(f"{path} is empty; copy or download it again")
        options = {"protocol_whitelist": "file", "format_whitelist": ",".join(_DEMUXERS)}
        # Absolute, because FFmpeg takes what stands before a colon for a protocol. A tag that is not valid UTF-8 must
        # not stop a film.
        container = av.open(str(path.absolute()), container_options=options, metadata_errors="replace")
    except (av.FFmpegError, ValueError, OSError) as error:
        if isinstance(error, VideoReadError):
            raise
        raise VideoReadError(f"{path} {_reason(error)}") from None
    with container:
        yield container


def _reason(error: Exception) -> str:
    if isinstance(error, PermissionError):
        return "cannot be read (permission denied); allow this user to read it"
    if isinstance(error, (av.InvalidDataError, av.EOFError)) or getattr(error, "errno", None) == errno.EIO:
        return "is no video that can be read, or is truncated or damaged; copy or download it again"
    return f"cannot be opened as a video ({getattr(error, 'strerror', None) or error}); copy it again or convert it"


def video_stream(container: InputContainer, path: Path) -> VideoStream:
    """The stream that counts: the first that is no cover picture. Raises VideoReadError if there is none."""
    for stream in container.streams.video:
        if not is_picture(stream) and stream.codec_context is not None:
            return stream
    found = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
    raise VideoReadError(f"{path} holds no video that can be decoded ({found} only); name a file with one")


def set_up_decoder(stream: VideoStream, most: int) -> None:
    """To be called before it decodes. most: pixels of a frame; it refuses larger ones, which may come at any time.

    Where nothing tells at which luma sample chroma lies, that is the left one, as in nearly all films.
    """
    options = {**stream.codec_context.options, "max_pixels": str(most)}
    if stream.container.format.name not in _SITED:
        options["chroma_sample_location"] = "left"  # decoders that know better say so
    stream.codec_context.options = options


def is_picture(stream: Stream) -> bool:
    """True for cover art, which files carry as a video of one frame."""
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def survey(path: Path, settings: VideoSettings) -> Clip:
    """Decode one frame and read the times of all, without decoding them.

    Raises VideoReadError for what cannot be read, InputError for what is refused: HDR, too large a frame, a start
    behind the end.
    """
    with opened(path) as container:
        stream = video_stream(container, path)
        context = stream.codec_context
        check_pixels(path, context.width, context.height, settings.max_pixels)  # before a frame takes memory
        set_up_decoder(stream, settings.max_pixels)
        times = PacketTimes(path.stat().st_size)
        frame = None
        try:
            for packet in container.demux():
                times.see(packet)
                if packet.stream.index != stream.index:
                    continue
                if frame is None:
                    frame = _first_frame(packet)
                times.add(packet)
        except av.FFmpegError:
            times.broken = True
        if frame is None:
            raise VideoReadError(f"{path} holds no frame that can be decoded; copy or download it again")
        check_pixels(path, frame.width, frame.height, settings.max_pixels)
        colour, notes = colour_of(frame)
        if is_hdr(colour):
            notes = (*notes, _hdr_note(path, settings))
        return _clip(path, container, stream, frame, times, colour, notes, settings)


def _first_frame(packet: Packet[Stream]) -> av.VideoFrame | None:
    try:
        frames = packet.decode()
    except av.FFmpegError:
        return None
    return frames[0] if frames and isinstance(frames[0], av.VideoFrame) else None


def _ends_early(container: InputContainer, stream: VideoStream, times: PacketTimes) -> bool:
    """True if the file's header tells of more than there is."""
    # AVI counts frames that were dropped, too.
    if times.broken or (times.stored < stream.frames and container.format.name != "avi"):
        return True
    if container.duration is None:
        return False
    # Some containers count from zero, others from the first frame: nothing is said where they differ.
    return Fraction(container.duration, av.time_base) - times.end > _SLACK


def _clip(
    path: Path,
    container: InputContainer,
    stream: VideoStream,
    frame: av.VideoFrame,
    times: PacketTimes,
    colour: Colour,
    notes: tuple[str, ...],
    settings: VideoSettings,
) -> Clip:
    time_base = stream.time_base or Fraction(1, 1000)
    shift, begin, end = _range(container, time_base, settings)
    wanted = [time for time in times.known if (begin is None or time >= begin) and (end is None or time < end)]
    if not wanted and times.known:
        if begin is None or max(times.known) >= begin:
            raise InputError(f"{path} has no frame in {settings.duration:g} s from {settings.start:g} s; take more")
        length = float((max(times.known) - min(times.known)) * time_base)
        raise InputError(f"{path} has no frame after {settings.start:g} s: it is {length:.2f} s long; lower --start")
    expected = len(wanted) if len(times.known) == times.count else None
    if expected is not None and settings.max_frames is not None:
        expected = min(expected, settings.max_frames)
    shortest, longest = times.spacing()
    rate = stream.average_rate or stream.guessed_rate or _USUAL_RATE
    rate = rate if _RATES[0] <= rate <= _RATES[1] else _USUAL_RATE
    regular = longest - shortest <= max(1, round(longest / 100))
    orientation, turn_notes = _orientation(frame)
    extra = list(turn_notes)
    field_order = getattr(stream.codec_context, "field_order", 0)  # since PyAV 18
    if frame.interlaced_frame or field_order in _INTERLACED:
        extra.append("interlaced video: combs are enlarged with the rest; deinterlace it first (ffmpeg -vf bwdif)")
    if stream.metadata.get("alpha_mode") == "1":
        extra.append("transparency dropped")  # kept beside the pictures, where their format does not show it
    if _ends_early(container, stream, times):
        extra.append("the file is damaged or ends before its header says; what can be read is enlarged")
    if container.format.name in _RUNNING_CLOCK and not settings.start and shift:
        extra.append(f"times begin at zero instead of {float(shift):.3f} s, the file's arbitrary clock")
    aspect = frame_aspect(stream)
    return Clip(
        path=path,
        index=stream.index,
        width=frame.width,
        height=frame.height,
        time_base=time_base,
        rate=rate,
        fixed_rate=regular or times.on_grid(1 / (rate * time_base)),
        frames=expected,
        first=min(wanted, default=0),
        begin=begin,
        end=end,
        entries=times.entries(begin),
        shift=shift,
        colour=colour,
        orientation=orientation,
        sample_aspect=1 / aspect if aspect and orientation.swaps else aspect,
        max_pixels=settings.max_pixels,
        digest=times.digest,
        notes=(*notes, *extra),
    )


def _range(
    container: InputContainer, time_base: Fraction, settings: VideoSettings
) -> tuple[Fraction, int | None, int | None]:
    """Seconds to take off, and the first time that is wanted and that is not, in ticks."""
    origin = Fraction(container.start_time or 0, av.time_base)
    shift = origin if container.format.name in _RUNNING_CLOCK else Fraction(0)
    begin = end = None
    wanted = origin + _seconds(settings.start)
    if settings.start:
        shift, begin = wanted, -int(-wanted // time_base)
    if settings.duration is not None:
        end = -int(-(wanted + _seconds(settings.duration)) // time_base)
    return shift, begin, end


def _seconds(value: float) -> Fraction:
    """What was typed: 0.4 is nothing but close to the float."""
    return Fraction(value).limit_denominator(1_000_000)


def frame_aspect(stream: VideoStream) -> Fraction | None:
    """Width to height of a pixel, or None for square ones."""
    aspect = stream.sample_aspect_ratio
    return aspect if aspect and aspect != 1 else None


def _orientation(frame: av.VideoFrame) -> tuple[Orientation, tuple[str, ...]]:
    """What the display matrix asks for, where it asks for quarters of a turn."""
    try:
        matrix = bytes(frame.side_data["DISPLAYMATRIX"])  # type: ignore[typeddict-item]
    except KeyError:
        return Orientation(), ()
    a, b, _, c, d = struct.unpack("=5i", matrix[:20])
    turns = {(1, 0, 0, 1): 0, (0, -1, 1, 0): 1, (-1, 0, 0, -1): 2, (0, 1, -1, 0): 3}
    for mirrored in (False, True):
        key = tuple(int(np.sign(value)) for value in ((-a, -b, c, d) if mirrored else (a, b, c, d)))
        if key in turns:
            return Orientation(mirrored, turns[key]), ()
    return Orientation(), ("its rotation is no quarter of a turn; frames stay as they are stored",)


def _hdr_note(path: Path, settings: VideoSettings) -> str:
    if settings.hdr == "pass":
        return "HDR values enlarged as if they were SDR and tagged as before; mastering data is left out"
    raise InputError(
        f"{path} is HDR (PQ or HLG), which the models never saw; tone-map it to SDR first, or take --hdr pass to "
        "enlarge its values as they are"
    )
