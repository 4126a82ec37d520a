"""The part of the CUDA runtime that engines need, through cuda-python. Addresses are plain integers."""

from __future__ import annotations

import copy
import ctypes
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from rsd_edge.errors import BackendError, MissingDependencyError
from rsd_edge.machine import l4t_release

_MIB = 1 << 20


@dataclass(frozen=True)
class DeviceInfo:
    """The GPU that this process uses."""

    name: str
    capability: tuple[int, int]
    integrated: bool
    """It shares the memory of the CPU, as on a Jetson: nothing has to be copied."""
    total_bytes: int

    @property
    def sm(self) -> int:
        """87 for sm_87."""
        return 10 * self.capability[0] + self.capability[1]


class Cuda:
    """Calls of the CUDA runtime with errors as exceptions, and everything that they made, freed by `close`."""

    def __init__(self) -> None:
        """Raises MissingDependencyError without cuda-python, BackendError without a driver or a GPU."""
        try:
            from cuda.bindings import runtime
        except ImportError as error:
            raise MissingDependencyError(
                f"TensorRT engines need cuda-python, which cannot be imported ({error}); "
                f"run: pip install 'rsd-edge[{'jetson' if l4t_release() else 'tensorrt'}]'"
            ) from error
        self._api: Any = runtime
        self._made = ExitStack()
        count = self._do("cudaGetDeviceCount", runtime.cudaGetDeviceCount())
        if count < 1:
            raise BackendError("CUDA finds no GPU here; check 'nvidia-smi' or CUDA_VISIBLE_DEVICES")
        self.make_current()
        found = self._do("cudaGetDeviceProperties", runtime.cudaGetDeviceProperties(0))
        name = found.name.decode(errors="replace") if isinstance(found.name, bytes) else str(found.name)
        self.device = DeviceInfo(
            name.rstrip("\0"), (int(found.major), int(found.minor)), bool(found.integrated), int(found.totalGlobalMem)
        )

    def make_current(self) -> None:
        """Let the calling thread use the device, through the driver's interface too."""
        self._do("cudaSetDevice", self._api.cudaSetDevice(0))

    def versions(self) -> dict[str, str]:
        """CUDA of the runtime's library, and the newest that the driver serves."""
        runtime = self._do("cudaRuntimeGetVersion", self._api.cudaRuntimeGetVersion())
        driver = self._do("cudaDriverGetVersion", self._api.cudaDriverGetVersion())
        return {"cuda": _version(runtime), "cuda_of_driver": _version(driver)}

    def free_bytes(self) -> int:
        """Device memory that is free now."""
        free, _ = self._do("cudaMemGetInfo", self._api.cudaMemGetInfo())
        return int(free)

    def stream(self) -> int:
        """A stream that does not wait for the default one."""
        api = self._api
        made = self._do("cudaStreamCreateWithFlags", api.cudaStreamCreateWithFlags(api.cudaStreamNonBlocking))
        self._made.callback(api.cudaStreamDestroy, made)
        return int(made)

    def event(self) -> int:
        """An event, not recorded yet."""
        api = self._api
        made = self._do("cudaEventCreateWithFlags", api.cudaEventCreateWithFlags(api.cudaEventDisableTiming))
        self._made.callback(api.cudaEventDestroy, made)
        return int(made)

    def record(self, event: int, stream: int) -> None:
        """Mark what the stream has been given so far."""
        self._do("cudaEventRecord", self._api.cudaEventRecord(event, stream))

    def wait(self, stream: int, event: int) -> None:
        """Let what the stream is given from now on wait for an event."""
        self._do("cudaStreamWaitEvent", self._api.cudaStreamWaitEvent(stream, event, 0))

    def finish(self, event: int) -> None:
        """Wait here for an event."""
        self._do("cudaEventSynchronize", self._api.cudaEventSynchronize(event))

    def drain(self, stream: int) -> None:
        """Wait here for all that a stream was given."""
        self._do("cudaStreamSynchronize", self._api.cudaStreamSynchronize(stream))

    def device_memory(self, nbytes: int) -> int:
        """Address of new device memory."""
        made = self._do("cudaMalloc", self._api.cudaMalloc(nbytes), nbytes)
        self._made.callback(self._api.cudaFree, made)
        return int(made)

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> tuple[NDArray[Any], int]:
        """An array of zeros on the host that the device may copy to or, if integrated, use; and its address."""
        api, nbytes = self._api, max(1, math.prod(shape) * np.dtype(dtype).itemsize)
        flags = api.cudaHostAllocMapped if self.device.integrated else api.cudaHostAllocDefault
        address = int(self._do("cudaHostAlloc", api.cudaHostAlloc(nbytes, flags), nbytes))
        self._made.callback(api.cudaFreeHost, address)
        memory = (ctypes.c_byte * nbytes).from_address(address)
        host = np.frombuffer(memoryview(memory), dtype, math.prod(shape)).reshape(shape)
        host[...] = 0
        return host, address

    def staged(self, shape: tuple[int, ...], dtype: DTypeLike) -> Staged:
        """An array on host and device, zeros on the host: one memory on an integrated GPU, pinned memory elsewhere."""
        host, address = self.pinned(shape, dtype)
        if self.device.integrated:
            pointer = self._do("cudaHostGetDevicePointer", self._api.cudaHostGetDevicePointer(address, 0))
            return Staged(host, address, int(pointer), copied=False)
        return Staged(host, address, self.device_memory(max(1, host.nbytes)), copied=True)

    def upload(self, staged: Staged, stream: int) -> None:
        """Bring what the host wrote to the device."""
        if staged.copied:
            kind = self._api.cudaMemcpyKind.cudaMemcpyHostToDevice
            done = self._api.cudaMemcpyAsync(staged.device, staged.address, staged.host.nbytes, kind, stream)
            self._do("cudaMemcpyAsync", done)

    def download(self, staged: Staged, stream: int) -> None:
        """Bring what the device wrote to the host."""
        if staged.copied:
            self.fetch(staged.address, staged.device, staged.host.nbytes, stream)

    def fetch(self, target: int, source: int, nbytes: int, stream: int) -> None:
        """Copy from the device to pinned memory on the host."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._do("cudaMemcpyAsync", self._api.cudaMemcpyAsync(target, source, nbytes, kind, stream))

    def clear(self, address: int, nbytes: int, stream: int) -> None:
        """Fill device memory with zeros."""
        self._do("cudaMemsetAsync", self._api.cudaMemsetAsync(address, 0, nbytes, stream))

    def capture(self, stream: int, work: Callable[[], None]) -> int:
        """A graph of what `work` gives to the stream, which is recorded and not done. Raises what `work` raises."""
        api = self._api
        mode = api.cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed
        self._do("cudaStreamBeginCapture", api.cudaStreamBeginCapture(stream, mode))
        try:
            work()
        except BaseException:
            api.cudaStreamEndCapture(stream)  # a stream left in capture could never be used again
            raise
        graph = self._do("cudaStreamEndCapture", api.cudaStreamEndCapture(stream))
        try:
            runnable = self._do("cudaGraphInstantiate", api.cudaGraphInstantiate(graph, 0))
        finally:
            api.cudaGraphDestroy(graph)
        self._made.callback(api.cudaGraphExecDestroy, runnable)
        return int(runnable)

    def launch(self, graph: int, stream: int) -> None:
        """Do what a graph recorded."""
        self._do("cudaGraphLaunch", self._api.cudaGraphLaunch(graph, stream))

    def child(self) -> Cuda:
        """The same device; what is made through the child is freed by closing the child."""
        child = copy.copy(self)
        child._made = ExitStack()
        return child

    def close(self) -> None:
        """Wait for the device and free what was made, the latest first.

        Errors are ignored, since there is nothing left to save.
        """
        self._api.cudaDeviceSynchronize()
        self._made.close()

    def _do(self, name: str, answer: tuple[Any, ...], nbytes: int | None = None) -> Any:
        status, *results = answer
        if int(status) == 0:
            return results[0] if len(results) == 1 else tuple(results)
        if status == self._api.cudaError_t.cudaErrorMemoryAllocation:
            wanted = "" if nbytes is None else f" of {_size(nbytes)}"
            raise BackendError(
                f"the GPU is out of memory: an allocation{wanted} failed; close other programs, "
                "or use a smaller tile or batch"
            )
        known, text = self._api.cudaGetErrorString(status)
        reason = text.decode(errors="replace") if isinstance(text, bytes) and int(known) == 0 else str(status)
        if status in (self._api.cudaError_t.cudaErrorInsufficientDriver, self._api.cudaError_t.cudaErrorNoDevice):
            raise BackendError(f"CUDA cannot be used here: {reason}; install NVIDIA's driver, check 'nvidia-smi'")
        raise BackendError(f"{name} failed: {reason}; see that the driver works with 'nvidia-smi', and start again")


@dataclass(frozen=True)
class Staged:
    """Memory that host and device share, or a pinned copy on the host of some on the device."""

    host: NDArray[Any]
    address: int
    device: int
    copied: bool


def _size(nbytes: int) -> str:
    return f"{nbytes / _MIB:.1f} MiB" if nbytes >= _MIB else f"{nbytes} bytes"


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
