"""What an engine should take on devices that are not at hand: counted operations and bytes over data-sheet rates.

Nothing here is measured. A layer takes at least its operations at the device's peak and at least its bytes at the
bandwidth of its memory; real kernels reach a share of each, and that share is assumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsd_edge.backends.tensorrt.engine import SLOTS
from rsd_edge.bench.cost import Convolution, convolutions
from rsd_edge.frames import SCALE
from rsd_edge.specs import ModelSpec, Precision, TileSpec
from rsd_edge.tiling import plan_tiles

SHARE_OF_PEAK = 0.3
"""Of the tensor cores: layers of 24 to 128 channels do not fill them."""
SHARE_OF_BANDWIDTH = 0.6
LAUNCH_SECONDS = 4e-6
"""Of one layer within a CUDA graph."""
FRAME = (360, 640)
"""Height and width of the frame that rows are given for."""

_BYTES = {Precision.FP16: 2, Precision.INT8: 1}
_MIB = 1 << 20


@dataclass(frozen=True)
class Device:
    """Rates of a data sheet, dense: teraoperations a second in FP16 and INT8, and gigabytes a second."""

    name: str
    fp16: float
    int8: float
    bandwidth: float

    def rate(self, precision: Precision) -> float:
        """Operations a second at best."""
        return 1e12 * (self.int8 if precision is Precision.INT8 else self.fp16)


DEVICES = (
    Device("Orin Nano 8 GB", 10.2, 20.5, 68),
    Device("Orin NX 16 GB", 15.0, 30.1, 102),
    Device("AGX Orin 64 GB", 42.6, 85.2, 204),
    Device("Thor T5000", 258, 517, 273),
    Device("RTX 4090", 165, 660, 1008),
    Device("H200", 989, 1979, 4800),
)
"""GPU alone, without the DLA, at full clocks; Orin from its SMs and clocks (2048 FP16 operations a cycle and SM)."""


@dataclass(frozen=True)
class Estimate:
    """Of one engine on one device."""

    tile_ms: float
    frame_ms: float
    memory_mib: float
    bound: str
    """What takes most of the time: arithmetic, memory or launches."""


def estimate(layers: Sequence[Convolution], device: Device, precision: Precision, model: ModelSpec) -> Estimate:
    """Expected time and device memory for tiles of the default size, one at a time. layers: of one such tile."""
    size = _BYTES[precision]
    parts = {"arithmetic": 0.0, "memory": 0.0, "launches": 0.0}
    for layer in layers:
        arithmetic = layer.flops / (SHARE_OF_PEAK * device.rate(precision))
        moved = size * (layer.inputs + layer.outputs + layer.weights) / (SHARE_OF_BANDWIDTH * 1e9 * device.bandwidth)
        parts["arithmetic" if arithmetic > moved else "memory"] += max(arithmetic, moved)
        parts["launches"] += LAUNCH_SECONDS
    seconds = sum(parts.values())
    tile = TileSpec(halo=model.halo, multiple_of=model.multiple_of, fixed=True)
    count = plan_tiles(*FRAME, tile).count
    return Estimate(
        1e3 * seconds, 1e3 * seconds * count, memory_mib(layers, precision, model), max(parts, key=parts.__getitem__)
    )


def memory_mib(layers: Sequence[Convolution], precision: Precision, model: ModelSpec) -> float:
    """Device memory of an engine: weights, scratch for the largest layer and its input, and the ring's buffers.

    CUDA's own context, some 100 to 400 MiB, comes on top.
    """
    size, pixels = _BYTES[precision], TileSpec.size**2
    weights = size * sum(layer.weights for layer in layers)
    scratch = 2 * size * max(layer.inputs + layer.outputs for layer in layers)
    ring = SLOTS * 4 * pixels * (3 + model.noise_channels + 3 * SCALE**2)
    return (weights + scratch + ring) / _MIB


def estimates(graph: Path, model: ModelSpec) -> dict[str, dict[str, Any]]:
    """By device and precision, ready for JSON. graph: the float one."""
    layers = convolutions(graph, 1, TileSpec.size, TileSpec.size)
    return {
        device.name: {precision.value: _rounded(estimate(layers, device, precision, model)) for precision in _BYTES}
        for device in DEVICES
    }


def _rounded(found: Estimate) -> dict[str, Any]:
    return {
        "tile_ms": float(f"{found.tile_ms:.2g}"),
        "frame_ms": float(f"{found.frame_ms:.2g}"),
        "memory_mib": round(found.memory_mib),
        "bound": found.bound,
        "source": "computed",
    }
