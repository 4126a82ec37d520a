"""What the machine at hand computes and moves at best: convolutions, matrix products, integer dot products, copies.

Except for the copy, these are graphs for ONNX Runtime, written with onnx of the extra `bench`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rsd_edge.bench.cost import session
from rsd_edge.bench.timing import Run
from rsd_edge.errors import MissingDependencyError
from rsd_edge.versions import installed

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

CONVOLUTION = {"fp32": "convolution fp32", "int8": "convolution int8"}
"""The peak that an engine of a precision is held against."""
COPY = "memory copy"

_CHANNELS = 128
_SIDE = 64
_LAYERS = 4
_ORDER = 768
"""Of the square matrices: three of them in float32 fill 7 MB, which is beyond most second-level caches."""
_COPY_BYTES = 1 << 27
"""Beyond any last-level cache but the very largest."""
_OPSET = 17


@dataclass(frozen=True)
class Peak:
    """Something to run, and how much of it one run is."""

    run: Run
    amount: float
    """Operations or bytes."""
    unit: str
    """Of the rate in billions a second: GFLOP/s, GOP/s or GB/s."""

    def rate(self, seconds: float) -> float:
        """Billions of operations or bytes a second, for the time of one run."""
        return self.amount / seconds / 1e9


def peaks(threads: int) -> dict[str, Peak]:
    """All of them on so many threads. Raises MissingDependencyError without onnx."""
    if not installed("onnx"):
        raise MissingDependencyError("the machine's peaks need 'onnx'; run: pip install 'rsd-edge[bench]'")
    found = {}
    for name, make, integer in (
        (CONVOLUTION["fp32"], convolution_peak, False),
        ("matrix product fp32", product_peak, False),
        (CONVOLUTION["int8"], convolution_peak, True),
        ("dot product int8", product_peak, True),
    ):
        run, operations = make(threads, integer=integer)
        found[name] = Peak(run, operations, "GOP/s" if integer else "GFLOP/s")
    return {**found, COPY: copy_peak(threads)}


def copy_peak(threads: int) -> Peak:
    """One large array into another, shared out between threads; every byte is read once and written once."""
    # Pages of zeros that nothing has written to are one page of the kernel, which lies in the cache.
    source, target = np.ones(_COPY_BYTES // 2, np.uint8), np.zeros(_COPY_BYTES // 2, np.uint8)
    parts = list(zip(np.array_split(source, threads), np.array_split(target, threads), strict=True))
    pool = ThreadPoolExecutor(threads, thread_name_prefix="rsd-edge-copy")

    def run() -> None:
        for copied in [pool.submit(np.copyto, to, origin) for origin, to in parts]:
            copied.result()

    return Peak(run, _COPY_BYTES, "GB/s")


def convolution_peak(threads: int, *, integer: bool) -> tuple[Callable[[], object], int]:
    """A run of nothing but convolutions that suit any CPU (128 channels, 3x3, 64 x 64), and its operations.

    float32, or U8 x S8 with one weight scale a channel, on ONNX Runtime.
    """
    from onnx import TensorProto, helper

    rng = np.random.default_rng(0)
    shape = (_CHANNELS, _CHANNELS, 3, 3)
    nodes, initializers, x = [], [], "x"
    if integer:
        initializers += [_tensor("scale", np.float32(0.05)), _tensor("zero", np.uint8(0))]
        initializers += [
            _tensor("weight_scale", np.full(_CHANNELS, 0.01, np.float32)),
            _tensor("weight_zero", np.zeros(_CHANNELS, np.int8)),
        ]
        nodes.append(helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["x_q"]))
        x = "x_q"
    for layer in range(_LAYERS):
        weight, out = f"w{layer}", f"y{layer}"
        if integer:
            initializers.append(_tensor(weight, rng.integers(-64, 64, shape).astype(np.int8)))
            operands = [x, "scale", "zero", weight, "weight_scale", "weight_zero", "scale", "zero"]
            nodes.append(helper.make_node("QLinearConv", operands, [out], pads=[1, 1, 1, 1]))
        else:
            initializers.append(_tensor(weight, rng.standard_normal(shape).astype(np.float32) / 32))
            nodes.append(helper.make_node("Conv", [x, weight], [out], pads=[1, 1, 1, 1]))
        x = out
    size = [1, _CHANNELS, _SIDE, _SIDE]
    kind = TensorProto.UINT8 if integer else TensorProto.FLOAT
    run = _run(nodes, initializers, {"x": rng.random(size, np.float32)}, (x, kind), threads)
    return run, 2 * _LAYERS * math.prod(size) * math.prod(shape[1:])


def product_peak(threads: int, *, integer: bool) -> tuple[Callable[[], object], int]:
    """The product of two square matrices, and its operations: float32, or U8 x S8 summed in 32 bits."""
    from onnx import TensorProto, helper

    rng = np.random.default_rng(0)
    shape = (_ORDER, _ORDER)
    x: NDArray[Any]
    weight: NDArray[Any]
    if integer:
        x, weight = rng.integers(0, 127, shape).astype(np.uint8), rng.integers(-64, 64, shape).astype(np.int8)
    else:
        x, weight = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    nodes = [helper.make_node("MatMulInteger" if integer else "MatMul", ["x", "w"], ["y"])]
    kind = TensorProto.INT32 if integer else TensorProto.FLOAT
    return _run(nodes, [_tensor("w", weight)], {"x": x}, ("y", kind), threads), 2 * _ORDER**3


def _run(
    nodes: list[NodeProto],
    initializers: list[TensorProto],
    feeds: dict[str, NDArray[Any]],
    output: tuple[str, int],
    threads: int,
) -> Callable[[], object]:
    """A graph with the inputs of `feeds` and one output (name, type), ready to run."""
    from onnx import helper

    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in feeds.items()
    ]
    graph = helper.make_graph(nodes, "peak", inputs, [helper.make_empty_tensor_value_info(output[0])], initializers)
    graph.output[0].type.tensor_type.elem_type = output[1]
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8)
    opened = session(model, threads)
    return lambda: opened.run(None, feeds)


def _tensor(name: str, value: NDArray[np.generic] | np.generic) -> TensorProto:
    from onnx import numpy_helper

    return numpy_helper.from_array(np.asarray(value), name)
