"""How much of the past is kept: constants that were chosen on films, as what they do to numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rsd_edge.live.blend import FilmAverage
from rsd_edge.live.trust import Carry, Trust

SIDE = 8
NOTHING_MOVES = Carry(np.zeros((SIDE, SIDE, 2), np.float32), np.zeros((SIDE, SIDE), np.bool_))
"""And yet something changes, so that nothing rests."""
ORIGIN = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), axis=-1).astype(np.float32)


@pytest.mark.parametrize("unit", [1.0, 257.0])
@pytest.mark.parametrize("levels", [0.01, 1.0, 3.0, 8.0, 16.0, 24.0])
def test_shares_fall_with_the_change(levels: float, unit: float) -> None:
    trust = Trust(SIDE, SIDE, unit)
    trust.begin(np.zeros((SIDE, SIDE, 3), np.float32))
    changed = np.full((SIDE, SIDE, 3), levels * unit, np.float32)
    kept = trust.judge(changed, NOTHING_MOVES, ORIGIN)
    # float32, and OpenCV's division by the sum of weights and 0.00001
    assert kept == pytest.approx(0.95 * math.exp(-((levels / 16) ** 2)), rel=1e-5)
    assert trust.seen == pytest.approx(changed * (1 - kept[..., None]), rel=1e-5)
    assert trust.steady == pytest.approx(changed * (1 - 0.7 * math.exp(-((levels / 3) ** 2))), rel=1e-5)


def test_a_twentieth_of_the_detail_is_new_in_each_frame() -> None:
    average = FilmAverage(SIDE, SIDE, np.dtype(np.uint16))
    gray = np.full((SIDE, SIDE, 3), 30000, np.uint16)
    plain, out = (np.full((4 * SIDE, 4 * SIDE, 3), 30000, np.uint16) for _ in range(2))
    average.add(gray, plain + np.uint16(20000), None, out)
    for frame in range(1, 31):
        average.add(gray, plain, NOTHING_MOVES, out)
        assert np.abs(out - (30000 + 20000 * 0.95**frame)).max() < 0.6  # rounded once, and float32
