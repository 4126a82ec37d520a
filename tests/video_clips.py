"""Tiny videos made for tests, and what is in a video, both with formulas of their own for colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from rsd_edge import VideoResult, VideoSettings, VideoUpscaler

TICKS = Fraction(1, 12800)
PATCHES = ((0, 0, 0), (255, 255, 255), (128, 128, 128), (40, 60, 220), (60, 190, 50), (200, 60, 40), (30, 170, 220))
"""BGR, and none so saturated that limited range would clip it."""
_LUMA = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}


@dataclass
class Recipe:
    """What a test video is made of."""

    codec: str = "libx264"
    options: dict[str, str] = field(default_factory=lambda: {"crf": "4", "preset": "ultrafast"})
    size: tuple[int, int] = (64, 48)
    times: Sequence[int] = tuple(range(0, 8 * 512, 512))
    time_base: Fraction = TICKS
    rate: int = 25
    pixel_format: str = "yuv420p"
    matrix: int = 6
    full: bool = False
    transfer: int = 2
    tagged: bool = True
    audio: Sequence[str] = ()
    subtitle: str = ""
    rotation: int = 0
    b_frames: int = 0
    font: bytes = b""
    chapters: Sequence[tuple[int, int, str]] = ()
    """In milliseconds."""
    tags: dict[str, str] = field(default_factory=dict)
    aspect: Fraction | None = None
    """Width to height of a pixel."""
    patch: bool = False
    """Flat patches, instead of a ramp with a bright square that moves."""


def picture(recipe: Recipe, index: int) -> NDArray[np.uint8]:
    """Frame number `index` in BGR."""
    width, height = recipe.size
    image = np.empty((height, width, 3), np.uint8)
    if recipe.patch:
        edges = np.linspace(0, width, len(PATCHES) + 1).astype(int)
        for colour, left, right in zip(PATCHES, edges, edges[1:], strict=False):
            image[:, left:right] = colour
        return image
    image[:] = (np.linspace(40, 200, width)[None, :, None] + (0, 10, 20)).astype(np.uint8)
    image[4 : height // 2, (5 * index) % max(1, width - 8) :][:, :8] = (30, 220, 220)
    return image


def planes(image: NDArray[np.uint8], recipe: Recipe, bits: int) -> NDArray[Any]:
    """4:2:0 planes of a BGR picture, one below the other as PyAV wants them."""
    red, blue = _LUMA[recipe.matrix]
    b, g, r = (image[..., i] / 255 for i in range(3))
    y = red * r + (1 - red - blue) * g + blue * b
    chroma = [(b - y) / (2 - 2 * blue), (r - y) / (2 - 2 * red)]
    scale, top = 2 ** (bits - 8), 2**bits - 1
    luma = y * top if recipe.full else (219 * y + 16) * scale
    gain = top if recipe.full else 224 * scale
    small = [cv2.resize(plane, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for plane in chroma]
    parts = [luma.reshape(-1)] + [(gain * plane + 128 * scale).reshape(-1) for plane in small]
    flat = np.clip(np.rint(np.concatenate(parts)), 0, top).astype(np.uint8 if bits == 8 else np.uint16)
    return flat.reshape(image.shape[0] * 3 // 2, image.shape[1])


def make(path: Path, recipe: Recipe) -> Path:
    """Write the video."""
    bits = 10 if "10" in recipe.pixel_format else 8
    with av.open(str(path), "w") as output:
        video = output.add_stream(recipe.codec, rate=recipe.rate, time_base=recipe.time_base)
        video.width, video.height = recipe.size
        video.pix_fmt, video.options = recipe.pixel_format, dict(recipe.options)
        video.codec_context.max_b_frames = recipe.b_frames
        if recipe.aspect is not None:
            video.codec_context.sample_aspect_ratio = recipe.aspect
        if recipe.tagged:
            video.codec_context.colorspace, video.codec_context.color_range = recipe.matrix, 2 if recipe.full else 1
            video.codec_context.color_primaries = recipe.matrix if recipe.matrix != 5 else 6
            video.codec_context.color_trc = recipe.transfer
        if recipe.rotation:
            video.set_display_rotation(recipe.rotation)
        sounds = [output.add_stream(codec, rate=48000) for codec in recipe.audio]
        for number, sound in enumerate(sounds):
            sound.metadata["language"] = ("eng", "deu")[number]
        texts = _text_source(path, recipe.subtitle) if recipe.subtitle else None
        text = output.add_stream_from_template(texts.streams[0]) if texts is not None else None
        if recipe.font:
            output.add_attachment("font.ttf", "font/ttf", recipe.font)
        output.metadata.update(recipe.tags)
        if recipe.chapters:
            output.set_chapters([_chapter(i, *chapter) for i, chapter in enumerate(recipe.chapters)])
        for index, time in enumerate(recipe.times):
            frame = _frame(recipe, index, bits)
            frame.pts, frame.time_base = time, recipe.time_base
            output.mux(video.encode(frame))
        output.mux(video.encode(None))
        length = float((max(recipe.times) + 512) * recipe.time_base)
        for sound in sounds:
            _add_sound(output, sound, length)
        if texts is not None and text is not None:
            for packet in texts.demux():
                if packet.size:
                    packet.stream = text
                    output.mux(packet)
            texts.close()
    return path


def _frame(recipe: Recipe, index: int, bits: int) -> av.VideoFrame:
    image = picture(recipe, index)
    if image.shape[0] % 2 or image.shape[1] % 2:
        return av.VideoFrame.from_ndarray(image, format="bgr24").reformat(
            format="yuv444p", dst_colorspace=5, dst_color_range=1
        )
    frame = av.VideoFrame(image.shape[1], image.shape[0], recipe.pixel_format)
    rows = planes(image, recipe, bits)
    flat, begin = rows.reshape(-1), 0
    for plane in frame.planes:
        part = flat[begin : begin + plane.width * plane.height].reshape(plane.height, plane.width)
        padded = np.zeros((plane.height, plane.line_size // rows.itemsize), rows.dtype)
        padded[:, : plane.width] = part
        plane.update(padded.tobytes())
        begin += part.size
    return frame


def stored(frame: av.VideoFrame) -> NDArray[Any]:
    """4:2:0 planes, one below the other; the inverse of `planes`."""
    dtype = np.dtype(np.uint16 if "10" in frame.format.name else np.uint8)
    parts = []
    for plane in frame.planes:
        rows = np.frombuffer(plane, dtype).reshape(plane.height, -1)
        parts.append(rows[:, : plane.width].reshape(-1))
    return np.concatenate(parts).reshape(-1, frame.width)


def _chapter(number: int, start: int, end: int, title: str) -> Any:
    return {"id": number, "start": start, "end": end, "time_base": Fraction(1, 1000), "metadata": {"title": title}}


def _text_source(path: Path, kind: str) -> Any:
    source = path.with_suffix(f".{kind}")
    source.write_text("1\n00:00:00,040 --> 00:00:00,200\nHello\n\n")
    return av.open(str(source))


def _add_sound(output: Any, stream: Any, seconds: float) -> None:
    rng = np.random.default_rng(3)
    form = stream.codec_context.format.name
    for start in range(0, int(seconds * 48000), 1024):
        noise = rng.normal(0, 0.1, (2, 1024)).astype(np.float32)
        if form == "s16":
            noise = (noise.T.reshape(1, -1) * 32767).clip(-32768, 32767).astype(np.int16)
        sound = av.AudioFrame.from_ndarray(noise, format=form, layout="stereo")
        sound.sample_rate, sound.pts, sound.time_base = 48000, start, Fraction(1, 48000)
        output.mux(stream.encode(sound))
    output.mux(stream.encode(None))


@dataclass
class Content:
    """What a test found in a video."""

    times: list[Fraction]
    """In seconds."""
    hashes: list[int]
    """Of the decoded frames' bytes."""
    size: tuple[int, int]
    end: Fraction
    """At which the last frame ends, in seconds."""
    first: NDArray[Any]
    """The first frame's planes, 4:2:0."""
    pixel_format: str
    tags: tuple[int, int, int, int]
    """Matrix, range, primaries, transfer."""
    streams: list[tuple[str, str]]
    packets: dict[int, list[tuple[float, bytes]]]
    """Seconds and bytes of each packet of other streams, by index."""
    rotation: int
    codec: str
    metadata: dict[str, str]
    chapters: list[Any]
    time_base: Fraction


