"""Damaged and hostile files, through the command that a user runs: each one ends in a result or in one line."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from rsd_edge.cli import main
from rsd_edge.errors import ImageReadError
from rsd_edge.stream.encoders import Layout
from rsd_edge.stream.images import load_image, read_image, write_image
from rsd_edge.stream.metadata import Metadata
from rsd_edge.stream.results import plan_result

HEIGHT, WIDTH = 24, 32
SECONDS = 5
"""For one file of a few kilobytes, on a busy machine; they take a few milliseconds."""

RUN = "import sys\nfrom rsd_edge.cli import main\nmain(sys.argv[1:])"


def seeds(folder: Path) -> dict[str, bytes]:
    """One small file of each kind, by its name."""
    rng = np.random.default_rng(0)
    smooth = cv2.resize(rng.integers(0, 256, (4, 5, 4), np.uint8), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    exif = struct.pack("<2sHIHHHIHHHHII", b"II", 42, 8, 2, 274, 3, 1, 6, 0, 34665, 4, 1, 38) + struct.pack("<I", 0)
    exif += struct.pack("<HHHIII", 1, 40962, 4, 1, WIDTH, 0)
    icc = struct.pack(">I", 200) + bytes(12) + b"RGB " + bytes(16) + b"acsp" + bytes(160)
    kinds = {
        "colour.png": smooth[..., :3],
        "deep.png": smooth.astype(np.uint16) * 257,
        "colour.jpg": smooth[..., :3],
        "gray.jpg": smooth[..., 0],
        "clear.webp": smooth,
        "colour.bmp": smooth[..., :3],
        "gray.bmp": smooth[..., 0],
        "clear.tif": smooth,
        "gray.tif": smooth[..., 0].astype(np.uint16) * 257,
    }
    made = {}
    for name, image in kinds.items():
        metadata = Metadata(exif, b"<x/>", icc)
        plan_result(folder / name, Layout.of(image), metadata).write([image])
        made[name] = (folder / name).read_bytes()
        (folder / name).unlink()
    made["lossless.webp"] = cv2.imencode(".webp", smooth)[1].tobytes()
    made["lzw.tif"] = cv2.imencode(".tif", smooth[..., :3])[1].tobytes()
    return made


def flipped(data: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    # Headers are short and matter most, so half of the flips go there.
    for position in [*rng.integers(0, min(200, len(data)), 2), *rng.integers(0, len(data), 2)]:
        changed[position] ^= 1 << rng.integers(8)
    return bytes(changed)


def png_resealed(data: bytes) -> bytes:
    """With a right checksum of the header, so that more than the checksum is tested."""
    return data[:29] + struct.pack(">I", zlib.crc32(data[12:29])) + data[33:]


def patched(data: bytes, position: int, content: bytes) -> bytes:
    return data[:position] + content + data[position + len(content) :]


def tiff_field(data: bytes, tag: int) -> int:
    """Where the entry of a little-endian TIFF file's directory begins."""
    (directory,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, directory)
    places = [directory + 2 + 12 * i for i in range(count)]
    return next(place for place in places if struct.unpack_from("<H", data, place)[0] == tag)


