"""What a graph has to compute. Needs onnx, of the extras `bench` and `export`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rsd_edge.ort import ort

if TYPE_CHECKING:
    from onnx import ModelProto


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
    opened = session(model, threads=0)
    feeds = {item.name: np.zeros((n, int(item.shape[1]), h, w), np.float32) for item in opened.get_inputs()}
    sizes = {name: value.size for name, value in feeds.items()}
    sizes |= {name: value.size for name, value in zip(wanted, opened.run(list(wanted), feeds), strict=True)}
    found = []
    for node in layers:
        weight = node.input[1]
        while weight not in weights:  # of a quantised layer, behind its DequantizeLinear
            weight = produced[weight].input[0]
        shape = weights[weight]
        found.append(Convolution(sizes[node.input[0]], sizes[node.output[0]], math.prod(shape), math.prod(shape[1:])))
    return found


def session(model: ModelProto, threads: int) -> ort.InferenceSession:
    """A graph on ONNX Runtime's CPU provider, whose threads sleep between runs. threads: 0 for all cores."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
