"""The way in from Python: open an engine by name, enlarge images with it."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import replace
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from rsd_edge.arguments import check_threads, check_whole
from rsd_edge.backends import check_device, open_engine, open_frame_path
from rsd_edge.backends.base import Progress, TileEngine
from rsd_edge.bundle import hash_file, staleness
from rsd_edge.errors import BackendError, InputError
from rsd_edge.frames import SCALE, DType, PixelT, check_frame, check_out
from rsd_edge.machine import usable_cores
from rsd_edge.resample import AreaReduction, Bands, collect, reduce_bands, result_size
from rsd_edge.sampling import with_steps
from rsd_edge.selection import Choice, choose
from rsd_edge.specs import Backend, FramePathKind, Precision, TileSpec

if TYPE_CHECKING:
    from rsd_edge.backends.torch import TorchEngine

log = logging.getLogger(__name__)

EnumT = TypeVar("EnumT", bound=Enum)

CHECKPOINT_SUFFIX = ".safetensors"
_BYTES = np.dtype(np.uint8)


class SuperResolver:
    """Enlarges images with one engine.

        with SuperResolver.load("edge-s") as enlarge:
            result = enlarge(image_bgr)

    Calls from several threads run one after the other; for work in parallel, load one SuperResolver for each thread, or
    in each process: after `os.fork`, one of the parent raises BackendError.
    """

    def __init__(self, engine: TileEngine) -> None:
        """Take over an open engine; `close` closes it, and so does an error here."""
        self.engine = engine
        self.choice: Choice | None = None
        """How `load` came to this engine; None if it was given, or runs a checkpoint."""
        self._checkpoint: dict[str, Any] = {}
        try:
            self._path = open_frame_path(engine)
        except BaseException:
            engine.close()
            raise

    @classmethod
    def load(
        cls,
        model: str | Path = "edge-s",
        *,
        precision: str | Precision | None = None,
        backend: str | Backend | None = None,
        threads: int | None = None,
        tile: int | None = None,
        batch: int = 1,
        steps: int | None = None,
        device: str | None = None,
        frame_path: str | FramePathKind | None = None,
    ) -> SuperResolver:
        """Open a shipped engine by name, or a bundle folder or a checkpoint (.safetensors) by path.

        precision: fp32 or int8, None for the fastest on this machine, which is timed once and remembered, and which
        `choice` tells afterwards; a folder has one precision. backend: onnxruntime or openvino, None for the fastest of
        those installed where the precision is open too, and otherwise for the one that the engine was built for.
        threads: CPU threads, None for all cores; tile: side of a tile in LR pixels, halo included, None for the
        default; batch: tiles that the engine takes at once.
        A checkpoint runs on torch, in fp32, bf16 or fp16. steps: evaluations of the generator, None for as many as the
        model says. device: cpu or cuda, for a checkpoint; None is cpu. frame_path: what cuts and merges its frames:
        triton or reference on the device, for edge models, or numpy; None is triton for these on cuda, and else numpy.
        Raises ModelError, BackendError or InputError.
        """
        if not isinstance(model, str | Path):
            raise InputError(f"model is {model!r}; give a shipped name, or the path of an engine or a checkpoint")
        check_threads(threads)
        check_whole("batch", batch)
        if tile is not None:
            check_whole("tile", tile)
        wanted, runtime = _check(Precision, "precision", precision), _check(Backend, "backend", backend)
        kind = _check(FramePathKind, "frame path", frame_path)
        if str(model).endswith(CHECKPOINT_SUFFIX):
            path = Path(model)
            _check_runs_checkpoints(path, runtime)
            engine = _open_checkpoint(path, wanted, steps, threads, tile, batch, device or "cpu", kind)
            resolver = cls(engine)
            facts = {"device": device or "cpu", "frame_path": engine.frame_path.value}
            resolver._checkpoint = {"digest": hash_file(path), **facts}
            return resolver
        choice = choose(model, wanted, runtime, threads or usable_cores(), tile=tile, batch=batch)
        for reason in staleness(choice.candidate.bundle):
            log.warning("%s", reason)
        chosen = replace(choice.candidate.spec, model=with_steps(choice.candidate.spec.model, steps))
        tiles = TileSpec.of(chosen.model, tile, batch)
        check_device(device, chosen.backend, kind)
        opened = open_engine(choice.candidate.bundle.graph_path, chosen, tile=tiles, threads=threads)
        if tile not in (None, opened.tile.size):
            opened.close()
            raise InputError(f"tile is {tile}, but '{model}' was built for {opened.tile.size}; leave it out")
        resolver = cls(opened)
        resolver.choice = choice
        return resolver

    def __call__(
        self,
        image_bgr: NDArray[PixelT],
        *,
        seed: int = 0,
        strength: float = 1.0,
        scale: float = 4.0,
        size: tuple[int, int] | None = None,
        out: NDArray[PixelT] | None = None,
        progress: Progress | None = None,
    ) -> NDArray[PixelT]:
        """Enlarge one image.

        image_bgr: uint8 or uint16 (h, w, 3) in BGR order, with values up to 255 or 65535.
        seed: with the same engine and the same size of tiles, the same seed gives the same bytes; other tiles change
            single pixels by a few levels.
        strength: 0 is plain bicubic, 1 is all the detail that the network adds.
        scale: 1 to 4; below 4 the fourfold result is reduced by area averaging.
        size: (width, height) of the result instead of `scale`, each one to four times that of the image.
        progress: called with (tiles done, tiles in all).
        Returns BGR (round(h * scale), round(w * scale), 3) of the same dtype: `out` if given, or a new array.
        Raises InputError for arguments that cannot be used, BackendError if the engine fails.
        """
        frame = check_frame(image_bgr)
        height, width = frame.shape[:2]
        new_width, new_height = result_size((width, height), scale, size)
        if (new_width, new_height) == (SCALE * width, SCALE * height):
            return self._path(frame, seed=seed, strength=strength, out=out, progress=progress)
        out = check_out(out, frame, (new_height, new_width, 3))
        size = (new_width, new_height)
        collect(self.bands(frame, seed=seed, strength=strength, size=size, progress=progress), out)
        return out

    def bands(
        self,
        image_bgr: NDArray[PixelT],
        *,
        seed: int = 0,
        strength: float = 1.0,
        scale: float = 4.0,
        size: tuple[int, int] | None = None,
        progress: Progress | None = None,
    ) -> Bands:
        """The rows that `__call__` would return, byte for byte, from top to bottom, in bands as they are finished.

        On the CPU, memory does not grow with the height of the result. A band may be overwritten when the next one is
        asked for. From the first band until the generator is exhausted or closed, calls from other threads wait, and
        those from the same one raise InputError.
        """
        frame = check_frame(image_bgr)
        height, width = frame.shape[:2]
        new_width, new_height = result_size((width, height), scale, size)
        bands = self._path.bands(frame, seed=seed, strength=strength, progress=progress)
        if (new_width, new_height) == (SCALE * width, SCALE * height):
            return bands
        return reduce_bands(bands, AreaReduction((SCALE * height, SCALE * width), (new_height, new_width)))

    def stream(
        self,
        images_bgr: Iterable[NDArray[np.uint8]],
        *,
        seed: int = 0,
        strength: float = 1.0,
        scale: float = 4.0,
        temporal: str = "fixed",
        reuse_threshold: float = 0.0,
    ) -> Iterator[NDArray[np.uint8]]:
        """Enlarge a film: a result for each image, in their order, made when it is asked for.

        images_bgr: uint8 (h, w, 3) in BGR order, taken one by one; another size begins another film.
        temporal: fixed keeps the noise in its place, flow lets it move with what is seen, blend averages detail along
            what is seen, which is steadiest.
        reuse_threshold: see `rsd_edge.live.settings.StreamSettings`; parts that have not changed at all are never
        computed again.
        With `fixed` and a threshold of 0, results are those of single calls, with a batch of 1 byte for byte. They are
        read-only, and where nothing has changed the same array comes again. Raises InputError for bad settings at once
        and for bad images when they come, BackendError if the engine fails.
        """
        from rsd_edge.live.path import LivePath
        from rsd_edge.live.settings import StreamSettings

        settings = StreamSettings(seed, strength, scale, temporal, reuse_threshold=reuse_threshold)
        return LivePath(self.engine, settings).stream(images_bgr, self._path.alone)

    def record(self) -> dict[str, Any]:
        """What runs, for reports: model, precision, backend, steps, side of a tile, and what it was loaded from."""
        spec = self.engine.spec
        return {
            "model": spec.model.name,
            "precision": spec.precision.value,
            "backend": spec.backend.value,
            "steps": spec.model.steps,
            "tile": self.engine.tile.size,
            **(self.choice.record() if self.choice else self._checkpoint),
        }

    def warm_up(self, height: int, width: int, dtype: DType = _BYTES) -> None:
        """Do the work that the first image of this kind would otherwise wait for. Raises BackendError, InputError."""
        self._path.prepare(height, width, dtype)

    def close(self) -> None:
        """Release the engine; the resolver cannot be used afterwards. Calling it again does nothing."""
        self._path.close()
        self.engine.close()

    def __enter__(self) -> SuperResolver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check_runs_checkpoints(path: Path, backend: Backend | None) -> None:
    if backend not in (None, Backend.TORCH):
        raise BackendError(
            f"{backend.value} does not run {path}; use --backend torch, or build an engine with "
            f"'rsd-edge build-engine --model {shlex.quote(str(path))} --backend {backend.value}'"
        )


def _open_checkpoint(
    path: Path,
    precision: Precision | None,
    steps: int | None,
    threads: int | None,
    tile: int | None,
    batch: int,
    device: str,
    frame_path: FramePathKind | None,
) -> TorchEngine:
    from rsd_edge.backends.torch import open_checkpoint

    return open_checkpoint(
        path,
        precision=precision or Precision.FP32,
        steps=steps,
        threads=threads,
        tile=tile,
        batch=batch,
        device=device,
        frame_path=frame_path,
    )


def _check(kind: type[EnumT], name: str, value: str | EnumT | None) -> EnumT | None:
    try:
        return None if value is None else kind(value)
    except ValueError:
        names = ", ".join(str(item.value) for item in kind)
        raise InputError(f"{name} is '{value}'; it must be one of {names}") from None
