"""Under which terms published weights may be used."""

from __future__ import annotations

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
"""Of the published weights, by family. All of them exclude commercial use."""
