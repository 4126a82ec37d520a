"""Tiles that stand for pictures where any will do: for parity and for speed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rsd_edge.noise import NoiseField
from rsd_edge.specs import ModelSpec

Tile = NDArray[np.float32]


def probe(model: ModelSpec, n: int, side: int) -> tuple[Tile, Tile]:
    """n tiles with the spectrum of a photograph (1 / f) in [-1, 1], and noise of the field."""
    white = NoiseField(1).normal(3 * n, 0, 0, side, side).reshape(n, 3, side, side)
    fy, fx = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)
    pink = np.fft.irfft2(np.fft.rfft2(white) / np.maximum(np.hypot(fy, fx), 1 / side), s=(side, side))
    lq = np.clip(0.5 * pink / pink.std(), -1, 1).astype(np.float32)
    noise = NoiseField(2).normal(n * model.noise_channels, 0, 0, side, side)
    return lq, noise.reshape(n, model.noise_channels, side, side)