def read(path: Path) -> Content:
    """Decode everything."""
    with av.open(str(path)) as source:
        video = source.streams.video[0]
        frames: list[av.VideoFrame] = []
        packets: dict[int, list[tuple[float, bytes]]] = {}
        for packet in source.demux([s for s in source.streams if s.type != "attachment"]):
            if packet.stream is video:
                frames += packet.decode()
            elif packet.size and packet.pts is not None:
                packets.setdefault(packet.stream.index, []).append(
                    (float(packet.pts * packet.time_base), bytes(packet))
                )
        base = video.time_base
        assert base is not None
        context = video.codec_context
        return Content(
            times=[frame.pts * base for frame in frames],
            hashes=[hash(stored(frame).tobytes()) for frame in frames],
            size=(frames[0].width, frames[0].height),
            end=max((frame.pts + (frame.duration or 0)) * base for frame in frames),
            first=stored(frames[0]),
            pixel_format=frames[0].format.name,
            tags=(context.colorspace, context.color_range, context.color_primaries, context.color_trc),
            streams=[(s.type, s.codec_context.name if s.codec_context else "") for s in source.streams],
            packets=packets,
            rotation=frames[0].rotation,
            codec=context.codec.canonical_name,
            metadata=dict(source.metadata),
            chapters=list(source.chapters()),
            time_base=base,
        )


