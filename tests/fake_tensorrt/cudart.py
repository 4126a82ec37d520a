"""A look-alike of `cuda.bindings.runtime` on host memory, as strict about order as a device can be.

Work given to a stream is done only when somebody waits for it, so that a missing wait shows as wrong numbers. Memory is
filled with rubbish when it is made and when it is freed, and copies outside of what was allocated are errors.
"""

from __future__ import annotations

import ctypes
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np

RUBBISH = 0xA5
ALIGNMENT = 256

Work = Callable[[], None]


class cudaError_t(IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorInvalidResourceHandle = 400
    cudaErrorLaunchFailure = 719
    cudaErrorStreamCaptureUnsupported = 900


class cudaMemcpyKind(IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class cudaStreamCaptureMode(IntEnum):
    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1
    cudaStreamCaptureModeRelaxed = 2


OK = (cudaError_t.cudaSuccess,)


@dataclass
class _Event:
    stream: int = 0
    mark: object | None = None
    reached: set[int] = field(default_factory=set)


class FakeCudart:
    """The module. `faults` holds, by function, the error that it gives; `live` what was not freed."""

    cudaError_t = cudaError_t
    cudaMemcpyKind = cudaMemcpyKind
    cudaStreamCaptureMode = cudaStreamCaptureMode
    cudaStreamNonBlocking = 1
    cudaEventDisableTiming = 2
    cudaHostAllocDefault = 0
    cudaHostAllocMapped = 2

    def __init__(self, *, integrated: bool = False, total: int = 8 << 30, name: bytes = b"Orin") -> None:
        self.integrated, self.total, self.name = integrated, total, name
        self.capability = (8, 7)
        self.faults: dict[str, cudaError_t] = {}
        self.calls: list[str] = []
        self._numbers = itertools.count(0x1000)
        self._memory: dict[int, tuple[np.ndarray, int, bool]] = {}
        self._streams: dict[int, deque[Work]] = {}
        self._captures: dict[int, list[Work]] = {}
        self._events: dict[int, _Event] = {}
        self._graphs: dict[int, list[Work]] = {}

    @property
    def live(self) -> int:
        """Allocations, streams, events and graphs that were not freed."""
        return sum(map(len, (self._memory, self._streams, self._events, self._graphs)))

    @property
    def used(self) -> int:
        """Bytes of device memory."""
        return sum(size for _, size, on_host in self._memory.values() if not on_host)

    def give(self, stream: int, work: Work) -> None:
        """Queue work, or record it while the stream is captured."""
        handle = int(stream)
        if handle in self._captures:
            self._captures[handle].append(work)
        else:
            self._streams[handle].append(work)

    def check(self, address: int, nbytes: int, *, host: bool | None = None) -> None:
        """Raise unless these bytes lie within one allocation, of host memory if that is asked for."""
        for start, (_, size, on_host) in self._memory.items():
            if start <= address and address + nbytes <= start + size and host in (None, on_host):
                return
        raise AssertionError(f"{nbytes} bytes at {address:#x} were never allocated")

    def view(self, address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Memory as an array, checked."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.check(address, size)
        raw = (ctypes.c_byte * size).from_address(address)
        return np.frombuffer(raw, dtype).reshape(shape)

    # What follows has the names and answers of cuda-python.

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:
        return self._answer("cudaGetDeviceCount", 1)

    def cudaSetDevice(self, device: int) -> tuple[Any, ...]:
        return self._answer("cudaSetDevice")

    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, ...]:
        major, minor = self.capability
        found = SimpleNamespace(
            name=self.name, major=major, minor=minor, integrated=int(self.integrated), totalGlobalMem=self.total
        )
        return self._answer("cudaGetDeviceProperties", found)

    def cudaRuntimeGetVersion(self) -> tuple[Any, ...]:
        return self._answer("cudaRuntimeGetVersion", 12060)

    def cudaDriverGetVersion(self) -> tuple[Any, ...]:
        return self._answer("cudaDriverGetVersion", 12060)

    def cudaGetErrorString(self, error: int) -> tuple[Any, ...]:
        return (cudaError_t.cudaSuccess, cudaError_t(error).name.encode())

    def cudaMemGetInfo(self) -> tuple[Any, ...]:
        error, *_ = self._answer("cudaMemGetInfo")
        return (error, self.total - self.used, self.total)

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        if self.used + size > self.total:
            return (cudaError_t.cudaErrorMemoryAllocation, None)
        return self._answer("cudaMalloc", self._allocate(size, on_host=False))

    def cudaFree(self, address: int) -> tuple[Any, ...]:
        return self._free(address, on_host=False)

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Any, ...]:
        assert flags == (self.cudaHostAllocMapped if self.integrated else self.cudaHostAllocDefault)
        return self._answer("cudaHostAlloc", self._allocate(size, on_host=True))

    def cudaFreeHost(self, address: int) -> tuple[Any, ...]:
        return self._free(address, on_host=True)

    def cudaHostGetDevicePointer(self, address: int, flags: int) -> tuple[Any, ...]:
        self.check(address, 1, host=True)
        return self._answer("cudaHostGetDevicePointer", address)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: int) -> tuple[Any, ...]:
        down = kind == cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.check(source, size, host=None if self.integrated else not down)
        self.check(target, size, host=True if down else None)
        self.give(stream, lambda: ctypes.memmove(target, source, size) and None)
        return self._answer("cudaMemcpyAsync")

    def cudaMemsetAsync(self, address: int, value: int, size: int, stream: int) -> tuple[Any, ...]:
        self.check(address, size)
        self.give(stream, lambda: ctypes.memset(address, value, size) and None)
        return self._answer("cudaMemsetAsync")

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        assert flags == self.cudaStreamNonBlocking
        handle = next(self._numbers)
        self._streams[handle] = deque()
        return self._answer("cudaStreamCreateWithFlags", handle)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        if int(stream) in self._captures:
            return (cudaError_t.cudaErrorStreamCaptureUnsupported,)
        self._run(int(stream), None)
        return self._answer("cudaStreamSynchronize")

    def cudaDeviceSynchronize(self) -> tuple[Any, ...]:
        for stream in self._streams:
            self._run(stream, None)
        return self._answer("cudaDeviceSynchronize")

    def cudaStreamDestroy(self, stream: int) -> tuple[Any, ...]:
        self._run(int(stream), None)
        del self._streams[int(stream)]
        return OK

    def cudaStreamWaitEvent(self, stream: int, event: int, flags: int) -> tuple[Any, ...]:
        found = self._events[int(event)]
        where, mark = found.stream, found.mark
        self.give(stream, lambda: self._reach(found, where, mark))
        return self._answer("cudaStreamWaitEvent")

    def cudaEventCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        handle = next(self._numbers)
        self._events[handle] = _Event()
        return self._answer("cudaEventCreateWithFlags", handle)

    def cudaEventRecord(self, event: int, stream: int) -> tuple[Any, ...]:
        if int(stream) in self._captures:
            return (cudaError_t.cudaErrorStreamCaptureUnsupported,)
        found = self._events[int(event)]
        found.stream, found.mark = int(stream), object()
        mark = found.mark
        self.give(stream, lambda: found.reached.add(id(mark)))
        return self._answer("cudaEventRecord")

    def cudaEventSynchronize(self, event: int) -> tuple[Any, ...]:
        found = self._events[int(event)]
        self._reach(found, found.stream, found.mark)
        return self._answer("cudaEventSynchronize")

    def cudaEventDestroy(self, event: int) -> tuple[Any, ...]:
        del self._events[int(event)]
        return OK

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[Any, ...]:
        self._captures[int(stream)] = []
        return self._answer("cudaStreamBeginCapture")

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, ...]:
        return self._answer("cudaStreamEndCapture", self._captures.pop(int(stream)))

    def cudaGraphInstantiate(self, graph: list[Work], flags: int) -> tuple[Any, ...]:
        answer = self._answer("cudaGraphInstantiate", next(self._numbers))
        if answer[0] == 0:
            self._graphs[answer[1]] = list(graph)
        return answer

    def cudaGraphDestroy(self, graph: list[Work]) -> tuple[Any, ...]:
        graph.clear()
        return OK

    def cudaGraphLaunch(self, graph: int, stream: int) -> tuple[Any, ...]:
        work = self._graphs[int(graph)]
        self.give(stream, lambda: [step() for step in work] and None)
        return self._answer("cudaGraphLaunch")

    def cudaGraphExecDestroy(self, graph: int) -> tuple[Any, ...]:
        del self._graphs[int(graph)]
        return OK

    def _answer(self, name: str, *results: Any) -> tuple[Any, ...]:
        self.calls.append(name)
        error = self.faults.get(name, cudaError_t.cudaSuccess)
        return (error, *(result if error == 0 else None for result in results))

    def _allocate(self, size: int, *, on_host: bool) -> int:
        if "cudaMalloc" in self.faults and not on_host:
            return 0
        block = np.full(size + ALIGNMENT, RUBBISH, np.uint8)
        address = -(-block.ctypes.data // ALIGNMENT) * ALIGNMENT
        self._memory[address] = (block, size, on_host)
        return address

    def _free(self, address: int, *, on_host: bool) -> tuple[Any, ...]:
        block, _, found = self._memory.pop(int(address))
        assert found is on_host
        block.fill(RUBBISH)
        return OK

    def _run(self, stream: int, until: Callable[[], bool] | None) -> None:
        queue = self._streams[stream]
        while queue and not (until is not None and until()):
            queue.popleft()()

    def _reach(self, event: _Event, stream: int, mark: object | None) -> None:
        if mark is not None:
            self._run(stream, lambda: id(mark) in event.reached)
