"""Which encoder a result gets, proved by encoding a few frames, and how it is set up each time it starts."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext
from numpy.typing import NDArray

from rsd_edge.errors import OutputError
from rsd_edge.machine import usable_cores
from rsd_edge.opencv import cv2
from rsd_edge.video.colour import FORMATS, Colour, FromBgr, for_players_that_guess, is_deep, is_hdr
from rsd_edge.video.formats import CONTAINERS, Container
from rsd_edge.video.settings import VideoSettings
from rsd_edge.video.source import Clip

_ENCODERS = {
    "h264": ("libx264", "h264_nvenc", "h264_qsv", "h264_videotoolbox", "libopenh264"),
    "hevc": ("libx265", "hevc_nvenc", "hevc_qsv", "hevc_videotoolbox"),
    "av1": ("libsvtav1", "libaom-av1", "av1_nvenc", "av1_qsv"),
    "vp9": ("libvpx-vp9",),
    "mpeg4": ("mpeg4",),
}
"""Of each codec, by preference: on the processor first, because those are the same everywhere."""

_GLOBAL_HEADER = 1 << 22
_QSCALE = 1 << 1
_QP_TO_LAMBDA = 118
_MOST_THREADS = 8
"""More would only keep more large frames in memory."""

_MPEG4_TICKS = 65535
"""A second of MPEG-4 part 2 has no more."""

_PROBE_FRAMES = 3

_TAGS_ITSELF = ("h264", "hevc", "av1", "vp9")
"""Codecs whose packets tell matrix and range."""
_LIMITED = ("prores",)
"""Codecs whose packets tell the matrix; the range is always this one."""


@dataclass(frozen=True)
class _Kind:
    """How one encoder names quality and speed, and what it gets by default."""

    crf: float
    bits_per_pixel: float
    """Rough, at that quality, of enlarged film: for the prediction of the size."""
    preset: str | None = None
    preset_option: str | None = None
    crf_option: str = "crf"
    fixed: tuple[tuple[str, str], ...] = ()
    presets: tuple[str, ...] = ()
    """All that there are."""
    large: tuple[str, ...] = ()
    """Presets whose files are twice as large as those of the others; the default is one of them."""
    halving: float = 5
    """Steps of quality that halve the size; 0 where it goes with the inverse."""

    def quality(self, settings: VideoSettings) -> float:
        """What was asked for, or the default."""
        return self.crf if settings.crf is None else settings.crf

    def bits(self, settings: VideoSettings) -> float:
        """Rough bits a pixel with these settings."""
        quality = self.quality(settings)
        steps = 2 ** ((self.crf - quality) / self.halving) if self.halving else self.crf / max(1, quality)
        smaller = bool(self.large) and settings.preset not in (None, *self.large)
        return self.bits_per_pixel * steps / (2 if smaller else 1)


def _steps(last: int) -> tuple[str, ...]:
    return tuple(str(step) for step in range(last + 1))


_X26X = ["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow", "placebo"]
_KINDS = {
    # Faster presets than usual: engine and encoder share the processor. Of enlarged film, superfast of x264 at 21
    # has the size and the PSNR of veryfast at 18, to a tenth, in half the time.
    "libx264": _Kind(21, 0.19, "superfast", "preset", presets=tuple(_X26X), large=("ultrafast", "superfast")),
    "libx265": _Kind(20, 0.08, "superfast", "preset", fixed=(("x265-params", "log-level=none"),), presets=tuple(_X26X)),
    "libsvtav1": _Kind(28, 0.06, "10", "preset", presets=_steps(13), halving=9),
    "libaom-av1": _Kind(28, 0.06, "8", "cpu-used", presets=_steps(8), halving=9),
    "libvpx-vp9": _Kind(
        26, 0.08, "6", "cpu-used", fixed=(("deadline", "realtime"), ("row-mt", "1")), presets=_steps(8), halving=9
    ),
    # Quality counts for VP8 as far as the bit rate lets it, whose default is 256 kb/s.
    "libvpx": _Kind(
        20, 0.2, "6", "cpu-used", fixed=(("b", "100000000"), ("deadline", "realtime")), presets=_steps(16), halving=20
    ),
    "mpeg4": _Kind(3, 0.3, halving=0),
    # These have no quality to choose.
    "prores_ks": _Kind(0, 3.7),
    "ffv1": _Kind(0, 2.0),
    "rawvideo": _Kind(0, 12),
}
_HARDWARE = _Kind(20, 0.12, None, "preset", "cq", (("rc", "vbr"),))
_OTHER = _Kind(20, 0.15, None, "preset")


@dataclass(frozen=True)
class Encoder:
    """A set-up that can be started again and again, each time with a keyframe."""

    name: str
    codec: str
    container: Container
    width: int
    """Even."""
    height: int
    pixel_format: str
    time_base: Fraction
    rate: Fraction
    colour: Colour
    sample_aspect: Fraction | None
    options: tuple[tuple[str, str], ...]
    quality: float
    bits_per_pixel: float
    threads: int
    """Not only a matter of speed: with others, most encoders make other packets."""

    def set_up(self, context: VideoCodecContext) -> None:
        """Give a fresh context these settings."""
        context.width, context.height, context.pix_fmt = self.width, self.height, self.pixel_format
        context.time_base, context.framerate = self.time_base, self.rate
        context.colorspace, context.color_range = self.colour.matrix, self.colour.range
        context.color_primaries, context.color_trc = self.colour.primaries, self.colour.transfer
        context.thread_count = self.threads
        if self.sample_aspect is not None:
            context.sample_aspect_ratio = self.sample_aspect
        if self.name == "mpeg4":
            context.flags |= _QSCALE
            context.global_quality = round(self.quality * _QP_TO_LAMBDA)
        if self.codec == "hevc" and self.container.name in ("mp4", "mov"):
            context.codec_tag = "hvc1"  # the only spelling that Apple's players take
        if self.container.name != "avi":
            context.flags |= _GLOBAL_HEADER
        context.options = dict(self.options)

    def start(self) -> VideoCodecContext:
        """An open context, whose first packet will be a keyframe. Raises OutputError if it does not open."""
        context = av.CodecContext.create(self.name, "w")
        assert isinstance(context, VideoCodecContext)
        self.set_up(context)
        try:
            context.open()
        except (av.FFmpegError, ValueError) as error:
            raise OutputError(f"{self.name} does not start at {self.width}x{self.height} ({error})") from None
        return context


def choose_encoder(
    clip: Clip, target: Path, size: tuple[int, int], settings: VideoSettings
) -> tuple[Encoder, tuple[str, ...]]:
    """The encoder for a result of `size` (width, height, even), and notes about what it cannot keep.

    Raises OutputError if no encoder works, the container does not take it, or AVI cannot hold the frames' times.
    """
    container = CONTAINERS.get(target.suffix.lower())
    if container is None:
        known = ", ".join(CONTAINERS)
        raise OutputError(f"cannot write {target}: '{target.suffix}' is no video format here; use one of {known}")
    refused, shallow = {}, None
    for codec in (settings.codec,) if settings.codec else container.codecs:
        for name in _ENCODERS.get(codec, (codec,)):
            encoder, why = _try(name, clip, container, size, settings)
            if encoder is None:
                refused[name] = why
            elif clip.colour.bits <= 8 or is_deep(encoder.pixel_format):
                return encoder, _losses(encoder, clip)
            else:
                shallow = shallow or encoder
                break  # another encoder of the same codec is no better reason to leave the processor
    if shallow is not None:
        return shallow, _losses(shallow, clip)
    cure = "choose another --codec" if settings.codec else "try another suffix"
    # What encodes the film at its own size is refused for the size alone.
    width, height = clip.upright_size
    least = (width + width % 2, height + height % 2)
    if any(_try(name, clip, container, least, settings)[0] for name in refused):
        cure += " or a smaller --scale"
    raise OutputError(f"cannot encode {target}: {'; '.join(map(' '.join, refused.items()))}; {cure}")


def _try(
    name: str, clip: Clip, container: Container, size: tuple[int, int], settings: VideoSettings
) -> tuple[Encoder | None, str]:
    """The encoder if it proves to work, or why not."""
    try:
        codec = av.Codec(name, "w")
    except (av.FFmpegError, ValueError):
        return None, "is not in this FFmpeg"
    if codec.type != "video":
        return None, "is no video encoder"
    kind = _KINDS.get(name) or (_HARDWARE if name.endswith(("_nvenc", "_qsv")) else _OTHER)
    if settings.preset is not None and kind.presets and settings.preset not in kind.presets:
        raise OutputError(f"{name} has no preset '{settings.preset}'; choose a --preset of {', '.join(kind.presets)}")
    if name == "libsvtav1":
        # It writes to stderr by itself, and only this variable, read when it first starts, makes it quiet.
        os.environ.setdefault("SVT_LOG", "1")
    canonical = str(codec.canonical_name)
    if is_hdr(clip.colour) and not (container.tags_colours or canonical in (*_TAGS_ITSELF, *_LIMITED)):
        return None, f"in {container.suffix} cannot say that a film is HDR"
    pixel_format = _pixel_format(codec, clip.colour)
    if pixel_format is None:
        return None, f"takes no {', '.join(FORMATS)}"
    encoder = Encoder(
        name=name,
        codec=canonical,
        container=container,
        width=size[0],
        height=size[1],
        pixel_format=pixel_format,
        time_base=_time_base(name, clip, container),
        rate=clip.rate,
        colour=_told(clip.colour, canonical, container),
        sample_aspect=clip.sample_aspect,
        options=_options(name, kind, container, settings),
        quality=kind.quality(settings),
        bits_per_pixel=kind.bits(settings),
        threads=min(usable_cores(), _MOST_THREADS),
    )
    try:
        ignored = _probe(encoder)
    except OutputError as error:
        return None, str(error)
    options = {option: value for option, value in encoder.options if option not in ignored}
    taken = {"preset": kind.preset_option in options, "crf": name == "mpeg4" or kind.crf_option in options}
    for setting, known in taken.items():
        if not known and getattr(settings, setting) is not None:
            raise OutputError(f"{name} takes no --{setting}; leave it out")
    return replace(encoder, options=tuple(options.items())), ""


def _options(name: str, kind: _Kind, container: Container, settings: VideoSettings) -> tuple[tuple[str, str], ...]:
    options = dict(kind.fixed)
    if name != "mpeg4":
        options[kind.crf_option] = f"{kind.quality(settings):g}"
    preset = settings.preset or kind.preset
    if preset is not None and kind.preset_option is not None:
        options[kind.preset_option] = preset
    if container.fixed_rate and name == "libx264":
        options["bf"] = "0"  # AVI has no times to put frames into another order
    return tuple(sorted(options.items()))


def _told(colour: Colour, codec: str, container: Container) -> Colour:
    """The source's, as far as the file can tell which they are."""
    if codec in _LIMITED:
        return replace(colour, full_range=False)
    if codec in _TAGS_ITSELF or container.tags_colours:
        return colour
    return for_players_that_guess(colour)


