"""What an engine is tied to: TensorRT's version, the GPU, and the driver or Jetson Linux release."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

from rsd_edge.backends.tensorrt.cuda import Cuda
from rsd_edge.backends.tensorrt.library import load_tensorrt
from rsd_edge.machine import l4t_release, nvidia_driver

_TIED = {"tensorrt": "TensorRT", "gpu": "the GPU", "capability": "compute capability", "system": "the system"}
"""A plan does not load, or must not be run, where one of these differs."""
_TUNED = {"l4t": "Jetson Linux", "driver": "the driver", "cuda": "CUDA"}
"""Where one of these differs, a plan may run, and may not be the fastest any more."""
_FREED = {"hardware-compatible": ("gpu",)}
"""What builds with a flag are not tied to. Another version would have to be run by NVIDIA's lean runtime, which is not
loaded here, so that version-compatible ones are tied to theirs as well."""


def check_device() -> None:
    """Raise MissingDependencyError or BackendError, in one line, if no TensorRT engine can be built or run here."""
    load_tensorrt()
    Cuda().close()


def target_of(trt: Any, cuda: Cuda) -> dict[str, str]:
    """The library, GPU and drivers at hand, as they stand in a manifest."""
    device = cuda.device
    target = {
        "tensorrt": str(trt.__version__),
        "gpu": device.name,
        "capability": ".".join(map(str, device.capability)),
        "system": f"{platform.system()} {platform.machine()}",
        "cuda": cuda.versions()["cuda"],
    }
    release, driver = l4t_release(), nvidia_driver()
    return target | ({"l4t": release} if release else {"driver": driver} if driver else {})


def reasons_against(built: Mapping[str, Any], here: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Why an engine cannot run here, and why it should be built again although it can.

    built: `target` of its manifest. here: of `target_of`.
    """
    flags = built.get("flags")
    freed = {
        name
        for flag in (flags.get("set", ()) if isinstance(flags, Mapping) else ())
        for name in _FREED.get(str(flag), ())
    }
    tied = [_difference(_TIED[name], built, here, name) for name in _TIED if name not in freed]
    tuned = [_difference(_TUNED[name], built, here, name) for name in _TUNED]
    return [reason for reason in tied if reason], [reason for reason in tuned if reason]


def _difference(what: str, built: Mapping[str, Any], here: Mapping[str, str], name: str) -> str:
    before, now = str(built.get(name, "unknown")), here.get(name, "unknown")
    return "" if before == now else f"{what} was {before} and is {now}"
