"""A checkpoint as a function from tiles to detail, on arrays: what runs behind the torch engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rsd_edge.errors import BackendError
from rsd_edge.models.checkpoint import Checkpoint
from rsd_edge.models.edge import EdgeTile
from rsd_edge.models.edge_tile import edge_tile
from rsd_edge.models.published import PublishedModel, bicubic_up, published_model
from rsd_edge.models.swin_unet import GroupNorm32
from rsd_edge.specs import EDGE_FAMILY, Precision

DTYPES = {Precision.FP32: torch.float32, Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}

Tile = NDArray[np.float32]
NetworkT = TypeVar("NetworkT", bound=nn.Module)


class DetailNetwork:
    """(lq, noise) -> detail, with the shapes of TileEngine.submit. Weights lie as convolutions like them."""

    def __init__(self, checkpoint: Checkpoint, precision: Precision, threads: int, device: str = "cpu") -> None:
        """device: cpu or cuda.

        Raises BackendError for a precision that torch has no float for or a device that it does not have, ModelError
        for parts that do not fit.
        """
        if precision not in DTYPES:
            names = ", ".join(item.value for item in DTYPES)
            raise BackendError(f"torch runs {names}, not {precision.value}; build an engine for that")
        self._threads, self.device, self.dtype = threads, _device(device), DTYPES[precision]
        self.tile: EdgeTile | None = None
        """The network of an edge model, on `device` in `dtype`."""
        self._image: Callable[[Tensor, Tensor], Tensor]
        if checkpoint.spec.family == EDGE_FAMILY:
            self.tile = channels_last(edge_tile(checkpoint)).to(self.device, self.dtype)
            self._image = _cast(self.tile, self.dtype)
        else:
            self._image = _published(checkpoint, precision, self.device)

    @torch.no_grad()
    def __call__(self, lq: Tile, noise: Tile, detail: Tile) -> None:
        """Write the detail. Raises BackendError if there is not enough memory."""
        if torch.get_num_threads() != self._threads:  # of the process, so another network may have changed it
            torch.set_num_threads(self._threads)
        try:
            rgb = self._image(*(torch.from_numpy(array).to(self.device) for array in (lq, noise))).cpu()
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            shape = "x".join(map(str, lq.shape))
            raise BackendError(f"torch failed on tiles of {shape} ({reason}); try a smaller --tile") from error
        np.copyto(detail, rgb.permute(0, 2, 3, 1).flip(3).numpy())


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        reason = "is built without CUDA" if torch.version.cuda is None else "finds no GPU that works"
        raise BackendError(
            f"device is cuda, but torch {torch.__version__} {reason}; leave --device out to run on the CPU"
        )
    if name == "cuda":  # otherwise convolutions in fp32 keep 10 bits of their factors; it is of the process, too
        torch.backends.cudnn.allow_tf32 = False
    return torch.device(name)


def _cast(tile: EdgeTile, dtype: torch.dtype) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda lq, noise: tile(lq.to(dtype), noise.to(dtype)).float()


def _published(
    checkpoint: Checkpoint, precision: Precision, device: torch.device
) -> Callable[[Tensor, Tensor], Tensor]:
    model = cast_networks(published_model(checkpoint), precision).to(device)

    def detail(lq: Tensor, noise: Tensor) -> Tensor:
        image: Tensor = model(lq, noise)
        return image.clamp_(-1, 1).sub_(bicubic_up(lq))  # clamped, as published decoding is

    return detail


def cast_networks(model: PublishedModel, precision: Precision) -> PublishedModel:
    """Generator and autoencoder in that precision; normalisation, the code book and all between them stay in fp32."""
    autoencoder = model.decoder.autoencoder
    for network in (model.generator.generator, autoencoder):
        channels_last(network).to(DTYPES[precision])
        for module in network.modules():
            if isinstance(module, GroupNorm32):
                module.float()
    autoencoder.quantize.float()
    return model


def channels_last(network: NetworkT) -> NetworkT:
    """The network itself, with the layout that a CPU's convolutions like."""
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
