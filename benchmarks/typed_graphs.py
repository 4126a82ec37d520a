"""How close the typed graphs for TensorRT are to fp32, for the shipped models, with all packaged crops.

    python benchmarks/typed_graphs.py --json benchmarks/reports/typed-graphs.json

Also says what ONNX Runtime makes of the same graphs by itself, which is not what FP16 hardware does.
"""

from __future__ import annotations

import argparse
import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from origin import origin

from rsd_edge.bundle import resolve_engine
from rsd_edge.export.calibration import calibration_samples, held_out_samples
from rsd_edge.export.gate import closeness
from rsd_edge.export.quantize import BATCH, batches_of
from rsd_edge.export.rounding import run_graph
from rsd_edge.export.typed import typed_graph
from rsd_edge.ort import ort
from rsd_edge.stream.atomic import write_json

_KEPT = ("closeness", "method", "methods", "layers_in_float", "fp32_islands", "left_out", "integer_layers", "operators")


def measure(name: str) -> dict[str, Any]:
    """Figures of both precisions of one model."""
    bundle = resolve_engine(name)
    model, graph = bundle.spec.model, onnx.load(bundle.graph_path)
    calibration, held_out = calibration_samples(model), batches_of(held_out_samples(model), BATCH)
    reference = run_graph(graph, held_out)
    found = {}
    for precision in ("fp16", "int8"):
        typed = typed_graph(graph, precision, batches_of(calibration, BATCH), held_out=held_out)
        session = ort.InferenceSession(typed.model.SerializeToString(), providers=["CPUExecutionProvider"])
        unrounded = np.concatenate([np.asarray(session.run(None, dict(feeds))[0]) for feeds in held_out])
        alone = closeness(unrounded, reference)
        found[precision] = {
            **{key: typed.report[key] for key in _KEPT},
            "largest_activation": round(typed.report["largest_activation"], 1),
            "by_onnxruntime_itself": {"psnr_db": alone.psnr_db, "detail_snr_db": alone.detail_snr_db},
        }
    return found


def main() -> None:
    """Measure the shipped models and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    about = origin()
    about["versions"] |= {name: importlib.metadata.version(name) for name in ("onnx", "onnx-ir")}
    models = {name: measure(name) for name in ("edge-s", "edge-n")}
    write_json(arguments.json, {**about, "models": models})


if __name__ == "__main__":
    main()
