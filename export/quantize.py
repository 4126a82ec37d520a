"""Static INT8 for ONNX Runtime on CPUs: explicit Q/DQ, U8 activations, S8 weights with one scale a channel.

The convolution that sees nothing but a graph input and the one that writes the output stay in float: every later layer
builds on the first one's features, and the last one's error would reach the picture undiminished.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnxruntime import quantization
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import load_model_with_shape_infer
from onnxruntime.quantization.shape_inference import quant_pre_process

from rsd_edge.errors import BackendError
from rsd_edge.export.calibration import Samples
from rsd_edge.export.ranges import Activations, Feeds, Method, bounds, collect

_QUANTISED = ["Conv", "Relu", "Add", "Reshape", "Transpose"]
_LAYERS = ("Conv", "Add")
BATCH = 8
"""Calibration tiles at once; all their activations are in memory, some 25 MB a tile."""
_TOOLS = Path(quantization.__file__).parent


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drop what the quantiser logs: it uses the root logger, and what it warns of is what the gate measures."""

    def by_others(record: logging.LogRecord) -> bool:
        return not Path(record.pathname).is_relative_to(_TOOLS)

    root, handler = logging.getLogger(), logging.NullHandler()
    root.addFilter(by_others)
    root.addHandler(handler)  # the first warning to a root without one would configure logging for the whole process
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.removeFilter(by_others)


@dataclass(frozen=True)
class Quantisable:
    """A float graph with all shapes inferred, and the nodes that may become integer."""

    path: Path
    layers: tuple[str, ...]
    """Convolutions and residual additions."""
    float_nodes: tuple[str, ...]
    """Nodes that never become integer: the first and last convolutions, and what lies between them and the ends."""


@_quiet()
def prepare(graph: Path, folder: Path) -> Quantisable:
    """Infer shapes into a copy of the graph in `folder`, and sort its nodes.

    Raises BackendError for a graph without layers between its first and last convolutions.
    """
    path = folder / "prepared.onnx"
    # Symbolic inference needs another package and finds no more here: n, h, w stay symbols either way.
    quant_pre_process(str(graph), str(path), skip_symbolic_shape=True)
    model = onnx.load(path)
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"  # nodes are excluded by name, and ONNX lets it be empty
    onnx.save(model, path)
    float_nodes = set(near_ends(model.graph))
    layers = [node.name for node in model.graph.node if node.op_type in _LAYERS and node.name not in float_nodes]
    if not layers:
        raise BackendError(
            "the network has nothing between its first and last convolutions, which stay in float; use --precision fp32"
        )
    return Quantisable(path, tuple(layers), tuple(sorted(float_nodes)))


@_quiet()
def collect_activations(graph: Quantisable, samples: Samples) -> Activations:
    """Run all samples through the float graph."""
    model = onnx.load(graph.path)
    known = [*model.graph.value_info, *model.graph.input, *model.graph.output]
    floats = {item.name for item in known if item.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    touched = [node for node in model.graph.node if node.op_type in _QUANTISED]
    names = floats.intersection(name for node in touched for name in (*node.input, *node.output))
    return collect(model, sorted(names), batches_of(samples, BATCH))


def batches_of(samples: Samples, size: int) -> list[Feeds]:
    """The tiles as inputs of an edge graph, `size` at a time."""
    parts = [slice(start, start + size) for start in range(0, len(samples), size)]
    return [{"lq": samples.lq[part], "noise": samples.noise[part]} for part in parts]


def ranges_of(activations: Activations, method: Method) -> TensorsData:
    """The range of every tensor, as ONNX Runtime's quantiser takes it."""
    return TensorsData(CalibrationMethod.MinMax, bounds(activations, method))


@_quiet()
def quantise(
    graph: Quantisable, ranges: TensorsData, target: Path, *, weight_bits: int = 8, keep_float: Iterable[str] = ()
) -> None:
    """Write the graph with Q/DQ pairs around every layer but `keep_float`.

    weight_bits: 8, or 7 for CPUs whose U8 x S8 product saturates in 16 bits.
    """
    model = load_model_with_shape_infer(graph.path)
    quantizer = QDQQuantizer(
        model,
        per_channel=True,
        reduce_range=weight_bits == 7,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=ranges,
        nodes_to_quantize=[],
        nodes_to_exclude=[*graph.float_nodes, *keep_float],
        op_types_to_quantize=_QUANTISED,
        extra_options={},
    )
    quantizer.quantize_model()
    quantizer.model.save_model_to_file(str(target))


class Quantiser:
    """Makes Q/DQ graphs of one float graph, for a search to choose from."""

    def __init__(self, graph: Quantisable, calibration: Samples, folder: Path, weight_bits: int) -> None:
        self.layers = graph.layers
        self._graph, self._folder, self._weight_bits = graph, folder, weight_bits
        self._activations = collect_activations(graph, calibration)
        self._ranges: dict[Method, TensorsData] = {}

    def __call__(self, method: Method, keep_float: Sequence[str] = ()) -> Path:
        """The graph with these layers in float. It replaces the one made before."""
        if method not in self._ranges:
            self._ranges[method] = ranges_of(self._activations, method)
        target = self._folder / "int8.onnx"
        quantise(self._graph, self._ranges[method], target, weight_bits=self._weight_bits, keep_float=keep_float)
        return target


def near_ends(graph: onnx.GraphProto) -> Iterator[str]:
    """Names of the nodes from graph inputs alone to the first convolutions, and from the output back to the last."""
    constants = {item.name for item in graph.initializer} | {
        name for node in graph.node if node.op_type == "Constant" for name in node.output
    }
    reached = {item.name for item in graph.input}
    for node in graph.node:
        read = set(node.input) - constants
        if read and read <= reached:
            yield node.name
            if node.op_type != "Conv":
                reached.update(node.output)
    wanted = {item.name for item in graph.output}
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            yield node.name
            if node.op_type != "Conv":
                wanted.update(node.input)
