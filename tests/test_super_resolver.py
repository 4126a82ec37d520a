"""The Python entry point: which engine it opens, and what it makes of an image with it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rsd_edge import resolver as resolver_module
from rsd_edge.backends.onnxruntime import OnnxRuntimeEngine
from rsd_edge.bundle import load_bundle
from rsd_edge.errors import BackendError, InputError, ModelError
from rsd_edge.machine import usable_cores
from rsd_edge.opencv import cv2
from rsd_edge.pipeline import NumpyFramePath
from rsd_edge.resolver import SuperResolver
from rsd_edge.selection import Candidate, Choice
from rsd_edge.specs import Backend, EngineSpec, ModelSpec, Precision, TileSpec

Image = NDArray[np.uint8]
Photo = Callable[[int, int], Image]


def test_super_resolver_is_the_frame_path(photo: Photo, toy_bundle: Path) -> None:
    frame = photo(61, 67)
    with SuperResolver.load(toy_bundle, tile=64, batch=2, threads=1) as resolver:
        assert resolver.engine.tile == TileSpec(size=64, halo=16, multiple_of=2, batch=2)
        result = resolver(frame, seed=4)
        np.testing.assert_array_equal(result, NumpyFramePath(resolver.engine)(frame, seed=4))
        out = np.empty_like(result)
        assert resolver(frame, seed=4, out=out) is out
        np.testing.assert_array_equal(out, result)
    with pytest.raises(BackendError, match="is closed"):
        resolver(frame)


def test_warm_up_opens_what_a_frame_needs(photo: Photo, toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    resolver = SuperResolver.load(toy_bundle, tile=64, batch=4, threads=1)
    resolver.warm_up(64, 96)
    monkeypatch.setattr(onnxruntime, "InferenceSession", None)
    assert resolver(photo(64, 96)).shape == (256, 384, 3)


@pytest.mark.parametrize("scale", [1.0, 1.37, 2.0, 3.999])
def test_smaller_scales_are_area_averages_of_the_full_result(photo: Photo, toy_bundle: Path, scale: float) -> None:
    frame = photo(41, 53)
    resolver = SuperResolver.load(toy_bundle, tile=64, threads=1)
    full = resolver(frame, seed=1)
    shape = (round(41 * scale), round(53 * scale))
    expected = cv2.resize(full, shape[::-1], interpolation=cv2.INTER_AREA)
    result = resolver(frame, seed=1, scale=scale)
    np.testing.assert_array_equal(result, expected)
    out = np.empty_like(result)
    assert resolver(frame, seed=1, scale=scale, out=out) is out
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("scale", [0.99, 4.01, float("nan")])
def test_a_scale_outside_1_to_4_is_refused(photo: Photo, toy_bundle: Path, scale: float) -> None:
    with pytest.raises(InputError, match=r"scale is .*between 1 and 4"):
        SuperResolver.load(toy_bundle, threads=1)(photo(4, 4), scale=scale)


def test_gray_images_are_refused_at_every_scale(photo: Photo, toy_bundle: Path) -> None:
    resolver = SuperResolver.load(toy_bundle, tile=64, threads=1)
    for scale in (2.0, 4.0):
        with pytest.raises(InputError, match="COLOR_GRAY2BGR"):
            resolver(photo(8, 8)[..., 0], scale=scale)


def test_another_precision_than_the_bundles_is_refused(toy_bundle: Path) -> None:
    with pytest.raises(ModelError, match="is fp32, not int8; leave the precision out, or build"):
        SuperResolver.load(toy_bundle, precision="int8")
    with pytest.raises(InputError, match="precision is 'fp8'; it must be one of fp32, fp16, bf16, int8"):
        SuperResolver.load(toy_bundle, precision="fp8")
    with pytest.raises(InputError, match="backend is 'ncnn'; it must be one of onnxruntime, openvino, tens"):
        SuperResolver.load(toy_bundle, backend="ncnn")
    assert SuperResolver.load(toy_bundle, precision=Precision.FP32, threads=1).engine.tile.size == TileSpec.size


@pytest.mark.parametrize(
    ("wishes", "expected"),
    [
        ({}, (None, None, usable_cores())),
        ({"precision": "int8", "threads": 3}, (Precision.INT8, None, 3)),
        ({"precision": Precision.FP32, "backend": "openvino"}, (Precision.FP32, Backend.OPENVINO, usable_cores())),
        ({"backend": Backend.ONNXRUNTIME, "threads": 1}, (None, Backend.ONNXRUNTIME, 1)),
    ],
)
def test_load_opens_what_is_chosen(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch, wishes: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    """The choice is made with the threads, tiles and batches that will run it."""
    asked: list[tuple[Any, ...]] = []
    bundle = load_bundle(toy_bundle)
    spec = EngineSpec(ModelSpec(name="chosen", halo=20, multiple_of=4))
    choice = Choice(Candidate(bundle, spec), {"fp32 on onnxruntime": 1.5})
    monkeypatch.setattr(resolver_module, "choose", lambda *given, **more: asked.append((*given, more)) or choice)
    with SuperResolver.load("edge-x", tile=96, batch=2, **wishes) as resolver:
        assert resolver.choice is choice
        assert resolver.engine.spec == spec
        assert resolver.engine.tile == TileSpec(size=96, halo=20, multiple_of=4, batch=2)
        assert isinstance(resolver.engine, OnnxRuntimeEngine)
        assert resolver.engine.threads == expected[2]
    assert asked == [("edge-x", *expected, {"tile": 96, "batch": 2})]


def test_load_says_how_it_came_to_its_engine(toy_bundle: Path) -> None:
    resolver = SuperResolver.load(toy_bundle, threads=1)
    assert resolver.choice is not None
    assert resolver.choice.record()["digest"] == load_bundle(toy_bundle).digest
    assert SuperResolver(resolver.engine).choice is None  # it was given, not chosen


@pytest.mark.openvino
@pytest.mark.skipif(find_spec("openvino") is None, reason="needs openvino")
def test_load_takes_another_backend_for_the_same_graph(photo: Photo, toy_bundle: Path) -> None:
    frame = photo(61, 67)
    with SuperResolver.load(toy_bundle, backend="openvino", threads=1) as resolver:
        assert resolver.engine.spec.backend is Backend.OPENVINO
        result = resolver(frame)
    with SuperResolver.load(toy_bundle, threads=1) as resolver:
        difference = np.abs(resolver(frame).astype(int) - result)
    assert difference.max() <= 1  # a rounding to 8 bits may fall on the other side
    assert np.mean(difference > 0) < 1e-3


def test_load_warns_of_a_stale_engine(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    SuperResolver.load(toy_bundle, threads=1)
    assert caplog.messages == []
    monkeypatch.setattr(resolver_module, "staleness", lambda bundle: [f"{bundle.digest} is 100 % stale"])
    SuperResolver.load(toy_bundle, threads=1)
    assert caplog.messages == [f"{load_bundle(toy_bundle).digest} is 100 % stale"]


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"tile": 0}, "tile is 0; it must be at least 1"),
        ({"tile": 64.0}, r"tile is 64\.0; it must be a whole number"),
        ({"batch": 1.5}, r"batch is 1\.5; it must be a whole number"),
        ({"threads": 2.5}, r"threads is 2\.5; it must be a whole number"),
        ({"threads": 10**11}, r"threads is 100000000000; it must be at most \d+ on this machine"),
        ({"threads": "2"}, "threads is '2'; it must be a whole number"),
        ({"model": None}, "model is None; give a shipped name"),
    ],
)
def test_what_is_no_such_number_is_refused_by_its_name(toy_bundle: Path, wishes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SuperResolver.load(**{"model": toy_bundle, **wishes})


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"scale": None}, "scale is None; it must be a number"),
        ({"scale": "2"}, "scale is '2'; it must be a number"),
        ({"strength": "1"}, "strength is '1'; it must be a number"),
    ],
)
def test_what_is_no_number_is_refused_by_its_name(
    photo: Photo, toy_bundle: Path, wishes: dict[str, Any], message: str
) -> None:
    with SuperResolver.load(toy_bundle, threads=1) as resolver:
        with pytest.raises(InputError, match=message):
            resolver(photo(4, 4), **wishes)
        assert resolver(photo(4, 4), scale=np.float32(2), strength=np.float64(1)).shape == (8, 8, 3)


def test_a_closed_resolver_keeps_no_threads(photo: Photo, toy_bundle: Path) -> None:
    resolver = SuperResolver.load(toy_bundle, threads=2)
    before = {thread for thread in threading.enumerate() if thread.name.startswith("rsd-edge")}
    resolver(photo(300, 300))
    (own,) = {thread for thread in threading.enumerate() if thread.name.startswith("rsd-edge")} - before
    resolver.close()
    own.join(10)
    assert not own.is_alive()
    with pytest.raises(BackendError, match="is closed"):
        resolver(photo(300, 300))


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_below_one_are_refused_before_anything_is_timed(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    monkeypatch.setattr(resolver_module, "choose", None)
    with pytest.raises(InputError, match=f"threads is {threads}; it must be at least 1"):
        SuperResolver.load("edge-s", threads=threads)


def test_a_tile_that_is_too_small_is_refused(toy_bundle: Path) -> None:
    with pytest.raises(InputError, match="use at least 40"):
        SuperResolver.load(toy_bundle, tile=32)


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(ModelError, match="neither a shipped engine"):
        SuperResolver.load("edge-unknown")


@pytest.mark.parametrize("size", [(212, 164), (106, 82), (100, 120), (53, 41), (211, 42)])
def test_bands_and_sizes(photo: Photo, toy_bundle: Path, size: tuple[int, int]) -> None:
    frame = photo(41, 53)
    with SuperResolver.load(toy_bundle, tile=64, threads=1) as resolver:
        whole = resolver(frame, seed=2, size=size)
        full = resolver(frame, seed=2)
        bands = [band.copy() for band in resolver.bands(frame, seed=2, size=size)]
    assert whole.shape == (size[1], size[0], 3)
    assert len(bands) > 1
    np.testing.assert_array_equal(np.concatenate(bands), whole)
    expected = cv2.resize(full, size, interpolation=cv2.INTER_AREA)
    assert np.abs(whole.astype(int) - expected).max() <= 1  # halves may be rounded to either side


def test_a_size_that_cannot_be_made_is_refused(photo: Photo, toy_bundle: Path) -> None:
    resolver = SuperResolver.load(toy_bundle, threads=1)
    for call in (resolver, resolver.bands):
        with pytest.raises(InputError, match="size 17x16 is more than 4 times the image of 4x4"):
            call(photo(4, 4), size=(17, 16))


def test_a_resolver_within_its_own_bands_is_an_error(photo: Photo, toy_bundle: Path) -> None:
    """It would wait for itself for ever."""
    frame = photo(20, 24)
    with SuperResolver.load(toy_bundle, threads=1) as resolver:
        bands = resolver.bands(frame)
        next(bands)
        for call in (lambda: resolver(frame), lambda: next(resolver.bands(frame)), lambda: resolver.warm_up(20, 24)):
            with pytest.raises(InputError, match=r"in the middle of an image: use up or close what bands\(\) returned"):
                call()
        bands.close()
        with pytest.raises(InputError, match="make none from a progress callback"):
            resolver(frame, progress=lambda *_: resolver.warm_up(20, 24))
        assert resolver(frame).shape == (80, 96, 3)


IN_A_FORK = """
import os, sys
import numpy as np
from rsd_edge import SuperResolver
from rsd_edge.errors import BackendError

image = np.zeros((60, 70, 3), np.uint8)
resolver = SuperResolver.load(sys.argv[1], tile=64, threads=2)
resolver(image)
if os.fork() == 0:
    for call in (resolver, lambda _: next(resolver.bands(image)), lambda _: next(resolver.stream([image]))):
        try:
            call(image)
        except BackendError as error:
            print(error, flush=True)
    os._exit(0)
os.wait()
"""


def test_a_fork_is_refused_and_does_not_hang(toy_bundle: Path, tmp_path: Path) -> None:
    """Its engine would wait for threads that only the parent has."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", IN_A_FORK, str(toy_bundle)],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    told = "this resolver was opened in another process, whose threads a fork does not have; load one here, or start"
    assert [line.startswith(told) for line in done.stdout.splitlines()] == [True] * 3
