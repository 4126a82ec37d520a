"""The measurements that a latency model is fitted to: few frames, small enough to be quick, apart in every term."""

from __future__ import annotations

from dataclasses import dataclass

from rsd_edge.specs import TileSpec

_ROUND_TO = 8


@dataclass(frozen=True)
class Point:
    """A frame, and the largest side of its tiles."""

    width: int
    height: int
    tile: int


def grid(tile: TileSpec) -> tuple[Point, ...]:
    """Frames for an engine with these tiles: one tile and several, small ones and large ones, from the cheapest on.

    An engine of a fixed tile gets frames of one to four of those.
    """
    core = tile.size - 2 * tile.halo
    if tile.fixed:
        return tuple(Point(count * core, core, tile.size) for count in (1, 2, 4))
    small = max(2 * tile.halo + 2 * tile.feather, tile.size // 3 // _ROUND_TO * _ROUND_TO)
    small += -small % tile.multiple_of
    short, half = small - 2 * tile.halo, core // 2
    return (
        Point(short, short, small),
        Point(half, half, tile.size),
        Point(2 * short, 2 * short, small),
        Point(core, core, tile.size),
        Point(4 * short, 3 * short, small),
        Point(2 * core, half, tile.size),
    )
