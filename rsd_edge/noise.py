"""The noise field: Gaussian samples that depend on (seed, channel, y, x) and on nothing else.

Any crop drawn at any time equals the same part of the whole, so the image does not depend on tile size, batch or run.
The definition uses integers only, so that other implementations can reproduce it bit by bit:

1. Philox4x32-10 (Salmon et al., SC 2011) with key (seed mod 2^32, seed div 2^32) on the counter
   (x, y, channel div 8, 0), where x and y are LR pixels of the frame in two's complement uint32.
2. The four words hold eight 16-bit samples: channel mod 8 selects word (channel mod 8) div 2, its low half first.
3. Sample u selects entry u of `gaussian_table()`, an int16 in units of 2^-12. Float32 holds the product exactly.
"""

from __future__ import annotations

import operator
from functools import cache
from statistics import NormalDist
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rsd_edge.errors import InputError

Words: TypeAlias = NDArray[np.uint64]
"""32-bit words in 64-bit lanes, where a 32 x 32 bit product needs no conversion."""

CHANNELS_PER_BLOCK = 8
TABLE_SIZE = 1 << 16
TABLE_UNIT = 2.0**-12

_ROUNDS = 10
_VECTOR_ROUNDS = 2
"""Rounds in which a word still depends on the row alone or on the column alone."""
_MULTIPLIERS = np.array([0xD2511F53, 0xCD9E8D57], np.uint64)[:, None, None]
_KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_MASK32 = 0xFFFFFFFF
_LOW_HALF = np.uint64(_MASK32)
_HALF_BITS = np.uint64(32)
_SEED_LIMIT = 1 << 64
_ZERO = np.zeros((1, 1), np.uint64)
_CHUNK = 1 << 15
"""Counters that go through all rounds together: many for one call of NumPy, few enough for a cache."""


def philox4x32_10(counter: tuple[Any, Any, Any, Any], key: tuple[int, int]) -> tuple[NDArray[np.uint32], ...]:
    """Ten rounds of Philox4x32 on counters that broadcast against each other.

    counter: four integer arrays (or integers) with values below 2^32; key: two integers below 2^32.
    Returns four uint32 arrays of the broadcast shape.
    """
    given = np.broadcast_arrays(*(np.asarray(word, dtype=np.uint64) for word in counter))
    c0, c1, c2, c3 = (word.reshape(1, -1) for word in given)
    words = _philox_words(c0, c1, c2, c3, _round_keys(key), np.empty((3, 2, *c0.shape), np.uint64))
    return tuple(word.reshape(given[0].shape).astype(np.uint32) for word in words)


def _round_keys(key: tuple[int, int]) -> list[Words]:
    """The two keys of each round, shaped for `_philox_words`."""
    rounds = range(_ROUNDS)
    pairs = [[(k + i * step) & _MASK32 for k, step in zip(key, _KEY_INCREMENTS, strict=True)] for i in rounds]
    return [np.array(pair, np.uint64)[:, None, None] for pair in pairs]


def _philox_words(
    c0: Words, c1: Words, c2: Words, c3: Words, keys: list[Words], scratch: Words
) -> tuple[Words, Words, Words, Words]:
    """The same in 64-bit lanes, for counters of two dimensions that broadcast to (h, w).

    scratch: (3, 2, h, w); the returned words are views of it, valid until it is used again.
    """
    (m0, m1), (even, odd, product) = _MULTIPLIERS, scratch
    for k0, k1 in keys[:_VECTOR_ROUNDS]:
        low, high = c0 * m0, c2 * m1
        c0, c1 = (high >> _HALF_BITS) ^ c1 ^ k0, high & _LOW_HALF
        c2, c3 = (low >> _HALF_BITS) ^ c3 ^ k1, low & _LOW_HALF
    even[0], odd[0], even[1], odd[1] = c0, c1, c2, c3
    crossed = product[::-1]
    for both in keys[_VECTOR_ROUNDS:]:
        np.multiply(even, _MULTIPLIERS, out=product)
        np.right_shift(crossed, _HALF_BITS, out=even)
        np.bitwise_xor(even, odd, out=even)
        np.bitwise_xor(even, both, out=even)
        np.bitwise_and(crossed, _LOW_HALF, out=odd)
    return even[0], odd[0], even[1], odd[1]


