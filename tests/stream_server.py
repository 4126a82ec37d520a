"""Streams from a process of their own: MJPEG over HTTP and MPEG-TS over TCP, of a picture that moves."""

from __future__ import annotations

import atexit
import pickle
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

RATE = 40.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def mjpeg_server(frames: int = 0, port: int = 0, kind: str = "mjpeg") -> Iterator[str]:
    """Serves one client after the other; so many frames each, 0 for no end. kind: `damaged` for every third
    torn, or the status of a refusal."""
    with _served(kind, port or free_port(), frames) as chosen:
        yield f"http://127.0.0.1:{chosen}/"


@contextmanager
def ts_server(frames: int = 0, port: int = 0) -> Iterator[str]:
    with _served("ts", port or free_port(), frames) as chosen:
        yield f"tcp://127.0.0.1:{chosen}"


@contextmanager
def _served(kind: str, port: int, frames: int) -> Iterator[int]:
    process = start(kind, port, frames)
    try:
        yield port
    finally:
        process.kill()
        process.wait()


def start(kind: str, port: int, frames: int) -> subprocess.Popen[bytes]:
    """A server that listens."""
    process = subprocess.Popen(
        [sys.executable, "-S", "-E", str(Path(__file__)), kind, str(port), str(frames), str(_parts_file(kind))],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"listening\n"
    process.stdout.close()
    return process


@cache
def _parts_file(kind: str) -> Path:
    """What is sent, made here: a server that imports nothing of this revives at once."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder) / kind
    path.write_bytes(pickle.dumps(_packets() if kind == "ts" else _jpegs(damaged=kind == "damaged")))
    return path


def _main(kind: str, port: int, frames: int, parts_file: str) -> None:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen()
    parts = pickle.loads(Path(parts_file).read_bytes())
    sys.stdout.write("listening\n")
    sys.stdout.flush()
    while True:
        client, _ = listener.accept()
        try:
            if kind != "ts":
                client.recv(65536)
                status = kind if kind[0].isdigit() else "200 OK"
                head = f"HTTP/1.0 {status}\r\nContent-Type: multipart/x-mixed-replace; boundary=part\r\n\r\n"
                client.sendall(head.encode())
            index = 0
            while not frames or index < frames:
                client.sendall(parts[index % len(parts)])
                index += 1
                time.sleep(1 / RATE)
        except OSError:
            pass
        client.close()


def _pictures() -> list[Any]:
    import numpy as np

    pictures = []
    for index in range(40):
        picture = np.full((48, 64, 3), 60, np.uint8)
        picture[8:24, index : index + 16] = (40, 200, 220)
        pictures.append(picture)
    return pictures


def _jpegs(*, damaged: bool) -> list[bytes]:
    import cv2

    parts = []
    for index, picture in enumerate(_pictures()):
        data = bytes(cv2.imencode(".jpg", picture)[1])
        if damaged and index % 3 == 2:
            data = bytes(len(data))
        head = f"--part\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
        parts.append(head.encode() + data + b"\r\n")
    return parts


def _packets() -> list[bytes]:
    """What the muxer wrote for each frame; all frames are keyframes, so that one may begin and go round anywhere."""
    import io

    import av

    target = io.BytesIO()
    parts = []
    options = {"flush_packets": "1"}
    with av.open(target, "w", format="mpegts", container_options=options) as output:
        stream: Any = output.add_stream("mpeg2video", rate=int(RATE))
        stream.width, stream.height, stream.pix_fmt, stream.codec_context.gop_size = 64, 48, "yuv420p", 1
        for picture in _pictures():
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")):
                output.mux(packet)
                parts.append(target.getvalue())
                target.seek(0)
                target.truncate()
    return [part for part in parts if part]


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
