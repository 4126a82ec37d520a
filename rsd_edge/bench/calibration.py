"""The measurements that a latency model is fitted to: few frames, small enough to be quick, apart in every term."""

from __future__ import annotations

from dataclasses import dataclass

from rsd_edge.specs import TileSpec

_ROUND_TO = 8
_TINY = 8


@dataclass(frozen=True)
class Point:
    """A frame, and the largest side of its tiles."""

    width: int
    height: int
    tile: int


def grid(tile: TileSpec) -> tuple[Point, ...]:
    """Frames for an engine with these tiles: one tile and several, tiny ones and large ones.

    Tiny frames in their halo tell what a pixel costs the engine from what it costs around it. An engine of a fixed tile
    gets frames of one to four of those.
    """
    core = tile.size - 2 * tile.halo
    if tile.fixed:
        return tuple(Point(count * core, core, tile.size) for count in (1, 2, 4))
    small = max(2 * tile.halo + 2 * tile.feather, tile.size // 3 // _ROUND_TO * _ROUND_TO)
    small += -small % tile.multiple_of
    short, half = small - 2 * tile.halo, core // 2
    most = core * 3 // 4
    return (
        Point(_TINY, _TINY, tile.size),
        Point(3 * _TINY, 3 * _TINY, tile.size),
        Point(short, short, small),
        Point(half, half, tile.size),
        Point(most, most, tile.size),
        Point(core, core, tile.size),
        Point(2 * short, 2 * short, small),
        Point(4 * short, 3 * short, small),
        Point(2 * core, half, tile.size),
    )
