"""What is read of the processor, from samples of what kernels say."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from rsd_edge import machine
from rsd_edge.machine import cache_folder, cpu_features, cpu_name, int8_weight_bits, usable_cores

X86 = """\
processor\t: 0
vendor_id\t: AuthenticAMD
model name\t: AMD EPYC 9R14: 96-Core Processor
flags\t\t: fpu sse2 fma avx avx2 avx512f {flags}
bugs\t\t: sysret_ss_attrs

processor\t: 1
model name\t: another name
flags\t\t: fpu
"""
ARM = """\
processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes crc32 {flags}
CPU implementer\t: 0x41
"""

Machine = Callable[..., None]


@pytest.fixture
def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """Sets what the kernel says of the processor, None for nothing, and what Python does."""

    def make(cpuinfo: str | bytes | None, architecture: str = "x86_64", system: str = "Linux") -> None:
        file = tmp_path / "cpuinfo"
        if cpuinfo is not None:
            file.write_bytes(cpuinfo if isinstance(cpuinfo, bytes) else cpuinfo.encode())
        known = {"machine": architecture, "processor": "", "system": system}
        asked = {name: (lambda value=value: value) for name, value in known.items()}
        monkeypatch.setattr(machine, "platform", SimpleNamespace(**asked))
        monkeypatch.setattr(machine, "_CPUINFO", file)
        cpu_features.cache_clear()

    yield make
    cpu_features.cache_clear()


@pytest.mark.parametrize(
    ("cpuinfo", "architecture", "features", "bits"),
    [
        (X86.format(flags="avx512_vnni"), "x86_64", {"avx2", "vnni"}, 8),
        (X86.format(flags="avx_vnni"), "x86_64", {"avx2", "vnni"}, 8),
        (X86.format(flags="avx512_vnni avx_vnni"), "x86_64", {"avx2", "vnni"}, 8),
        (X86.format(flags="avx512_bf16"), "x86_64", {"avx2"}, 7),
        (X86.format(flags="").replace("avx2", ""), "x86_64", set(), 7),
        (ARM.format(flags="asimdhp asimddp"), "aarch64", {"dotprod"}, 8),
        (ARM.format(flags="asimdhp"), "aarch64", set(), 8),  # it widens to 32 bits, with or without dot products
        (None, "arm64", set(), 8),
        (None, "AMD64", set(), 7),
        ("", "x86_64", set(), 7),
        ("nothing that is known\n", "riscv64", set(), 7),
    ],
)
def test_features_and_the_bits_of_weights(
    pretend: Machine, cpuinfo: str | None, architecture: str, features: set[str], bits: int
) -> None:
    pretend(cpuinfo, architecture)
    assert cpu_features() == features
    assert int8_weight_bits() == bits


@pytest.mark.parametrize(
    ("cpuinfo", "architecture", "name"),
    [
        (X86, "x86_64", "AMD EPYC 9R14: 96-Core Processor"),
        (X86.replace("EPYC", "\ufffd").encode().replace("\ufffd".encode(), b"\xff"), "x86_64", "AMD \ufffd 9R14: 96-"),
        (ARM, "aarch64", "aarch64"),
        (None, "arm64", "arm64"),
    ],
)
def test_the_processor_has_a_name(pretend: Machine, cpuinfo: str | bytes | None, architecture: str, name: str) -> None:
    pretend(cpuinfo, architecture)
    assert cpu_name().startswith(name)


@pytest.mark.parametrize(("answer", "features"), [("1\n", {"dotprod"}), ("0\n", set()), ("", set())])
def test_macos_is_asked_for_dot_products(
    pretend: Machine, monkeypatch: pytest.MonkeyPatch, answer: str, features: set[str]
) -> None:
    def sysctl(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command == ["/usr/sbin/sysctl", "-n", "hw.optional.arm.FEAT_DotProd"]
        return subprocess.CompletedProcess(command, 0, answer, "")

    pretend(None, "arm64", "Darwin")
    monkeypatch.setattr(subprocess, "run", sysctl)
    assert cpu_features() == features


def test_a_macos_without_sysctl_has_no_features(pretend: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError

    pretend(None, "arm64", "Darwin")
    monkeypatch.setattr(subprocess, "run", missing)
    assert cpu_features() == set()


@pytest.fixture
def no_container(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever the tests run in."""
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path / "none")


@pytest.mark.usefixtures("no_container")
def test_usable_cores_counts_each_core_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for cpu, siblings in enumerate(("0,2", "1,3", "0,2", "1,3")):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings)
    monkeypatch.setattr(machine, "_TOPOLOGY", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert usable_cores() == 2
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2}, raising=False)
    assert usable_cores() == 1
    monkeypatch.setattr(machine, "_TOPOLOGY", tmp_path / "absent")
    assert usable_cores() == 2


@pytest.mark.usefixtures("no_container")
def test_without_affinity_all_processors_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "_TOPOLOGY", tmp_path)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert usable_cores() == 3
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "20000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, 4),
        ({"cpu.max": "900000 100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({}, 4),
    ],
)
def test_cores_end_with_the_quota_of_a_container(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: dict[str, str], cores: int
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path)
    monkeypatch.setattr(machine, "_TOPOLOGY", tmp_path / "absent")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert usable_cores() == cores


@pytest.mark.parametrize(
    ("system", "environment", "expected"),
    [
        ("Linux", {}, "/home/me/.cache/rsd-edge"),
        ("Linux", {"XDG_CACHE_HOME": "/else"}, "/else/rsd-edge"),
        ("Linux", {"XDG_CACHE_HOME": ""}, "/home/me/.cache/rsd-edge"),
        ("Linux", {"XDG_CACHE_HOME": "else"}, "/home/me/.cache/rsd-edge"),
        ("Darwin", {}, "/home/me/Library/Caches/rsd-edge"),
        ("Darwin", {"XDG_CACHE_HOME": "/else"}, "/else/rsd-edge"),
        ("Windows", {}, "/home/me/AppData/Local/rsd-edge"),
        ("Windows", {"LOCALAPPDATA": "/users/me/local"}, "/users/me/local/rsd-edge"),
    ],
)
def test_the_cache_is_where_the_system_keeps_caches(
    monkeypatch: pytest.MonkeyPatch, system: str, environment: dict[str, str], expected: str
) -> None:
    monkeypatch.setattr(machine, "os", SimpleNamespace(environ=environment))
    monkeypatch.setattr(machine, "platform", SimpleNamespace(system=lambda: system))
    monkeypatch.setattr(Path, "home", lambda: Path("/home/me"))
    assert cache_folder().as_posix() == expected