def _pixel_format(codec: av.Codec, colour: Colour) -> str | None:
    """In 10 bits where the source has more than 8 and the encoder takes them; None if it takes nothing of ours."""
    listed = codec.video_formats  # None where any goes
    known = FORMATS if listed is None else [video_format.name for video_format in listed]
    taken = [name for name in FORMATS if name in known]
    return min(taken, key=lambda name: is_deep(name) != (colour.bits > 8), default=None)


def _time_base(name: str, clip: Clip, container: Container) -> Fraction:
    """The source's, unless the container or the encoder cannot have it."""
    if container.fixed_rate:
        return 1 / _tidy(clip.rate)
    if name == "mpeg4" and clip.time_base.denominator > _MPEG4_TICKS:
        return 1 / _tidy(clip.rate) if clip.fixed_rate else Fraction(1, 1000)
    return clip.time_base


def _tidy(rate: Fraction) -> Fraction:
    """The rate in small numbers, which MPEG-4 wants; measured ones have large numbers and mean the same."""
    near = rate.limit_denominator(1001)
    return near if near.numerator <= _MPEG4_TICKS else Fraction(round(rate))


def _probe(encoder: Encoder) -> frozenset[str]:
    """Encode a few frames; the options that the encoder does not know, with which it starts all the same.

    Raises OutputError with nothing but the reason if that fails.
    """
    deep = is_deep(encoder.pixel_format)
    flat = np.full((encoder.height, encoder.width, 3), 128, np.uint16 if deep else np.uint8)
    try:
        output = av.open(os.devnull, "w", format=encoder.container.name)
        try:
            output.add_stream(encoder.name, rate=encoder.rate)
        finally:
            del output  # never started, so there is nothing to close
        context = encoder.start()
        ignored = frozenset(context.options)
        frame = FromBgr(encoder.colour, encoder.pixel_format)(flat)
        packets = []
        for i in range(_PROBE_FRAMES):
            frame.pts, frame.time_base = i * max(1, round(1 / (encoder.rate * encoder.time_base))), encoder.time_base
            packets += context.encode(frame)
        packets += context.encode(None)
    except ValueError as error:
        raise OutputError(f"does not fit ({error})") from None
    except (av.FFmpegError, OutputError) as error:
        raise OutputError(f"does not work here ({error})") from None
    if len(packets) != _PROBE_FRAMES:
        raise OutputError("lost frames of a probe")
    return ignored


