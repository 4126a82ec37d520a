"""The newest result as browsers get it: encoded once for all of them, and only while somebody looks."""

from __future__ import annotations

import asyncio
import json
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from rsd_edge.live.frames import LiveResult, Picture
from rsd_edge.live.statistics import Statistics
from rsd_edge.opencv import cv2

_QUALITY_AFTER, _QUALITY_BEFORE = 88, 95


@dataclass(frozen=True)
class Packet:
    """One result, encoded."""

    version: int
    message: bytes
    """Length of the header (uint32, big-endian), the header in JSON, the input and the result in JPEG."""
    jpeg: bytes
    """The result alone."""


class Broadcast:
    """Belongs to one event loop, apart from `offer`. Clients wait for versions that they have not seen, and whoever is
    slow misses those in between."""

    def __init__(self, loop: asyncio.AbstractEventLoop, statistics: Statistics) -> None:
        self._loop, self._statistics = loop, statistics
        self.latest: LiveResult | None = None
        """The newest result, as it came from the pipeline."""
        self._version = 0
        self._packet: Packet | None = None
        self._news = asyncio.Condition()
        self._encoding = asyncio.Lock()
        self._telling: set[asyncio.Task[None]] = set()
        self.closed = False

    def offer(self, result: LiveResult) -> None:
        """From any thread: there is a newer result. Never waits."""
        self.latest = result
        with suppress(RuntimeError):  # the loop has been closed, and nobody looks any more
            self._loop.call_soon_threadsafe(self._announce)

    async def packet(self, seen: int) -> Packet | None:
        """The newest result, after waiting for one that is not number `seen`; None when there will be no more."""
        async with self._news:
            await self._news.wait_for(lambda: self.closed or self._version > seen)
        if self.closed:
            return None
        async with self._encoding:
            if self._packet is None or self._packet.version < self._version:
                version, result = self._version, self.latest
                assert result is not None, "a version was announced"
                self._packet = await self._loop.run_in_executor(None, self._encode, version, result)
        return self._packet

    async def close(self) -> None:
        """Let all clients go."""
        self.closed = True
        async with self._news:
            self._news.notify_all()

    def _announce(self) -> None:
        self._version += 1
        task = self._loop.create_task(self._notify())
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _notify(self) -> None:
        async with self._news:
            self._news.notify_all()

    def _encode(self, version: int, result: LiveResult) -> Packet:
        after = _jpeg(result.pixels, _QUALITY_AFTER)
        before = _jpeg(result.frame.pixels, _QUALITY_BEFORE)
        header: dict[str, Any] = {
            "version": version,
            "index": result.frame.index,
            "before": len(before),
            "after": len(after),
            "statistics": self._statistics.now(),
        }
        text = json.dumps(header).encode()
        return Packet(version, b"".join((struct.pack(">I", len(text)), text, before, after)), after)


def _jpeg(picture: Picture, quality: int) -> bytes:
    return bytes(np.asarray(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]))
