"""What to stand beside: bicubic, published models in ncnn's format, and published checkpoints on torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rsd_edge.bench.quality import BICUBIC, BICUBIC_IDENTITY, scores_by_identity
from rsd_edge.bench.subjects import Wish, frame_run, is_checkpoint, picture
from rsd_edge.bench.timing import Run
from rsd_edge.errors import InputError, MissingDependencyError, ModelError
from rsd_edge.frames import SCALE, bicubic_x4
from rsd_edge.opencv import cv2

GENERAL = "realesr-general-x4v3"
"""The peer that is asked after first."""
_PARAM, _WEIGHTS = ".param", ".bin"


class NcnnPeer:
    """Any ncnn network with input `data` (RGB in 0..1) and output `output` (x4).

    Runs whole frames without tiles, as its authors do for small ones.
    """

    def __init__(self, param: Path, weights: Path, threads: int) -> None:
        """Raises MissingDependencyError without ncnn, ModelError for files that it cannot load."""
        try:
            import ncnn
        except ModuleNotFoundError as error:
            raise MissingDependencyError("the peer needs 'ncnn'; run: pip install 'rsd-edge[peers]'") from error
        self._ncnn = ncnn
        self._net = ncnn.Net()
        self._net.opt.num_threads = threads
        if self._net.load_param(str(param)) or self._net.load_model(str(weights)):
            raise ModelError(f"ncnn cannot load {param} with {weights}; give a .param and its .bin")

    def __call__(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """uint8 BGR (h, w, 3) to uint8 BGR (4h, 4w, 3)."""
        rgb = np.ascontiguousarray(frame[..., ::-1].transpose(2, 0, 1), np.float32) / np.float32(255)
        enlarged = self.network(rgb)()
        return np.round(np.clip(enlarged, 0, 1) * 255).astype(np.uint8)[::-1].transpose(1, 2, 0)

    def network(self, rgb: NDArray[np.float32]) -> Callable[[], NDArray[np.float32]]:
        """The network alone, on one input float32 (3, h, w), ready to run."""
        source = self._ncnn.Mat(rgb)

        def run() -> NDArray[np.float32]:
            extractor = self._net.create_extractor()
            extractor.input("data", source)
            return np.asarray(extractor.extract("output")[1], np.float32)

        return run


def check_peer(path: Path) -> None:
    """Raises InputError for a file that `peer_run` does not take."""
    if not path.is_file():
        raise InputError(f"peer {path} does not exist; give a .param of ncnn or a .safetensors of import-weights")
    if path.suffix == _PARAM:
        if not path.with_suffix(_WEIGHTS).is_file():
            raise InputError(f"peer {path} has no weights; put {path.with_suffix(_WEIGHTS).name} beside it")
    elif not is_checkpoint(str(path)):
        raise InputError(
            f"peer {path} is neither a .param of ncnn nor a .safetensors; convert published checkpoints with "
            "'rsd-edge import-weights'"
        )


def peer_name(path: Path) -> str:
    """Of a peer's file, without the endings."""
    return path.name.partition(".")[0]


def peer_identity(path: Path) -> str:
    """Digest of what a peer is made of, in hexadecimal: its file, and of ncnn's both."""
    files = (path, path.with_suffix(_WEIGHTS)) if path.suffix == _PARAM else (path,)
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as content:
            while block := content.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def scores_of_peer(path: Path | None) -> dict[str, float] | None:
    """Mean scores over `quality.SET` of exactly these files, whatever they are called, or of bicubic if path is None.

    None if they were not scored.
    """
    return scores_by_identity(BICUBIC_IDENTITY if path is None else peer_identity(path))


def peer_run(path: Path, width: int, height: int, threads: int) -> Run:
    """A frame through a published model, from uint8 to uint8. Raises what opening it raises."""
    if is_checkpoint(str(path)):
        return frame_run(Wish(str(path)).load(threads), width, height)
    peer, frame = NcnnPeer(path, path.with_suffix(_WEIGHTS), threads), picture(width, height)
    return lambda: peer(frame)


def bicubic_run(width: int, height: int, threads: int) -> Run:
    """OpenCV's bicubic enlargement, on so many of its threads."""
    frame, out = picture(width, height), np.empty((SCALE * height, SCALE * width, 3), np.uint8)

    def run() -> None:
        kept = cv2.getNumThreads()
        cv2.setNumThreads(threads)
        try:
            bicubic_x4(frame, out)
        finally:
            cv2.setNumThreads(kept)

    return run


def open_peer(path: Path | None, width: int, height: int, threads: int) -> Run:
    """For `peak_megabytes`, too. path: None for bicubic."""
    return bicubic_run(width, height, threads) if path is None else peer_run(path, width, height, threads)


def peers_of(files: tuple[Path, ...]) -> dict[str, Path | None]:
    """Bicubic and the published models of these files, by name. Raises InputError as `check_peer`, and for a name
    that comes twice."""
    found: dict[str, Path | None] = {BICUBIC: None}
    for path in files:
        check_peer(path)
        if peer_name(path) in found:
            raise InputError(f"peer {path} has the name of another one, {peer_name(path)}; rename one of the files")
        found[peer_name(path)] = path
    return found
