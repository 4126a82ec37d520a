"""Every kernel that is compiled ahead of time: its arguments, constants and grid, as plain data.

Types: `*D` is a pointer to the dtype being built, the others are Triton's names. A scalar marked with `/16` is a
multiple of 16 in the aligned build, in which compilers see whole vectors; pointers are multiples of 16 bytes there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

DTYPES = ("fp32", "fp16", "bf16")
LATENT_CHANNELS = (3, 4)
"""Of the official VQ-f4 latent, and of the edge models."""


@dataclass(frozen=True)
class GridAxis:
    """ceil(product of the named sizes / per)."""

    sizes: tuple[str, ...]
    per: int = 1


@dataclass(frozen=True)
class KernelSpec:
    """One kernel with all its compile-time constants. `name` is unique; `function` is in triton_<module>.py."""

    name: str
    module: str
    function: str
    arguments: Mapping[str, str]
    constants: Mapping[str, int | bool | None]
    grid: tuple[GridAxis, ...]
    typed: bool = True
    """False if no argument has the dtype that is built, so that one build serves all."""
    scattered: str = ""
    """Why a kernel reads much that is no vector, beside its vectors; empty where it does not."""
    num_warps: int = 4
    odd_warps: int = 8
    """For sizes that are no multiple of 16. Without vectors each element has an address of its own: more threads share
    them, or registers spill."""


def catalogue() -> tuple[KernelSpec, ...]:
    """All kernels, in a fixed order."""
    return (*_noising(), *_rsd(), *_norm(), *_frames())


def _arguments(text: str) -> dict[str, str]:
    return dict(item.split(":") for item in text.split())


_BLOCKS = GridAxis(("pixels",), 1024)
_SAMPLES = GridAxis(("n",))
_TABLE = "random numbers select entries of the quantile table, two bytes each"


def _noising() -> Iterator[KernelSpec]:
    yield KernelSpec(
        "noise_field", "noise", "noise_field",
        _arguments("OUT:*D SEEDS:*i64 ORIGINS:*i32 TABLE:*i16 channels:i32 pixels:i32/16 width:i32"),
        {"BLOCK": 1024}, (_BLOCKS, _SAMPLES, GridAxis(("channels",), 8)), scattered=_TABLE,
    )  # fmt: skip
    shared = "X0:*D Y:*D {eps}OUT:*D T:*i64 ETA:*fp32 SIGMA:*fp32 {scale}{field}pixels:i32/16 width:i32"
    for zc in LATENT_CHANNELS:
        constants: dict[str, int | bool | None] = {"CHANNELS": zc, "BLOCK": 1024}
        for scaled in (False, True):
            suffix, scale = ("-scaled", "SCALE:*fp32 ") if scaled else ("", "")
            unscaled: dict[str, int | bool | None] = {} if scaled else {"SCALE": None}
            given = shared.format(eps="EPS:*D ", scale=scale, field="")
            drawn = shared.format(eps="", scale=scale, field="SEEDS:*i64 ORIGINS:*i32 TABLE:*i16 ")
            yield KernelSpec(
                f"forward_noise-c{zc}{suffix}", "noising", "forward_noise", _arguments(given),
                {**constants, "SCALED": scaled, "DRAW": False, "SEEDS": None, "ORIGINS": None, "TABLE": None}
                | unscaled,
                (_BLOCKS, _SAMPLES),
            )  # fmt: skip
            yield KernelSpec(
                f"forward_noise_drawn-c{zc}{suffix}", "noising", "forward_noise", _arguments(drawn),
                {**constants, "SCALED": scaled, "DRAW": True, "EPS": None} | unscaled, (_BLOCKS, _SAMPLES),
                scattered=_TABLE,
            )  # fmt: skip
            backward = f"GRAD:*D GRAD_X0:*D GRAD_Y:*D T:*i64 ETA:*fp32 {scale}pixels:i32/16"
            yield KernelSpec(
                f"forward_noise_backward-c{zc}{suffix}", "noising", "forward_noise_backward", _arguments(backward),
                {**constants, "SCALED": scaled} | unscaled, (_BLOCKS, _SAMPLES),
            )  # fmt: skip
        yield KernelSpec(
            f"prior_input-c{zc}", "noising", "prior_input",
            _arguments("Z_Y:*D LQ:*D NOISE:*D OUT:*D mean_scale:fp32 noise_scale:fp32 pixels:i32/16"),
            constants, (_BLOCKS, _SAMPLES),
        )  # fmt: skip
        yield KernelSpec(
            f"posterior_step-c{zc}", "noising", "posterior_step",
            _arguments(
                "X_T:*D X0_HAT:*D EPS:*D X_PREV:*D NET_INPUT:*D T:*i64 XT_COEF:*fp32 X0_COEF:*fp32 STD:*fp32 "
                "NEXT_SCALE:*fp32 pixels:i32/16 input_channels:i32"
            ),
            constants, (_BLOCKS, _SAMPLES),
        )  # fmt: skip


def _rsd() -> Iterator[KernelSpec]:
    grid = (_SAMPLES, GridAxis(("size",), 2048))
    yield KernelSpec(
        "rsd_partials", "rsd", "rsd_partials",
        _arguments("F_STAR:*D F_PHI:*D Z0_HAT:*D PARTIALS:*fp32 size:i32/16"), {"BLOCK": 2048}, grid,
    )  # fmt: skip
    yield KernelSpec(
        "rsd_backward", "rsd", "rsd_backward",
        _arguments(
            "F_STAR:*D F_PHI:*D Z0_HAT:*D GRAD_STAR:*D GRAD_PHI:*D GRAD_Z0:*D GRAD_DIFFERENCE:*fp32 GRAD_FAKE:*fp32 "
            "size:i32/16 per_element:fp32"
        ),
        {"BLOCK": 2048}, grid,
    )  # fmt: skip


def _norm() -> Iterator[KernelSpec]:
    last = {"BLOCK": 64, "BLOCK_C": 64}
    last_grid = (GridAxis(("pixels",), 64), _SAMPLES, GridAxis(("channels",), 64))
    yield KernelSpec(
        "stats_contiguous", "norm", "stats_contiguous", _arguments("X:*D PARTIALS:*fp32 span:i32/16 stride:i32/16"),
        {"BLOCK": 4096}, (GridAxis(("n", "groups")), GridAxis(("span",), 4096)),
    )  # fmt: skip
    yield KernelSpec(
        "stats_channels_last", "norm", "stats_channels_last",
        _arguments("X:*D PARTIALS:*fp32 pixels:i32 channels:i32/16 group_size:i32 stride:i32/16"),
        {"STEPS": 8, **last}, (GridAxis(("pixels",), 512), _SAMPLES, GridAxis(("channels",), 64)),
    )  # fmt: skip
    yield KernelSpec(
        "merge_stats", "norm", "merge_stats",
        _arguments(
            "PARTIALS:*fp32 WEIGHT:*D BIAS:*D SCALE:*fp32 SHIFT:*fp32 groups:i32 group_size:i32 parts:i32 "
            "stride:i32/16 epsilon:fp32"
        ),
        {"BLOCK": 512, "BLOCK_C": 64}, (GridAxis(("n", "groups")),),
    )  # fmt: skip
    yield KernelSpec(
        "apply_contiguous", "norm", "apply_contiguous",
        _arguments("X:*D OUT:*D SCALE:*fp32 SHIFT:*fp32 pixels:i32/16"),
        {"BLOCK": 2048}, (GridAxis(("n", "channels")), GridAxis(("pixels",), 2048)),
    )  # fmt: skip
    yield KernelSpec(
        "apply_channels_last", "norm", "apply_channels_last",
        _arguments("X:*D OUT:*D SCALE:*fp32 SHIFT:*fp32 pixels:i32 channels:i32/16"), last, last_grid,
    )  # fmt: skip


def _frames() -> Iterator[KernelSpec]:
    yield KernelSpec(
        "frame_tiles", "frames", "frame_tiles",
        _arguments(
            "FRAME:*u8 OUT:*D height:i32 width:i32 columns:i32 tile_h:i32 tile_w:i32/16 stride_y:i32 stride_x:i32 "
            "halo:i32 pixels:i32/16 lanes:i32"
        ),
        {"LANES": 64}, (GridAxis(("lanes",), 64), GridAxis(("tiles",))),
        scattered="lanes beyond the frame read its reflections byte by byte",
        odd_warps=4,  # reads vectors all the same
    )  # fmt: skip
    yield KernelSpec(
        "merge_tiles", "frames", "merge_tiles",
        _arguments(
            "DETAIL:*D FRAME:*u8 OUT:*i32 STRENGTH:*fp32 height:i32 width:i32 rows:i32 columns:i32 tile_h:i32 "
            "tile_w:i32 stride_y:i32 stride_x:i32 halo:i32 feather:i32 blocks:i32"
        ),
        {"BLOCK": 512}, (GridAxis(("output_rows",)), GridAxis(("columns", "blocks"))),
        scattered="25 bytes of the frame for four outputs, neighbours of each other and so from L1",
    )  # fmt: skip
