"""Engines that were built for the GPU of this machine, found by the name of the model that they came from."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
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
from rsd_edge.errors import BackendError, ModelError, NoEngineError, OutputError
from rsd_edge.machine import cache_folder
from rsd_edge.specs import Backend, Precision
from rsd_edge.stream.atomic import check_writable

log = logging.getLogger(__name__)


def engine_folder() -> Path:
    """Where `rsd-edge run` keeps engines that it builds. Raises BackendError where the user has no home."""
    try:
        return cache_folder() / "engines"
    except RuntimeError as error:
        raise BackendError(f"engines cannot be kept ({error}); set XDG_CACHE_HOME to a folder") from error


def room_for_engines() -> Path:
    """The same, found to take files. Raises OutputError, too."""
    folder = engine_folder()
    try:
        check_writable(folder)
    except OutputError as error:
        raise OutputError(f"{error} with XDG_CACHE_HOME") from error
    return folder


@dataclass(frozen=True)
class _Wish:
    """What an engine has to be, besides one of the model and for this GPU."""

    precision: Precision | None
    tile: int | None
    batch: int
    kernels: bool
    calibration: str | None

    def met(self, manifest: Mapping[str, Any]) -> bool:
        """By the engine of this manifest."""
        options = manifest["target"]["options"]
        return (
            (self.precision is None or manifest["engine"]["precision"] == self.precision.value)
            and self.tile in (None, options["tile"])
            and options["batch"][0] <= self.batch <= options["batch"][2]
            and (not self.kernels or bool(options.get("kernels")))
            and self.calibration in (None, manifest["source"].get("calibration"))
        )


def tensorrt_engine(
    model: str,
    precision: Precision | None,
    folder: Path | None = None,
    *,
    tile: int | None = None,
    batch: int = 1,
    kernels: bool = False,
    calibration: str | None = None,
) -> Bundle:
    """The TensorRT engine of a shipped model or a checkpoint for this GPU, the fastest if there are several.

    model: a shipped name, or the path of a .safetensors file. precision: None for any. folder: where to look; None for
    that of `engine_folder`. tile: the side of its tiles, None for any. batch: tiles that it must take at once. kernels:
    only with those for whole frames. calibration: only with ranges from the images in this folder; None for any.
    The fastest is that of the least time for each pixel of a tile that is not halo; damaged ones are told of and left
    out.
    Raises MissingDependencyError or BackendError without TensorRT or a GPU, or for another precision than fp16 and
    int8, ModelError for a checkpoint that cannot be
    read, and NoEngineError with the command that builds an engine where there is none.
    """
    if precision not in (None, Precision.FP16, Precision.INT8):
        raise BackendError(
            f"tensorrt engines are built in fp16 or int8, not in {precision.value}; use --precision fp16"
        )
    here, digest = _here(), _digest(model)
    wish = _Wish(precision, tile, batch, kernels, calibration)
    found = []
    for path in sorted((folder or engine_folder()).glob(f"*-{Backend.TENSORRT.value}-*/{MANIFEST}")):
        try:
            manifest = read_manifest(path.parent)
            own = (manifest.get("source") or {}).get("digest") == digest
            if own and wish.met(manifest) and not _against(manifest, here):
                found.append((_ms_per_pixel(manifest), path.parent))
        except ModelError as error:
            log.info("%s", error)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            log.info("%s is not a valid manifest (%r) and left out", path, error)
    for _, fastest in sorted(found):
        try:
            return load_bundle(fastest)
        except ModelError as error:
            log.warning("%s", error)
    raise _no_engine(model, wish)


def _ms_per_pixel(manifest: Mapping[str, Any]) -> float:
    """Of the result, in LR pixels: what a small tile saves in time, it needs in numbers."""
    engine, speed = manifest["engine"], manifest["speed"]
    return float(speed["median_ms"][engine["precision"]]) / int(speed["tile"] - 2 * engine["model"]["halo"]) ** 2


def _no_engine(model: str, wish: _Wish) -> NoEngineError:
    needs: list[str] = []
    words = f"--model {shlex.quote(model)} --backend {Backend.TENSORRT.value}"
    words += "" if wish.precision is None else f" --precision {wish.precision.value}"
    if wish.tile is not None:
        needs, words = [f"tiles of {wish.tile}"], f"{words} --tile {wish.tile}"
    if wish.batch > 1:
        needs, words = [*needs, f"batches of {wish.batch}"], f"{words} --batch 1,{wish.batch},{wish.batch}"
    what = f" with {' and '.join(needs)}" if needs else ""
    return NoEngineError(
        f"there is no TensorRT engine of '{model}'{what} for this GPU; add --auto-build, or run "
        f"'rsd-edge build-engine {words}' and give its folder as the engine"
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
