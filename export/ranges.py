"""What a float graph computes on calibration tiles, and the range of each tensor that integers should cover."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import onnx
from numpy.typing import NDArray

from rsd_edge.ort import ort

Array = NDArray[np.float32]
Feeds = Mapping[str, NDArray[np.generic]]
"""Inputs of a graph by name, one batch of tiles."""


class Method(str, Enum):
    """How the range of an activation is chosen."""

    MINMAX = "minmax"
    PERCENTILE = "percentile"
    ENTROPY = "entropy"


PERCENTILE = 99.999
"""As ONNX Runtime's own percentile calibration: one value in 100 000 lies beyond each bound."""
VALUES = 4096
"""Values of each tensor kept from each tile; 16 kB a tensor and tile."""
_TENSORS_AT_ONCE = 128
"""Outputs of one run; all their activations are in memory together."""
_BINS = 2048
_LEVELS = 256
_TINY = 1e-12


@dataclass(frozen=True)
class Activations:
    """What calibration saw: exact extremes of every tensor, and `VALUES` of its values for every tile."""

    extremes: dict[str, tuple[np.float32, np.float32]]
    values: dict[str, Array]


def collect(model: onnx.ModelProto, names: Sequence[str], batches: Sequence[Feeds]) -> Activations:
    """Run all batches through a float graph, and watch the tensors of these names."""
    found = Activations({}, {})
    for start in range(0, len(names), _TENSORS_AT_ONCE):
        some = list(names[start : start + _TENSORS_AT_ONCE])
        session = _session_with_outputs(model, some)
        kept: dict[str, list[Array]] = {name: [] for name in some}
        first = 0
        for feeds in batches:
            tiles = max(len(array) for array in feeds.values())
            for name, tensor in zip(some, session.run(some, dict(feeds)), strict=True):
                least, most = found.extremes.get(name, (np.float32(np.inf), np.float32(-np.inf)))
                found.extremes[name] = np.minimum(least, tensor.min()), np.maximum(most, tensor.max())
                # By name: the order in which the tensors come is another in every process.
                rng = np.random.default_rng([zlib.crc32(name.encode()), first])
                kept[name].append(rng.choice(tensor.reshape(-1), VALUES * tiles, shuffle=False))
            first += tiles
        found.values.update({name: np.concatenate(parts) for name, parts in kept.items()})
    return found


def _session_with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> ort.InferenceSession:
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return ort.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])


def bounds(activations: Activations, method: Method) -> dict[str, tuple[np.float32, np.float32]]:
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
    return ranges


def entropy_threshold(values: Array) -> float:
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
