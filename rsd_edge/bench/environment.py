"""Where numbers come from: processor, power, memory, system and versions. A time without them means nothing."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

from rsd_edge import __version__
from rsd_edge.machine import cpu_features, cpu_name, l4t_release, nvidia_driver, usable_cores

SAME = ("cpu", "cores", "features", "architecture", "l4t", "power")
"""What two machines must share for their times to compare."""

_PACKAGES = (
    "numpy", "opencv-python", "opencv-python-headless", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt",
    "torch", "ncnn", "av",
)  # fmt: skip
_CPUS = Path("/sys/devices/system/cpu")
_SUPPLIES = Path("/sys/class/power_supply")
_JETSON_MODE = Path("/var/lib/nvpmodel/status")
_MEMINFO = Path("/proc/meminfo")


def machine() -> dict[str, Any]:
    """What the machine is, ready for JSON; None for what it does not tell."""
    memory = _memory()
    return {
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "features": sorted(cpu_features()),
        "architecture": platform.machine(),
        "l4t": l4t_release() or None,
        "nvidia_driver": nvidia_driver() or None,
        "power": power(),
        "memory_mb": memory.get("MemTotal"),
        "memory_free_mb": memory.get("MemAvailable"),
        "system": _system(),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def power() -> dict[str, Any]:
    """What sets the clocks, as far as the system tells: governors, boost, Jetson's power mode, battery or mains."""
    governors = {_read(path) for path in _CPUS.glob("cpu*/cpufreq/scaling_governor")} - {""}
    top = {_read(path) for path in _CPUS.glob("cpu*/cpufreq/scaling_max_freq")} - {""}
    boost = _read(_CPUS / "cpufreq" / "boost")
    no_turbo = _read(_CPUS / "intel_pstate" / "no_turbo")
    mains = {_read(path) for path in _SUPPLIES.glob("*/online")} - {""}
    mode = re.search(r"pmode:(\d+)", _read(_JETSON_MODE))
    return {
        "governor": ", ".join(sorted(governors)) or None,
        "max_mhz": max((int(khz) // 1000 for khz in top if khz.isdigit()), default=None),
        "boost": {"1": True, "0": False}.get(boost, {"0": True, "1": False}.get(no_turbo)),
        "jetson_mode": int(mode[1]) if mode else None,
        "on_mains": None if not mains else "1" in mains,
    }


def load() -> float | None:
    """Processes that wanted to run, mean of the last minute; None where the system does not tell."""
    try:
        return round(os.getloadavg()[0], 2)
    except (OSError, AttributeError):
        return None


def versions() -> dict[str, str]:
    """Of this package and of the installed ones that times depend on."""
    found = {"rsd-edge": __version__}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _memory() -> dict[str, int]:
    """Of /proc/meminfo, in MiB; empty elsewhere."""
    return {name: int(kilobytes) // 1024 for name, kilobytes in re.findall(r"(\w+):\s+(\d+) kB", _read(_MEMINFO))}


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.platform()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
