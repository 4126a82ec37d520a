"""From a bundle on disk to an engine, refused where it was built for another library or GPU."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from rsd_edge.backends.base import TileEngine
from rsd_edge.backends.tensorrt.cuda import Cuda
from rsd_edge.backends.tensorrt.device import reasons_against, target_of
from rsd_edge.backends.tensorrt.engine import TensorRtEngine
from rsd_edge.backends.tensorrt.frame_path import DeviceFramePath
from rsd_edge.backends.tensorrt.library import load_tensorrt
from rsd_edge.backends.tensorrt.parts import TensorRtPartsEngine
from rsd_edge.bundle import GRAPH, KERNELS, Bundle, plan_name, read_manifest, rebuild_command
from rsd_edge.errors import ModelError
from rsd_edge.kernels.manifest import MANIFEST as KERNEL_MANIFEST
from rsd_edge.specs import EDGE_FAMILY, EngineSpec, TileSpec

log = logging.getLogger(__name__)

STRIPPED = "strip-plan"


def open_tensorrt(
    folder: Path, spec: EngineSpec, *, tile: TileSpec | None = None, threads: int | None = None
) -> TileEngine:
    """The engine in a bundle's folder.

    Raises MissingDependencyError or BackendError without TensorRT or a GPU, ModelError for an engine of another
    version or GPU, with the command that builds it for this one.
    """
    trt = load_tensorrt()
    manifest = read_manifest(folder)
    target = manifest.get("target")
    if not isinstance(target, dict) or not target:
        raise ModelError(f"{folder} does not say what it was built for; build it again with 'rsd-edge build-engine'")
    again = rebuild_command(Bundle(folder, spec, folder, str(manifest.get("digest")), manifest))
    cuda = Cuda()
    try:
        against, stale = reasons_against(target, target_of(trt, cuda))
    finally:
        cuda.close()
    if against:
        raise ModelError(f"{folder} was built for another device: {', '.join(against)}; run '{again}'")
    if stale:
        log.warning("%s may not be the fastest any more: %s; run '%s'", folder, ", ".join(stale), again)
    flags = target.get("flags")
    stripped = STRIPPED in (flags.get("set", ()) if isinstance(flags, Mapping) else ())
    if spec.model.family != EDGE_FAMILY:
        return TensorRtPartsEngine(folder, spec, tile=tile, threads=threads, weights=stripped)
    weights = folder / GRAPH if stripped else None
    return TensorRtEngine(folder / plan_name(GRAPH), spec, tile=tile, threads=threads, weights=weights)


def device_frame_path(engine: TileEngine) -> DeviceFramePath | None:
    """The path on the device, where the bundle brings kernels for it."""
    if not isinstance(engine, TensorRtEngine):
        return None
    kernels = engine.path.parent / KERNELS
    return DeviceFramePath(engine, kernels) if (kernels / KERNEL_MANIFEST).is_file() else None
