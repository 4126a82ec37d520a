"""Whole operations launched from compiled kernels, without Triton and torch: a frame, GroupNorm + SiLU.

    pack, plan = KernelPack(folder, 87, CudaDriver()), plan_tiles(height, width, tile)
    frame = FrameLaunches(pack, plan, tiles="fp16", noise="fp16", detail="fp16")
    frame.cut(frame=..., tiles=...)            # uint8 (height, width, 3) -> (tiles, 3, tile_h, tile_w)
    frame.draw(noise=..., seeds=..., origins=..., table=..., channels=5)
    ...                                        # the network: detail (tiles, 3, 4 tile_h, 4 tile_w) from tiles and noise
    frame.merge(detail=..., frame=..., strength=..., not_finite=..., out=...)     # -> uint8 (4 height, 4 width, 3)

All of these are device addresses of contiguous memory that the caller owns: `table` holds KernelPack.noise_table(),
seeds int64 (tiles,) the same seed for every tile, origins int32 (tiles, 2) `FrameLaunches.origins`, strength float32
(1,), not_finite int32 (1,). Launches on one stream run in their order. Errors are those of KernelPack.launch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rsd_edge.errors import InputError
from rsd_edge.kernels.catalogue import MERGE_COLUMNS, merge_columns
from rsd_edge.kernels.launch import KernelPack
from rsd_edge.tiling import TilePlan

FRAME_KERNELS = ("frame_tiles", "noise_field", *(f"merge_tiles-x{block}" for block in MERGE_COLUMNS))
"""What FrameLaunches may launch, whatever the plan."""

_PIXELS_PER_LANE = 16
_SPAN_BLOCK = 4096
_PIXEL_BLOCK = 512
_PARTS_MULTIPLE = 16


@dataclass(frozen=True)
class FrameLaunches:
    """The three launches of a frame. plan: with one halo and feather for both axes.

    tiles, noise, detail: dtype of each, fp32, fp16 or bf16.
    """

    pack: KernelPack
    plan: TilePlan
    tiles: str
    noise: str
    detail: str
    stream: int = 0

    @property
    def origins(self) -> Sequence[tuple[int, int]]:
        """Row and column of each tile's first pixel in the frame."""
        return [self.plan.origin(index) for index in range(self.plan.count)]

    def cut(self, *, frame: int, tiles: int) -> None:
        """The tiles with their halo, RGB in [-1, 1]."""
        plan = self.plan
        numbers = {
            "height": plan.y.length, "width": plan.x.length, "columns": plan.x.count, "tile_h": plan.tile_h,
            "tile_w": plan.tile_w, "stride_y": plan.y.stride, "stride_x": plan.x.stride, "halo": plan.y.halo,
            "pixels": plan.tile_h * plan.tile_w, "lanes": plan.tile_h * -(-plan.tile_w // _PIXELS_PER_LANE),
        }  # fmt: skip
        self.pack.launch(
            "frame_tiles", dtype=self.tiles, sizes={"tiles": plan.count},
            arguments={"FRAME": frame, "OUT": tiles, **numbers}, stream=self.stream,
        )  # fmt: skip

    def draw(self, *, noise: int, seeds: int, origins: int, table: int, channels: int) -> None:
        """The noise field of each tile, (tiles, channels, tile_h, tile_w)."""
        plan = self.plan
        numbers = {"channels": channels, "pixels": plan.tile_h * plan.tile_w, "width": plan.tile_w}
        self.pack.launch(
            "noise_field", dtype=self.noise, sizes={"n": plan.count},
            arguments={"OUT": noise, "SEEDS": seeds, "ORIGINS": origins, "TABLE": table, **numbers},
            stream=self.stream,
        )  # fmt: skip

    def merge(self, *, detail: int, frame: int, strength: int, not_finite: int, out: int) -> None:
        """bicubic x4 of the frame + strength x detail, BGR.

        `not_finite` becomes 1 if a value of the detail that counts in it is an infinity or no number, and never 0.
        """
        plan = self.plan
        numbers = {
            "height": plan.y.length, "width": plan.x.length, "rows": plan.y.count, "columns": plan.x.count,
            "tile_h": plan.tile_h, "tile_w": plan.tile_w, "stride_y": plan.y.stride, "stride_x": plan.x.stride,
            "halo": plan.y.halo, "feather": plan.y.feather,
        }  # fmt: skip
        self.pack.launch(
            f"merge_tiles-x{merge_columns(plan.x.stride)}", dtype=self.detail, sizes={},
            arguments={
                "DETAIL": detail, "FRAME": frame, "OUT": out, "STRENGTH": strength, "NOT_FINITE": not_finite, **numbers
            },
            stream=self.stream,
        )  # fmt: skip


@dataclass(frozen=True)
class GroupNormLaunches:
    """GroupNorm + SiLU of (n, channels, height, width) in three launches.

    `last`: memory is channels_last. Scratch memory in float32: partials (n, groups, 3, `stride`), scale and shift
    (n, channels). Raises InputError for channels that do not divide into groups.
    """

    pack: KernelPack
    n: int
    channels: int
    pixels: int
    groups: int
    dtype: str
    last: bool = False
    epsilon: float = 1e-6
    stream: int = 0

    def __post_init__(self) -> None:
        if self.groups < 1 or self.channels % self.groups:
            raise InputError(f"{self.channels} channels do not divide into {self.groups} groups")

    @property
    def parts(self) -> int:
        """Blocks whose statistics are merged, for each group."""
        size = self.channels // self.groups
        return size * -(-self.pixels // _PIXEL_BLOCK) if self.last else -(-size * self.pixels // _SPAN_BLOCK)

    @property
    def stride(self) -> int:
        """The last extent of partials."""
        return -(-self.parts // _PARTS_MULTIPLE) * _PARTS_MULTIPLE

    def run(self, *, x: int, out: int, weight: int, bias: int, partials: int, scale: int, shift: int) -> None:
        """Statistics of blocks, their merge into a scale and a shift for each channel, and their application."""
        size, n = self.channels // self.groups, {"n": self.n}
        data, rows = {"X": x, "PARTIALS": partials, "stride": self.stride}, {"SCALE": scale, "SHIFT": shift}
        layout = {"pixels": self.pixels, "channels": self.channels} if self.last else {"pixels": self.pixels}
        name, plane = ("channels_last", {}) if self.last else ("contiguous", {"channels": self.channels})
        if self.last:
            self._launch(f"stats_{name}", n, {**data, **layout, "group_size": size})
        else:
            self._launch(f"stats_{name}", {**n, "groups": self.groups}, {**data, "span": size * self.pixels})
        merged = {"PARTIALS": partials, "WEIGHT": weight, "BIAS": bias, **rows, "groups": self.groups}
        counts = {"group_size": size, "parts": self.parts, "stride": self.stride, "epsilon": self.epsilon}
        self._launch("merge_stats", n, {**merged, **counts})
        self._launch(f"apply_{name}", {**n, **plane}, {"X": x, "OUT": out, **rows, **layout})

    def _launch(self, name: str, sizes: dict[str, int], arguments: dict[str, int | float]) -> None:
        self.pack.launch(name, dtype=self.dtype, sizes=sizes, arguments=arguments, stream=self.stream)
