"""Versions of what is installed, for records."""

from __future__ import annotations

from importlib import metadata

from rsd_edge import __version__


def version_of(name: str) -> str:
    """Of a package, or of those that bring a module of that name: ONNX Runtime comes under several. `none` without."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        packages = metadata.packages_distributions().get(name, [])
        return " ".join(f"{package} {metadata.version(package)}" for package in sorted(set(packages))) or "none"


def versions_of(*names: str) -> dict[str, str]:
    """Of rsd-edge and of these, by name."""
    return {"rsd-edge": __version__, **{name: version_of(name) for name in names}}
