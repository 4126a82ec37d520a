"""Where a run computes: device, processes and arithmetic. One process, or those that `torchrun` started (DDP)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn

from rsd_edge.errors import InputError

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Runtime:
    """Device and processes of a run.

    device: cpu, cuda or cuda:N; None for a GPU if there is one. Raises InputError for one that is not there.
    """

    def __init__(self, device: str | None = None, precision: str = "fp32") -> None:
        wanted = _checked(device)
        if wanted.type == "cuda" and wanted.index is not None:
            torch.cuda.set_device(wanted)  # kernels launch on the current one
        # Buffers are equal everywhere: they are constants, but for batch normalisation, which one process trains.
        handlers = [DistributedDataParallelKwargs(broadcast_buffers=False)]
        self.accelerator = Accelerator(cpu=wanted.type == "cpu", kwargs_handlers=handlers)
        self.processes: int = self.accelerator.num_processes
        self.rank: int = self.accelerator.process_index
        self.device: torch.device = self.accelerator.device if self.processes > 1 else wanted
        self.precision = precision

    @property
    def is_main(self) -> bool:
        """True in the process that writes files and talks."""
        return self.rank == 0

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network itself; with several processes, one whose gradients are averaged over them."""
        if self.processes == 1:
            return network
        wrapped: nn.Module = self.accelerator.prepare_model(network)
        return wrapped

    def autocast(self) -> torch.autocast:
        dtype = _AUTOCAST.get(self.precision)
        return torch.autocast(self.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)

    def scaler(self) -> torch.amp.GradScaler:
        """Loss scaling for fp16; does nothing otherwise."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    @contextlib.contextmanager
    def local_gradients(self, networks: Iterable[nn.Module]) -> Iterator[None]:
        """Gradients stay in each process: for all parts of a batch but the last."""
        with contextlib.ExitStack() as stack:
            for network in networks:
                stack.enter_context(self.accelerator.no_sync(network))
            yield

    def mean(self, value: Tensor) -> Tensor:
        """The mean over processes, in each of them."""
        if self.processes == 1:
            return value
        reduced: Tensor = self.accelerator.reduce(value, reduction="mean")
        return reduced

    def any(self, flag: bool) -> bool:
        """True in all processes if it is in one."""
        return float(self.mean(torch.tensor(float(flag), device=self.device))) > 0

    def wait(self) -> None:
        """Until all processes are here."""
        self.accelerator.wait_for_everyone()


def _checked(device: str | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = torch.device("meta")
    if chosen.type not in ("cpu", "cuda") or (chosen.type == "cpu" and chosen.index is not None):
        raise InputError(f"device '{device}' is not known; choose cpu, cuda or cuda:N")
    if chosen.type == "cuda" and not (chosen.index or 0) < torch.cuda.device_count():
        found = f"{torch.cuda.device_count()} are here" if torch.cuda.is_available() else "PyTorch sees none"
        raise InputError(f"device '{device}' asks for a GPU, and {found}; use --device cpu")
    return chosen
