"""Images that come to no good end: what the frame path leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rsd_edge.errors import BackendError
from rsd_edge.pipeline import NumpyFramePath
from rsd_edge.specs import EngineSpec, ModelSpec, TileSpec

Photo = Callable[[int, int], NDArray[np.uint8]]


class LostDevice:
    """Takes some batches; after the last of them submitting fails, and so does collecting what is in flight."""

    spec = EngineSpec(ModelSpec(name="lost"))
    tile = TileSpec(size=64)
    threads, ahead = 1, 2

    def __init__(self, good: int) -> None:
        self.good = good
        self.submitted, self.collected = 0, 0

    def submit(self, lq: Any, noise: Any, detail: NDArray[np.float32]) -> None:
        if self.submitted == self.good:
            raise BackendError("the device is gone")
        self.submitted += 1
        detail[...] = 0

    def collect(self, ticket: None) -> None:
        self.collected += 1
        if self.submitted == self.good:
            raise BackendError("a batch that was in flight went with it")


def test_what_failed_first_is_told_although_batches_in_flight_fail_too(photo: Photo) -> None:
    engine = LostDevice(good=1)
    with pytest.raises(BackendError, match="the device is gone"):
        NumpyFramePath(engine)(photo(97, 67))
    assert engine.collected == 1


def test_an_image_that_is_closed_over_ends_in_one_line(photo: Photo) -> None:
    path = NumpyFramePath(LostDevice(good=1000))
    bands = path.bands(photo(97, 67))
    next(bands)
    path.close()
    with pytest.raises(BackendError, match="this resolver was closed in the middle of an image; load another one"):
        next(bands)