def _losses(encoder: Encoder, clip: Clip) -> tuple[str, ...]:
    notes = []
    if clip.colour.bits > 8 and not is_deep(encoder.pixel_format):
        notes.append(f"{clip.colour.bits} bits reduced to 8, because {encoder.name} has no more")
    elif clip.colour.bits > 10:
        notes.append(f"{clip.colour.bits} bits reduced to 10")
    if encoder.colour != clip.colour and encoder.codec in _LIMITED:
        notes.append(f"converted to limited range, because {encoder.codec} has no other")
    elif encoder.colour != clip.colour:
        what = f"{encoder.container.suffix} cannot tag the colours of {encoder.codec}"
        notes.append(f"{what}: converted to BT.601 in limited range, which players assume")
    late = clip.first * clip.time_base - clip.shift
    if encoder.container.fixed_rate and late >= 1 / clip.rate:
        notes.append(f"AVI begins at zero: the first frame is shown for the {float(late):.2f} s before it too")
    if encoder.container.fixed_rate and not clip.fixed_rate:
        raise OutputError(
            f"AVI has one fixed frame rate and {clip.path} a variable one; write .mkv or .mp4 to keep the times"
        )
    return tuple(notes)


def fitted(image: NDArray[Any], width: int, height: int) -> NDArray[Any]:
    """Of the size of a film, which is even: with an edge doubled, or resized where the source has changed."""
    h, w = image.shape[:2]
    if (w + w % 2, h + h % 2) != (width, height):
        return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA))
    if (w, h) == (width, height):
        return image
    return np.asarray(cv2.copyMakeBorder(image, 0, height - h, 0, width - w, cv2.BORDER_REPLICATE))
