"""What OpenVinoEngine refuses, and what it says then; and what it keeps to itself."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rsd_edge.backends.openvino import OpenVinoEngine
from rsd_edge.bundle import resolve_engine
from rsd_edge.errors import BackendError, InputError, ModelError
from rsd_edge.specs import EngineSpec

# Importing it to see whether it is there would start its telemetry.
pytestmark = [pytest.mark.openvino, pytest.mark.skipif(find_spec("openvino") is None, reason="needs openvino")]

QUIET_HOME = """
import sys
import numpy as np
from rsd_edge.backends.openvino import OpenVinoEngine
from rsd_edge.specs import EngineSpec, ModelSpec

for stream in (sys.stdout, sys.stderr):
    print("== imported", file=stream, flush=True)
with OpenVinoEngine(sys.argv[1], EngineSpec(ModelSpec(name="toy")), 1) as engine:
    engine.prepare(1, 36, 36)
assert "openvino_telemetry" not in sys.modules
import openvino_telemetry  # whoever wants it can still have it
"""


def buffers(n: int, h: int, w: int) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    rng = np.random.default_rng(n * h * w)
    lq = rng.uniform(-1, 1, (n, 3, h, w)).astype(np.float32)
    noise = rng.normal(size=(n, 5, h, w)).astype(np.float32)
    return lq, noise, np.full((n, 4 * h, 4 * w, 3), np.nan, np.float32)


def run(engine: OpenVinoEngine, lq: NDArray[Any], noise: NDArray[Any], detail: NDArray[Any]) -> NDArray[Any]:
    engine.collect(engine.submit(lq, noise, detail))
    return detail


@pytest.fixture
def engine(toy_graph: Path, toy_spec: EngineSpec) -> Iterator[OpenVinoEngine]:
    with OpenVinoEngine(toy_graph, toy_spec, 1) as opened:
        yield opened


@pytest.mark.parametrize("which", ["lq", "noise", "detail"])
def test_other_types_are_refused(engine: OpenVinoEngine, which: str) -> None:
    arrays: dict[str, NDArray[Any]] = dict(zip(("lq", "noise", "detail"), buffers(1, 36, 36), strict=True))
    arrays[which] = arrays[which].astype(np.float64)
    with pytest.raises(BackendError, match=r"graph\.onnx failed on 1 tiles of 36 x 36: .*f64"):
        engine.submit(**arrays)


def test_a_strided_detail_is_refused_untouched(engine: OpenVinoEngine) -> None:
    lq, noise, _ = buffers(1, 36, 36)
    detail = np.full((1, 144, 288, 3), np.nan, np.float32)
    with pytest.raises(BackendError, match=r"failed on 1 tiles.*C contiguous"):
        engine.submit(lq, noise, detail[:, :, ::2])
    assert np.isnan(detail).all()


def test_tiles_of_a_wrong_shape_fail_with_the_graphs_name(engine: OpenVinoEngine) -> None:
    lq, noise, detail = buffers(1, 36, 36)
    with pytest.raises(BackendError, match=r"graph\.onnx failed on 1 tiles of 36 x 36: .*1\.4\.36\.36") as caught:
        engine.submit(lq, noise[:, :4].copy(), detail)
    assert "\n" not in str(caught.value)
    with pytest.raises(BackendError, match=r"failed on 1 tiles of 36 x 36: .*1\.143\.144\.3"):
        engine.submit(lq, noise, detail[:, 1:].copy())
    assert np.isfinite(run(engine, lq, noise, detail)).all()


def test_a_failed_run_is_reported_when_it_is_collected(engine: OpenVinoEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("Exception from somewhere:\nno memory\n")

    lq, noise, detail = buffers(1, 36, 36)
    ticket = engine.submit(lq, noise, detail)
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["openvino"].InferRequest, "wait", fail)
        with pytest.raises(BackendError, match=r"graph\.onnx failed on 1 tiles of 36 x 36: no memory$"):
            engine.collect(ticket)
    assert np.isfinite(run(engine, lq, noise, detail)).all()


def test_sizes_that_the_graph_cannot_take() -> None:
    edge_s = resolve_engine("edge-s")
    with (
        OpenVinoEngine(edge_s.graph_path, edge_s.spec, 1) as engine,
        pytest.raises(ModelError, match=r"graph\.onnx cannot be loaded by OpenVINO \d+\.\d+\.\d+ \(.*inconsistent"),
    ):
        engine.submit(*buffers(1, 33, 33))


def test_noise_channels_must_match(toy_graph_factory: Callable[..., Path], toy_spec: EngineSpec) -> None:
    with pytest.raises(
        BackendError, match=r"'noise': \['\?', 6, '\?', '\?'\].*needs.*'noise': \['\?', 5, '\?', '\?'\]"
    ):
        OpenVinoEngine(toy_graph_factory(noise_channels=6), toy_spec, 1)


def test_input_names_must_match(toy_graph_factory: Callable[..., Path], toy_spec: EngineSpec) -> None:
    with pytest.raises(BackendError, match=r"'image'.*export it with 'rsd-edge build-engine'"):
        OpenVinoEngine(toy_graph_factory(input_name="image"), toy_spec, 1)


def test_sizes_must_be_free(toy_graph_factory: Callable[..., Path], toy_spec: EngineSpec) -> None:
    with pytest.raises(BackendError, match=r"\[1, 3, 48, 48\]"):
        OpenVinoEngine(toy_graph_factory(fixed=True), toy_spec, 1)


@pytest.mark.parametrize("content", [None, b"", b"not a graph"])
def test_a_graph_that_cannot_be_read(
    tmp_path: Path, toy_spec: EngineSpec, content: bytes | None, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "graph.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=r"graph\.onnx cannot be loaded by OpenVINO") as caught:
        OpenVinoEngine(path, toy_spec, 1)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_threads_and_arithmetic_are_checked(toy_graph: Path, toy_spec: EngineSpec) -> None:
    with pytest.raises(InputError, match="threads is 0"):
        OpenVinoEngine(toy_graph, toy_spec, 0)
    with pytest.raises(InputError, match="arithmetic is 'fp8'"):
        OpenVinoEngine(toy_graph, toy_spec, 1, arithmetic="fp8")


def test_a_closed_engine_says_so(toy_graph: Path, toy_spec: EngineSpec) -> None:
    with OpenVinoEngine(toy_graph, toy_spec, 1) as engine:
        run(engine, *buffers(1, 36, 36))
    engine.close()
    with pytest.raises(BackendError, match="is closed"):
        engine.submit(*buffers(1, 36, 36))
    with pytest.raises(BackendError, match="is closed"):
        engine.prepare(1, 36, 36)


def test_a_missing_device_is_named(
    engine: OpenVinoEngine, toy_graph: Path, toy_spec: EngineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("Exception from core.cpp:5:\nDevice with CPU name is not registered\n")

    monkeypatch.setattr(sys.modules["openvino"].Core, "get_property", fail)
    with pytest.raises(
        BackendError, match=r"has no CPU device \(Device with CPU name is not registered\).*pip install"
    ):
        OpenVinoEngine(toy_graph, toy_spec, 1)


def test_a_missing_openvino_names_the_extra(
    toy_graph: Path, toy_spec: EngineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    telemetry = object()
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setitem(sys.modules, "openvino_telemetry", telemetry)
    with pytest.raises(BackendError, match=r"OpenVINO.*pip install 'rsd-edge\[openvino\]'$") as caught:
        OpenVinoEngine(toy_graph, toy_spec, 1)
    assert "\n" not in str(caught.value)
    assert sys.modules["openvino_telemetry"] is telemetry


def test_nothing_is_reported_printed_or_left_at_home(toy_graph: Path, tmp_path: Path) -> None:
    """OpenVINO's telemetry writes an identifier into the home folder before it sends anything."""
    hides = ("CI", "TF_BUILD", "JENKINS_URL")  # it keeps quiet where these are set
    env = {name: value for name, value in os.environ.items() if name not in hides} | {"HOME": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", QUIET_HOME, str(toy_graph)],
        cwd=tmp_path,  # not the repository, whose folder names would shadow the installed package
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.partition("== imported\n")[2] == ""
    assert result.stderr.partition("== imported\n")[2] == ""
    assert not (tmp_path / "intel").exists()
