from __future__ import annotations

import json
from pathlib import Path

import frame_breakdown as script
import pytest
from click.testing import CliRunner

from rsd_edge import SuperResolver
from rsd_edge.bench.stages import AROUND
from rsd_edge.tiling import TileReader


def test_every_stage_is_timed(tmp_path: Path) -> None:
    """The benchmark reaches into the frame path by name: a stage that is renamed must not read 0 ms unnoticed."""
    methods = (TileReader.read, SuperResolver.__call__)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script.cv2, "setNumThreads", lambda threads: None)  # would outlive the test
        options = ["--frame", "150x100", "--tile", "128", "--rounds", "2", "--json", str(tmp_path / "times.json")]
        run = CliRunner().invoke(script.main, options, catch_exceptions=False)
    assert run.exit_code == 0, run.output
    document = json.loads((tmp_path / "times.json").read_text())
    assert document["threads"] == 2
    frame = document["frames"]["150x100"]
    assert (frame["tiles"], frame["tile"], frame["area"]) == ("2x1", "100x124", 1.65)  # 2 * 100 * 124 / (150 * 100)
    times = {stage: row["fastest"] for stage, row in frame["ms_per_output_megapixel"].items()}
    outside = times["all but the engine, later frames"]
    around = [times[stage] for stage in AROUND]
    assert all(taken > 0 for taken in around)
    assert sum(around) <= outside
    assert times["engine"] > 0
    assert times["noise, first frame"] > 0
    assert (TileReader.read, SuperResolver.__call__) == methods  # and nothing is left behind
