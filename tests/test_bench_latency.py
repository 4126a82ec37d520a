from __future__ import annotations

import json

import numpy as np
import pytest

from rsd_edge.bench.latency import FEW_TERMS, TERMS, LatencyModel, Measured, features, fit
from rsd_edge.bench.timing import Times
from rsd_edge.errors import InputError
from rsd_edge.specs import TileSpec

SMALL, LARGE = (TileSpec(size, halo=12) for size in (64, 208))
KNOWN = {
    1: dict(zip(TERMS, (2e-3, 1e-3, 4e-6, 5e-7), strict=True)),
    2: dict(zip(TERMS, (3e-3, 1.5e-3, 2.1e-6, 3e-7), strict=True)),
}
GRID = ((40, 40, SMALL), (160, 80, SMALL), (88, 88, LARGE), (184, 184, LARGE), (300, 100, LARGE), (80, 120, SMALL))


def measured(width: int, height: int, tile: TileSpec, threads: int, factors: tuple[float, ...] = (1.0,)) -> Measured:
    of_frame = features(width, height, tile)
    seconds = sum(KNOWN[threads][term] * of_frame[term] for term in TERMS)
    return Measured(width, height, tile, threads, Times(tuple(seconds * factor for factor in factors)))


def test_what_a_frame_pays() -> None:
    # 160 x 80 in tiles of 64 with a halo of 12: strides of 40, so 4 x 2 tiles of 64 x 64.
    assert features(160, 80, SMALL) == {
        "start": 1, "per_tile": 8, "per_tile_pixel": 8 * 64 * 64, "per_pixel": 160 * 80
    }  # fmt: skip
    # Tiles shrink to share 200 columns evenly: two of 100 + 24, one row of 50 + 24.
    assert features(200, 50, LARGE)["per_tile_pixel"] == 2 * 124 * 74


def test_known_costs_come_back() -> None:
    model = fit([measured(*frame, threads) for threads in KNOWN for frame in GRID])
    assert list(model.seconds) == [1, 2]
    for threads, terms in KNOWN.items():
        assert model.seconds[threads] == pytest.approx(terms, rel=1e-6)  # exact but for the solver's rounding
    assert model.fitted_to == 12
    assert model.error is None  # nothing was held out, so nothing is claimed
    expected = measured(640, 360, LARGE, 2).times.median
    assert model.predict(640, 360, LARGE, 2) == pytest.approx(expected, rel=1e-6)


def test_noise_moves_a_prediction_by_less_than_the_noise() -> None:
    rng = np.random.default_rng(0)
    rows = [measured(*frame, 1, tuple(1 + 0.05 * rng.standard_normal(15))) for frame in GRID]
    model = fit(rows).checked([measured(320, 180, LARGE, 1), measured(100, 100, LARGE, 1)])
    assert model.error is not None
    assert 0 < model.error < 0.05


def test_no_cost_is_negative() -> None:
    # Times that fall with the size of the frame: least squares alone would make a cost negative.
    seconds = (0.030, 0.020, 0.025, 0.022, 0.021, 0.029)
    rows = [Measured(*frame, 1, Times((taken,))) for frame, taken in zip(GRID, seconds, strict=True)]
    costs = fit(rows).seconds[1]
    assert min(costs.values()) == 0
    assert costs["start"] > 0


def test_the_error_is_that_of_what_was_held_out() -> None:
    model = fit([measured(*frame, 1) for frame in GRID])
    slow = measured(320, 180, LARGE, 1, (1.25, 1.0, 1.25, 1.25, 1.25))  # the median is a quarter above the model
    checked = model.checked([measured(100, 100, LARGE, 1), slow])
    assert [row.name for row in checked.held_out] == [
        "100x100 in tiles up to 208, 1 threads", "320x180 in tiles up to 208, 1 threads"
    ]  # fmt: skip
    assert checked.held_out[0].error == pytest.approx(0, abs=1e-6)
    assert checked.error == pytest.approx(0.2)  # of the measured 1.25
    # The tenth percentile lies 0.4 of the way from the fastest to the next: 1.1.
    assert checked.error_of_runs == pytest.approx(0.2)
    assert checked.held_out[1].measured_ms == pytest.approx(1.25 * checked.held_out[1].predicted_ms)


def test_a_few_measurements_get_a_few_terms() -> None:
    model = fit([measured(*frame, 2) for frame in GRID[:3]], FEW_TERMS)
    assert set(model.seconds[2]) == set(FEW_TERMS)


def test_a_quantile_in_the_place_of_the_median() -> None:
    rows = [measured(*frame, 1, (3.0, 1.0, 2.0, 8.0, 9.0)) for frame in GRID]
    assert fit(rows, quantile=0.25).seconds[1]["per_tile"] == pytest.approx(2 * KNOWN[1]["per_tile"], rel=1e-6)
    assert fit(rows).seconds[1]["per_tile"] == pytest.approx(3 * KNOWN[1]["per_tile"], rel=1e-6)


def test_what_is_said_of_one_number_of_threads() -> None:
    model = fit([measured(*frame, threads) for threads in KNOWN for frame in GRID])
    slow = measured(320, 180, LARGE, 2, (1.25,))
    one = model.checked([measured(100, 100, LARGE, 1), slow]).on(1)
    assert one.seconds == {1: model.seconds[1]}
    assert one.error == pytest.approx(0, abs=1e-6)


def test_other_threads_are_refused() -> None:
    model = fit([measured(*frame, 2) for frame in GRID])
    with pytest.raises(InputError, match="threads is 4, but the latency was measured with 2; measure with 4"):
        model.predict(320, 180, LARGE, 4)


def test_a_model_travels_as_json() -> None:
    model = fit([measured(*frame, 2) for frame in GRID]).checked([measured(320, 180, LARGE, 2, (1.0, 1.1))])
    again = LatencyModel.from_json(json.loads(json.dumps(model.to_json())))
    assert again == model
    assert model.to_json()["error"] == model.error
