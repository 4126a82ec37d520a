"""Frames per second of films: `SuperResolver.stream` with and without the reuse of tiles, and video files."""

from __future__ import annotations

from collections.abc import Callable

from stream_runs import Reel, single_calls, stream, stream_without_reuse, video
from turns import Group, Row

from rsd_edge.bench.subjects import Wish
from rsd_edge.machine import usable_cores

THRESHOLD = 3.0
"""Grey levels; the film is free of noise, so that a threshold spares little more than exact reuse."""


def groups(*, quick: bool) -> dict[str, Group]:
    """Tiles of 64, of which most rest. quick: two small frames."""
    size, frames = ((48, 32), 2) if quick else ((160, 90), 12)
    reel = Reel(Wish("edge-n", "int8", "onnxruntime", tile=64), size, frames, usable_cores())
    rows = {
        "single calls": Row(single_calls, (reel,)),
        "stream, no reuse": Row(stream_without_reuse, (reel,)),
        "stream, exact reuse": Row(stream, (reel, 0.0)),
        f"stream, threshold {THRESHOLD:g}": Row(stream, (reel, THRESHOLD)),
        "video file to file": Row(video, (reel,)),
    }
    return {"{}x{}, edge-n int8 onnxruntime".format(*size): Group(rows)}


def bench_stream(replay: Callable[[], None]) -> None:
    """A whole film, from its first frame to its last."""
    replay()
