"""What INT8 costs, layer by layer, and what it takes to be let through."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from rsd_edge.backends import open_engine
from rsd_edge.backends.base import TileEngine
from rsd_edge.errors import BackendError
from rsd_edge.export.calibration import SIDE, Samples, calibration_samples, held_out_samples
from rsd_edge.export.gate import Closeness, Gate, Judge, Search
from rsd_edge.export.quantize import Quantiser, prepare
from rsd_edge.export.ranges import Method
from rsd_edge.specs import EngineSpec, ModelSpec, TileSpec

Array = NDArray[np.float32]
MODEL = ModelSpec("contrived")
TERRIBLE = "terrible"
LAYERS = ("harmless", TERRIBLE, "fine")


@dataclass
class Scripted:
    """An engine whose detail is a known function of its inputs."""

    spec: EngineSpec
    tile: TileSpec
    function: Callable[[Array, Array], Array]
    tiles: int = 0

    def prepare(self, n: int, h: int, w: int) -> None: ...

    def submit(self, lq: Array, noise: Array, detail: Array) -> None:
        self.tiles += len(lq)
        detail[:] = self.function(lq, noise)

    def collect(self, ticket: Any) -> None: ...

    def close(self) -> None: ...

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *_: object) -> None: ...


def enlarged(lq: Array) -> Array:
    return lq.repeat(4, axis=2).repeat(4, axis=3).transpose(0, 2, 3, 1)


def rough(noise: Array) -> Array:
    """Fine noise, which no photograph of the held-out set looks like."""
    return 0.2 * enlarged(noise[:, :3])


@pytest.fixture(scope="module")
def held_out() -> Samples:
    every = held_out_samples(MODEL)
    assert every.hr is not None
    few = slice(0, 3)
    return Samples(every.frames[few], every.lq[few], every.noise[few], every.hr[few])


def judge_of(samples: Samples, floating: Callable[..., Array], integer: Callable[..., Array], lpips: bool) -> Closeness:
    functions = {"float": floating, "int8": integer}
    opened = []

    def opener(path: Path) -> TileEngine:
        opened.append(Scripted(EngineSpec(MODEL), TileSpec(), functions[path.name]))
        return opened[-1]

    closeness = Judge(Path("float"), samples, opener, lpips=lpips)(Path("int8"))
    assert [engine.tiles for engine in opened] == [len(samples)] * 2
    return closeness


@pytest.mark.parametrize(("error", "snr"), [(0.01, 40.0), (0.1, 20.0), (-0.5, 6.02)])
def test_an_error_in_proportion_has_its_snr(error: float, snr: float) -> None:
    """On more tiles than a batch. 20 log10(1 / error), and the PSNR that follows from the power of the detail."""
    samples = calibration_samples(MODEL)
    few = Samples(samples.frames[:11], samples.lq[:11], samples.noise[:11])
    found = judge_of(few, lambda lq, _: enlarged(lq), lambda lq, _: np.float32(1 + error) * enlarged(lq), lpips=False)
    # Figures are rounded to hundredths, detail to float32.
    assert found.detail_snr_db == pytest.approx(snr, abs=0.011)
    power = float(np.mean(few.lq.astype(np.float64) ** 2)) * error**2
    assert found.psnr_db == pytest.approx(10 * np.log10(4 / power), abs=0.011)
    assert found.lpips is None
    assert "lpips" not in found.record()


def test_lpips_is_what_int8_adds(held_out: Samples) -> None:
    """Noise on top is farther from the photograph: more than nothing if INT8 made it, less if it took it away."""

    def plain(lq: Array, _: Array) -> Array:
        return 0 * enlarged(lq)

    def noisy(_: Array, noise: Array) -> Array:
        return rough(noise)

    worse = judge_of(held_out, plain, noisy, lpips=True)
    better = judge_of(held_out, noisy, plain, lpips=True)
    assert worse.lpips is not None
    assert worse.lpips > 0.02
    assert better.lpips == -worse.lpips
    assert judge_of(held_out, noisy, noisy, lpips=True).lpips == 0


def test_equal_and_empty_details_have_figures(held_out: Samples) -> None:
    """No infinity, which JSON has no word for."""
    same = judge_of(held_out, lambda lq, _: enlarged(lq), lambda lq, _: enlarged(lq), lpips=False)
    assert same.passes(Gate())
    nothing = judge_of(held_out, lambda lq, _: 0 * enlarged(lq), lambda lq, _: enlarged(lq), lpips=False)
    assert not nothing.passes(Gate())
    assert np.isfinite([same.psnr_db, same.detail_snr_db, nothing.psnr_db, nothing.detail_snr_db]).all()


@pytest.mark.parametrize(
    ("figures", "passes"),
    [
        ((40.0, 14.0, 0.005), True),
        ((40.0, 14.0, -0.005), True),
        ((39.99, 14.0, 0.0), False),
        ((40.0, 13.99, 0.0), False),
        ((40.0, 14.0, 0.00501), False),
        ((40.0, 14.0, -0.00501), False),  # another look is no better for being nearer to one photograph
        ((float("nan"), 14.0, 0.0), False),
    ],
)
def test_the_gate_has_three_bounds(figures: tuple[float, float, float], passes: bool) -> None:
    assert Closeness(*figures).passes(Gate()) is passes


def contrived_graph(path: Path) -> Path:
    """Five convolutions; the terrible one holds weights of 30 on a channel that is always zero, so that for the others,
    a hundredth of it, few integers are left."""
    rng = np.random.default_rng(3)
    width = 8
    shapes = [("first", 8, width), *((name, width, width) for name in LAYERS), ("last", width, 48)]
    nodes, weights, x = [helper.make_node("Concat", ["lq", "noise"], ["x"], axis=1)], [], "x"
    for name, inputs, outputs in shapes:
        kernel = rng.normal(0, 0.5 / np.sqrt(inputs), (outputs, inputs, 3, 3)).astype(np.float32)
        if name == "harmless":
            kernel[0] = 0  # with no bias and the ReLU: the dead channel
        if name == TERRIBLE:
            kernel[:, 0] = 30
        if name == "last":
            kernel *= 0.2
        weights.append(numpy_helper.from_array(kernel, f"{name}_kernel"))
        nodes.append(helper.make_node("Conv", [x, f"{name}_kernel"], [f"{name}_y"], name=name, pads=[1] * 4))
        x = f"{name}_y"
        if name != "last":
            nodes.append(helper.make_node("Relu", [x], [f"{name}_z"], name=f"{name}_relu"))
            x = f"{name}_z"
    nodes.append(helper.make_node("DepthToSpace", [x], ["image"], name="shuffle", blocksize=4, mode="CRD"))
    nodes.append(helper.make_node("Transpose", ["image"], ["detail"], name="to_rows", perm=[0, 2, 3, 1]))
    inputs_of = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", channels, "h", "w"])
        for name, channels in (("lq", 3), ("noise", 5))
    ]
    output = helper.make_tensor_value_info("detail", TensorProto.FLOAT, ["n", None, None, 3])
    graph = helper.make_graph(nodes, "contrived", inputs_of, [output], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def open_float(graph: Path) -> TileEngine:
    return open_engine(graph, EngineSpec(MODEL), tile=TileSpec(), threads=1)


@pytest.fixture(scope="module")
def search(held_out: Samples, tmp_path_factory: pytest.TempPathFactory) -> Search[Path]:
    folder = tmp_path_factory.mktemp("gate")
    graph = prepare(contrived_graph(folder / "graph.onnx"), folder)
    assert graph.layers == LAYERS
    calibration = calibration_samples(MODEL).first(8)
    judge = Judge(graph.path, held_out, open_float, lpips=True)
    compare = Judge(graph.path, calibration, open_float, lpips=False)
    return Search(Quantiser(graph, calibration, folder, weight_bits=8), judge, compare, rank=compare)


def test_nothing_stays_in_float_for_a_gate_that_holds(search: Search[Path]) -> None:
    found = search.run(Gate(psnr_db=10, detail_snr_db=-10, lpips=1))
    assert found.report["layers_in_float"] == []


def test_the_worst_layer_goes_first_and_alone(search: Search[Path]) -> None:
    """Weights of 0.18 in steps of 30 / 127 leave 14 dB; the other layers alone 42 dB, and 40 dB together. A runtime
    that makes the layer between them integer after all leaves 20 dB."""
    found = search.run(Gate(psnr_db=40, detail_snr_db=35, lpips=0.005))
    report = found.report
    assert report["layers_in_float"] == [TERRIBLE]
    alone = report["detail_snr_db_of_each_layer_alone"]
    assert next(iter(alone)) == TERRIBLE
    assert alone[TERRIBLE] < 20
    assert min(alone[name] for name in LAYERS if name != TERRIBLE) > 35
    # The graph is the one that was judged, with that layer in float.
    nodes = onnx.load(found.graph).graph.node
    made = {output for node in nodes if node.op_type == "DequantizeLinear" for output in node.output}
    integer = {node.name for node in nodes if node.op_type == "Conv" and node.input[1] in made}
    assert integer == set(LAYERS) - {TERRIBLE}


def test_the_report_says_what_was_found(search: Search[Path]) -> None:
    gate = Gate(psnr_db=30, detail_snr_db=20, lpips=0.05)
    found = search.run(gate)
    report = json.loads(json.dumps(found.report, allow_nan=False))
    assert set(report) == {
        "gate",
        "closeness",
        "method",
        "methods",
        "layers_in_float",
        "detail_snr_db_of_each_layer_alone",
    }
    assert report["gate"] == {"psnr_db": 30, "detail_snr_db": 20, "lpips": 0.05}
    assert report["closeness"] == vars(found.closeness)
    assert found.closeness.passes(gate)
    assert set(report["methods"]) == {"minmax", "percentile", "entropy"}
    by_method = {name: figures["detail_snr_db"] for name, figures in report["methods"].items()}
    assert by_method[report["method"]] == max(by_method.values())
    alone = list(report["detail_snr_db_of_each_layer_alone"].values())
    assert alone == sorted(alone)


def test_one_method_can_be_asked_for(search: Search[Path]) -> None:
    report = search.run(Gate(10, -10, 1), methods=(Method.MINMAX,)).report
    assert (report["method"], list(report["methods"])) == ("minmax", ["minmax"])


def test_a_gate_that_nothing_passes_is_an_error(search: Search[Path]) -> None:
    with pytest.raises(BackendError, match=r"INT8 stays outside its gate .*nothing was written; use --precision fp32"):
        search.run(Gate(detail_snr_db=120))


def test_the_contrived_layer_does_nothing_with_its_large_weight(held_out: Samples, tmp_path: Path) -> None:
    """Guards the search above: the float graph is an ordinary one, of detail near 0.1."""
    detail = np.empty((3, 4 * SIDE, 4 * SIDE, 3), np.float32)
    with open_float(contrived_graph(tmp_path / "graph.onnx")) as engine:
        engine.collect(engine.submit(held_out.lq, held_out.noise, detail))
    assert 0.01 < detail.std() < 1


class NamedMaker:
    """Makes names of graphs."""

    layers = ("good", "bad", "last")

    def __call__(self, method: Method, keep_float: Sequence[str] = ()) -> str:
        return f"{method.value} without {' '.join(keep_float)}"


def test_methods_are_chosen_on_many_tiles_and_layers_on_few() -> None:
    def many(graph: str) -> Closeness:
        assert graph.endswith("without ")
        return Closeness(50.0, 30.0 if graph.startswith("percentile") else 20.0)

    def few(graph: str) -> Closeness:
        assert graph.startswith("percentile")
        return Closeness(50.0, 10.0 if "bad" not in graph else 30.0)

    def judge(graph: str) -> Closeness:
        return Closeness(50.0, 40.0 if graph == "percentile without bad" else 5.0)

    found = Search(NamedMaker(), judge, many, rank=few).run(Gate())
    assert found.report["method"] == "percentile"
    assert found.report["layers_in_float"] == ["bad"]