@cache
def gaussian_table() -> NDArray[np.int16]:
    """65536 Gaussian quantiles as read-only int16 in units of 2^-12, antisymmetric around the middle.

    Entry u is the mean of a standard normal within its u-th bin of equal probability, scaled so that the whole table
    has variance 1 (bin means alone lose the variance within the bins). The largest value is about 4.4.
    """
    normal = NormalDist()
    inner = [normal.inv_cdf(i / TABLE_SIZE) for i in range(TABLE_SIZE // 2 + 1, TABLE_SIZE)]
    density = np.array([normal.pdf(0.0), *map(normal.pdf, inner), 0.0])
    positive = (density[:-1] - density[1:]) * TABLE_SIZE
    positive /= np.sqrt(np.mean(positive**2))
    upper = np.rint(positive / TABLE_UNIT).astype(np.int16)
    return _read_only(np.concatenate((-upper[::-1], upper)))


@cache
def _gaussian_floats() -> NDArray[np.float32]:
    return _read_only(gaussian_table().astype(np.float32) * np.float32(TABLE_UNIT))


def _read_only(values: NDArray[Any]) -> NDArray[Any]:
    values.flags.writeable = False
    return values


class NoiseField:
    """An endless plane of standard normal samples for one seed; safe to share between threads.

    seed: an integer in [0, 2^64). Raises InputError for anything else.
    """

    def __init__(self, seed: int) -> None:
        try:
            self.seed = operator.index(seed)
        except TypeError:
            raise InputError(f"seed must be an integer, not {type(seed).__name__}") from None
        if not 0 <= self.seed < _SEED_LIMIT:
            raise InputError(f"seed {self.seed} is out of range; use 0 to 2^64 - 1")
        self._keys = _round_keys((self.seed & _MASK32, self.seed >> 32))

    def normal(
        self, channels: int, y: int, x: int, h: int, w: int, out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Samples of channels 0 to channels - 1 on rows y to y + h - 1 and columns x to x + w - 1.

        Coordinates are LR pixels of the frame and may be negative. Returns float32 (channels, h, w): `out` if given.
        """
        if out is None:
            out = np.empty((channels, h, w), np.float32)
        column, row = _coordinates(x, w)[None, :], _coordinates(y, h)[:, None]
        rows = max(1, -(-h // max(1, round(h * w / _CHUNK))))
        scratch = np.empty((3, 2, rows, w), np.uint64)
        for first in range(0, channels, CHANNELS_PER_BLOCK):
            block = np.array([[first // CHANNELS_PER_BLOCK]], np.uint64)
            for top in range(0, h, rows):
                part = row[top : top + rows]
                words = _philox_words(column, part, block, _ZERO, self._keys, scratch[:, :, : len(part)])
                for channel in range(first, min(first + CHANNELS_PER_BLOCK, channels)):
                    word, upper = divmod(channel - first, 2)
                    _look_up(words[word], upper, out[channel, top : top + rows])
        return out


def _look_up(words: Words, upper: int, out: NDArray[np.float32]) -> None:
    """Samples of the lower (0) or upper (1) sixteen bits of 32-bit words."""
    bits = words >> np.uint64(16) if upper else words & np.uint64(TABLE_SIZE - 1)
    # No index is out of range; "clip" only spares the buffering that the default mode does with `out`.
    np.take(_gaussian_floats(), bits.view(np.int64), out=out, mode="clip")


def _coordinates(start: int, count: int) -> Words:
    return (np.arange(start, start + count, dtype=np.int64) & _MASK32).astype(np.uint64)
