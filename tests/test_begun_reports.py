"""What a script goes on with is what it would measure now."""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np
import pytest
from origin import begun_report, origin
from score_engine import Report

from rsd_edge.stream.images import write_image


@pytest.mark.parametrize("what", ["machine", "versions"])
def test_rows_from_elsewhere_are_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "report.json"
    assert begun_report(path) == {}
    made = origin() | {"rows": {"a": 1}}
    path.write_text(json.dumps(made))
    assert begun_report(path) == made
    path.write_text(json.dumps(made | {what: "another"}))
    with pytest.raises(click.ClickException, match=f"report.json has rows of {what} another, not"):
        begun_report(path)


def test_rows_of_other_images_are_scored_again(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    reference = rng.integers(0, 256, (128, 128, 3), np.uint8)
    for name in ("lr", "ref"):
        (tmp_path / name).mkdir()
    write_image(tmp_path / "ref" / "a.png", reference)
    scored = []

    def enlarge(image: np.ndarray) -> np.ndarray:
        scored.append(image[0, 0, 0])
        return reference ^ 1

    for first in (1, 1, 2):
        write_image(tmp_path / "lr" / "a.png", np.full((32, 32, 3), first, np.uint8))
        report = Report(tmp_path / "report.json")
        report.add(("set", tmp_path / "lr", tmp_path / "ref"), "method", "identity", enlarge)
    assert scored == [1, 2]
