"""Engines that were built for the GPU of this machine, found by the name of the model that they came from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rsd_edge.bundle import MANIFEST, ZOO, Bundle, hash_file, load_bundle, read_manifest, shipped_engines
from rsd_edge.errors import BackendError, ModelError, NoEngineError
from rsd_edge.machine import cache_folder
from rsd_edge.specs import Backend, Precision

log = logging.getLogger(__name__)


def engine_folder() -> Path:
    """Where `rsd-edge run --auto-build` keeps engines. Raises BackendError where the user has no home."""
    try:
        return cache_folder() / "engines"
    except RuntimeError as error:
        raise BackendError(f"engines cannot be kept ({error}); set XDG_CACHE_HOME to a folder") from error


def tensorrt_engine(model: str, precision: Precision | None, folder: Path | None = None) -> Bundle:
    """The TensorRT engine of a shipped model or a checkpoint for this GPU, the fastest if there are several.

    model: a shipped name, or the path of a .safetensors file. precision: None for any. folder: where to look; None for
    that of `engine_folder`.
    Raises MissingDependencyError or BackendError without TensorRT or a GPU, and NoEngineError with the command that
    builds one where there is none.
    """
    here = _here()
    found = []
    digest = _digest(model)
    for path in sorted((folder or engine_folder()).glob(f"*-{Backend.TENSORRT.value}-*/{MANIFEST}")):
        try:
            manifest = read_manifest(path.parent)
        except ModelError as error:
            log.info("%s", error)
            continue
        kind, source = str(manifest["engine"].get("precision")), manifest.get("source") or {}
        against = _against(manifest, here)
        wanted = precision is None or kind == precision.value
        if wanted and not against and source.get("digest") == digest:
            found.append((float(manifest["speed"]["median_ms"][kind]), path.parent))
    if not found:
        kind = "" if precision is None else f" --precision {precision.value}"
        raise NoEngineError(
            f"there is no TensorRT engine of '{model}' for this GPU; add --auto-build, or run "
            f"'rsd-edge build-engine --model {model} --backend tensorrt{kind}' and give its folder as the engine"
        )
    return load_bundle(min(found)[1])


def cannot_run(bundle: Bundle) -> list[str]:
    """Why a TensorRT engine does not run on this GPU. Raises as `tensorrt_engine` does without TensorRT or a GPU."""
    return _against(bundle.manifest, _here())


def _here() -> dict[str, str]:
    from rsd_edge.backends.tensorrt.cuda import Cuda
    from rsd_edge.backends.tensorrt.device import target_of
    from rsd_edge.backends.tensorrt.library import load_tensorrt

    trt, cuda = load_tensorrt(), Cuda()
    try:
        return target_of(trt, cuda)
    finally:
        cuda.close()


def _against(manifest: Mapping[str, Any], here: Mapping[str, str]) -> list[str]:
    from rsd_edge.backends.tensorrt.device import reasons_against

    return reasons_against(manifest.get("target") or {}, here)[0]


def _digest(model: str) -> str:
    """Of the weights: an engine of others is not one of this model."""
    if model in shipped_engines():
        return str(read_manifest(ZOO / model / Precision.FP32.value).get("digest"))
    return hash_file(Path(model))
