"""The sink that browsers watch: a page with pictures over a WebSocket, MJPEG for other programs, and /metrics."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from importlib.resources import files
from typing import Any

import numpy as np

from rsd_edge.errors import MissingDependencyError, OutputError
from rsd_edge.live.address import Address
from rsd_edge.live.broadcast import Broadcast
from rsd_edge.live.frames import LiveResult
from rsd_edge.live.statistics import Statistics, prometheus
from rsd_edge.opencv import cv2

try:
    from aiohttp import WSMsgType, web
except ModuleNotFoundError:  # told when a page is asked for
    _AVAILABLE = False
else:
    _AVAILABLE = True

_MOST_CLIENTS = 8
_MOST_SNAPSHOTS = 4
"""At once: each is held in memory until it is sent."""
_SECONDS_TO_START = 10.0
_SECONDS_TO_STOP = 5.0
_SECONDS_TO_SEND = 10.0
"""A client that takes nothing for so long is let go."""
_BOUNDARY = "rsd-edge-frame"
_PAGE = {
    "/": ("index.html", "text/html"),
    "/live.js": ("live.js", "text/javascript"),
    "/live.css": ("live.css", "text/css"),
}
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class PageSink:
    """Serves from a thread of its own; `write` only leaves the newest result there and never waits."""

    name = "serve"

    def __init__(
        self, address: Address, source: str, statistics: Statistics, most_clients: int = _MOST_CLIENTS
    ) -> None:
        """most_clients: that watch at once. Raises OutputError if nothing can be served there, MissingDependencyError
        without aiohttp."""
        if not _AVAILABLE:
            raise MissingDependencyError("--serve needs 'aiohttp'; run: pip install 'rsd-edge[serve]'")
        self._address, self._source, self._statistics, self._most = address, source, statistics, most_clients
        self.watching = 0
        """Clients that get pictures."""
        self._loop = asyncio.new_event_loop()
        self._broadcast = Broadcast(self._loop, statistics)
        self._started = threading.Event()
        self._stop = asyncio.Event()
        self._failures: list[OSError | UnicodeError] = []
        self._serving = False
        self._snapshots = 0
        self._port = address.port
        self._thread = threading.Thread(target=self._work, name="rsd-edge-serve", daemon=True)
        self._thread.start()
        self._started.wait(_SECONDS_TO_START)
        if not self._serving:
            self.close()
            reason = next((getattr(error, "strerror", None) or error for error in self._failures), "it does not start")
            where = f"{address.host}:{address.port}"
            raise OutputError(f"cannot serve on {where} ({reason}); choose another address or port")

    @property
    def url(self) -> str:
        """What to open in a browser."""
        return self._address.url(self._port)

    def write(self, result: LiveResult) -> None:
        """See Sink."""
        self._broadcast.offer(result)

    def close(self) -> None:
        """See Sink."""
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # the loop has just been closed
                self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(_SECONDS_TO_STOP)

    def _work(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
        finally:
            self._started.set()
            self._loop.close()

    async def _serve(self) -> None:
        runner = web.AppRunner(
            self._application(),
            access_log=None,
            shutdown_timeout=1.0,
            handler_cancellation=True,  # or who leaves while there is no signal would keep a seat
        )
        await runner.setup()
        site = web.TCPSite(runner, self._address.host, self._address.port)
        try:
            await site.start()
            self._port = runner.addresses[0][1]
            self._serving = True
            self._started.set()
            await self._stop.wait()
            await self._broadcast.close()
        except (OSError, UnicodeError) as error:  # the latter for a name with an empty part, or one that is too long
            self._failures.append(error)
        finally:
            await runner.cleanup()

    def _application(self) -> web.Application:
        @web.middleware
        async def guard(request: web.Request, handler: Any) -> web.StreamResponse:
            if not self._admits(request):
                raise web.HTTPForbidden(text="the token is missing or wrong; open the address that rsd-edge printed\n")
            response: web.StreamResponse = await handler(request)
            return response

        application = web.Application(middlewares=[guard])
        for path in _PAGE:
            application.router.add_get(path, self._file)
        application.router.add_get("/ws", self._socket)
        application.router.add_get("/stream.mjpg", self._mjpeg)
        application.router.add_get("/snapshot.png", self._snapshot)
        application.router.add_get("/stats.json", self._stats)
        application.router.add_get("/metrics", self._metrics)
        return application

    def _admits(self, request: web.Request) -> bool:
        bearer = request.headers.get("Authorization", "")
        token = request.query.get("token") or bearer.removeprefix("Bearer ") or request.cookies.get("rsd-edge-token")
        return self._address.admits(request.headers.get("Host"), request.headers.get("Origin"), token)

    async def _file(self, request: web.Request) -> web.Response:
        name, kind = _PAGE[request.path]
        text = files("rsd_edge.live").joinpath("page", name).read_text(encoding="utf-8")
        response = web.Response(text=text, content_type=kind, headers=_HEADERS)
        if self._address.token is not None:
            # What the page loads by itself, and its snapshots, come without the query of its own address.
            response.set_cookie("rsd-edge-token", self._address.token, httponly=True, samesite="Strict")
        return response

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        with self._seat():
            socket = web.WebSocketResponse(heartbeat=15.0, compress=False)
            await socket.prepare(request)
            paused = _Pause()
            listener = asyncio.create_task(_listen(socket, paused))
            try:
                await self._send_all(socket, paused)
            finally:
                listener.cancel()
                with contextlib.suppress(asyncio.TimeoutError, ConnectionError):
                    await asyncio.wait_for(socket.close(), 1.0)
            return socket

    async def _send_all(self, socket: web.WebSocketResponse, paused: _Pause) -> None:
        seen = 0
        while not socket.closed:
            await paused.over()
            packet = await self._broadcast.packet(seen)
            if packet is None or socket.closed:
                return
            try:
                await asyncio.wait_for(socket.send_bytes(packet.message), _SECONDS_TO_SEND)
            except (asyncio.TimeoutError, ConnectionError):
                return
            seen = packet.version

    async def _mjpeg(self, request: web.Request) -> web.StreamResponse:
        with self._seat():
            kind = f"multipart/x-mixed-replace; boundary={_BOUNDARY}"
            response = web.StreamResponse(headers={**_HEADERS, "Content-Type": kind})
            await response.prepare(request)
            seen = 0
            while (packet := await self._broadcast.packet(seen)) is not None:
                head = f"--{_BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(packet.jpeg)}\r\n\r\n"
                try:
                    part = head.encode() + packet.jpeg + b"\r\n"
                    await asyncio.wait_for(response.write(part), _SECONDS_TO_SEND)
                except (asyncio.TimeoutError, ConnectionError):
                    break
                seen = packet.version
            return response

    async def _snapshot(self, request: web.Request) -> web.StreamResponse:
        latest = self._broadcast.latest
        if latest is None:
            raise web.HTTPServiceUnavailable(text="no frame yet\n")
        if self._snapshots >= _MOST_SNAPSHOTS:
            raise web.HTTPServiceUnavailable(text=f"{_MOST_SNAPSHOTS} snapshots are on their way; try again\n")
        self._snapshots += 1
        try:
            encoded = await self._loop.run_in_executor(None, cv2.imencode, ".png", latest.pixels)
            name = f"rsd-edge-{latest.frame.index:06d}.png"
            headers = {**_HEADERS, "Content-Disposition": f'attachment; filename="{name}"'}
            response = web.Response(body=bytes(np.asarray(encoded[1])), content_type="image/png", headers=headers)
            with contextlib.suppress(asyncio.TimeoutError, ConnectionError):  # sent here, or its end is not known
                await response.prepare(request)
                await asyncio.wait_for(response.write_eof(), _SECONDS_TO_SEND)
            return response
        finally:
            self._snapshots -= 1

    async def _stats(self, request: web.Request) -> web.Response:
        return web.json_response({"camera": self._source, "watching": self.watching, **self._statistics.now()})

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(text=prometheus(self._statistics), headers={"Content-Type": "text/plain; version=0.0.4"})

    @contextlib.contextmanager
    def _seat(self) -> Any:
        """Room for one more client, or a refusal."""
        if self.watching >= self._most:
            raise web.HTTPServiceUnavailable(text=f"{self._most} clients are watching already; try again later\n")
        self.watching += 1
        try:
            yield
        finally:
            self.watching -= 1


class _Pause:
    """Whether a client wants pictures now."""

    def __init__(self) -> None:
        self._wanted = asyncio.Event()
        self._wanted.set()

    def set(self, paused: bool) -> None:
        """Begin or end it."""
        if paused:
            self._wanted.clear()
        else:
            self._wanted.set()

    async def over(self) -> None:
        """Wait for its end."""
        await self._wanted.wait()


async def _listen(socket: web.WebSocketResponse, paused: _Pause) -> None:
    """Follow what the client says, until it goes."""
    async for message in socket:
        if message.type is WSMsgType.TEXT and message.data in ("pause", "go on"):
            paused.set(message.data == "pause")
    paused.set(False)
