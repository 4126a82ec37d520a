"""An engine for tests of frame paths on a device that are given a network of their own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from rsd_edge.specs import Backend, EngineSpec, ModelSpec, Precision, TileSpec


def toy_engine(model: ModelSpec, tile: TileSpec) -> Any:
    """What rsd_edge.backends.device_frames.DeviceEngine asks for, as far as frames never leave the device."""
    spec = EngineSpec(model, Backend.TORCH, Precision.FP32)
    hooks = {"check_open": lambda: None, "before_close": lambda work: None}
    return SimpleNamespace(spec=spec, tile=tile, threads=1, ahead=1, **hooks)
