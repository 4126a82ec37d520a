"""What is measured of films: a result that stands still where its input does is not held to move with the flow."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from origin import origin
from temporal import Motion, bicubic, main

from rsd_edge.bundle import resolve_engine
from rsd_edge.frames import SCALE
from rsd_edge.specs import Precision

Image = NDArray[np.uint8]


def film(step: int) -> list[Image]:
    """A disc that moves by `step` pixels in each frame, close above a sharp edge that stands still."""
    y, x = np.mgrid[:64, :80].astype(np.float32)
    frames = []
    for index in range(4):
        gray = 60 + 20 * np.sin(x / 2)
        gray[(x - 24 - step * index) ** 2 + (y - 30) ** 2 < 100] = 160
        frames.append(np.repeat(gray.astype(np.uint8)[..., None], 3, axis=2))
    return frames


def test_where_nothing_moves_both_errors_are_the_same() -> None:
    frames = film(0)
    generator = np.random.default_rng(0)
    results = [generator.integers(0, 256, (256, 320, 1), dtype=np.uint8).repeat(3, axis=2) for _ in frames]
    row = Motion(frames).measure(results, [bicubic(frame) for frame in frames])
    assert row["warped_error"] == row["held_error"]
    assert row["warped_error"] == pytest.approx(255 / 3, rel=0.01)  # of independent uniform values; 240 000 of them


def test_a_result_that_stands_still_where_its_input_does_is_held_still() -> None:
    """The flow carries what is around the disc along with it."""
    frames = film(2)
    motion = Motion(frames)
    unchanged = np.logical_and.reduce(motion.unchanged)
    texture = np.random.default_rng(0).integers(0, 80, (SCALE * 64, SCALE * 80, 1), dtype=np.uint8)
    results = [np.where(unchanged[..., None], texture, bicubic(frame)) for frame in frames]
    base = [bicubic(frame) for frame in frames]
    row, plain = motion.measure(results, base), motion.measure(base, base)
    more, held = row["warped_error"] - plain["warped_error"], row["held_error"] - plain["held_error"]
    assert more > 0.5
    assert 0 <= held < more / 4  # what moves takes some of the texture along


def test_a_pixel_beside_a_changed_one_is_not_taken_as_unchanged() -> None:
    first = np.full((16, 24, 3), 90, np.uint8)
    second = first.copy()
    second[8, 8, 2] += 1
    (unchanged,) = Motion([first, second]).unchanged
    rows, columns = np.nonzero(~unchanged)
    assert (rows.min(), rows.max()) == (7 * SCALE, 10 * SCALE - 1)
    assert (columns.min(), columns.max()) == (7 * SCALE, 10 * SCALE - 1)
    assert (~unchanged).sum() == (3 * SCALE) ** 2


def test_rows_beside_another_peer_are_refused(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    engine = {"engine": "edge-n int8 onnxruntime", "digest": resolve_engine("edge-n", Precision.INT8).digest}
    taken = {"width": 160, "start": 200, "frames": 40}
    report.write_text(json.dumps(origin() | engine | taken | {"peer": "one"}))
    for ending in ("param", "bin"):
        (tmp_path / f"another.{ending}").write_text("")
    peer = [str(tmp_path / "another.param"), str(tmp_path / "another.bin")]
    options = ["--films", str(tmp_path), "--json", str(report), "--method", "bicubic", "--peer", *peer]
    result = CliRunner().invoke(main, options)
    assert "report.json has rows of peer one, not another" in result.output
