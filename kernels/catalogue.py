"""Every kernel that is compiled ahead of time: its arguments, constants and grid, as plain data.

Types: `*D` is a pointer to the dtype being built, the others are Triton's names. A scalar marked with `/16` is a
multiple of 16 in the aligned build, in which compilers see whole vectors; pointers are multiples of 16 bytes there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

DTYPES = ("fp32", "fp16", "bf16")
LATENT_CHANNELS = (3, 4)
"""Of the official VQ-f4 latent, and of the edge models."""


MERGE_LANES = 128
"""LR pixels of one program of merge_tiles: rows x columns."""
MERGE_COLUMNS = (16, 32, 64, 128)
MERGE_REGISTERS = 200
"""At most: builds for whole vectors stay below 168, with which three programs fit into a multiprocessor."""
GROUP_SIZE_MOST = 64
"""Channels of a group that the compiled merge_stats takes; the VQ networks have at most 16."""
_INT32 = (1 << 31) - 1


def merge_columns(stride_x: int) -> int:
    """The block of columns that leaves the fewest lanes of merge_tiles without work; of equals, the widest."""
    return min(MERGE_COLUMNS, key=lambda block: (-(-stride_x // block) * block, -block))


@dataclass(frozen=True)
class Factor:
    """ceil(size / per) x times."""

    size: str
    per: int = 1
    times: int = 1


class Count(tuple[Factor, ...]):
    """The product of its factors."""

    __slots__ = ()

    def __new__(cls, *factors: Factor) -> Count:
        return super().__new__(cls, factors)


@dataclass(frozen=True)
class KernelSpec:
    """One kernel with all its compile-time constants. `name` is unique; `function` is in triton_<module>.py."""

    name: str
    module: str
    function: str
    arguments: Mapping[str, str]
    """In the kernel's order."""
    constants: Mapping[str, int | bool | None]
    grid: tuple[Count, ...]
    shapes: str
    """Of what pointers point to: `A B:n,4,pixels` for both."""
    least: Mapping[str, int] = field(default_factory=dict)
    """Of integers that may be 0."""
    most: Mapping[str, int] = field(default_factory=dict)
    """Of integers that the kernel cannot take as large as 32 bits hold."""
    equal: Mapping[str, Count] = field(default_factory=dict)
    at_least: Mapping[str, Count] = field(default_factory=dict)
    products: tuple[tuple[tuple[str, ...], int], ...] = ()
    """Sizes whose product must not exceed a number, because the kernel counts elements in 32 bits."""
    typed: bool = True
    """False if no argument has the dtype that is built, so that one build serves all."""
    scattered: str = ""
    """Why a kernel reads much that is no vector, beside its vectors; empty where it does not."""
    num_warps: int = 4
    odd_warps: int = 8
    """For sizes that are no multiple of 16. Without vectors each element has an address of its own: more threads share
    them, or registers spill."""

    registers: int | None = None
    """That a thread may have. Where it says nothing, ptxas may spill a few bytes rather than use more than 128."""

    def warps(self, aligned: bool) -> int:
        """Of one program of a build."""
        return self.num_warps if aligned else self.odd_warps


def catalogue() -> tuple[KernelSpec, ...]:
    """All kernels, in a fixed order."""
    return (*_noising(), *_rsd(), *_norm(), *_frames())


def _arguments(text: str) -> dict[str, str]:
    return dict(item.split(":") for item in text.split())


_BLOCKS = Count(Factor("pixels", 1024))
_SAMPLES = Count(Factor("n"))
_TABLE = "random numbers select entries of the quantile table, two bytes each"


