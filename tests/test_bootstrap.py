from __future__ import annotations

import math

import numpy as np
import pytest

from rsd_edge.evaluate import bootstrap
from rsd_edge.evaluate.bootstrap import FEW_IMAGES, mean_interval, warning


def test_the_interval_of_a_normal_sample_is_the_textbook_one() -> None:
    sample = np.random.default_rng(1).normal(10, 3, 400)
    interval = mean_interval(list(sample))
    assert interval is not None
    half = 1.96 * sample.std() / math.sqrt(400)
    # The ends of 2000 resamples scatter by about 0.06 standard errors (half / 1.96 = 0.15): three times that.
    assert interval.low == pytest.approx(sample.mean() - half, abs=0.03)
    assert interval.high == pytest.approx(sample.mean() + half, abs=0.03)


def test_intervals_cover_the_true_mean_as_often_as_they_say() -> None:
    """100 sets of 60 exponential values. 95 of 100, with a standard deviation of 2.2; small sets cover a bit less."""
    generator = np.random.default_rng(2)
    hits = 0
    for _ in range(100):
        interval = mean_interval(list(generator.exponential(1.0, 60)), resamples=400)
        assert interval is not None
        hits += interval.low <= 1 <= interval.high
    assert 86 <= hits <= 99


def test_two_values_have_the_means_that_two_values_can_have() -> None:
    """Of 0 and 1, the means are 0, 1/2 and 1 with shares of 1/4, 1/2 and 1/4."""
    assert mean_interval([0.0, 1.0], confidence=0.95) == (0, 1)
    assert mean_interval([0.0, 1.0], confidence=0.4) == (0.5, 0.5)


def test_the_same_values_give_the_same_interval_and_another_seed_another() -> None:
    values = [1.0, 2.0, 4.0, 8.0, 16.0]
    assert mean_interval(values) == mean_interval(values)
    assert mean_interval(values, seed=1) != mean_interval(values, seed=2)


def test_pieces_are_as_good_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = mean_interval([1.0, 2.0, 4.0], resamples=100)
    monkeypatch.setattr(bootstrap, "_DRAWS_AT_ONCE", 21)
    assert mean_interval([1.0, 2.0, 4.0], resamples=100) == whole


@pytest.mark.parametrize("values", [[], [3.0], [1.0, math.inf], [1.0, math.nan]])
def test_what_has_no_spread_has_no_interval(values: list[float]) -> None:
    assert mean_interval(values) is None


def test_below_the_limit_intervals_are_wrong_much_more_often_than_they_say() -> None:
    """Shares of 1000 sets, which scatter by 0.01 around 0.165 for 5 images and 0.105 for 10."""

    def wrong(images: int) -> float:
        generator = np.random.default_rng(3)
        found = [mean_interval(list(generator.standard_normal(images)), resamples=300) for _ in range(1000)]
        return float(np.mean([interval is None or not interval.low <= 0 <= interval.high for interval in found]))

    assert wrong(FEW_IMAGES // 2) > 0.138
    assert 0.08 < wrong(FEW_IMAGES) < 0.132


@pytest.mark.parametrize(("images", "said"), [(0, False), (1, False), (2, True), (9, True), (10, False), (100, False)])
def test_few_images_are_warned_of(images: int, said: bool) -> None:
    text = warning(images)
    assert (text is not None) == said
    if text is not None:
        assert text.startswith(f"the 95 % intervals over {images} images say little: they ")
        assert text.endswith("; score 10 images or more to compare methods")
        assert ("just go from one value to the other" in text) == (images == 2)
