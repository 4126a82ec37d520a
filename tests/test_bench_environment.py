from __future__ import annotations

import json
import os
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from rsd_edge import __version__
from rsd_edge.bench import environment


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty /sys and /proc."""
    for name in ("_CPUS", "_SUPPLIES", "_JETSON_MODE", "_MEMINFO"):
        monkeypatch.setattr(environment, name, tmp_path / name)
    return tmp_path


def test_a_system_that_tells_nothing(system: Path) -> None:
    assert set(environment.power().values()) == {None}
    facts = environment.machine()
    assert facts["memory_mb"] is None
    assert set(environment.SAME) <= set(facts)
    json.dumps(facts)


def test_power_is_what_sets_the_clocks(system: Path) -> None:
    for cpu, governor in ((0, "performance"), (1, "powersave")):
        write(system / "_CPUS" / f"cpu{cpu}" / "cpufreq" / "scaling_governor", governor)
        write(system / "_CPUS" / f"cpu{cpu}" / "cpufreq" / "scaling_max_freq", str(2_000_000 + cpu * 500_000))
    write(system / "_CPUS" / "intel_pstate" / "no_turbo", "1")
    write(system / "_SUPPLIES" / "AC" / "online", "0")
    write(system / "_JETSON_MODE", "pmode:0002 fmode:quiet")
    assert environment.power() == {
        "governor": "performance, powersave", "max_mhz": 2500, "boost": False, "jetson_mode": 2, "on_mains": False
    }  # fmt: skip
    write(system / "_CPUS" / "cpufreq" / "boost", "1")  # AMD says it the other way round
    assert environment.power()["boost"] is True


def test_memory_is_in_mebibytes(system: Path) -> None:
    write(system / "_MEMINFO", "MemTotal:       8000512 kB\nMemAvailable:    1024 kB\nSwapTotal: 0 kB")
    facts = environment.machine()
    assert (facts["memory_mb"], facts["memory_free_mb"]) == (8000512 // 1024, 1)


def test_versions_are_those_installed() -> None:
    found = environment.versions()
    assert found["rsd-edge"] == __version__
    assert {"numpy", "onnxruntime"} <= set(found)


def test_what_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"numpy": "2.1.3", "onnxruntime-gpu": "1.20.0"}

    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    found = SimpleNamespace(version=version, PackageNotFoundError=metadata.PackageNotFoundError)
    monkeypatch.setattr(environment, "metadata", found)
    assert environment.versions() == {"rsd-edge": __version__, **installed}


def test_load_is_none_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (2.345, 0, 0))
    assert environment.load() == 2.35 or environment.load() == 2.34  # halves may round either way in binary
    monkeypatch.delattr(os, "getloadavg")
    assert environment.load() is None
