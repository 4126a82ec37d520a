"""The noise field on torch devices: the integers and floats of rsd_edge.noise.NoiseField, bit by bit."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from rsd_edge.errors import InputError
from rsd_edge.kernels.implementation import DTYPES, check_implementation, launch, runs_reference
from rsd_edge.noise import CHANNELS_PER_BLOCK, TABLE_SIZE, TABLE_UNIT, NoiseField, gaussian_table

_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_MASK32 = 0xFFFFFFFF
_SIGN_BIT = 1 << 63

BLOCK = 1024
MAX_SAMPLES = 65535
"""Of one launch: the limit of a grid's second axis."""


def seed_tensor(seeds: Sequence[int], device: str | torch.device = "cpu") -> Tensor:
    """Seeds in [0, 2^64) as int64 (n,) with the same bits. Raises InputError for anything else."""
    unsigned = [NoiseField(operator.index(seed)).seed for seed in seeds]
    return torch.tensor([(seed ^ _SIGN_BIT) - _SIGN_BIT for seed in unsigned], dtype=torch.int64, device=device)


def noise_field(
    seeds: Tensor,
    origins: Tensor,
    channels: int,
    height: int,
    width: int,
    *,
    dtype: torch.dtype = torch.float32,
    implementation: str,
) -> Tensor:
    """Standard normal samples (n, channels, height, width), exact in float32, rounded once to other dtypes.

    seeds: int64 (n,), from `seed_tensor`. origins: int32 (n, 2), the row and the column, in LR pixels of the frame, of
    each sample's first pixel; may be negative. Sample i is NoiseField(seed i).normal(channels, *origin i, height,
    width). Raises InputError, and what `check_implementation` raises.
    """
    check_field(seeds, origins, len(seeds), seeds.device)
    if min(channels, height, width) < 1:
        raise InputError(f"noise of {channels} channels on {height} x {width} pixels is empty; each must be at least 1")
    if dtype not in DTYPES:
        raise InputError(f"noise cannot be {dtype}; use float32, float16 or bfloat16")
    check_implementation(implementation, seeds.device)
    noise: Tensor = torch.ops.rsd_edge.noise_field(seeds, origins, channels, height, width, dtype, implementation)
    return noise


def check_field(seeds: Tensor, origins: Tensor, samples: int, device: torch.device) -> None:
    """Raise InputError unless these select one part of the field for each of `samples` samples."""
    if seeds.dtype != torch.int64 or seeds.shape != (samples,) or seeds.device != device:
        raise InputError(
            f"seeds are {seeds.dtype} {tuple(seeds.shape)} on {seeds.device}; "
            f"they must be int64 ({samples},) on {device}"
        )
    if origins.dtype != torch.int32 or origins.shape != (samples, 2) or origins.device != seeds.device:
        raise InputError(
            f"origins are {origins.dtype} {tuple(origins.shape)} on {origins.device}; "
            f"they must be int32 ({samples}, 2) on {seeds.device}"
        )
    if not 1 <= samples <= MAX_SAMPLES:
        raise InputError(f"{samples} samples do not fit one launch; use 1 to {MAX_SAMPLES}")


@torch.library.custom_op("rsd_edge::noise_field", mutates_args=())
def _noise_field(
    seeds: Tensor, origins: Tensor, channels: int, height: int, width: int, dtype: torch.dtype, implementation: str
) -> Tensor:
    if runs_reference(implementation, seeds.device):
        return reference_field(seeds, origins, channels, height, width).to(dtype)
    out = torch.empty(len(seeds), channels, height, width, dtype=dtype, device=seeds.device)
    pixels = height * width
    grid = (-(-pixels // BLOCK), len(seeds), -(-channels // CHANNELS_PER_BLOCK))
    table = table_tensor(seeds.device)
    launch("noise", "noise_field", grid, out, seeds, origins, table, channels, pixels, width, BLOCK=BLOCK)
    return out


@_noise_field.register_fake
def _(
    seeds: Tensor, origins: Tensor, channels: int, height: int, width: int, dtype: torch.dtype, implementation: str
) -> Tensor:
    return seeds.new_empty((len(seeds), channels, height, width), dtype=dtype)


def reference_field(seeds: Tensor, origins: Tensor, channels: int, height: int, width: int) -> Tensor:
    """The definition in torch; arguments as for `noise_field`."""
    rows = origins[:, 0].long()[:, None] + torch.arange(height, device=seeds.device)
    columns = origins[:, 1].long()[:, None] + torch.arange(width, device=seeds.device)
    shape = (len(seeds), height, width)
    y, x = (rows & _MASK32)[:, :, None].expand(shape), (columns & _MASK32)[:, None, :].expand(shape)
    key = (seeds & _MASK32, (seeds >> 32) & _MASK32)
    table = table_tensor(seeds.device)
    samples = []
    for block in range(-(-channels // CHANNELS_PER_BLOCK)):
        words = _philox(x, y, torch.full_like(x, block), torch.zeros_like(x), key)
        for word in words:
            samples += [table[word & (TABLE_SIZE - 1)], table[word >> 16]]
    return torch.stack(samples[:channels], dim=1).float() * TABLE_UNIT


def _philox(c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor, key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Ten rounds of Philox4x32 on 32-bit words in int64 tensors."""
    k0, k1 = (word[:, None, None] for word in key)
    for _ in range(_ROUNDS):
        (high0, low0), (high1, low1) = _multiply(c0, _MULTIPLIERS[0]), _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _KEY_INCREMENTS[0]) & _MASK32, (k1 + _KEY_INCREMENTS[1]) & _MASK32
    return c0, c1, c2, c3


def _multiply(word: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """High and low half of a 32 x 32 bit product, in two parts because int64 cannot hold all of its 64 bits."""
    upper, lower = (word >> 16) * factor, (word & 0xFFFF) * factor
    high = (upper + (lower >> 16)) >> 16
    return high, (((upper & 0xFFFF) << 16) + lower) & _MASK32


@lru_cache(maxsize=8)
def table_tensor(device: torch.device) -> Tensor:
    """`gaussian_table` as int16 on a device; kept, because every launch reads it."""
    return torch.tensor(gaussian_table(), device=device)
