"""The frame path in three parts, which three threads may work on at once, each on another frame."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rsd_edge.backends.base import Ticket, TileEngine
from rsd_edge.errors import BackendError, InputError
from rsd_edge.frames import SCALE, DetailCompositor, bicubic_x4, check_frame
from rsd_edge.live.blend import FilmAverage
from rsd_edge.live.frames import LiveFrame, Picture
from rsd_edge.live.motion import FixedNoise, FlowNoise, TileNoise
from rsd_edge.live.reuse import TileReuse
from rsd_edge.live.settings import StreamSettings
from rsd_edge.live.trust import Follower
from rsd_edge.noise import NoiseField
from rsd_edge.resample import AreaReduction, collect, reduce_bands, result_size
from rsd_edge.tiling import TileMerger, TilePlan, TileReader, plan_tiles

_BYTES = np.dtype(np.uint8)


@dataclass
class Batch:
    """What the engine is given at once, and which tiles that is."""

    lq: NDArray[np.float32]
    noise: NDArray[np.float32]
    detail: NDArray[np.float32]
    tiles: list[int]
    in_use: int = 0
    """Tiles whose detail is still the latest."""


@dataclass
class Work:
    """One frame on its way."""

    frame: LiveFrame
    film: Film
    tiles: int
    """Tiles of the frame; none where it goes through no network."""
    batches: list[Batch] = field(default_factory=list)
    anew: bool = False
    """It has nothing to do with the frame before."""

    @property
    def computed(self) -> int:
        """Tiles that the engine works on."""
        return sum(len(batch.tiles) for batch in self.batches)


class Film:
    """What belongs to frames of one size: buffers, and what is remembered from one frame to the next.

    `reader`, `noise`, `reuse` belong to the thread that prepares, the rest to the one that finishes.
    """

    def __init__(self, height: int, width: int, engine: TileEngine, settings: StreamSettings) -> None:
        self.shape = (height, width)
        self.plan: TilePlan = plan_tiles(height, width, engine.tile)
        self.tiles_at_once = engine.tile.batch if engine.tile.fixed else 1
        channels, seed = engine.spec.model.noise_channels, NoiseField(settings.seed)
        kind = FlowNoise if settings.temporal == "flow" else FixedNoise
        self.reader = TileReader(self.plan, _BYTES)
        self.noise: TileNoise = kind(seed, channels, self.plan)
        self.reuse = TileReuse(self.plan, settings)
        blends = settings.temporal == "blend"
        self.follower = Follower() if blends else None
        self.average = FilmAverage(height, width) if blends else None
        self.noise_shape = (channels, self.plan.tile_h, self.plan.tile_w)
        self.spare: deque[Batch] = deque()
        self.merger = TileMerger(self.plan, restoring=settings.reuse)
        self.compositor = DetailCompositor(*self.plan.largest_region(), _BYTES)
        self.detail: list[tuple[Batch, int] | None] = [None] * self.plan.count
        self.shown = np.zeros((height, width, 3), np.uint8)
        """Of each tile, the input as it was when the tile was computed."""
        self.last: Picture | None = None
        new_width, new_height = result_size((width, height), settings.scale)
        self.reduction = AreaReduction((SCALE * height, SCALE * width), (new_height, new_width))
        self.delivered: Picture | None = None

    def new_batch(self) -> Batch:
        """Buffers, of an earlier frame if it does not need them any more."""
        with suppress(IndexError):
            return self.spare.popleft()
        n, (channels, h, w) = self.tiles_at_once, self.noise_shape
        shapes = ((n, 3, h, w), (n, channels, h, w), (n, SCALE * h, SCALE * w, 3))
        lq, noise, detail = (np.zeros(shape, np.float32) for shape in shapes)
        return Batch(lq, noise, detail, [])

    def keep(self, batch: Batch) -> None:
        """Take over the detail of finished tiles, and make room where that was the last use of older buffers."""
        batch.in_use = len(batch.tiles)
        for slot, index in enumerate(batch.tiles):
            older = self.detail[index]
            if older is not None:
                older[0].in_use -= 1
                if not older[0].in_use:
                    self.spare.append(older[0])
            self.detail[index] = (batch, slot)


class LivePath:
    """Enlarges films frame by frame: `prepare`, then `infer`, then `finish`, each for all frames in their order.

    With the noise fixed and the reuse of tiles exact, results are those of `SuperResolver`, byte for byte, if that cuts
    tiles alike and one at a time. Each part serves one thread.
    """

    def __init__(self, engine: TileEngine, settings: StreamSettings | None = None) -> None:
        self.engine = engine
        self.settings = settings or StreamSettings()
        self._film: Film | None = None
        self._epoch = 0

    def prepare(self, frame: LiveFrame) -> Work:
        """Choose the tiles that have to be computed and make their input ready. Raises InputError for a bad frame."""
        pixels = check_frame(frame.pixels)
        height, width = pixels.shape[:2]
        anew = self._film is None or self._film.shape != (height, width)
        if self._film is None or anew:
            self._film = Film(height, width, self.engine, self.settings)
        film = self._film
        if self.settings.strength == 0:
            return Work(frame, film, tiles=0)
        work = Work(frame, film, film.plan.count, anew=anew or frame.epoch != self._epoch)
        self._epoch = frame.epoch
        film.noise.advance(pixels, anew=work.anew)
        film.reader.load(pixels)
        tiles = film.reuse.choose(film.reader, film.noise)
        for first in range(0, len(tiles), film.tiles_at_once):
            work.batches.append(self._filled(film, tiles[first : first + film.tiles_at_once]))
        return work

    def infer(self, work: Work) -> None:
        """Compute the chosen tiles. Raises BackendError."""
        tickets: list[Ticket] = []
        try:
            for batch in work.batches:
                tickets.append(self.engine.submit(batch.lq, batch.noise, batch.detail))
                if len(tickets) == self.engine.ahead:
                    self.engine.collect(tickets.pop(0))
            while tickets:
                self.engine.collect(tickets.pop(0))
        finally:
            for ticket in tickets:
                with suppress(BackendError):
                    self.engine.collect(ticket)

    def finish(self, work: Work) -> Picture:
        """The result, BGR (round(scale * h), round(scale * w), 3), read-only: the same array if nothing changed."""
        film = work.film
        if self.settings.strength == 0:
            last = np.empty((SCALE * film.shape[0], SCALE * film.shape[1], 3), np.uint8)
            bicubic_x4(work.frame.pixels, last)
            return _read_only(self._reduced(film, last))
        if film.last is None or work.batches:
            film.last, film.delivered = self._composed(work, film), None
        if film.delivered is None or not (film.average is None or film.average.settled):
            film.delivered = _read_only(self._reduced(film, self._steadied(work, film, film.last)))
        return film.delivered

    def stream(self, images: Iterable[Picture], alone: Callable[[], AbstractContextManager[None]]) -> Iterator[Picture]:
        """All three parts for one image after the other; `alone` gives the engine for each."""
        for index, image in enumerate(images):
            frame = check_frame(image)
            if frame.dtype != np.uint8:
                raise InputError(f"image {index} of the film has dtype {frame.dtype}; films are of uint8")
            with alone():
                work = self.prepare(LiveFrame(index, 0.0, frame))
                self.infer(work)
                result = self.finish(work)
            yield result

    def warm_up(self, height: int, width: int) -> None:
        """Do what the first frame of that size would otherwise wait for. Raises BackendError, InputError."""
        plan = plan_tiles(height, width, self.engine.tile)
        self.engine.prepare(self.engine.tile.batch if self.engine.tile.fixed else 1, plan.tile_h, plan.tile_w)

    def _filled(self, film: Film, tiles: list[int]) -> Batch:
        batch = film.new_batch()
        batch.tiles = tiles
        film.reader.read(tiles, batch.lq)
        for samples, index in zip(batch.noise, tiles, strict=False):
            np.copyto(samples, film.noise.take(index))
        return batch

    def _composed(self, work: Work, film: Film) -> Picture:
        plan, settings = film.plan, self.settings
        computed = {index for batch in work.batches for index in batch.tiles}
        for batch in work.batches:
            film.keep(batch)
        for index in computed:
            region = plan.finished(index)
            part = slice(region.y0, region.y1), slice(region.x0, region.x1)
            film.shown[part] = work.frame.pixels[part]
        out = np.empty((SCALE * film.shape[0], SCALE * film.shape[1], 3), np.uint8)
        if film.last is not None and len(computed) < plan.count:
            np.copyto(out, film.last)
        touched = _touched(plan, computed)
        for index in range(plan.count):
            kept = film.detail[index]
            assert kept is not None, "the first frame of a film computes all tiles"
            batch, slot = kept
            detail = film.merger.merge(index, batch.detail[slot])
            if index in touched:
                film.compositor.add(film.shown, plan.finished(index), detail, settings.strength, out)
            film.merger.restore()
        return out

    def _steadied(self, work: Work, film: Film, result: Picture) -> Picture:
        """The result, or its average with those before it; itself it stays what it is, for frames to come."""
        if film.average is None or film.follower is None:
            return result
        # Not the camera's picture, which may move where tiles rest.
        carry = film.follower.advance(film.shown, anew=work.anew)
        return film.average.add(film.shown, result, carry, np.empty_like(result))

    def _reduced(self, film: Film, large: Picture) -> Picture:
        reduction = film.reduction
        if reduction.source == reduction.target:
            return large
        out = np.empty((*reduction.target, 3), np.uint8)
        collect(reduce_bands((part for part in (large,)), reduction), out)
        return out


def _touched(plan: TilePlan, computed: set[int]) -> set[int]:
    """Tiles whose finished regions depend on a computed one: those after it through the seams, those before it through
    the bicubic base, which reaches over."""
    touched: set[int] = set()
    for index in computed:
        row, column = divmod(index, plan.x.count)
        for y in range(max(0, row - 1), min(row + 2, plan.y.count)):
            touched.update(y * plan.x.count + x for x in range(max(0, column - 1), min(column + 2, plan.x.count)))
    return touched


def _read_only(picture: Picture) -> Picture:
    picture.flags.writeable = False
    return picture
