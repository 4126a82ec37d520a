"""A FramePath for torch: a whole frame on the device, with three launches of ours around the network.

    frame (uint8) -> frame_tiles -> network(lq, noise) -> merge_tiles -> frame (uint8)
                     noise_field ----------^

On a GPU all of it is one CUDA graph for each size of frame; what crosses the bus is the frame, the result, and a word
that says whether any detail was not finite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rsd_edge.backends.device_frames import DeviceEngine, DeviceFrames, Space, warn_of_lost_tiles
from rsd_edge.errors import BackendError, InputError
from rsd_edge.frames import SCALE
from rsd_edge.kernels.frame_ops import frame_tiles, merge_tiles
from rsd_edge.kernels.implementation import DTYPES, check_device, check_implementation
from rsd_edge.kernels.noise_field import noise_field, seed_tensor
from rsd_edge.tiling import TilePlan

Network: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(lq (n, 3, h, w), noise (n, noise_channels, h, w)) -> detail (n, 3, 4h, 4w) in RGB, as models.edge.EdgeTile does."""

_WARM_UPS = 3
"""Runs before a capture: libraries choose algorithms and allocate on their first calls, which a graph cannot hold."""


class CudaFramePath(DeviceFrames[DeviceEngine]):
    """Enlarges uint8 frames with a torch network, all tiles of a frame in memory at once."""

    def __init__(
        self,
        engine: DeviceEngine,
        network: Network,
        *,
        implementation: str,
        device: str | torch.device = "cuda",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """engine: what the network is of, for model and tiles, and for frames that do not fit into memory at once.

        network: in evaluation mode, on `device`, in `dtype`, taking engine.tile.batch tiles at once; with a CUDA graph
        it must not read from the device. Raises InputError, BackendError, MissingDependencyError.
        """
        self.device = torch.device(device)
        check_device(self.device)
        check_implementation(implementation, self.device)
        if dtype not in DTYPES:
            raise InputError(f"dtype is {dtype}; use float32, float16 or bfloat16")
        super().__init__(engine)
        self._network, self._implementation, self._dtype = network, implementation, dtype

    def new_space(self, plan: TilePlan) -> Space:
        """See DeviceFrames."""
        return _Space(plan, self.device, self.engine.spec.model.name, self._detail, self._merge)

    def memory(self, plan: TilePlan) -> tuple[int, int]:
        """See DeviceFrames; what the network takes for a batch is not in it. A CPU has room for anything."""
        if self.device.type != "cuda":
            return 0, 0
        values = 3 + self.engine.spec.model.noise_channels + 2 * 3 * SCALE**2  # detail of batches, then of all together
        tiles = plan.count * plan.tile_h * plan.tile_w * values * self._dtype.itemsize
        frame = (1 + SCALE**2) * 3 * plan.y.length * plan.x.length
        kept = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return tiles + frame, torch.cuda.mem_get_info(self.device)[0] + kept

    def _detail(self, space: _Space) -> Tensor:
        plan, implementation = space.plan, self._implementation
        lq = frame_tiles(space.frame, plan, dtype=self._dtype, implementation=implementation)
        channels = self.engine.spec.model.noise_channels
        noise = noise_field(
            space.seeds, space.origins, channels, plan.tile_h, plan.tile_w, dtype=self._dtype,
            implementation=implementation,
        )  # fmt: skip
        batch = self.engine.tile.batch
        batches = zip(torch.split(lq, batch), torch.split(noise, batch), strict=True)
        details = [self._network(*batch) for batch in batches]
        return details[0] if len(details) == 1 else torch.cat(details)

    def _merge(self, space: _Space, detail: Tensor) -> Tensor:
        return merge_tiles(
            detail, space.frame, space.strength, space.not_finite, space.plan, implementation=self._implementation
        )


class _Space:
    """Buffers for one size of frame, and, on a GPU, the graph that works on them."""

    def __init__(
        self,
        plan: TilePlan,
        device: torch.device,
        model: str,
        detail: Callable[[_Space], Tensor],
        merge: Callable[[_Space, Tensor], Tensor],
    ) -> None:
        """model: its name, for messages. detail, merge: the two halves of the work; the graph holds both."""
        self.plan, self._device, self._model, self._make_detail, self._merge = plan, device, model, detail, merge
        self._graph: torch.cuda.CUDAGraph | None = None
        with self._on_device():
            self._allocate()
            if device.type == "cuda":
                self._capture()

    def enlarge(self, frame: NDArray[Any], seed: int, strength: float) -> NDArray[np.uint8]:
        """See Space."""
        with self._on_device():
            np.copyto(self._upload.numpy(), frame)
            self.frame.copy_(self._upload, non_blocking=True)
            self.seeds.fill_(int(seed_tensor([seed])))
            self.strength.fill_(strength)
            if self._graph is None:
                self._work()
            else:
                self._graph.replay()
            self._fetch()
            if self._lost:
                self._leave_out()
        return self._download.numpy()

    def close(self) -> None:
        """See Space: the graph, whose memory is its own, and what torch frees when nothing refers to it."""
        self._graph = None
        self._detail = self._enlarged = torch.empty(0)

    def _allocate(self) -> None:
        plan, device, on_gpu = self.plan, self._device, self._device.type == "cuda"
        height, width = plan.y.length, plan.x.length
        self._upload = torch.empty((height, width, 3), dtype=torch.uint8, pin_memory=on_gpu)
        self._download = torch.empty((SCALE * height, SCALE * width, 3), dtype=torch.uint8, pin_memory=on_gpu)
        self._lost = torch.zeros(1, dtype=torch.int32, pin_memory=on_gpu)
        self.frame = torch.zeros((height, width, 3), dtype=torch.uint8, device=device)
        origins = [plan.origin(index) for index in range(plan.count)]
        self.origins = torch.tensor(origins, dtype=torch.int32, device=device)
        self.seeds = torch.zeros(plan.count, dtype=torch.int64, device=device)
        self.strength = torch.zeros(1, device=device)
        self.not_finite = torch.zeros(1, dtype=torch.int32, device=device)
        self._detail = self._enlarged = torch.empty(0)

    def _work(self) -> None:
        self._detail = self._make_detail(self)
        self._enlarged = self._merge(self, self._detail)

    def _fetch(self) -> None:
        self._download.copy_(self._enlarged, non_blocking=True)
        self._lost.copy_(self.not_finite, non_blocking=True)
        if self._graph is not None:
            torch.cuda.current_stream(self._device).synchronize()

    def _leave_out(self) -> None:
        """Merge again without the detail of tiles that are not finite. It is rare, so that time does not matter."""
        bad = [index for index, tile in enumerate(self._detail) if not tile.isfinite().all()]
        for index in bad:
            self._detail[index] = 0
        self.not_finite.zero_()
        self._download.copy_(self._merge(self, self._detail))
        if bad:
            warn_of_lost_tiles(len(bad), self.plan.count, self._model, "choose another precision")

    def _capture(self) -> None:
        aside = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UPS):
                self._work()
        torch.cuda.current_stream(self._device).wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._work()
        self._graph = graph

    @contextmanager
    def _on_device(self) -> Iterator[None]:
        """Work there, without gradients; what torch says of a failure becomes a BackendError."""
        try:
            with torch.inference_mode():
                if self._device.type == "cuda":
                    with torch.cuda.device(self._device):
                        yield
                else:
                    yield
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            size = f"{self.plan.x.length}x{self.plan.y.length}"
            raise BackendError(
                f"torch failed on a frame of {size} as a whole ({reason}); frame path 'numpy' takes it batch by batch"
            ) from error
