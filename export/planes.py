"""The detail of a graph as RGB planes, for kernels that merge whole frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from rsd_edge.errors import ModelError


def with_planes(graph: Path, target: Path) -> Path:
    """Write a graph whose `detail` is (n, 3, 4h, 4w) in RGB, in FP16 if it is computed so, and return its path.

    The graph's detail is (n, 4h, 4w, 3) in BGR. Raises ModelError for a graph without it.
    """
    model = onnx.load(graph)
    inner = model.graph
    if [output.name for output in inner.output] != ["detail"]:
        raise ModelError(f"{graph} gives {[output.name for output in inner.output]}, not one detail; export it again")
    producer = next(node for node in inner.node if "detail" in node.output)
    kind = inner.output[0].type.tensor_type.elem_type
    known = {value.name: value.type.tensor_type.elem_type for value in inner.value_info}
    if producer.op_type == "Cast" and known.get(producer.input[0]) == TensorProto.FLOAT16:
        rows, kind = producer.input[0], TensorProto.FLOAT16  # half the memory, and nothing is lost
        inner.node.remove(producer)
    else:
        rows = "detail_rows"
        producer.output[list(producer.output).index("detail")] = rows
    order = "rgb_order"
    inner.initializer.append(numpy_helper.from_array(np.array([2, 1, 0], np.int64), order))
    inner.node.append(helper.make_node("Transpose", [rows], ["detail_bgr"], name="detail_planes", perm=[0, 3, 1, 2]))
    inner.node.append(helper.make_node("Gather", ["detail_bgr", order], ["detail"], name="detail_rgb", axis=1))
    length = inner.output[0].type.tensor_type.shape.dim
    names = [dim.dim_param or dim.dim_value or None for dim in length]
    del inner.output[:]
    inner.output.append(helper.make_tensor_value_info("detail", kind, [names[0], 3, names[1], names[2]]))
    onnx.checker.check_model(model)
    onnx.save(model, target)
    return target