def bombs(made: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """Headers that claim far more pixels, bytes or entries than there are."""
    png, jpeg, bmp, webp, tiff = (
        made[name] for name in ("colour.png", "colour.jpg", "colour.bmp", "clear.webp", "clear.tif")
    )
    for side in (5000, 60000, 2**31 - 1, 2**32 - 1):
        yield f"size{side}.png", png_resealed(patched(png, 16, struct.pack(">II", side, side)))
        yield f"size{side}.bmp", patched(bmp, 18, struct.pack("<II", side, side))
        yield f"rle{side}.bmp", patched(patched(bmp, 18, struct.pack("<II", side, side)), 28, struct.pack("<HI", 8, 1))
        for tag in (256, 257, 258, 259, 262, 277, 278, 317, 338):
            yield f"field{tag}is{side}.tif", patched(tiff, tiff_field(tiff, tag) + 8, struct.pack("<I", side))
    frame = jpeg.index(b"\xff\xc0")
    for side in (5000, 65535):
        yield f"size{side}.jpg", patched(jpeg, frame + 5, struct.pack(">HH", side, side))
    yield "size.webp", patched(webp, 24, b"\xff" * 6)
    for chunk in (8, 33):
        for size in (0, 2**31, 2**32 - 1):
            yield "chunk.png", patched(png, chunk, struct.pack(">I", size))
    for tag in (273, 279, 258, 700, 34675, 34665):
        place = tiff_field(tiff, tag)
        for count in (0, 2**16, 2**32 - 1):
            yield f"count{tag}.tif", patched(tiff, place + 4, struct.pack("<I", count))
        yield f"where{tag}.tif", patched(tiff, place + 8, struct.pack("<I", 2**32 - 8))
    # The EXIF directory is the main one, a directory of 65535 entries, or lies in itself.
    (directory,) = struct.unpack_from("<I", tiff, 4)
    yield "loop.tif", patched(tiff, tiff_field(tiff, 34665) + 8, struct.pack("<I", directory))
    yield "entries.tif", patched(tiff, directory, struct.pack("<H", 65535))
    many = b"".join(struct.pack("<HHII", tag, 7, 1 << 20, 8) for tag in range(40000, 60000))
    exif = struct.pack("<H", 20000) + many + bytes(4)
    yield "many.tif", patched(tiff, tiff_field(tiff, 34665) + 8, struct.pack("<I", len(tiff))) + exif + bytes(1 << 20)
    packed = zlib.compress(bytes(1 << 28), 1)
    profile = b"iCCP" + b"x\0\0" + packed
    chunk = struct.pack(">I", len(profile) - 4) + profile + struct.pack(">I", zlib.crc32(profile))
    yield "profile.png", png[:33] + chunk + png[33:]
    for size in (0, 1, 2**32 - 1):
        yield "riff.webp", patched(webp, webp.index(b"ICCP") + 4, struct.pack("<I", size))
        yield "segment.jpg", patched(jpeg, 4, struct.pack(">H", size & 0xFFFF))


def mutants(folder: Path) -> Iterator[tuple[str, bytes]]:
    rng = np.random.default_rng(1)
    made = seeds(folder)
    for index, (name, data) in enumerate(made.items()):
        yield name, data
        for kept in (0.02, 0.1, 0.3, 0.5, 0.8, 0.97):
            yield f"cut{name}", data[: int(len(data) * kept)]
        yield f"cut{name}", data[:-1]
        for _ in range(10):
            yield f"flipped{name}", flipped(data, rng)
        yield f"renamed{list(made)[index - 1]}", data
        yield f"zeroed{name}", data[: len(data) // 2] + bytes(len(data) - len(data) // 2)
    yield from bombs(made)


def test_every_mutant_ends_in_a_result_or_in_one_line(toy_bundle: Path, tmp_path: Path) -> None:
    source, target, report = tmp_path / "in", tmp_path / "out", tmp_path / "r.json"
    source.mkdir()
    for index, (name, data) in enumerate(mutants(tmp_path)):
        (source / f"{index:03d}{name}").write_bytes(data)
    files = sorted(source.iterdir())
    assert len(files) > 250
    # Results in TIFF, because that needs to understand the EXIF data that other formats take as it is.
    options = ("--format", "tif", "--engine", toy_bundle, "--threads", "1", "--report", report)
    run = subprocess.run(
        [sys.executable, "-c", RUN, "run", source, "-o", target, *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert run.returncode == 2
    entries = json.loads(report.read_text())["files"]
    assert [Path(entry["input"]) for entry in entries] == files
    assert {entry["status"] for entry in entries} == {"done", "failed"}
    slow = [(entry["input"], entry["seconds"]) for entry in entries if entry["seconds"] > SECONDS]
    assert slow == []
    lines = run.stderr.splitlines()
    assert [line for line in lines[:-1] if not line.startswith((f"error: {source}", f"warning: {source}"))] == []
    done = [entry for entry in entries if entry["status"] == "done"]
    assert sum(line.startswith("error:") for line in lines) == len(entries) - len(done)
    # What was written is whole, and nothing else is there.
    assert sorted(target.iterdir()) == sorted(Path(entry["output"]) for entry in done)
    for entry in done:
        width, height = entry["output_size"]
        assert read_image(entry["output"]).shape == (height, width, 3)
    names = {Path(entry["input"]).name[3:] for entry in done}
    assert {name for name, _ in mutants(tmp_path) if not name[0].isupper()} > names
    assert set(seeds(tmp_path)) <= names  # the files themselves are sound


def test_bombs_of_pixels_are_refused_by_their_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by the time or the memory that they take."""
    monkeypatch.setattr(cv2, "imdecode", None)
    path = tmp_path / "bomb"
    named = {name: data for name, data in bombs(seeds(tmp_path)) if name != "size5000.png"}  # that may be a plain one
    claims = {name: data for name, data in named.items() if name.startswith(("size", "field256is60000", "field256is2"))}
    assert len(claims) > 8
    for data in claims.values():
        path.write_bytes(data)
        with pytest.raises(ImageReadError, match=r"more than the limit of 50000000;|is damaged|is truncated"):
            read_image(path)


def test_what_a_decoder_remarks_becomes_a_warning(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = damaged(tmp_path)
    (note,) = load_image(path).losses()
    assert note.startswith("its data is damaged (Corrupt JPEG data")
    path.write_bytes(seeds(tmp_path)["colour.jpg"])
    assert load_image(path).losses() == ()
    os.write(2, b"still there\n")
    assert capfd.readouterr().err == "still there\n"


def damaged(folder: Path) -> Path:
    """A JPEG file, cut and made to look whole."""
    jpeg, path = seeds(folder)["colour.jpg"], folder / "cut.jpg"
    path.write_bytes(jpeg[: jpeg.index(b"\xff\xda") + 60] + b"\xff\xd9")
    return path


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="listening takes a file here")
def test_no_folder_for_temporary_files_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose only writable folder is that of the results."""
    path = tmp_path / "a.png"
    write_image(path, np.zeros((4, 4, 3), np.uint8))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    assert read_image(path).shape == (4, 4, 3)


def test_what_else_is_written_meanwhile_is_no_remark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Such as the progress bar and the log of a program that calls this as a library."""
    others = "\r\x1b[2Kphotos \x1b[36m 12%\x1b[0m\n\nmy app: heartbeat\n"

    def beside_others(*arguments: Any) -> Any:
        os.write(2, others.encode())
        return decode(*arguments)

    decode = cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", beside_others)
    (note,) = load_image(damaged(tmp_path)).losses()
    assert note.startswith("its data is damaged (Corrupt JPEG data")
    (tmp_path / "whole.jpg").write_bytes(seeds(tmp_path)["colour.jpg"])
    assert load_image(tmp_path / "whole.jpg").losses() == ()
    assert capfd.readouterr().err == 2 * others


def test_a_terminal_is_told_of_damage_that_takes_long_to_find(
    tmp_path: Path, toy_bundle: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

        def write(self, text: str) -> int:
            return os.write(2, text.encode())

    def slow(*arguments: Any) -> Any:
        time.sleep(0.3)  # a large image; rich draws ten times a second by itself
        return decode(*arguments)

    decode = cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", slow)
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    path = damaged(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["run", str(path), "-o", str(tmp_path / "out.png"), "--engine", str(toy_bundle), "--threads", "1"])
    assert ended.value.code == 0
    assert f"warning: {path}: its data is damaged (Corrupt JPEG data" in capfd.readouterr().err
