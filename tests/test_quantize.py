"""Float graphs to Q/DQ graphs: which layers, with which integers, over which ranges."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from rsd_edge.errors import BackendError
from rsd_edge.export import quantize
from rsd_edge.export.calibration import Samples, calibration_samples
from rsd_edge.export.deploy import DeployedTile
from rsd_edge.export.onnx_export import export_tile
from rsd_edge.export.quantize import Quantisable, collect_activations, prepare, quantise, ranges_of
from rsd_edge.export.ranges import VALUES, Activations, Method, entropy_threshold
from rsd_edge.models.checkpoint import Checkpoint
from rsd_edge.models.edge_tile import edge_tile
from rsd_edge.specs import ModelSpec

Array = NDArray[np.float32]
TILES = 12  # more than a batch of the collector

FIRST_AND_LAST = {
    "/stem/body/body.0/Conv",  # reads lq
    "/decoder/up_full/up_full.0/Conv",  # writes the detail
}


@pytest.fixture(scope="module")
def samples() -> Samples:
    every = calibration_samples(ModelSpec("any"))
    return Samples(every.frames[:TILES], every.lq[:TILES], every.noise[:TILES])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("int8")


@pytest.fixture(scope="module")
def graph(tiny_weights: Checkpoint, folder: Path) -> Path:
    export_tile(DeployedTile(edge_tile(tiny_weights)), folder / "graph.onnx")
    return folder / "graph.onnx"


@pytest.fixture(scope="module")
def prepared(graph: Path, folder: Path) -> Quantisable:
    return prepare(graph, folder)


@pytest.fixture(scope="module")
def activations(prepared: Quantisable, samples: Samples, folder: Path) -> Activations:
    return collect_activations(prepared, samples)


@pytest.fixture(scope="module")
def make(prepared: Quantisable, activations: Activations, folder: Path) -> Callable[..., Path]:
    def quantised(name: str = "int8.onnx", method: Method = Method.PERCENTILE, **options: object) -> Path:
        quantise(prepared, ranges_of(activations, method), folder / name, **options)
        return folder / name

    return quantised


def run(graph: Path, samples: Samples, outputs: tuple[str, ...] = ("detail",)) -> list[Array]:
    session = ort.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    return [np.asarray(item) for item in session.run(list(outputs), {"lq": samples.lq, "noise": samples.noise})]


def snr(result: Array, expected: Array) -> float:
    return float(10 * np.log10(np.mean(expected**2) / np.mean((result - expected) ** 2)))


def integer_layers(path: Path) -> dict[str, tuple[Array, Array, Array]]:
    """(integers, scales, zero points) of the weights of each convolution whose weights are integers."""
    graph = onnx.load(path).graph
    arrays = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    sources = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    return {
        node.name: tuple(arrays[name] for name in sources[node.input[1]].input)  # type: ignore[misc]
        for node in graph.node
        if node.op_type == "Conv" and node.input[1] in sources
    }


def convolutions(path: Path) -> set[str]:
    return {node.name for node in onnx.load(path).graph.node if node.op_type == "Conv"}


def test_first_and_last_convolutions_stay_in_float(
    graph: Path, prepared: Quantisable, make: Callable[..., Path]
) -> None:
    every = convolutions(graph)
    assert every >= FIRST_AND_LAST
    assert {name for name in prepared.float_nodes if name.endswith("Conv")} == FIRST_AND_LAST
    assert {name for name in prepared.layers if name.endswith("Conv")} == every - FIRST_AND_LAST
    # The sums of the six residual blocks and of the generator's skip connection are layers too.
    assert len([name for name in prepared.layers if name.endswith("Add")]) == 7
    assert set(integer_layers(make())) == every - FIRST_AND_LAST


def test_activations_are_u8_and_weights_s8_by_channel(prepared: Quantisable, make: Callable[..., Path]) -> None:
    path, before = make(), onnx.load(prepared.path).graph
    floats = {item.name: numpy_helper.to_array(item) for item in before.initializer}
    kernels = {node.name: floats[node.input[1]] for node in before.node if node.op_type == "Conv"}
    for name, (integers, scales, zero_points) in integer_layers(path).items():
        assert integers.dtype == np.int8, name
        assert scales.shape == zero_points.shape == integers.shape[:1], name
        assert not zero_points.any(), name
        largest = np.abs(integers.astype(int)).max(axis=(1, 2, 3))
        assert set(largest) == {127}, name  # every channel uses all of its range
        steps = kernels[name] / scales[:, None, None, None]
        assert np.abs(integers - steps).max() < 0.501, name  # rounded to the nearest integer
    model = onnx.load(path)
    arrays = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    quantisers = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert len(quantisers) > 20
    assert {arrays[node.input[2]].dtype for node in quantisers} == {np.dtype(np.uint8)}
    assert {arrays[node.input[1]].shape for node in quantisers} == {()}  # one scale a tensor


def test_seven_bits_cannot_saturate_sixteen(make: Callable[..., Path]) -> None:
    """Two products of 255 with the largest weight fit an int16, which is why there are seven bits."""
    for name, (integers, _, zero_points) in integer_layers(make("seven.onnx", weight_bits=7)).items():
        largest = int(np.abs(integers.astype(int)).max())
        assert largest in (63, 64), name  # no bit of the seven is lost either
        assert 2 * 255 * largest <= np.iinfo(np.int16).max
        assert not zero_points.any(), name


def test_layers_can_be_kept_in_float(prepared: Quantisable, make: Callable[..., Path]) -> None:
    kept = prepared.layers[1]
    assert kept.endswith("/Conv")
    every = set(integer_layers(make()))
    assert set(integer_layers(make("kept.onnx", keep_float=[kept]))) == every - {kept}
    alone = make("alone.onnx", keep_float=[name for name in prepared.layers if name != kept])
    assert set(integer_layers(alone)) == {kept}


def test_the_quantised_graph_is_close(graph: Path, samples: Samples, make: Callable[..., Path]) -> None:
    """Random weights, nine integer layers deep, measured 33 dB; one range a hundredth of the right one ruins it."""
    (expected,) = run(graph, samples)
    eight, seven = (run(make(f"{bits}.onnx", weight_bits=bits), samples)[0] for bits in (8, 7))
    assert eight.shape == expected.shape
    assert snr(eight, expected) > 25
    assert snr(eight, expected) > snr(seven, expected) + 1  # half as many weight levels


def test_seen_extremes_are_those_of_the_graph(
    prepared: Quantisable, samples: Samples, activations: Activations
) -> None:
    """Of all tiles, in batches; the values kept are some of them."""
    model = onnx.load(prepared.path)
    names = [node.output[0] for node in model.graph.node if node.op_type in ("Relu", "Add")]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    path = prepared.path.with_name("all_outputs.onnx")
    onnx.save(model, path)
    tensors = dict(zip(names, run(path, samples, tuple(names)), strict=True))
    assert len(tensors) > 5
    for name, tensor in tensors.items():
        # Other fusions, other order of sums.
        np.testing.assert_allclose(activations.extremes[name], (tensor.min(), tensor.max()), rtol=1e-5, atol=1e-6)
        kept = activations.values[name]
        assert kept.shape == (TILES * VALUES,)
        assert abs(kept.mean() - tensor.mean()) < 6 * tensor.std() / len(kept) ** 0.5  # 6 standard errors
    full = ranges_of(activations, Method.MINMAX)
    for name, (least, most) in activations.extremes.items():
        assert full[name].range_value == (least, most)


@pytest.fixture
def tailed() -> Activations:
    """A signed tensor and one after a ReLU: normal values, and two of 10^5 far outside."""
    rng = np.random.default_rng(0)
    bulk = rng.standard_normal(200_000).astype(np.float32)
    signed = np.concatenate([bulk, np.float32([40, -40])])
    rectified = np.maximum(signed, 0)
    tensors = {"signed": signed, "rectified": rectified}
    return Activations({name: (t.min(), t.max()) for name, t in tensors.items()}, tensors)


def test_percentiles_clip_the_tails(tailed: Activations) -> None:
    ranges = ranges_of(tailed, Method.PERCENTILE)
    low, high = ranges["signed"].range_value
    # 99.999 % of 200,002: the second largest, beyond which is one normal of 200,000, at 4 to 6 deviations.
    assert 4 < high < 6
    assert -6 < low < -4
    assert ranges["rectified"].range_value[0] == 0
    assert ranges_of(tailed, Method.MINMAX)["signed"].range_value == (-40, 40)


def test_entropy_clips_what_is_rare_and_far(tailed: Activations) -> None:
    ranges = ranges_of(tailed, Method.ENTROPY)
    low, high = ranges["signed"].range_value
    assert low == -high
    assert 3 < high < 8
    assert ranges["rectified"].range_value[0] == 0
    assert 3 < ranges["rectified"].range_value[1] < 8


@pytest.mark.parametrize("shift", [0.0, 1.0, 5.0])
def test_entropy_keeps_all_of_a_uniform_tensor(shift: float) -> None:
    values = np.random.default_rng(0).uniform(shift - 1, shift + 1, 100_000).astype(np.float32)
    assert entropy_threshold(values) > 0.97 * np.abs(values).max()


def test_entropy_sees_a_tensor_far_from_zero_as_the_integers_do() -> None:
    """Levels start at zero; a histogram that started at the smallest value would be too fine, and keep to 7.7."""
    values = np.append(np.random.default_rng(0).normal(5, 0.1, 100_000), 30).astype(np.float32)
    assert 5.3 < entropy_threshold(values) < 6


def test_entropy_ignores_exact_zeros() -> None:
    """As many zeros as other values; counted, they would pull the threshold to 1.7."""
    positive = np.abs(np.random.default_rng(0).standard_normal(100_000, np.float32))
    threshold = entropy_threshold(np.concatenate([positive, np.zeros_like(positive)]))
    assert threshold == entropy_threshold(positive) > 3


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_a_constant_tensor_has_a_range(value: float) -> None:
    constant = np.full(1000, value, np.float32)
    seen = Activations({"c": (constant.min(), constant.max())}, {"c": constant})
    for method in Method:
        assert ranges_of(seen, method)["c"].range_value[1] == pytest.approx(value, rel=1e-3)  # a bin of the histogram


def test_nodes_without_names_are_told_apart(toy_graph: Path, samples: Samples, tmp_path: Path) -> None:
    """ONNX lets names be empty, and a graph may have been written by another tool."""
    assert convolutions(toy_graph) == {""}
    prepared = prepare(toy_graph, tmp_path)
    assert len(prepared.layers) == 1
    ranges = ranges_of(collect_activations(prepared, samples), Method.MINMAX)
    quantise(prepared, ranges, tmp_path / "int8.onnx")
    assert set(integer_layers(tmp_path / "int8.onnx")) == set(prepared.layers)
    result, expected = (run(path, samples)[0] for path in (tmp_path / "int8.onnx", toy_graph))
    assert snr(result, expected) > 30  # one integer layer


def test_a_network_of_first_and_last_layers_is_refused(tmp_path: Path) -> None:
    kernel = numpy_helper.from_array(np.ones((48, 8, 1, 1), np.float32), "kernel")
    nodes = [
        helper.make_node("Concat", ["lq", "noise"], ["x"], axis=1),
        helper.make_node("Conv", ["x", "kernel"], ["y"]),
        helper.make_node("DepthToSpace", ["y"], ["detail"], blocksize=4),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", channels, "h", "w"])
        for name, channels in (("lq", 3), ("noise", 5))
    ]
    output = helper.make_tensor_value_info("detail", TensorProto.FLOAT, ["n", 3, None, None])
    model = helper.make_model(
        helper.make_graph(nodes, "flat", inputs, [output], [kernel]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )
    onnx.save(model, tmp_path / "graph.onnx")
    with pytest.raises(BackendError, match="nothing between its first and last convolutions"):
        prepare(tmp_path / "graph.onnx", tmp_path)


@pytest.fixture
def logged() -> Callable[[Path], None]:
    def warn(source: Path) -> None:
        """A warning to the root logger from code in that file."""
        exec(compile("import logging; logging.warning('said')", str(source), "exec"), {})

    return warn


def test_what_the_quantiser_says_reaches_nobody(
    logged: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    with quantize._quiet():
        logged(quantize._TOOLS / "operators" / "some.py")
    assert not caplog.records
    with quantize._quiet():
        logged(Path(__file__))
    logged(quantize._TOOLS / "operators" / "some.py")
    assert [record.message for record in caplog.records] == ["said", "said"]


def test_quantising_is_silent_and_leaves_logging_alone(
    graph: Path, samples: Samples, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    before = root.level, list(root.handlers), list(root.filters)
    prepared = prepare(graph, tmp_path)
    few = Samples(samples.frames[:1], samples.lq[:1], samples.noise[:1])
    ranges = ranges_of(collect_activations(prepared, few), Method.ENTROPY)
    quantise(prepared, ranges, tmp_path / "int8.onnx")
    assert (root.level, list(root.handlers), list(root.filters)) == before
    assert capfd.readouterr() == ("", "")


SAMPLED = """
import hashlib, sys
from pathlib import Path
from rsd_edge.export.calibration import Samples, calibration_samples
from rsd_edge.export.quantize import collect_activations, prepare
from rsd_edge.specs import ModelSpec
every = calibration_samples(ModelSpec("any"))
few = Samples(every.frames[:2], every.lq[:2], every.noise[:2])
seen = collect_activations(prepare(Path(sys.argv[1]), Path(sys.argv[2])), few)
print(hashlib.sha256(b"".join(seen.values[name].tobytes() for name in sorted(seen.values))).hexdigest())
"""


def test_the_same_values_are_seen_in_every_process(graph: Path, tmp_path: Path) -> None:
    """The calibrator keeps tensors in sets, whose order follows the hash seed of the process."""
    seen = [
        subprocess.run(
            [sys.executable, "-c", SAMPLED, str(graph), str(tmp_path)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert len(seen[0]) == 65
    assert seen[0] == seen[1]
