"""Which code runs a kernel: its torch definition or Triton. The caller says so; nothing is guessed.

Triton launches on the current CUDA device: with several, make that of the tensors current (`torch.cuda.device`).
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, Final

import torch
from torch import Tensor

from rsd_edge.errors import BackendError, InputError, MissingDependencyError

REFERENCE: Final = "reference"
TRITON: Final = "triton"
IMPLEMENTATIONS = (REFERENCE, TRITON)

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def check_implementation(implementation: str, device: torch.device) -> None:
    """Raise unless `implementation` can run on a device, before anything is computed.

    Raises InputError for a name that does not exist, MissingDependencyError without the package triton, BackendError
    for Triton on a device that is no GPU (its interpreter, in which tests run the kernels, accepts any).
    """
    if implementation == REFERENCE:
        return
    if implementation != TRITON:
        raise InputError(f"implementation is '{implementation}'; it must be one of {', '.join(IMPLEMENTATIONS)}")
    kernels = triton_kernels("noising")
    if device.type != "cuda" and not _interpreted(kernels.forward_noise_backward):
        raise BackendError(
            f"implementation 'triton' needs tensors on a CUDA device, not on '{device}'; "
            "move them there, or ask for implementation 'reference'"
        )


def runs_reference(implementation: str, device: torch.device) -> bool:
    """Whether an operator is to compute its definition. Raises what `check_implementation` raises."""
    check_implementation(implementation, device)
    return implementation == REFERENCE


def launch(module: str, kernel: str, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Start a kernel of rsd_edge.kernels.triton_<module>. The only way to one: kernels take no strides.

    Tensors that are not contiguous are copied, so those that the kernel writes must be contiguous. Raises
    MissingDependencyError without triton.
    """
    ready = [argument.contiguous() if isinstance(argument, Tensor) else argument for argument in arguments]
    getattr(triton_kernels(module), kernel)[grid](*ready, **constants)


def check_device(device: torch.device) -> None:
    """Raise BackendError for a CUDA device that is not there."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and not (device.index or 0) < count:
        found = f"has {count} of them" if count else "has no GPU that CUDA can use"
        raise BackendError(
            f"device '{device}' was asked for, but this machine {found}; choose another device, or device 'cpu' with "
            "implementation 'reference'"
        )


def triton_kernels(name: str) -> ModuleType:
    """The module rsd_edge.kernels.triton_<name>, imported now. Raises MissingDependencyError without triton."""
    import importlib

    try:
        return importlib.import_module(f"rsd_edge.kernels.triton_{name}")
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise MissingDependencyError(
            "implementation 'triton' needs the package triton; run: pip install 'rsd-edge[kernels]', or ask "
            "for 'reference'"
        ) from error


def _interpreted(kernel: Any) -> bool:
    from triton.runtime.interpreter import InterpretedFunction

    return isinstance(kernel, InterpretedFunction)


def check_images(**tensors: Tensor) -> None:
    """Raise InputError unless all are floating (n, c, h, w) of one shape, dtype and device, with something in them."""
    (first_name, first), *others = tensors.items()
    if first.ndim != 4 or first.numel() == 0 or first.dtype not in DTYPES:
        raise InputError(
            f"{first_name} is {first.dtype} {tuple(first.shape)}; pass float32, float16 or bfloat16 (n, c, h, w)"
        )
    for name, tensor in others:
        if (tensor.shape, tensor.dtype, tensor.device) != (first.shape, first.dtype, first.device):
            raise InputError(
                f"{name} is {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}; it must be like {first_name}, "
                f"{first.dtype} {tuple(first.shape)} on {first.device}"
            )
