"""Metrics of the optional package pyiqa: LPIPS on AlexNet, DISTS, FID, NIQE, MUSIQ, CLIPIQA and MANIQA.

Their weights do not ship with this project: pyiqa downloads them when a metric is made for the first time, and keeps
them in its own cache. It is for non-commercial use (0.1.16: PolyForm Noncommercial 1.0.0).
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rsd_edge.errors import FetchError, InputError, MissingDependencyError
from rsd_edge.evaluate.catalogue import CATALOGUE
from rsd_edge.evaluate.metrics import Image

FID_IMAGES = 2048
"""As many as Inception has features: with fewer images their covariance is singular and FID is far too large."""
_SEED = 0


class PyiqaMetric:
    """One metric of pyiqa, with its weights."""

    def __init__(self, name: str, device: str = "cpu") -> None:
        """`name` is one of CATALOGUE. Raises MissingDependencyError, or FetchError if weights cannot be had."""
        self._name = name
        pyiqa = _pyiqa(name)
        import torch

        self._torch: Any = torch
        try:
            with _prints_apart():
                self._metric: Any = pyiqa.create_metric(CATALOGUE[name].pyiqa, device=torch.device(device))
        except Exception as error:  # what downloads raise depends on the library that pyiqa uses for them
            raise FetchError(
                f"pyiqa cannot make {name} on {device} ({_reason(error)}); check the connection and the device, or "
                "leave it out of --metrics"
            ) from error

    def __call__(self, image: Image, reference: Image | None = None) -> float:
        """The score of a uint8 (h, w, 3) BGR image. Raises InputError if pyiqa cannot score it, as for tiny ones."""
        images = [self._tensor(item) for item in (image, reference) if item is not None]
        self._restart()
        try:
            with self._torch.no_grad(), _prints_apart():
                return float(self._metric(*images).item())
        except (RuntimeError, ValueError, AssertionError) as error:
            size = f"{image.shape[1]}x{image.shape[0]}"
            raise InputError(f"pyiqa cannot score {size} with {self._name} ({error}); use other images") from error

    def of_folders(self, results: Path, references: Path) -> float:
        """The score of all images of a folder against those of another, for FID."""
        self._restart()
        with _prints_apart():
            return float(self._metric(str(results), str(references), num_workers=0, verbose=False))

    def _restart(self) -> None:
        """MANIQA draws crops from NumPy's global generator; an image is to have one score whatever came before."""
        np.random.seed(_SEED)
        self._torch.manual_seed(_SEED)

    def _tensor(self, image: Image) -> Any:
        """uint8 (h, w, 3) BGR -> float32 (1, 3, h, w) RGB in [0, 1]."""
        planes = np.ascontiguousarray(image[:, :, ::-1].transpose(2, 0, 1)[np.newaxis])
        return self._torch.from_numpy(planes).float() / 255


def check_fid(images: int, *, force: bool) -> None:
    """Raises InputError for sets that are too small for FID, unless forced."""
    if images < FID_IMAGES and not force:
        raise InputError(
            f"FID of {images} images means little: below {FID_IMAGES} the covariance of its features is singular; "
            "leave fid out of --metrics, or add --force-fid to have the number all the same"
        )


def fid(metric: PyiqaMetric, results: Mapping[str, Path], references: Mapping[str, Path]) -> float:
    """FID of whole files, which pyiqa opens itself."""
    with tempfile.TemporaryDirectory() as folder:
        sides = [Path(folder, name) for name in ("results", "references")]
        for side, paths in zip(sides, (results, references), strict=True):
            side.mkdir()
            for stem, path in paths.items():
                (side / f"{stem}{path.suffix.lower()}").symlink_to(path.resolve())
        return metric.of_folders(*sides)


def pyiqa_version(name: str) -> str:
    """Of the package, for reports. `name` is a metric that needs it. Raises MissingDependencyError."""
    return str(getattr(_pyiqa(name), "__version__", "unknown"))


def _prints_apart() -> contextlib.AbstractContextManager[Any]:
    """pyiqa prints what it loads; stdout is for results."""
    return contextlib.redirect_stdout(sys.stderr)


def _pyiqa(name: str) -> Any:
    """The package. It drags in torchvision, which fails in ways of its own beside another build of torch."""
    try:
        import pyiqa
    except Exception as error:
        raise MissingDependencyError(
            f"{name} needs the package pyiqa, which cannot be imported ({_reason(error)}); run: pip install "
            "'rsd-edge[pyiqa]', with torchvision from the same index as torch"
        ) from error
    return pyiqa


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
