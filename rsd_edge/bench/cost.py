"""What a graph has to compute, and what the machine at hand computes at best. Needs onnx, of the extra `export`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rsd_edge.ort import ort

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

_PEAK_CHANNELS = 128
_PEAK_SIDE = 64
_PEAK_LAYERS = 4
_OPSET = 17


@dataclass(frozen=True)
class Convolution:
    """Sizes of one layer, in numbers, for n tiles."""

    inputs: int
    outputs: int
    weights: int
    products: int
    """Multiply-adds for one output."""

    @property
    def flops(self) -> int:
        """Floating-point or integer operations, two a multiply-add."""
        return 2 * self.outputs * self.products


def convolution_flops(graph: Path, n: int, h: int, w: int) -> int:
    """Operations of all convolutions for n tiles of h x w LR pixels; see `convolutions`."""
    return sum(layer.flops for layer in convolutions(graph, n, h, w))


def convolutions(graph: Path, n: int, h: int, w: int) -> list[Convolution]:
    """The convolutions of a graph for n tiles of h x w LR pixels.

    As executed: zeros that a rewrite of the graph put into a weight count like any other number. Element-wise work is
    not counted.
    """
    import onnx
    from onnx import helper

    model = onnx.load(graph)
    weights = {item.name: tuple(item.dims) for item in model.graph.initializer}
    produced = {node.output[0]: node for node in model.graph.node}
    layers = [node for node in model.graph.node if node.op_type == "Conv"]
    known = {output.name for output in model.graph.output}
    given = {item.name for item in model.graph.input}
    wanted = dict.fromkeys(name for node in layers for name in (node.input[0], node.output[0]) if name not in given)
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in wanted if name not in known)
    session = _session(model, threads=0)
    feeds = {item.name: np.zeros((n, int(item.shape[1]), h, w), np.float32) for item in session.get_inputs()}
    sizes = {name: value.size for name, value in feeds.items()}
    sizes |= {name: value.size for name, value in zip(wanted, session.run(list(wanted), feeds), strict=True)}
    found = []
    for node in layers:
        weight = node.input[1]
        while weight not in weights:  # of a quantised layer, behind its DequantizeLinear
            weight = produced[weight].input[0]
        shape = weights[weight]
        found.append(Convolution(sizes[node.input[0]], sizes[node.output[0]], math.prod(shape), math.prod(shape[1:])))
    return found


def convolution_peak(threads: int, *, integer: bool) -> tuple[Callable[[], object], int]:
    """A run of nothing but convolutions that suit any CPU (128 channels, 3x3, 64 x 64), and its operations.

    float32, or U8 x S8 with one weight scale a channel, on ONNX Runtime.
    """
    from onnx import TensorProto, helper

    rng = np.random.default_rng(0)
    shape = (_PEAK_CHANNELS, _PEAK_CHANNELS, 3, 3)
    nodes, initializers, x = [], [], "x"
    if integer:
        initializers += [_tensor("scale", np.float32(0.05)), _tensor("zero", np.uint8(0))]
        initializers += [
            _tensor("weight_scale", np.full(_PEAK_CHANNELS, 0.01, np.float32)),
            _tensor("weight_zero", np.zeros(_PEAK_CHANNELS, np.int8)),
        ]
        nodes.append(helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["x_q"]))
        x = "x_q"
    for layer in range(_PEAK_LAYERS):
        weight, out = f"w{layer}", f"y{layer}"
        if integer:
            initializers.append(_tensor(weight, rng.integers(-64, 64, shape).astype(np.int8)))
            operands = [x, "scale", "zero", weight, "weight_scale", "weight_zero", "scale", "zero"]
            nodes.append(helper.make_node("QLinearConv", operands, [out], pads=[1, 1, 1, 1]))
        else:
            initializers.append(_tensor(weight, rng.standard_normal(shape).astype(np.float32) / 32))
            nodes.append(helper.make_node("Conv", [x, weight], [out], pads=[1, 1, 1, 1]))
        x = out
    kind = TensorProto.UINT8 if integer else TensorProto.FLOAT
    size = [1, _PEAK_CHANNELS, _PEAK_SIDE, _PEAK_SIDE]
    graph = helper.make_graph(
        nodes,
        "peak",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, size)],
        [helper.make_tensor_value_info(x, kind, size)],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8)
    session = _session(model, threads)
    feeds = {"x": rng.random(size, np.float32)}
    flops = 2 * _PEAK_LAYERS * math.prod(size) * math.prod(shape[1:])
    return (lambda: session.run(None, feeds)), flops


def _tensor(name: str, value: NDArray[np.generic] | np.generic) -> TensorProto:
    from onnx import numpy_helper

    return numpy_helper.from_array(np.asarray(value), name)


def _session(model: ModelProto, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
