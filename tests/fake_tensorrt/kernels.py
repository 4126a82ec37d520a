"""A pack of the frame path's kernels and a driver that does what they do, with NumPy, in the order of the stream."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from fake_tensorrt.cudart import FakeCudart
from rsd_edge.frames import DetailCompositor
from rsd_edge.kernels.catalogue import MERGE_LANES, catalogue, merge_columns
from rsd_edge.kernels.manifest import FORMAT, MANIFEST, NOISE_TABLE, describe
from rsd_edge.kernels.sequences import FRAME_KERNELS
from rsd_edge.noise import NoiseField, gaussian_table
from rsd_edge.tiling import AxisPlan, TileMerger, TilePlan, TileReader

_FLOATS = {"fp32": np.float32, "fp16": np.float16}


def write_pack(folder: Path, sm: int = 87) -> Path:
    """A folder as `rsd-edge build-kernels` writes it, whose cubins hold their own names."""
    entries = []
    for spec in catalogue():
        for dtype, aligned in product(_FLOATS, (True, False)):
            if spec.name in FRAME_KERNELS:
                cubin = f"{spec.name} {dtype}".encode()
                file = f"sm_{sm}/{spec.name}-{dtype}-{aligned}.cubin"
                compiled = {"sm": sm, "entry": spec.function, "shared_bytes": 0}
                described = describe(spec, dtype, aligned=aligned)
                entries.append({**described, **compiled, **_write(folder, file, cubin)})
    table = _write(folder, NOISE_TABLE, gaussian_table().astype("<i2").tobytes())
    manifest = {"format": FORMAT, "kernels": entries, "noise_table": table}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


def _write(folder: Path, file: str, data: bytes) -> dict[str, str]:
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_bytes(data)
    return {"file": file, "sha256": hashlib.sha256(data).hexdigest()}


class FakeDriver:
    """See rsd_edge.kernels.launch.Driver."""

    def __init__(self, cudart: FakeCudart) -> None:
        self._cudart = cudart
        self.launched: list[str] = []

    def load(self, cubin: bytes, entry: str) -> str:
        return cubin.decode()

    def launch(
        self, function: str, grid: tuple[int, int, int], threads: int, shared: int, stream: int,
        values: Sequence[Any], types: Sequence[Any],
    ) -> None:  # fmt: skip
        name, _, dtype = function.partition(" ")
        spec = next(spec for spec in catalogue() if spec.name == name)
        arguments = dict(zip(spec.arguments, values, strict=False))
        self.launched.append(name)
        work: Callable[..., None] = getattr(self, f"_{spec.function}")
        self._cudart.give(stream, lambda: work(grid, _FLOATS[dtype], **arguments))

    def _noise_field(
        self, grid: tuple[int, ...], dtype: Any, *, OUT: int, SEEDS: int, ORIGINS: int, TABLE: int,
        channels: int, pixels: int, width: int,
    ) -> None:  # fmt: skip
        n, view = grid[1], self._cudart.view
        out = view(OUT, (n, channels, pixels // width, width), dtype)
        np.testing.assert_array_equal(view(TABLE, (1 << 16,), np.int16), gaussian_table())
        seeds, origins = view(SEEDS, (n,), np.int64), view(ORIGINS, (n, 2), np.int32)
        for sample, seed, (y, x) in zip(out, seeds, origins, strict=True):
            sample[:] = NoiseField(int(seed) % (1 << 64)).normal(channels, int(y), int(x), pixels // width, width)

    def _frame_tiles(
        self, grid: tuple[int, ...], dtype: Any, *, FRAME: int, OUT: int, height: int, width: int, columns: int,
        tile_h: int, tile_w: int, stride_y: int, stride_x: int, halo: int, pixels: int,
        lanes: int,
    ) -> None:  # fmt: skip
        plan = TilePlan(AxisPlan(height, stride_y, halo, 0), AxisPlan(width, stride_x, halo, 0))
        assert (plan.x.count, plan.count, pixels) == (columns, grid[1], tile_h * tile_w)
        tiles = np.empty((plan.count, 3, tile_h, tile_w), np.float32)
        reader = TileReader(plan, np.dtype(np.uint8))
        reader.load(self._cudart.view(FRAME, (height, width, 3), np.uint8))
        reader.read(range(plan.count), tiles)
        np.copyto(self._cudart.view(OUT, tiles.shape, dtype), tiles, casting="same_kind")

    def _merge_tiles(
        self, grid: tuple[int, ...], dtype: Any, *, DETAIL: int, FRAME: int, OUT: int, STRENGTH: int, NOT_FINITE: int,
        height: int, width: int, rows: int, columns: int, tile_h: int, tile_w: int, stride_y: int, stride_x: int,
        halo: int, feather: int,
    ) -> None:  # fmt: skip
        plan = TilePlan(AxisPlan(height, stride_y, halo, feather), AxisPlan(width, stride_x, halo, feather))
        assert (plan.y.count, plan.x.count) == (rows, columns)
        block = merge_columns(stride_x)
        assert grid == (2 * -(-height // (MERGE_LANES // block)), columns * -(-stride_x // block), 1)
        view = self._cudart.view
        detail = view(DETAIL, (plan.count, 3, 4 * tile_h, 4 * tile_w), dtype)
        frame, out = view(FRAME, (height, width, 3), np.uint8), view(OUT, (4 * height, 4 * width, 3), np.uint8)
        strength = float(view(STRENGTH, (1,), np.float32)[0])
        merger, compositor = TileMerger(plan), DetailCompositor(*plan.largest_region(), np.dtype(np.uint8))
        for index, tile in enumerate(detail):
            bgr = np.ascontiguousarray(tile[::-1].transpose(1, 2, 0), np.float32)
            merged = merger.merge(index, bgr)
            if not np.isfinite(merged).all():
                view(NOT_FINITE, (1,), np.int32)[0] = 1
            compositor.add(frame, plan.finished(index), merged, strength, out)
