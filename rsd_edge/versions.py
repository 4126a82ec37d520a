"""What is installed, and its versions for records."""

from __future__ import annotations

import importlib.util
from importlib import metadata

from rsd_edge import __version__


def installed(name: str) -> bool:
    """There is a module of that name. A folder without Python files passes for one, and is left over or something else.

    It is only looked for, because importing takes longer than most questions are worth.
    """
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None


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
