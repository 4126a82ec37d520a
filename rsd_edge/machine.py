"""The processor: its name, which every measurement has to state, its cores, and what it can do with integers."""

from __future__ import annotations

import math
import os
import platform
import re
import subprocess
from functools import lru_cache
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_L4T = Path("/etc/nv_tegra_release")
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
_TOPOLOGY = Path("/sys/devices/system/cpu")
_CGROUPS = Path("/sys/fs/cgroup")
"""A container sees its own group there."""
_ARM = ("aarch64", "arm64", "ARM64")
_KNOWN = {
    "avx2": "avx2",
    "avx512_vnni": "vnni",
    "avx_vnni": "vnni",
    "asimddp": "dotprod",
}
"""Kernel names of the features that decide, and ours."""


def cpu_name() -> str:
    """The processor's name as the kernel gives it; ARM kernels give none, so the architecture stands in."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def usable_cores() -> int:
    """Physical cores among the logical ones that this process may run on, at most those of its quota; at least 1."""
    affinity = getattr(os, "sched_getaffinity", None)
    logical = affinity(0) if affinity is not None else set(range(os.cpu_count() or 1))
    cores = set()
    for cpu in logical:
        try:
            # Logical processors of one core name the same siblings; a second thread on a core only competes for it.
            cores.add((_TOPOLOGY / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text())
        except OSError:
            cores.add(str(cpu))
    quota = _quota()
    return len(cores) if quota is None else min(len(cores), quota)


def _quota() -> int | None:
    """Cores whose time a container gets, rounded up; None without a limit."""
    cpu = _CGROUPS / "cpu"
    old = f"{_text(cpu / 'cpu.cfs_quota_us').strip()} {_text(cpu / 'cpu.cfs_period_us')}"
    for known in (_text(_CGROUPS / "cpu.max"), old):
        words = known.split()
        if len(words) == 2 and all(word.isdecimal() for word in words):  # a quota of none is "max" or -1
            return math.ceil(int(words[0]) / int(words[1]))
    return None


@lru_cache(maxsize=1)
def cpu_features() -> frozenset[str]:
    """Those of `avx2`, `vnni` (x86) and `dotprod` (ARM) that the operating system reports; none where it is silent."""
    info = _cpuinfo()
    words = f"{info.get('flags', '')} {info.get('Features', '')}".split()
    features = {_KNOWN[word] for word in words if word in _KNOWN}
    if platform.system() == "Darwin" and platform.machine() in _ARM and _sysctl("hw.optional.arm.FEAT_DotProd") == "1":
        features.add("dotprod")
    return frozenset(features)


def int8_weight_bits() -> int:
    """8, or 7 where the sum of two U8 x S8 products is formed in 16 bits and 8-bit weights would saturate it.

    That is x86 without VNNI. A processor that does not say what it has is taken for one.
    """
    return 8 if platform.machine() in _ARM or "vnni" in cpu_features() else 7


def cache_folder() -> Path:
    """Where this user's caches live: XDG_CACHE_HOME, or what the operating system has for it, and rsd-edge in that.

    Raises RuntimeError where the user has no home.
    """
    chosen = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if chosen.is_absolute():  # a relative one is to be ignored, says its specification
        return chosen / "rsd-edge"
    home = Path.home()
    match platform.system():
        case "Windows":
            return Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local")) / "rsd-edge"
        case "Darwin":
            return home / "Library" / "Caches" / "rsd-edge"
        case _:
            return home / ".cache" / "rsd-edge"


def l4t_release() -> str:
    """Of Jetson Linux, such as R36.4.3; empty elsewhere."""
    found = re.search(r"# R(\d+) \(release\), REVISION: ([\d.]+)", _text(_L4T))
    return f"R{found[1]}.{found[2]}" if found else ""


def nvidia_driver() -> str:
    """Version of NVIDIA's kernel driver, such as 580.65.06; empty if none is loaded."""
    found = re.search(r"Module.*?\s(\d+\.\d+(?:\.\d+)?)\s", _text(_NVIDIA_DRIVER))
    return found[1] if found else ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _cpuinfo() -> dict[str, str]:
    """The first value of every key of /proc/cpuinfo; empty where there is none."""
    values: dict[str, str] = {}
    if _CPUINFO.is_file():
        for line in _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            values.setdefault(key.strip(), value.strip())
    return values


def _sysctl(name: str) -> str:
    try:
        found = subprocess.run(["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip()
