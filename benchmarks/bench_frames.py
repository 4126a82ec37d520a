"""Time for one tile and for one small frame with the shipped model: `pytest benchmarks`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from rsd_edge.resolver import SuperResolver


@pytest.fixture(
    scope="module",
    params=[(precision, threads) for precision in ("fp32", "int8") for threads in (1, 2)],
    ids=lambda row: f"{row[0]}, {row[1]} threads",
)
def resolver(request: pytest.FixtureRequest) -> Iterator[SuperResolver]:
    precision, threads = request.param
    with SuperResolver.load("edge-s", precision=precision, backend="onnxruntime", threads=threads) as loaded:
        yield loaded


@pytest.mark.parametrize(("height", "width"), [(64, 64), (180, 320)], ids=["64x64", "320x180"])
def bench_frame(benchmark: BenchmarkFixture, resolver: SuperResolver, height: int, width: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    result = benchmark.pedantic(resolver, (image,), rounds=9, warmup_rounds=2)
    assert result.shape == (4 * height, 4 * width, 3)
