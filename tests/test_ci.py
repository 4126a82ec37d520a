"""What is run apart from the other tests is run whole."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("place", [".ci/run", "CONTRIBUTING.md"])
def test_every_file_with_tests_of_openvino_is_named(place: str) -> None:
    """All other commands deselect them, so that those of a file that is not named would never run."""
    (words,) = re.findall(r"pytest -m openvino((?: tests/\S+)+)", (ROOT / place).read_text())
    named = [path for word in words.split() for path in ROOT.glob(word)]
    marked = [path for path in ROOT.glob("tests/**/*.py") if re.search(r"mark\.openvino\b", path.read_text())]
    assert sorted(named) == sorted(marked)
