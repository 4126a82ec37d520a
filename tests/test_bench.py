"""Measuring code: what is counted, and in which order things are timed."""

from __future__ import annotations

import builtins
import importlib.util
import signal
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import cv2
import numpy as np
import onnx
import pytest
from bench_doubles import FakeTime
from onnx import TensorProto, helper, numpy_helper

from rsd_edge.bench import timing
from rsd_edge.bench.cost import convolution_flops
from rsd_edge.bench.memory import ProcessLostError, in_own_process, peak_megabytes
from rsd_edge.bench.peaks import convolution_peak, copy_peak, peaks, product_peak
from rsd_edge.bench.peer import NcnnPeer, bicubic_run, check_peer, peer_run, peers_of
from rsd_edge.bench.subjects import picture
from rsd_edge.bench.timing import Effort, Times, take_turns
from rsd_edge.bundle import resolve_engine
from rsd_edge.errors import InputError, MissingDependencyError, ModelError

if TYPE_CHECKING:
    from rsd_edge.models.checkpoint import Checkpoint


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """lq and noise through a strided 3x3 convolution and a grouped 1x1 one."""
    weights = {"a": np.ones((8, 5, 3, 3), np.float32), "b": np.ones((6, 4, 1, 1), np.float32)}
    nodes = [
        helper.make_node("Concat", ["lq", "noise"], ["x"], axis=1),
        helper.make_node("Conv", ["x", "a"], ["y"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["y", "b"], ["detail"], group=2),
    ]
    inputs = [helper.make_tensor_value_info("lq", TensorProto.FLOAT, ["n", 3, "h", "w"])]
    inputs.append(helper.make_tensor_value_info("noise", TensorProto.FLOAT, ["n", 2, "h", "w"]))
    output = helper.make_tensor_value_info("detail", TensorProto.FLOAT, ["n", 6, "H", "W"])
    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    path = tmp_path / "graph.onnx"
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(
        helper.make_graph(nodes, "g", inputs, [output], initializers), opset_imports=opset, ir_version=8
    )
    onnx.save(model, path)
    return path


def test_two_operations_a_multiply_add(graph: Path) -> None:
    # 2 tiles of 8 x 6: 4 x 3 outputs of 8 channels, 45 products each; then 6 channels, 4 products each.
    assert convolution_flops(graph, 2, 8, 6) == 2 * 2 * 12 * (8 * 45 + 6 * 4)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    made = FakeTime()
    monkeypatch.setattr(timing, "time", made)
    return made


def test_operations_grow_with_the_pixels_alone() -> None:
    """The bench counts one tile and scales: nothing in a shipped graph may have a fixed cost."""
    graph = resolve_engine("edge-n").graph_path
    small, large = (convolution_flops(graph, 1, h, w) for h, w in ((64, 64), (32, 96)))
    assert large / small == pytest.approx(32 * 96 / 64**2, rel=1e-3)  # the embedding of the time step is constant


@pytest.mark.parametrize("integer", [False, True])
def test_a_matrix_product_counts_what_it_runs(integer: bool) -> None:
    run, operations = product_peak(1, integer=integer)
    (out,) = cast(list[np.ndarray], run())
    assert (out.dtype, out.shape) == (np.int32 if integer else np.float32, (768, 768))
    assert operations == 2 * 768**3


def test_a_copy_counts_bytes_read_and_written() -> None:
    peak = copy_peak(2)
    peak.run()
    assert peak.amount == 2 * (64 << 20)
    assert peak.rate(0.5) == pytest.approx(2 * 2 * (64 << 20) / 1e9)


def test_a_copy_reads_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros that were never written have no memory of their own: they are read from the cache."""
    written: list[bool] = []
    monkeypatch.setattr(np, "copyto", lambda to, origin: written.append(bool(origin.all())))
    copy_peak(2).run()
    assert written == [True, True]


def test_without_onnx_the_peaks_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'rsd-edge\[bench\]'"):
        peaks(1)


def test_memory_is_that_of_the_work() -> None:
    small, large = (peak_megabytes(bicubic_run, side, side, 1) for side in (16, 1024))
    if small is None or large is None:
        pytest.skip("this system does not tell")
    # The result has 4096 x 4096 x 3 bytes; OpenCV's scratch memory and the source come on top, but not twice as much.
    assert 48 <= large - small < 96


def test_a_process_that_is_killed_keeps_nobody_waiting() -> None:
    """As where memory runs out."""
    with pytest.raises(ProcessLostError, match=r"ended in the middle of its work \(exit code -9; "):
        in_own_process(signal.raise_signal, signal.SIGKILL)
    with pytest.raises(ValueError, match="invalid literal for int"):
        in_own_process(int, "four")
    assert in_own_process(int, "4") == 4


@pytest.mark.parametrize("integer", [False, True])
def test_the_peak_counts_what_it_runs(integer: bool) -> None:
    run, flops = convolution_peak(1, integer=integer)
    (out,) = cast(list[np.ndarray], run())
    assert out.dtype == (np.uint8 if integer else np.float32)
    assert flops == 4 * 2 * 128 * 128 * 9 * 64 * 64


def test_subjects_take_turns_and_warm_up_first(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    clock = iter(range(1000))
    monkeypatch.setattr(timing.time, "sleep", lambda seconds: calls.append("pause"))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: 0.5 * next(clock))
    subjects = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    times = take_turns(subjects, Effort(2), runs=2, warm_up=1)
    assert calls == ["pause", "a", "a", "a", "pause", "b", "b", "b"] * 2
    assert times["a"].seconds == times["b"].seconds == (0.5,) * 4


def test_a_budget_ends_after_the_round_that_spends_it(clock: FakeTime) -> None:
    subjects = {"a": clock.taking(0.4, "a"), "b": clock.taking(0.6, "b")}
    times = take_turns(subjects, Effort(rounds=100, seconds=9.0), warm_up=0)
    # A round takes a second and two pauses: after nine of them the budget is spent.
    assert [len(taken.seconds) for taken in times.values()] == [9, 9]
    short = take_turns(subjects, Effort(rounds=100, seconds=0.1), warm_up=0)
    assert [len(taken.seconds) for taken in short.values()] == [3, 3]  # LEAST_ROUNDS


def test_what_takes_too_long_sits_out_the_rest(clock: FakeTime) -> None:
    turns: list[int] = []
    subjects = {"quick": clock.taking(0.1, "quick"), "slow": clock.taking(20.0, "slow")}
    times = take_turns(subjects, Effort(rounds=6, patience=60), progress=turns.append)
    assert len(times["quick"].seconds) == 6
    assert len(times["slow"].seconds) == 3
    assert clock.log.count("slow") == 3 + 1  # warmed up in the first round alone
    assert clock.log.count("quick") == 6 * 2
    assert turns == list(range(1, 13))


def test_the_summary_is_in_milliseconds() -> None:
    summary = Times((0.001, 0.002, 0.003, 0.1, 0.002)).summary()
    assert summary["median"] == 2.0
    assert summary["fastest"] == 1.0
    assert summary["runs"] == 5
    assert summary["p10"] < summary["median"] < summary["p90"] < summary["p99"] < 100
    assert summary["p99"] == pytest.approx(100 - 0.04 * 97)  # 0.04 of the way down to the next


def test_without_ncnn_the_peer_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    original = builtins.__import__

    def blocked(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "ncnn":
            raise ModuleNotFoundError(name=name)
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", blocked)
    with pytest.raises(MissingDependencyError, match=r"pip install .rsd-edge\[peers\]"):
        NcnnPeer(tmp_path / "a.param", tmp_path / "a.bin", 1)


class FakeNet:
    """Repeats pixels and inverts channel 0 alone: colours the wrong way round before and after would show, too."""

    def __init__(self) -> None:
        self.opt = SimpleNamespace(num_threads=0)

    def load_param(self, path: str) -> int:
        return 0 if path.endswith(".param") else -1

    def load_model(self, path: str) -> int:
        return 0 if path.endswith(".bin") else -1

    def create_extractor(self) -> FakeNet:
        return self

    def input(self, name: str, mat: np.ndarray) -> None:
        assert name == "data"
        self.source = mat

    def extract(self, name: str) -> tuple[int, np.ndarray]:
        assert name == "output"
        large = self.source.repeat(4, axis=1).repeat(4, axis=2)
        large[0] = 1 - large[0]
        return 0, large


@pytest.fixture
def nets(monkeypatch: pytest.MonkeyPatch) -> list[FakeNet]:
    """The networks that were opened; ncnn itself does not run here."""
    made: list[FakeNet] = []

    def opened() -> FakeNet:
        made.append(FakeNet())
        return made[-1]

    module = ModuleType("ncnn")
    module.Net, module.Mat = opened, np.array  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ncnn", module)
    return made


def test_an_ncnn_network_is_given_rgb_between_0_and_1(nets: list[FakeNet], tmp_path: Path) -> None:
    result = peer_run(tmp_path / "general.param", 5, 3, 7)()
    expected = picture(5, 3).repeat(4, axis=0).repeat(4, axis=1)
    expected[..., 2] = 255 - expected[..., 2]
    assert np.array_equal(result, expected)
    assert nets[0].opt.num_threads == 7


@pytest.mark.usefixtures("nets")
def test_files_that_ncnn_cannot_load_are_named(tmp_path: Path) -> None:
    for names in (("a.bin", "a.bin"), ("a.param", "a.param")):
        with pytest.raises(ModelError, match=r"ncnn cannot load .*a\.\w+ with .*a\.\w+; give a \.param and its \.bin"):
            NcnnPeer(tmp_path / names[0], tmp_path / names[1], 1)


def test_bicubic_gives_back_the_threads_of_opencv() -> None:
    kept = cv2.getNumThreads()
    bicubic_run(16, 16, kept + 1)()
    assert cv2.getNumThreads() == kept


def test_peers_have_the_names_of_their_files(tmp_path: Path) -> None:
    for name in ("general.ncnn.param", "general.ncnn.bin", "rsd.safetensors"):
        (tmp_path / name).touch()
    files = (tmp_path / "general.ncnn.param", tmp_path / "rsd.safetensors")
    assert peers_of(files) == {"bicubic": None, "general": files[0], "rsd": files[1]}
    with pytest.raises(InputError, match="has the name of another one, general"):
        peers_of((files[0], files[0]))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing.param", "does not exist; give a .param"),
        ("alone.param", "has no weights; put alone.bin beside it"),
        ("general.pth", "is neither .*; convert published checkpoints with 'rsd-edge import-weights'"),
    ],
)
def test_other_peers_are_refused(tmp_path: Path, name: str, message: str) -> None:
    if name != "nothing.param":
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=message):
        check_peer(tmp_path / name)


def test_a_checkpoint_is_a_peer(tiny_weights: Checkpoint, tmp_path: Path) -> None:
    from rsd_edge.models.checkpoint import save_checkpoint

    save_checkpoint(tmp_path / "tiny.safetensors", tiny_weights)
    result = peer_run(tmp_path / "tiny.safetensors", 40, 24, 1)()
    assert isinstance(result, np.ndarray)
    assert result.shape == (96, 160, 3)
