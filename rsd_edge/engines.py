"""Engines that were built for the GPU of this machine, found by the name of the model that they came from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rsd_edge.bundle import (
    MANIFEST,
    ZOO,
    Bundle,
    hash_file,
    load_bundle,
    missing_checkpoint,
    read_manifest,
    shipped_engines,
)
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


def tensorrt_engine(
    model: str,
    precision: Precision | None,
    folder: Path | None = None,
    *,
    tile: int | None = None,
    batch: int = 1,
    kernels: bool = False,
) -> Bundle:
    """The TensorRT engine of a shipped model or a checkpoint for this GPU, the fastest if there are several.

    model: a shipped name, or the path of a .safetensors file. precision: None for any. folder: where to look; None for
    that of `engine_folder`. tile: the side of its tiles, None for any. batch: tiles that it must take at once. kernels:
    only with those for whole frames.
    The fastest is that of the least time for each pixel of a tile that is not halo.
    Raises MissingDependencyError or BackendError without TensorRT or a GPU, ModelError for a checkpoint that cannot be
    read, and NoEngineError with the command that builds an engine where there is none.
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
        wanted = precision is None or kind == precision.value
        if wanted and source.get("digest") == digest and not _against(manifest, here):
            options = manifest["target"]["options"]
            serves = tile in (None, options["tile"]) and options["batch"][0] <= batch <= options["batch"][2]
            if serves and (options.get("kernels") or not kernels):
                found.append((_ms_per_pixel(manifest), path.parent))
    if not found:
        raise _no_engine(model, precision, tile, batch)
    return load_bundle(min(found)[1])


def _ms_per_pixel(manifest: Mapping[str, Any]) -> float:
    """Of the result, in LR pixels: what a small tile saves in time, it needs in numbers."""
    engine, speed = manifest["engine"], manifest["speed"]
    return float(speed["median_ms"][engine["precision"]]) / int(speed["tile"] - 2 * engine["model"]["halo"]) ** 2


def _no_engine(model: str, precision: Precision | None, tile: int | None, batch: int) -> NoEngineError:
    needs: list[str] = []
    words = "" if precision is None else f" --precision {precision.value}"
    if tile is not None:
        needs, words = [f"tiles of {tile}"], f"{words} --tile {tile}"
    if batch > 1:
        needs, words = [*needs, f"batches of {batch}"], f"{words} --batch 1,{batch},{batch}"
    what = f" with {' and '.join(needs)}" if needs else ""
    return NoEngineError(
        f"there is no TensorRT engine of '{model}'{what} for this GPU; add --auto-build, or run "
        f"'rsd-edge build-engine --model {model} --backend tensorrt{words}' and give its folder as the engine"
    )


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
    try:
        return hash_file(Path(model))
    except FileNotFoundError:
        raise missing_checkpoint(Path(model)) from None
    except OSError as error:
        raise ModelError(f"checkpoint {model} cannot be read ({error.strerror}); check its permissions") from error
