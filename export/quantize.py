"""Static INT8 for ONNX Runtime on CPUs: explicit Q/DQ, U8 activations, S8 weights with one scale a channel.

The convolution that sees nothing but a graph input and the one that writes the output stay in float: every later layer
builds on the first one's features, and the last one's error would reach the picture undiminished.
"""

from __future__ import annotations

import contextlib
import logging
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime import quantization
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorsData, create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import load_model_with_shape_infer
from onnxruntime.quantization.shape_inference import quant_pre_process

from rsd_edge.errors import BackendError
from rsd_edge.export.calibration import Samples


class Method(str, Enum):
    """How the range of an activation is chosen."""

    MINMAX = "minmax"
    PERCENTILE = "percentile"
    ENTROPY = "entropy"


PERCENTILE = 99.999
"""As ONNX Runtime's own percentile calibration: one value in 100 000 lies beyond each bound."""
_QUANTISED = ["Conv", "Relu", "Add", "Reshape", "Transpose"]
_LAYERS = ("Conv", "Add")
_BATCH = 8
"""Calibration tiles at once; all their activations are in memory, some 25 MB a tile."""
_VALUES = 4096
"""Values of each tensor kept from each tile; 16 kB a tensor and tile."""
_BINS = 2048
_LEVELS = 256
_TINY = 1e-12
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
    float_nodes = set(_near_ends(model.graph))
    layers = [node.name for node in model.graph.node if node.op_type in _LAYERS and node.name not in float_nodes]
    if not layers:
        raise BackendError(
            "the network has nothing between its first and last convolutions, which stay in float; use --precision fp32"
        )
    return Quantisable(path, tuple(layers), tuple(sorted(float_nodes)))


@dataclass(frozen=True)
class Activations:
    """What calibration saw: exact extremes of every tensor, and `_VALUES` of its values for every tile."""

    extremes: dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]
    values: dict[str, NDArray[np.float32]]


@_quiet()
def collect_activations(graph: Quantisable, samples: Samples, folder: Path) -> Activations:
    """Run all samples through the float graph."""
    calibrator = create_calibrator(
        graph.path,
        _QUANTISED,
        augmented_model_path=str(folder / "augmented.onnx"),
        calibrate_method=CalibrationMethod.Percentile,
    )
    names = [output.name for output in calibrator.infer_session.get_outputs()]
    extremes: dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}
    values: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
    for start in range(0, len(samples), _BATCH):
        part = slice(start, start + _BATCH)
        feeds = {"lq": samples.lq[part], "noise": samples.noise[part]}
        for name, tensor in zip(names, calibrator.infer_session.run(names, feeds), strict=True):
            least, most = extremes.get(name, (np.float32(np.inf), np.float32(-np.inf)))
            extremes[name] = np.minimum(least, tensor.min()), np.maximum(most, tensor.max())
            # By name: the order in which the tensors come is another in every process.
            rng = np.random.default_rng([zlib.crc32(name.encode()), start])
            values[name].append(rng.choice(tensor.reshape(-1), _VALUES * len(tensor), shuffle=False))
    return Activations(extremes, {name: np.concatenate(parts) for name, parts in values.items()})


def ranges_of(activations: Activations, method: Method) -> TensorsData:
    """The range of every tensor: all of it, or without the tails that cost more than they carry."""
    ranges = {}
    for name, (least, most) in activations.extremes.items():
        values = activations.values[name]
        if method is Method.PERCENTILE:
            low, high = np.percentile(values, [100 - PERCENTILE, PERCENTILE])
        elif method is Method.ENTROPY:
            high = entropy_threshold(values)
            low = -high
        else:
            low, high = least, most
        ranges[name] = np.float32(max(low, least)), np.float32(min(high, most))
    return TensorsData(CalibrationMethod.MinMax, ranges)


def entropy_threshold(values: NDArray[np.float32]) -> float:
    """The magnitude at which clipping loses least: Kullback-Leibler divergence of the values from their integers.

    As TensorRT calibrates: the histogram of magnitudes, cut at a candidate with the tail added to its last bin, against
    the same cut spread evenly over the bins of each integer level.
    """
    levels = _LEVELS if values.min() >= 0 else _LEVELS // 2
    # Exact zeros, half of what a ReLU puts out, cost nothing at any scale but would outweigh all else.
    magnitudes = np.abs(values[values != 0])
    if not magnitudes.size:
        return 0.0
    counts, edges = np.histogram(magnitudes, bins=_BINS, range=(0, magnitudes.max()))
    best, threshold = np.inf, float(edges[-1])
    for stop in range(levels, _BINS + 1, _LEVELS // 16):
        inside = counts[:stop].astype(np.float64)
        clipped = inside.copy()
        clipped[-1] += counts[stop:].sum()
        starts = np.arange(levels) * stop // levels
        filled = np.add.reduceat((inside > 0).astype(np.float64), starts)
        level = np.add.reduceat(inside, starts) / np.maximum(filled, 1)
        spread = np.where(inside > 0, np.repeat(level, np.diff(np.append(starts, stop))), 0)
        seen = clipped > 0
        p, q = clipped[seen] / clipped.sum(), np.maximum(spread[seen] / max(spread.sum(), 1), _TINY)
        divergence = float(np.sum(p * np.log(p / q)))
        if divergence < best:
            best, threshold = divergence, float(edges[stop])
    return threshold


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


def _near_ends(graph: onnx.GraphProto) -> Iterator[str]:
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