def _noising() -> Iterator[KernelSpec]:
    yield KernelSpec(
        "noise_field", "noise", "noise_field",
        _arguments("OUT:*D SEEDS:*i64 ORIGINS:*i32 TABLE:*i16 channels:i32 pixels:i32/16 width:i32"),
        {"BLOCK": 1024}, (_BLOCKS, _SAMPLES, Count(Factor("channels", 8))),
        "OUT:n,channels,pixels SEEDS:n ORIGINS:n,2 TABLE:65536", most={"pixels": _INT32 // 8}, scattered=_TABLE,
    )  # fmt: skip
    shared = "X0:*D Y:*D {eps}OUT:*D T:*i64 ETA:*fp32 SIGMA:*fp32 {scale}{field}pixels:i32/16 width:i32"
    for zc in LATENT_CHANNELS:
        constants: dict[str, int | bool | None] = {"CHANNELS": zc, "BLOCK": 1024}
        most, image = {"pixels": _INT32 // (zc + 4)}, f"n,{zc},pixels"
        for scaled in (False, True):
            suffix, scale = ("-scaled", "SCALE:*fp32 ") if scaled else ("", "")
            unscaled: dict[str, int | bool | None] = {} if scaled else {"SCALE": None}
            given = shared.format(eps="EPS:*D ", scale=scale, field="")
            drawn = shared.format(eps="", scale=scale, field="SEEDS:*i64 ORIGINS:*i32 TABLE:*i16 ")
            yield KernelSpec(
                f"forward_noise-c{zc}{suffix}", "noising", "forward_noise", _arguments(given),
                {**constants, "SCALED": scaled, "DRAW": False, "SEEDS": None, "ORIGINS": None, "TABLE": None}
                | unscaled,
                (_BLOCKS, _SAMPLES), f"X0 Y EPS OUT:{image} T:n ETA SIGMA SCALE:steps", most=most,
            )  # fmt: skip
            yield KernelSpec(
                f"forward_noise_drawn-c{zc}{suffix}", "noising", "forward_noise", _arguments(drawn),
                {**constants, "SCALED": scaled, "DRAW": True, "EPS": None} | unscaled, (_BLOCKS, _SAMPLES),
                f"X0 Y OUT:{image} T SEEDS:n ETA SIGMA SCALE:steps ORIGINS:n,2 TABLE:65536", most=most,
                scattered=_TABLE,
            )  # fmt: skip
            backward = f"GRAD:*D GRAD_X0:*D GRAD_Y:*D T:*i64 ETA:*fp32 {scale}pixels:i32/16"
            yield KernelSpec(
                f"forward_noise_backward-c{zc}{suffix}", "noising", "forward_noise_backward", _arguments(backward),
                {**constants, "SCALED": scaled} | unscaled, (_BLOCKS, _SAMPLES),
                f"GRAD GRAD_X0 GRAD_Y:{image} T:n ETA SCALE:steps", most=most,
            )  # fmt: skip
        yield KernelSpec(
            f"prior_input-c{zc}", "noising", "prior_input",
            _arguments("Z_Y:*D LQ:*D NOISE:*D OUT:*D mean_scale:fp32 noise_scale:fp32 pixels:i32/16"),
            constants, (_BLOCKS, _SAMPLES),
            f"Z_Y:{image} LQ:n,3,pixels NOISE:n,{zc + 1},pixels OUT:n,{zc + 4},pixels", most=most,
        )  # fmt: skip
        yield KernelSpec(
            f"posterior_step-c{zc}", "noising", "posterior_step",
            _arguments(
                "X_T:*D X0_HAT:*D EPS:*D X_PREV:*D NET_INPUT:*D T:*i64 XT_COEF:*fp32 X0_COEF:*fp32 STD:*fp32 "
                "NEXT_SCALE:*fp32 pixels:i32/16 input_channels:i32"
            ),
            constants, (_BLOCKS, _SAMPLES),
            f"X_T X0_HAT EPS X_PREV:{image} NET_INPUT:n,input_channels,pixels T:n "
            "XT_COEF X0_COEF STD NEXT_SCALE:steps",
            least={"input_channels": zc}, most=most,
        )  # fmt: skip


def _rsd() -> Iterator[KernelSpec]:
    grid = (_SAMPLES, Count(Factor("size", 2048)))
    yield KernelSpec(
        "rsd_partials", "rsd", "rsd_partials",
        _arguments("F_STAR:*D F_PHI:*D Z0_HAT:*D PARTIALS:*fp32 size:i32/16"), {"BLOCK": 2048}, grid,
        "F_STAR F_PHI Z0_HAT:n,size PARTIALS:n,ceil(size/2048),3", most={"size": _INT32 - 2048},
    )  # fmt: skip
    yield KernelSpec(
        "rsd_backward", "rsd", "rsd_backward",
        _arguments(
            "F_STAR:*D F_PHI:*D Z0_HAT:*D GRAD_STAR:*D GRAD_PHI:*D GRAD_Z0:*D GRAD_DIFFERENCE:*fp32 GRAD_FAKE:*fp32 "
            "size:i32/16 per_element:fp32"
        ),
        {"BLOCK": 2048}, grid,
        "F_STAR F_PHI Z0_HAT GRAD_STAR GRAD_PHI GRAD_Z0:n,size GRAD_DIFFERENCE GRAD_FAKE:n",
        most={"size": _INT32 - 2048},
    )  # fmt: skip


def _norm() -> Iterator[KernelSpec]:
    last = {"BLOCK": 64, "BLOCK_C": 64}
    last_grid = (Count(Factor("pixels", 64)), _SAMPLES, Count(Factor("channels", 64)))
    yield KernelSpec(
        "stats_contiguous", "norm", "stats_contiguous", _arguments("X:*D PARTIALS:*fp32 span:i32/16 stride:i32/16"),
        {"BLOCK": 4096}, (Count(Factor("n"), Factor("groups")), Count(Factor("span", 4096))),
        "X:n,groups,span PARTIALS:n,groups,3,stride", most={"span": _INT32 - 4096},
        at_least={"stride": Count(Factor("span", 4096))},
    )  # fmt: skip
    yield KernelSpec(
        "stats_channels_last", "norm", "stats_channels_last",
        _arguments("X:*D PARTIALS:*fp32 pixels:i32 channels:i32/16 group_size:i32 stride:i32/16"),
        {"STEPS": 8, **last}, (Count(Factor("pixels", 512)), _SAMPLES, Count(Factor("channels", 64))),
        "X:n,pixels,channels PARTIALS:n,channels/group_size,3,stride", most={"pixels": _INT32 - 512},
        at_least={"stride": Count(Factor("group_size"), Factor("pixels", 512))},
    )  # fmt: skip
    yield KernelSpec(
        "merge_stats", "norm", "merge_stats",
        _arguments(
            "PARTIALS:*fp32 WEIGHT:*D BIAS:*D SCALE:*fp32 SHIFT:*fp32 groups:i32 group_size:i32 parts:i32 "
            "stride:i32/16 epsilon:fp32"
        ),
        {"BLOCK": 512, "BLOCK_C": GROUP_SIZE_MOST}, (Count(Factor("n"), Factor("groups")),),
        "PARTIALS:n,groups,3,stride WEIGHT BIAS:groups*group_size SCALE SHIFT:n,groups*group_size",
        most={"group_size": GROUP_SIZE_MOST, "parts": _INT32 - 512}, at_least={"stride": Count(Factor("parts"))},
    )  # fmt: skip
    yield KernelSpec(
        "apply_contiguous", "norm", "apply_contiguous",
        _arguments("X:*D OUT:*D SCALE:*fp32 SHIFT:*fp32 pixels:i32/16"),
        {"BLOCK": 2048}, (Count(Factor("n"), Factor("channels")), Count(Factor("pixels", 2048))),
        "X OUT:n,channels,pixels SCALE SHIFT:n,channels", most={"pixels": _INT32 - 2048},
    )  # fmt: skip
    yield KernelSpec(
        "apply_channels_last", "norm", "apply_channels_last",
        _arguments("X:*D OUT:*D SCALE:*fp32 SHIFT:*fp32 pixels:i32 channels:i32/16"), last, last_grid,
        "X OUT:n,pixels,channels SCALE SHIFT:n,channels", most={"pixels": _INT32 - 64},
    )  # fmt: skip


def _frames() -> Iterator[KernelSpec]:
    yield KernelSpec(
        "frame_tiles", "frames", "frame_tiles",
        _arguments(
            "FRAME:*u8 OUT:*D height:i32 width:i32 columns:i32 tile_h:i32 tile_w:i32/16 stride_y:i32 stride_x:i32 "
            "halo:i32 pixels:i32/16 lanes:i32"
        ),
        {"LANES": 64}, (Count(Factor("lanes", 64)), Count(Factor("tiles"))),
        "FRAME:height,width,3 OUT:tiles,3,tile_h,tile_w", least={"halo": 0},
        equal={
            "pixels": Count(Factor("tile_h"), Factor("tile_w")),
            "lanes": Count(Factor("tile_h"), Factor("tile_w", 16)),
        },
        products=((("pixels",), _INT32 // 4),),
        scattered="lanes beyond the frame read its reflections byte by byte",
        odd_warps=4,  # reads vectors all the same
    )  # fmt: skip
    for block in MERGE_COLUMNS:
        rows = MERGE_LANES // block
        yield KernelSpec(
            f"merge_tiles-x{block}", "frames", "merge_tiles",
            _arguments(
                "DETAIL:*D FRAME:*u8 OUT:*i32 STRENGTH:*fp32 NOT_FINITE:*i32 height:i32 width:i32 rows:i32 columns:i32 "
                "tile_h:i32 tile_w:i32 stride_y:i32 stride_x:i32 halo:i32 feather:i32"
            ),
            {"ROWS": rows, "COLUMNS": block},
            (Count(Factor("height", per=rows, times=2)), Count(Factor("columns"), Factor("stride_x", per=block))),
            "DETAIL:tiles,3,4*tile_h,4*tile_w FRAME:height,width,3 OUT:4*height,3*width STRENGTH NOT_FINITE:1",
            least={"halo": 0, "feather": 0},
            products=((("tile_h", "tile_w"), _INT32 // 64),),
            scattered="20 bytes a channel of the frame for eight outputs, neighbours of each other and so from L1",
            odd_warps=4,  # a lane each; more threads would do the same work twice
            registers=MERGE_REGISTERS,
        )  # fmt: skip
