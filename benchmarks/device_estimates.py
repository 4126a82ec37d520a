"""Expected latency and memory on NVIDIA devices, and measured ones in their place.

    python benchmarks/device_estimates.py                              # compute all rows
    python benchmarks/device_estimates.py --measure ENGINE --board "Orin Nano 8 GB"   # on the board: replace one

Both write benchmarks/reports/devices.json and the table in benchmarks/reports/README.md. Computed rows need onnx;
measuring needs TensorRT and an engine of `rsd-edge build-engine --backend tensorrt`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from rsd_edge import SuperResolver, __version__
from rsd_edge.backends import TileEngine
from rsd_edge.bench.devices import DEVICES, FRAME, estimates
from rsd_edge.bundle import load_bundle, resolve_engine, shipped_engines
from rsd_edge.errors import InputError, RsdEdgeError
from rsd_edge.specs import Backend
from rsd_edge.stream.atomic import write_json

REPORTS = Path(__file__).with_name("reports")
_FRAMES = 30


def computed(known: dict[str, Any]) -> dict[str, Any]:
    """All rows computed anew, but for those that were measured."""
    rows: dict[str, Any] = {}
    for model in shipped_engines():
        bundle = resolve_engine(model)
        rows[model] = estimates(bundle.graph_path, bundle.spec.model)
        for board, precisions in known.get(model, {}).items():
            for precision, row in precisions.items():
                if row["source"] == "measured":
                    rows[model].setdefault(board, {})[precision] = row
    return rows


def measured(folder: Path) -> tuple[str, str, dict[str, Any]]:
    """Model, precision and row of an engine on this machine: medians, from array to array, and memory that it took."""
    from rsd_edge.backends.tensorrt.cuda import Cuda
    from rsd_edge.backends.tensorrt.device import target_of
    from rsd_edge.backends.tensorrt.library import load_tensorrt

    bundle = load_bundle(folder)
    if bundle.spec.backend is not Backend.TENSORRT:
        raise InputError(
            f"{folder} is an engine for {bundle.spec.backend.value}; measure one of 'rsd-edge build-engine --backend "
            "tensorrt' on the board that it was built on"
        )
    trt, cuda = load_tensorrt(), Cuda()
    try:
        before, target = cuda.free_bytes(), target_of(trt, cuda)
        rng = np.random.default_rng(0)
        frame = rng.integers(0, 256, (*FRAME, 3), np.uint8)
        with SuperResolver.load(folder) as resolver:
            resolver.warm_up(*FRAME)
            tile_ms = _tile_ms(resolver.engine)
            times = []
            for _ in range(_FRAMES):
                began = time.perf_counter()
                resolver(frame)
                times.append(1e3 * (time.perf_counter() - began))
            taken = before - cuda.free_bytes()
    finally:
        cuda.close()
    row = {
        "tile_ms": round(tile_ms, 2),
        "frame_ms": round(float(np.median(times)), 2),
        "memory_mib": round(taken / (1 << 20)),
        "source": "measured",
        "target": target,
        "rsd_edge": __version__,
    }
    return bundle.spec.model.name, bundle.spec.precision.value, row


def _tile_ms(engine: TileEngine) -> float:
    n, side = engine.tile.batch, engine.tile.size
    noise = np.random.default_rng(0).standard_normal((n, engine.spec.model.noise_channels, side, side), np.float32)
    detail, times = np.empty((n, 4 * side, 4 * side, 3), np.float32), []
    for _ in range(_FRAMES):
        began = time.perf_counter()
        engine.collect(engine.submit(np.clip(noise[:, :3], -1, 1), noise, detail))
        times.append(1e3 * (time.perf_counter() - began) / n)
    return float(np.median(times))


@click.command()
@click.option("--measure", type=click.Path(path_type=Path, exists=True), help="Bundle to measure on this machine.")
@click.option("--board", help=f"Row to replace: {', '.join(device.name for device in DEVICES)}, or a new one.")
@click.option("--reports", default=REPORTS, type=click.Path(path_type=Path, exists=True), help="Folder of JSON files.")
def main(measure: Path | None, board: str | None, reports: Path) -> None:
    """Write the rows and the table."""
    path = reports / "devices.json"
    known = json.loads(path.read_text(encoding="utf-8"))["models"] if path.is_file() else {}
    if measure is None:
        rows = computed(known)
    else:
        if board is None:
            raise click.UsageError("--measure needs --board, the row to replace")
        try:
            model, precision, row = measured(measure)
        except RsdEdgeError as error:
            raise click.ClickException(str(error)) from error
        rows = known
        rows.setdefault(model, {}).setdefault(board, {})[precision] = row
    write_json(path, {"frame": f"{FRAME[1]}x{FRAME[0]}", "models": rows})
    tables = Path(__file__).with_name("tables.py")
    command = [sys.executable, str(tables), "--reports", str(reports), str(reports / "README.md")]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
