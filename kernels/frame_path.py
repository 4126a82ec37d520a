"""A FramePath for torch: a whole frame on the device, with three launches of ours around the network.

    frame (uint8) -> frame_tiles -> network(lq, noise) -> merge_tiles -> frame (uint8)
                     noise_field ----------^

On a GPU all of it is one CUDA graph for each size of frame; what crosses the bus is the frame and the result.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rsd_edge.backends.base import Progress
from rsd_edge.errors import InputError
from rsd_edge.frames import SCALE, PixelT, bicubic_x4, check_frame, check_out
from rsd_edge.kernels.frame_ops import frame_tiles, merge_tiles
from rsd_edge.kernels.implementation import DTYPES, check_implementation
from rsd_edge.kernels.noise_field import noise_field, seed_tensor
from rsd_edge.noise import NoiseField
from rsd_edge.specs import ModelSpec, TileSpec
from rsd_edge.tiling import TilePlan, plan_tiles

Network: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(lq (n, 3, h, w), noise (n, noise_channels, h, w)) -> detail (n, 3, 4h, 4w) in RGB, as models.edge.EdgeTile does."""

_WARM_UPS = 3
"""Runs before a capture: libraries choose algorithms and allocate on their first calls, which a graph cannot hold."""


class CudaFramePath:
    """Enlarges uint8 frames with a torch network; see FramePath. Calls from several threads run one after the other.

    All tiles of a frame are in memory at once, and buffers and the graph are kept for the last size of frame.
    """

    def __init__(
        self,
        network: Network,
        model: ModelSpec,
        tile: TileSpec,
        *,
        implementation: str,
        device: str | torch.device = "cuda",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """network: in evaluation mode, on `device`, in `dtype`; with a CUDA graph it must not read from the device.

        tile.batch: tiles that the network takes at once. Raises InputError, BackendError, MissingDependencyError.
        """
        self.device = torch.device(device)
        check_implementation(implementation, self.device)
        if dtype not in DTYPES:
            raise InputError(f"dtype is {dtype}; use float32, float16 or bfloat16")
        self._network, self._model, self._tile = network, model, tile
        self._implementation, self._dtype = implementation, dtype
        self._space: _Space | None = None
        self._lock = threading.Lock()

    @torch.inference_mode()
    def __call__(
        self,
        frame: NDArray[PixelT],
        *,
        seed: int = 0,
        strength: float = 1.0,
        out: NDArray[PixelT] | None = None,
        progress: Progress | None = None,
    ) -> NDArray[PixelT]:
        """See FramePath; frames of 16 bits raise InputError, and `progress` is called once."""
        frame = check_frame(frame)
        if frame.dtype != np.uint8:
            raise InputError("frames of 16 bits do not run on this path; use SuperResolver, or convert to uint8")
        if not 0.0 <= strength <= 1.0:
            raise InputError(f"strength is {strength}; it must lie between 0 and 1")
        height, width = frame.shape[:2]
        out = check_out(out, frame, (SCALE * height, SCALE * width, 3))
        field = NoiseField(seed)
        if strength == 0.0:
            bicubic_x4(frame, out)
        else:
            with self._lock:
                space = self._space_for(plan_tiles(height, width, self._tile))
                space.load(frame.view(np.uint8), field.seed, strength)
                np.copyto(out, space.result())
        if progress is not None:
            progress(1, 1)
        return out

    def _space_for(self, plan: TilePlan) -> _Space:
        if self._space is None or self._space.plan != plan:
            self._space = None  # frees the old buffers before the new ones are made
            self._space = _Space(plan, self.device, self._enlarge)
        return self._space

    def _enlarge(self, space: _Space) -> Tensor:
        plan, implementation = space.plan, self._implementation
        lq = frame_tiles(space.frame, plan, dtype=self._dtype, implementation=implementation)
        channels = self._model.noise_channels
        noise = noise_field(
            space.seeds, space.origins, channels, plan.tile_h, plan.tile_w, dtype=self._dtype,
            implementation=implementation,
        )  # fmt: skip
        batches = zip(torch.split(lq, self._tile.batch), torch.split(noise, self._tile.batch), strict=True)
        details = [self._network(*batch) for batch in batches]
        detail = details[0] if len(details) == 1 else torch.cat(details)
        return merge_tiles(detail, space.frame, space.strength, plan, implementation=implementation)


class _Space:
    """Buffers for one size of frame, and, on a GPU, the graph that works on them."""

    def __init__(self, plan: TilePlan, device: torch.device, enlarge: Callable[[_Space], Tensor]) -> None:
        self.plan, self._enlarge = plan, enlarge
        on_gpu = device.type == "cuda"
        height, width = plan.y.length, plan.x.length
        self._upload = torch.empty((height, width, 3), dtype=torch.uint8, pin_memory=on_gpu)
        self._download = torch.empty((SCALE * height, SCALE * width, 3), dtype=torch.uint8, pin_memory=on_gpu)
        self.frame = torch.zeros((height, width, 3), dtype=torch.uint8, device=device)
        origins = [plan.origin(index) for index in range(plan.count)]
        self.origins = torch.tensor(origins, dtype=torch.int32, device=device)
        self.seeds = torch.zeros(plan.count, dtype=torch.int64, device=device)
        self.strength = torch.zeros(1, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None
        if on_gpu:
            self._capture(device)

    def load(self, frame: NDArray[np.uint8], seed: int, strength: float) -> None:
        """Take what the next result is made of."""
        np.copyto(self._upload.numpy(), frame)
        self.frame.copy_(self._upload, non_blocking=True)
        self.seeds.fill_(int(seed_tensor([seed])))
        self.strength.fill_(strength)

    def result(self) -> NDArray[np.uint8]:
        """The enlarged frame (4h, 4w, 3); the next call overwrites it."""
        if self._graph is None:
            self._download.copy_(self._enlarge(self))
        else:
            self._graph.replay()
            self._download.copy_(self._enlarged)
        return self._download.numpy()

    def _capture(self, device: torch.device) -> None:
        with torch.cuda.device(device):
            aside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(aside):
                for _ in range(_WARM_UPS):
                    self._enlarge(self)
            torch.cuda.current_stream(device).wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._enlarged = self._enlarge(self)
            self._graph = graph
