"""Launch kernels that were compiled ahead of time. Needs neither Triton nor torch: cuda-bindings, and a GPU.

    pack = KernelPack(Path("kernels"), sm=87, driver=CudaDriver())
    pack.launch("prior_input-c4", dtype="fp16", sizes={"n": 1}, stream=stream,
                arguments={"Z_Y": pointer, ..., "pixels": 4096})

kernels/manifest.py says what the arguments, sizes and shapes are; kernels/sequences.py launches whole operations, such
as the three kernels of a frame. Pointers are device addresses. The driver's context must be current in the calling
thread. cuda-bindings is enough: cuda-core would wrap the same three calls and be one more package on a small device.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol

from rsd_edge.errors import BackendError, InputError, MissingDependencyError, ModelError
from rsd_edge.kernels.manifest import check_arguments, count, read_manifest

_C_TYPES: Mapping[str, Any] = {"i32": ctypes.c_int32, "i64": ctypes.c_int64, "fp32": ctypes.c_float}
_SIZES: Mapping[str, int] = {"u8": 1, "i16": 2, "fp16": 2, "bf16": 2, "i32": 4, "fp32": 4, "i64": 8}
_MAX_GRID = ((1 << 31) - 1, 65535, 65535)


class Driver(Protocol):
    """What a launch needs of CUDA."""

    def load(self, cubin: bytes, entry: str) -> Any:
        """A function of a cubin, in the current context."""

    def launch(
        self, function: Any, grid: tuple[int, int, int], threads: int, shared: int, stream: int,
        values: Sequence[Any], types: Sequence[Any],
    ) -> None:  # fmt: skip
        """Start it on a stream; `types` are the ctypes of `values`."""


class CudaDriver:
    """The real one, through cuda-bindings. Raises MissingDependencyError without it, BackendError if CUDA fails."""

    def __init__(self) -> None:
        try:
            from cuda.bindings import driver
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                "launching kernels needs cuda-bindings; run: pip install 'rsd-edge[cubins]'"
            ) from error
        self._cuda: Any = driver
        self._modules: list[Any] = []
        try:
            self._check(driver.cuInit(0))
        except RuntimeError as error:  # the driver's library is missing
            raise BackendError(f"CUDA cannot be used here: {error}; install NVIDIA's driver") from error

    def load(self, cubin: bytes, entry: str) -> Any:
        """See Driver."""
        module = self._check(self._cuda.cuModuleLoadData(cubin))
        self._modules.append(module)
        return self._check(self._cuda.cuModuleGetFunction(module, entry.encode()))

    def launch(
        self, function: Any, grid: tuple[int, int, int], threads: int, shared: int, stream: int,
        values: Sequence[Any], types: Sequence[Any],
    ) -> None:  # fmt: skip
        """See Driver."""
        parameters = (tuple(values), tuple(types))
        self._check(self._cuda.cuLaunchKernel(function, *grid, threads, 1, 1, shared, stream, parameters, 0))

    def _check(self, answer: tuple[Any, ...]) -> Any:
        status, *results = answer
        if int(status) != 0:
            raise BackendError(f"CUDA refused: {status.name}; see that the kernels were built for this GPU")
        return results[0] if results else None


class KernelPack:
    """The kernels of one architecture in a folder that `rsd-edge build-kernels` wrote."""

    def __init__(self, folder: Path, sm: int, driver: Driver) -> None:
        """sm: 87 for sm_87. Raises ModelError for a folder that is missing, damaged or built for something else."""
        self._folder, self._driver = folder, driver
        manifest = read_manifest(folder)
        self._kernels = {_key(entry): entry for entry in manifest["kernels"] if entry["sm"] == sm}
        if not self._kernels:
            built = ", ".join(str(number) for number in sorted({entry["sm"] for entry in manifest["kernels"]}))
            raise ModelError(
                f"{folder} has no kernels for sm_{sm}, only for {built}; run: rsd-edge build-kernels --sm {sm}"
            )
        self._table: dict[str, str] = manifest["noise_table"]
        self._functions: dict[tuple[str, str | None, bool], Any] = {}

    def launch(
        self,
        name: str,
        *,
        dtype: str | None = None,
        sizes: Mapping[str, int],
        arguments: Mapping[str, int | float],
        stream: int = 0,
    ) -> None:
        """Start a kernel.

        dtype: fp32, fp16 or bf16; None for a kernel that knows only one. sizes: what the grid is counted in and
        `arguments` does not hold, such as n. arguments: device addresses and numbers, by name. The aligned build is
        taken where all of them allow it; both give the same values. Raises InputError, ModelError, BackendError.
        """
        aligned = self._entry(name, dtype, True)
        check_arguments(aligned, arguments, sizes)
        entry = aligned if _fits(aligned, arguments) else self._entry(name, dtype, False)
        values, types = _pack(entry, arguments)
        grid = _grid(entry, {**arguments, **sizes})
        self._driver.launch(self._function(entry), grid, entry["threads"], entry["shared_bytes"], stream, values, types)

    def _entry(self, name: str, dtype: str | None, aligned: bool) -> dict[str, Any]:
        entry: dict[str, Any] | None = self._kernels.get((name, dtype, aligned))
        if entry is None:
            names = {kernel for kernel, _, _ in self._kernels}
            dtypes = sorted({str(kind) for kernel, kind, _ in self._kernels if kernel == name})
            near = ", ".join(get_close_matches(name, names, n=3, cutoff=0.0))
            has = f"it has it for {', '.join(dtypes)}" if dtypes else f"names like it are {near}"
            raise InputError(f"{self._folder} has no kernel {name} for {dtype}; {has}")
        return entry

    def noise_table(self) -> bytes:
        """What TABLE points to on the device: 65536 int16. Raises ModelError for a file that is missing or damaged."""
        return self._read(self._table)

    def _function(self, entry: dict[str, Any]) -> Any:
        key = _key(entry)
        if key not in self._functions:
            self._functions[key] = self._driver.load(self._read(entry), entry["entry"])
        return self._functions[key]

    def _read(self, listed: Mapping[str, Any]) -> bytes:
        path = self._folder / str(listed["file"])
        try:
            data: bytes = path.read_bytes()
        except OSError as error:
            raise ModelError(f"cannot read {path}: {error.strerror}; run rsd-edge build-kernels again") from error
        if hashlib.sha256(data).hexdigest() != listed["sha256"]:
            raise ModelError(f"{path} is damaged: its hash differs; run rsd-edge build-kernels again")
        return data


def _key(entry: Mapping[str, Any]) -> tuple[str, str | None, bool]:
    return entry["name"], entry["dtype"], entry["aligned"]


def _fits(entry: Mapping[str, Any], arguments: Mapping[str, int | float]) -> bool:
    return all(
        arguments.get(argument["name"], 0) % argument["multiple_of"] == 0
        for argument in entry["arguments"]
        if argument["multiple_of"] > 1
    )


def _pack(entry: Mapping[str, Any], arguments: Mapping[str, int | float]) -> tuple[list[Any], list[Any]]:
    """Values and ctypes in the kernel's order, with null for the scratch memory that no kernel here uses."""
    values: list[Any] = []
    types: list[Any] = []
    for argument in entry["arguments"]:
        value, kind = arguments[argument["name"]], argument["type"]
        pointer = kind.startswith("*")
        if pointer and value % _SIZES[kind[1:]]:
            raise InputError(
                f"kernel {entry['name']}: {argument['name']} is at {value}, which is no multiple of the "
                f"{_SIZES[kind[1:]]} bytes of {kind[1:]}; pass aligned memory"
            )
        values.append(int(value) if pointer or kind.startswith("i") else float(value))
        types.append(ctypes.c_void_p if pointer else _C_TYPES[kind])
    scratch = entry["scratch_pointers"]
    return values + [0] * scratch, types + [ctypes.c_void_p] * scratch


def _grid(entry: Mapping[str, Any], sizes: Mapping[str, int | float]) -> tuple[int, int, int]:
    axes = [count(entry, factors, sizes) for factors in entry["grid"]]
    axes += [1] * (3 - len(axes))
    for programs, limit in zip(axes, _MAX_GRID, strict=True):
        if not 1 <= programs <= limit:
            raise InputError(f"kernel {entry['name']} has a grid of {axes}; CUDA takes 1 to {_MAX_GRID}")
    return axes[0], axes[1], axes[2]