def patch_colours(content: Content, matrix: int, full: bool) -> NDArray[np.float64]:
    """BGR in 0..255 at the middle of each patch of the first frame."""
    width, height = content.size
    bits = 10 if "10" in content.pixel_format else 8
    scale, top = 2 ** (bits - 8), 2**bits - 1
    luma = content.first[:height].astype(float)
    small = content.first[height:].reshape(2, height // 2, width // 2).astype(float) - 128 * scale
    luma = luma / top if full else (luma / scale - 16) / 219
    small = small / top if full else small / scale / 224
    red, blue = _LUMA[matrix]
    found = []
    for index in range(len(PATCHES)):
        x, row = int((index + 0.5) * width / len(PATCHES)), height // 2
        y, u, v = luma[row, x], small[0][row // 2, x // 2], small[1][row // 2, x // 2]
        b, r = y + u * (2 - 2 * blue), y + v * (2 - 2 * red)
        found.append((b, (y - red * r - blue * b) / (1 - red - blue), r))
    return 255 * np.asarray(found)


def cubic(
    image: NDArray[Any], *, seed: int, strength: float, scale: float, out: NDArray[Any] | None = None
) -> NDArray[Any]:
    """Called like a `SuperResolver`."""
    if out is None:
        out = np.empty((round(scale * image.shape[0]), round(scale * image.shape[1]), 3), image.dtype)
    cv2.resize(image, out.shape[1::-1], dst=out, interpolation=cv2.INTER_CUBIC)
    return out


def upscale(source: Path, target: str, **options: Any) -> tuple[VideoResult, Content]:
    """Segments of three frames, so that every film has several."""
    settings = VideoSettings(**{"segment_frames": 3, **options})
    path = source.with_name(target)
    result = VideoUpscaler(cubic, settings)(source, path)
    assert not [entry for entry in source.parent.iterdir() if "rsd-edge" in entry.name]
    return result, read(path)
