"""What bench_streams.py runs: a short film with a square that moves over still ground, frame by frame."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from turns import Job, scratch
from video_clips import Recipe, make, picture

from rsd_edge import SuperResolver, VideoUpscaler
from rsd_edge.bench.subjects import Wish
from rsd_edge.live.path import LivePath
from rsd_edge.live.settings import StreamSettings
from rsd_edge.pipeline import OneAtATime

_TICKS = 512
"""Of a frame, in the time base of the recipes."""


@dataclass(frozen=True)
class Reel:
    """The film, and the engine for it."""

    wish: Wish
    size: tuple[int, int]
    frames: int
    threads: int

    def recipe(self) -> Recipe:
        """How it is made."""
        return Recipe(size=self.size, times=range(0, self.frames * _TICKS, _TICKS))

    def pictures(self) -> list[NDArray[np.uint8]]:
        """All frames, BGR."""
        return [picture(self.recipe(), index) for index in range(self.frames)]


def single_calls(reel: Reel) -> Job:
    """Each frame as if it were alone."""
    resolver, frames = reel.wish.load(reel.threads), reel.pictures()

    def run() -> None:
        for frame in frames:
            resolver(frame)

    return Job(run, frames=reel.frames)


def stream(reel: Reel, threshold: float) -> Job:
    """`SuperResolver.stream`: tiles that have not changed, or by no more than the threshold, are not computed again."""
    resolver, frames = reel.wish.load(reel.threads), reel.pictures()
    return Job(lambda: _exhaust(resolver, frames, threshold), frames=reel.frames)


def _exhaust(resolver: SuperResolver, frames: list[NDArray[np.uint8]], threshold: float) -> None:
    deque(resolver.stream(frames, reuse_threshold=threshold), maxlen=0)


def stream_without_reuse(reel: Reel) -> Job:
    """The same path, with every tile computed for every frame."""
    resolver, frames, alone = reel.wish.load(reel.threads), reel.pictures(), OneAtATime()

    def run() -> None:
        deque(LivePath(resolver.engine, StreamSettings(reuse=False)).stream(frames, alone), maxlen=0)

    return Job(run, frames=reel.frames)


def video(reel: Reel) -> Job:
    """`VideoUpscaler` from file to file: decoding, colours, the engine, encoding."""
    folder = scratch()
    clip = make(folder / "clip.mp4", reel.recipe())
    upscaler = VideoUpscaler(reel.wish.load(reel.threads))
    return Job(lambda: upscaler(clip, folder / "enlarged.mp4"), frames=reel.frames)
