"""Time for whole frames: sizes, precisions, backends, threads, tiles, batches, and torch beside ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from frame_runs import frame, torch_frame
from turns import Group, Row

from rsd_edge.bench.subjects import Wish
from rsd_edge.machine import usable_cores

MODELS, PRECISIONS, BACKENDS = ("edge-n", "edge-s"), ("fp32", "int8"), ("onnxruntime", "openvino")
TILES, BATCHES = (64, 96, 128, 208), (1, 4, 16)
ONE_CORE = 1
BURST = 5
"""For frames of some milliseconds."""


def groups(*, quick: bool) -> dict[str, Group]:
    """Sizes are width x height of the input. quick: edge-n on tiny frames."""
    cores, few = usable_cores(), 1 if quick else None
    names = [(model, precision, backend) for model in MODELS[:few] for precision in PRECISIONS for backend in BACKENDS]
    small, middle, large = ((24, 24), (48, 24), (48, 48)) if quick else ((64, 64), (320, 180), (640, 360))
    integer = [name for name in names if name[1] == "int8"]
    return {
        _size(small): Group(_rows(names, small, cores), BURST),
        f"{_size(small)}, 1 thread": Group(_rows(names, small, ONE_CORE), BURST),
        _size(middle): Group(_rows(names[:few], middle, cores)),
        _size(large): Group(_rows(integer[:few], large, cores)),  # floats would take longer than all else together
        f"tiles of {_size(middle)}": Group(_tiles(middle, cores, TILES[:few])),
        f"batches of {_size(middle)}": Group(_batches(middle, cores, BATCHES[:few])),
        f"torch, {_size(middle)}": Group(_torch(middle, cores)),
    }


def _size(size: tuple[int, int]) -> str:
    return "{}x{}".format(*size)


def _rows(names: Iterable[tuple[str, str, str]], size: tuple[int, int], threads: int) -> dict[str, Row]:
    return {" ".join(name): _row(Wish(*name), size, threads) for name in names}


def _tiles(size: tuple[int, int], threads: int, sides: Iterable[int]) -> dict[str, Row]:
    """Sides with the halo."""
    wishes = [Wish(model, "int8", "onnxruntime", tile=side) for model in MODELS for side in sides]
    return {f"{wish.model} tile {wish.tile}": _row(wish, size, threads) for wish in wishes}


def _batches(size: tuple[int, int], threads: int, batches: Iterable[int]) -> dict[str, Row]:
    """Of tiles of 64, of which an engine gets so many at once."""
    wishes = [Wish("edge-n", "int8", backend, tile=64, batch=batch) for backend in BACKENDS for batch in batches]
    return {f"{wish.backend} batch {wish.batch}": _row(wish, size, threads) for wish in wishes}


def _torch(size: tuple[int, int], threads: int) -> dict[str, Row]:
    """Checkpoints of the shipped architecture, as they run before an engine is built."""
    rows = {f"edge-n {p} torch": Row(torch_frame, ("edge-n", p, *size, threads), "torch") for p in ("fp32", "bf16")}
    return rows | {"edge-n fp32 onnxruntime": _row(Wish("edge-n", "fp32", "onnxruntime"), size, threads)}


def _row(wish: Wish, size: tuple[int, int], threads: int) -> Row:
    return Row(frame, (wish, *size, threads), needs=wish.backend or "")


def bench_frame(replay: Callable[[], None]) -> None:
    """From a frame of bytes to one four times as large, second and later frames of a size."""
    replay()
