"""Checkpoint to ONNX: the fused inference tile of an edge model as one graph.

Inputs `lq` (n, 3, h, w) and `noise` (n, zc + 1, h, w), output `detail` (n, 4h, 4w, 3) in BGR order, all float32, with
n, h, w symbolic.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import onnx
import torch

from rsd_edge.export.deploy import DeployedTile
from rsd_edge.models.edge import RGB

OPSET = 17
"""Nothing in the networks needs a later one, and an older opset suits more runtimes."""


def export_tile(tile: DeployedTile, path: Path) -> None:
    """Write the graph and check it with ONNX's own checker."""
    example = torch.zeros(1, 3, 32, 32), torch.zeros(1, tile.latent_channels + 1, 32, 32)
    axes = {0: "n", 2: "h", 3: "w"}
    with warnings.catch_warnings():
        # The newer exporter turns the even-size rule into names like "2*_h", which an engine cannot override by name.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        torch.onnx.export(
            tile,
            example,
            str(path),
            input_names=["lq", "noise"],
            output_names=["detail"],
            dynamic_axes={"lq": axes, "noise": axes, "detail": {0: "n", 1: "4h", 2: "4w"}},
            opset_version=OPSET,
            dynamo=False,
        )
    model = onnx.load(path)
    model.graph.output[0].type.tensor_type.shape.dim[3].dim_value = RGB  # which the exporter cannot infer
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
