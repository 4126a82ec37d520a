"""Under which terms published weights may be used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Licence:
    """A licence by name, and where it can be read."""

    name: str
    url: str


LICENCES = {
    "resshift": Licence("S-Lab License 1.0", "https://github.com/zsyOAOA/ResShift/blob/master/LICENSE"),
    "sinsr": Licence("CC BY-NC-SA 4.0", "https://creativecommons.org/licenses/by-nc-sa/4.0/"),
    "rsd": Licence("CC BY-NC-SA 4.0", "https://creativecommons.org/licenses/by-nc-sa/4.0/"),
}
"""Of the published generators, by family, and for resshift of the autoencoder too. All exclude commercial use."""


def licences_of(family: str) -> dict[str, Licence]:
    """Of a model of a family, by part: the autoencoder is ResShift's in all of them."""
    return {"generator": LICENCES[family], "autoencoder": LICENCES["resshift"]}


def named(licences: Mapping[str, Licence]) -> str:
    """All their names, each once."""
    return " and ".join(dict.fromkeys(licence.name for licence in licences.values()))
