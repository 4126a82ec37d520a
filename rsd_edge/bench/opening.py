"""What one run of `rsd-edge bench` measures, opened and named, before anything is timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rsd_edge.bench.calibration import Point, grid
from rsd_edge.bench.peaks import COPY, Peak, copy_peak, peaks
from rsd_edge.bench.peer import open_peer
from rsd_edge.bench.subjects import Subject, Wish, frame_run, tile_run
from rsd_edge.bench.timing import Effort, Run
from rsd_edge.errors import InputError
from rsd_edge.resolver import SuperResolver
from rsd_edge.specs import TileSpec
from rsd_edge.tiling import plan_tiles
from rsd_edge.versions import installed

FRAME, TILE, PEER, PEAK, POINT = "frame", "tile", "peer", "peak", "point"
"""Kinds of things that are timed; a point is a frame that the latency model is fitted to."""

Progress = Callable[[str, int, int], Any]
"""Called with what is going on, turns done, turns in all; 0 where that is not known."""


@dataclass(frozen=True)
class BenchSettings:
    """What to measure."""

    wishes: tuple[Wish, ...]
    sizes: tuple[tuple[int, int], ...] = ((160, 90), (320, 180), (640, 360))
    """(width, height) of frames."""
    threads: tuple[int, ...] = (1,)
    effort: Effort = field(default_factory=Effort)
    peers: Mapping[str, Path | None] = field(default_factory=dict)
    """See `peers_of`."""
    memory: bool = True


@dataclass(frozen=True)
class Turn:
    """One thing that takes its turns, and what its row says besides its times."""

    kind: str
    run: Run
    row: Mapping[str, Any]
    resolver: SuperResolver | None = None
    """Of frames and points."""


@dataclass
class Opened:
    """Everything by name, in the order of its turns."""

    turns: dict[str, Turn] = field(default_factory=dict)
    peaks: dict[str, Peak] = field(default_factory=dict)

    def of_kind(self, kind: str) -> dict[str, Turn]:
        """Those of one kind."""
        return {name: turn for name, turn in self.turns.items() if turn.kind == kind}


def can_count() -> bool:
    """The package is there that reads graphs and writes those of the peaks."""
    return installed("onnx")


def settle(settings: BenchSettings) -> list[Subject]:
    """The engines, each once, as the largest number of threads would choose them.

    Raises InputError where two different ones have the same name, and what loading raises.
    """
    found: dict[str, Subject] = {}
    for wish in settings.wishes:
        subject = Subject.of(wish, max(settings.threads))
        other = found.setdefault(subject.label, subject)
        if other.record.get("digest") != subject.record.get("digest"):
            raise InputError(
                f"{wish.model} and {other.wish.model} are both '{subject.label}'; measure them one after the other and "
                "lay the reports side by side with --compare"
            )
    return list(found.values())


def open_all(settings: BenchSettings, subjects: list[Subject], stack: ExitStack, progress: Progress) -> Opened:
    """Load everything; what is open closes with the stack. Raises what loading an engine or a peer raises."""
    opened = Opened()
    for threads in settings.threads:
        for subject in subjects:
            progress(f"loading {subject.label}", 0, 0)
            for width, height in settings.sizes:
                _open_frame(opened, subject, (width, height), threads, stack)
            if subject.is_graph:
                _open_tiles(opened, subject, threads, stack)
        for name, path in settings.peers.items():
            progress(f"loading {name}", 0, 0)
            for width, height in settings.sizes:
                row = {"engine": name, "width": width, "height": height, "threads": threads, "peer": True}
                run = open_peer(path, width, height, threads)
                opened.turns[f"{name} {_where(width, height, threads)}"] = Turn(PEER, run, row)
        _open_peaks(opened, threads)
    return opened


def _open_frame(opened: Opened, subject: Subject, size: tuple[int, int], threads: int, stack: ExitStack) -> None:
    """Each size has an engine of its own: one that changed sizes would plan its memory anew in every turn."""
    resolver = stack.enter_context(subject.wish.load(threads))
    width, height = size
    tiles = plan_tiles(height, width, resolver.engine.tile)
    row = {
        "engine": subject.label,
        "width": width,
        "height": height,
        "threads": threads,
        "tiles": f"{tiles.x.count}x{tiles.y.count}",
        "tile": f"{tiles.tile_w}x{tiles.tile_h}",
        "operations": subject.operations(tiles.count, tiles.tile_h, tiles.tile_w),
    }
    name = f"{subject.label} {_where(width, height, threads)}"
    opened.turns[name] = Turn(FRAME, frame_run(resolver, width, height), row, resolver)


def _open_tiles(opened: Opened, subject: Subject, threads: int, stack: ExitStack) -> None:
    """Bare tiles of two sizes, and the frames that the latency model is fitted to."""
    points = grid(subject.tile)
    for side in sorted({min(point.tile for point in points), subject.tile.size}):
        engine = stack.enter_context(replace(subject.wish, tile=side).load(threads)).engine
        row = {
            "engine": subject.label,
            "width": side,
            "height": side,
            "threads": threads,
            "operations": subject.operations(1, side, side),
            "operations_per_byte": subject.intensity(),
        }
        opened.turns[f"{subject.label} tile {_where(side, side, threads)}"] = Turn(TILE, tile_run(engine, side), row)
    for point in points:
        _open_point(opened, subject, point, threads, stack)


def _open_point(opened: Opened, subject: Subject, point: Point, threads: int, stack: ExitStack) -> None:
    resolver = stack.enter_context(replace(subject.wish, tile=point.tile).load(threads))
    name = f"{subject.label} {_where(point.width, point.height, threads)}, tiles up to {point.tile}"
    row = {"engine": subject.label, "width": point.width, "height": point.height, "threads": threads}
    opened.turns[name] = Turn(POINT, frame_run(resolver, point.width, point.height), row, resolver)


def _open_peaks(opened: Opened, threads: int) -> None:
    for kind, peak in (peaks(threads) if can_count() else {COPY: copy_peak(threads)}).items():
        name = f"{kind}, {_of_threads(threads)}"
        opened.peaks[name] = peak
        opened.turns[name] = Turn(PEAK, peak.run, {"peak": kind, "threads": threads, "unit": peak.unit})


def _where(width: int, height: int, threads: int) -> str:
    return f"{width}x{height}, {_of_threads(threads)}"


def _of_threads(threads: int) -> str:
    return f"{threads} thread{'s' if threads > 1 else ''}"


def tile_of(turn: Turn) -> TileSpec:
    """How its frames are cut."""
    assert turn.resolver is not None, "neither a frame nor a point"
    return turn.resolver.engine.tile
