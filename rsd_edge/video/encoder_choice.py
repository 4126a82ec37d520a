"""Which encoder a result gets, proved by a few frames that come back from it."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av

from rsd_edge.errors import OutputError
from rsd_edge.machine import usable_cores
from rsd_edge.video.colour import FORMATS, Colour, for_players_that_guess, is_deep, is_hdr, reads_as
from rsd_edge.video.encoder import Encoder
from rsd_edge.video.formats import CONTAINERS, Container
from rsd_edge.video.settings import VideoSettings
from rsd_edge.video.source import Clip
from rsd_edge.video.trial import try_out

_ENCODERS = {
    "h264": ("libx264", "h264_nvenc", "h264_qsv", "h264_videotoolbox", "libopenh264"),
    "hevc": ("libx265", "hevc_nvenc", "hevc_qsv", "hevc_videotoolbox"),
    "av1": ("libsvtav1", "libaom-av1", "av1_nvenc", "av1_qsv"),
    "vp9": ("libvpx-vp9",),
    "mpeg4": ("mpeg4",),
}
"""Of each codec, by preference: on the processor first, because those are the same everywhere."""

_MOST_THREADS = 8
"""More would only keep more large frames in memory."""

_MPEG4_TICKS = 65535
"""A second of MPEG-4 part 2 has no more."""


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
    pixel_format = _pixel_format(codec, clip.colour)
    if pixel_format is None:
        return None, f"takes no {', '.join(FORMATS)}"
    encoder = Encoder(
        name=name,
        codec=str(codec.canonical_name),
        container=container,
        width=size[0],
        height=size[1],
        pixel_format=pixel_format,
        time_base=_time_base(name, clip, container),
        rate=clip.rate,
        colour=clip.colour,
        sample_aspect=clip.sample_aspect,
        options=_options(name, kind, container, settings),
        quality=kind.quality(settings),
        bits_per_pixel=kind.bits(settings),
        threads=min(usable_cores(), _MOST_THREADS),
    )
    try:
        encoder, ignored = _in_colours_that_come_back(encoder)
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


def _in_colours_that_come_back(encoder: Encoder) -> tuple[Encoder, frozenset[str]]:
    """The encoder in the source's colours as far as what reads the file learns which they are, and the options that it
    does not know.

    Raises OutputError with nothing but the reason if it does not work, or if nothing would tell that a film is HDR.
    """
    colour = encoder.colour
    for made in dict.fromkeys((colour, replace(colour, full_range=False), for_players_that_guess(colour))):
        tried = replace(encoder, colour=made)
        frame, ignored = try_out(tried)
        if reads_as(frame, made):
            return tried, ignored
    what = "say that a film is HDR" if is_hdr(colour) else "keep the colours"
    raise OutputError(f"in {encoder.container.suffix} cannot {what}")


def _pixel_format(codec: av.Codec, colour: Colour) -> str | None:
    """In 10 bits where the source has more than 8 and the encoder takes them; None if it takes nothing of ours."""
    listed = codec.video_formats
    # Where any goes, decoders know the first one.
    known = FORMATS[:1] if listed is None else [video_format.name for video_format in listed]
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


def _losses(encoder: Encoder, clip: Clip) -> tuple[str, ...]:
    notes = []
    if clip.colour.bits > 8 and not is_deep(encoder.pixel_format):
        notes.append(f"{clip.colour.bits} bits reduced to 8, because {encoder.name} has no more")
    elif clip.colour.bits > 10:
        notes.append(f"{clip.colour.bits} bits reduced to 10")
    if encoder.colour != clip.colour:
        kept = encoder.colour.matrix == clip.colour.matrix
        what, made = ("range", "limited range") if kept else ("colours", "BT.601 in limited range")
        where = f"{encoder.container.suffix} cannot tag the {what} of {encoder.codec}"
        notes.append(f"{where}: converted to {made}, which players assume")
    late = clip.first * clip.time_base - clip.shift
    if encoder.container.fixed_rate and late >= 1 / clip.rate:
        notes.append(f"AVI begins at zero: the first frame is shown for the {float(late):.2f} s before it too")
    if encoder.container.fixed_rate and not clip.fixed_rate:
        raise OutputError(
            f"AVI has one fixed frame rate and {clip.path} a variable one; write .mkv or .mp4 to keep the times"
        )
    return tuple(notes)
