"""Tables in documents are those of the committed measurements."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from tables import main

ROOT = Path(__file__).parents[1]
MODELS = "edge-s", "edge-n"
DOCUMENTS = "README.md", "benchmarks/reports/README.md", *(f"rsd_edge/zoo/{name}/MODEL_CARD.md" for name in MODELS)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_tables_have_the_reports_figures(document: str, tmp_path: Path) -> None:
    copy, written = tmp_path / "document.md", (ROOT / document).read_text(encoding="utf-8")
    copy.write_text(written, encoding="utf-8")
    result = CliRunner().invoke(main, ["--reports", str(ROOT / "benchmarks" / "reports"), str(copy)])
    assert result.exit_code == 0, result.output
    assert copy.read_text(encoding="utf-8") == written
    assert written.count("<!-- table ") == written.count("<!-- end -->") > 0


def test_shipped_figures_are_the_reports() -> None:
    """`rsd-edge bench` shows those in the package."""
    shipped, measured = ROOT / "rsd_edge" / "zoo" / "quality.json", ROOT / "benchmarks" / "reports" / "quality.json"
    assert shipped.read_bytes() == measured.read_bytes()


@pytest.mark.parametrize("model", MODELS)
def test_the_card_tells_how_its_int8_was_made(model: str) -> None:
    folder = ROOT / "rsd_edge" / "zoo" / model
    record = json.loads((folder / "int8" / "quantization.json").read_text(encoding="utf-8"))
    (line,) = [x for x in (folder / "MODEL_CARD.md").read_text(encoding="utf-8").splitlines() if "| INT8 |" in x]
    image, detail = (f"{record['closeness'][key]:.2f} dB" for key in ("psnr_db", "detail_snr_db"))
    assert f"| {image} against fp32 on held-out crops, detail SNR {detail}," in line
    assert f"method {record['method']};" in line
