from __future__ import annotations

import hashlib
from statistics import NormalDist

import numpy as np
import pytest
from numpy.typing import NDArray

from rsd_edge.errors import InputError
from rsd_edge.noise import TABLE_SIZE, TABLE_UNIT, NoiseField, gaussian_table, philox4x32_10

# Every published image depends on this table; another hash means that all of them change.
TABLE_SHA256 = "94391b3805d02bf2e2fe0e55573f67dd060e05c9684b394f37dd172e8f9d899e"
SIDE = 512


@pytest.fixture(scope="module")
def samples() -> NDArray[np.float32]:
    return NoiseField(seed=20240229).normal(5, 0, 0, SIDE, SIDE)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # the known answers that Random123 publishes for philox4x32 with 10 rounds
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    assert tuple(int(word) for word in philox4x32_10(counter, key)) == expected


def test_philox_broadcasts_like_separate_calls() -> None:
    x, y = np.arange(3, dtype=np.uint32)[None, :], np.array([[7], [0xFFFFFFFF]], np.uint32)
    together = philox4x32_10((x, y, 1, 0), (5, 6))
    assert all(word.shape == (2, 3) and word.dtype == np.uint32 for word in together)
    for row in range(2):
        for column in range(3):
            alone = philox4x32_10((int(x[0, column]), int(y[row, 0]), 1, 0), (5, 6))
            assert [word[row, column] for word in together] == list(alone)


def test_table_is_pinned() -> None:
    assert hashlib.sha256(gaussian_table().astype("<i2").tobytes()).hexdigest() == TABLE_SHA256


def test_table_is_a_standard_normal() -> None:
    table = gaussian_table().astype(np.float64) * TABLE_UNIT
    assert table.shape == (TABLE_SIZE,)
    np.testing.assert_array_equal(table, -table[::-1])
    assert np.all(np.diff(table) >= 0)
    assert table.var() == pytest.approx(1.0, abs=1e-4)
    # A normal has a fourth moment of 3; cutting off what lies beyond 4.4 and averaging the last bins loses 0.004.
    assert np.mean(table**4) == pytest.approx(3.0, abs=0.01)
    for u in (40000, 60000, 65000, 65500):
        assert table[u] == pytest.approx(NormalDist().inv_cdf((u + 0.5) / TABLE_SIZE), abs=3e-3)


def test_samples_follow_the_definition() -> None:
    """The module's text, step by step, in plain Python: this is what other implementations are written from."""
    seed, y, x = (0x1234_5678_9ABC_DEF0, -3, 70000)
    field = NoiseField(seed).normal(11, y, x, 1, 1)[:, 0, 0]
    for channel in range(11):
        counter = (x, y % 2**32, channel // 8, 0)
        words = philox4x32_10(counter, (seed % 2**32, seed // 2**32))
        u = (int(words[channel % 8 // 2]) >> (16 * (channel % 2))) & 0xFFFF
        assert field[channel] == np.float32(int(gaussian_table()[u]) * 2.0**-12)


@pytest.mark.parametrize(("y", "x", "h", "w"), [(0, 0, 1, 1), (13, 101, 37, 53), (-16, -16, 64, 48), (-40, 90, 17, 1)])
def test_any_crop_equals_the_whole(y: int, x: int, h: int, w: int) -> None:
    field = NoiseField(7)
    whole = field.normal(9, -40, -16, 140, 170)
    np.testing.assert_array_equal(field.normal(9, y, x, h, w), whole[:, y + 40 : y + 40 + h, x + 16 : x + 16 + w])


def test_a_large_field_is_made_of_its_rows() -> None:
    """It is drawn in several pieces, whose borders must not show."""
    field = NoiseField(7)
    whole = field.normal(9, -3, -5, 301, 401)
    for y in range(301):
        np.testing.assert_array_equal(field.normal(9, y - 3, -5, 1, 401)[:, 0], whole[:, y])


@pytest.mark.parametrize(("h", "w"), [(0, 5), (5, 0), (0, 0)])
def test_an_empty_field_has_no_samples(h: int, w: int) -> None:
    assert NoiseField(1).normal(5, 0, 0, h, w).shape == (5, h, w)


def test_fewer_channels_are_the_first_ones() -> None:
    np.testing.assert_array_equal(NoiseField(1).normal(3, 5, 6, 8, 9), NoiseField(1).normal(12, 5, 6, 8, 9)[:3])


def test_out_is_filled_and_returned() -> None:
    out = np.full((5, 6, 7), np.nan, np.float32)
    assert NoiseField(1).normal(5, 0, 0, 6, 7, out=out) is out
    np.testing.assert_array_equal(out, NoiseField(1).normal(5, 0, 0, 6, 7))


def test_moments(samples: NDArray[np.float32]) -> None:
    """Five standard errors each; a scale that is off by 1 % moves the variance by fourteen."""
    n = samples[0].size
    for channel in samples.astype(np.float64):
        assert abs(channel.mean()) < 5 / np.sqrt(n)
        assert abs(channel.var() - 1) < 5 * np.sqrt(2 / n)
        assert abs(np.mean(channel**3)) < 5 * np.sqrt(15 / n)
        assert abs(np.mean(channel**4) - 3) < 5 * np.sqrt(96 / n)


@pytest.mark.parametrize("limit", [1.0, 2.0, 3.0, 4.0])
def test_tails(samples: NDArray[np.float32], limit: float) -> None:
    n = samples.size
    expected = 2 * n * (1 - NormalDist().cdf(limit))
    for tail in (np.sum(samples > limit), np.sum(samples < -limit)):
        # Five standard errors of a count, and the rounding of the outermost bins of the table.
        assert abs(int(tail) - expected / 2) < 5 * np.sqrt(expected / 2) + 0.01 * expected


def test_channels_neighbours_and_seeds_are_independent(samples: NDArray[np.float32]) -> None:
    """Correlations of values and of squares stay within five standard errors of 0."""
    other_seed = NoiseField(20240230).normal(1, 0, 0, SIDE, SIDE)[0]
    high_seed = NoiseField(20240229 + (1 << 32)).normal(1, 0, 0, SIDE, SIDE)[0]
    first = samples[0]
    pairs = [(samples[a], samples[b]) for a in range(5) for b in range(a)]
    pairs += [(first[:, step:], first[:, :-step]) for step in (1, 2, 4, 64)]
    pairs += [(first[step:], first[:-step]) for step in (1, 2, 4, 64)]
    pairs += [(first[1:, 1:], first[:-1, :-1]), (first, first.T[::-1]), (first, other_seed), (first, high_seed)]
    for a, b in pairs:
        for u, v in ((a, b), (a**2, b**2)):
            correlation = np.corrcoef(u.ravel(), v.ravel())[0, 1]
            assert abs(correlation) < 5 / np.sqrt(u.size)


def test_no_row_or_column_pattern(samples: NDArray[np.float32]) -> None:
    for axis in (0, 1):
        means = samples[0].mean(axis=axis) * np.sqrt(SIDE)
        assert np.abs(means).max() < 5
        assert abs(means.var() - 1) < 5 * np.sqrt(2 / SIDE)


@pytest.mark.parametrize("seed", [-1, 1 << 64])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(InputError, match="out of range"):
        NoiseField(seed)


def test_a_seed_that_is_no_integer_is_refused() -> None:
    with pytest.raises(InputError, match="must be an integer, not float"):
        NoiseField(1.5)


def test_numpy_integers_are_seeds() -> None:
    np.testing.assert_array_equal(NoiseField(np.int64(3)).normal(1, 0, 0, 2, 2), NoiseField(3).normal(1, 0, 0, 2, 2))
