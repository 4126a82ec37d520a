"""What errors say of an input that is not there."""

from __future__ import annotations

from pathlib import Path


def missing(path: Path) -> str:
    """One line with the cure; a link to nothing is there, and what it is called is spelt right."""
    if path.is_symlink():
        return f"{path} is a link to {path.readlink()}, which leads nowhere; mend or remove the link"
    return f"{path} does not exist; check the spelling"
