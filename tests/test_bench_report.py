from __future__ import annotations

import builtins
import importlib.util
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from bench_doubles import report

from rsd_edge.bench.compare import compare
from rsd_edge.bench.page import missing_for_html, to_html
from rsd_edge.bench.quality import METRICS, RECORD, SET, scores_of
from rsd_edge.bench.report import Section, sections, to_markdown
from rsd_edge.bundle import resolve_engine, shipped_engines, shipped_precisions

ROOT = Path(__file__).resolve().parents[1]
NAMES = ["latency", "stages", "roofline", "tiles", "threads", "quality", "model", "machine"]


def section(name: str, document: dict[str, Any]) -> list[dict[str, str]]:
    """The rows of a section, each by its head."""
    (found,) = [item for item in sections(document) if item.name == name]
    assert all(len(cells) == len(found.head) for cells in found.rows)
    return [dict(zip(found.head, cells, strict=True)) for cells in found.rows]


def test_every_part_has_its_section() -> None:
    assert [item.name for item in sections(report())] == NAMES
    assert [item.name for item in sections(report(), compare(report(), report(), 0.05))] == ["comparison", *NAMES]


def test_frames_have_their_figures() -> None:
    rows = section("latency", report())
    assert rows[1] == {
        "engine": "edge-t int8 onnxruntime", "frame": "320x180", "threads": "1", "tiles": "2x1", "tile": "184x114",
        # Nine runs from 80 * 0.984 to 80 * 1.016; the ninetieth percentile is 0.2 on the way to the last but one.
        "p50 ms": "80.0", "p90 ms": "81.0", "p99 ms": "81.3", "runs": "9", "fps": "12.50", "GFLOP": "4.00",
        "GFLOP/s": "50", "of peak": "50%", "peak MB": "120",
    }  # fmt: skip
    assert rows[-1]["engine"] == "bicubic"
    assert rows[-1]["of peak"] == ""


def test_threads_are_ratios() -> None:
    assert section("threads", report()) == [
        {"frame": f"edge-t int8 onnxruntime {size}", "1": "1.00", "2": "2.00"} for size in ("160x90", "320x180")
    ]


def test_the_rest_is_there() -> None:
    document = report()
    assert section("roofline", document)[0] == {"peak": "convolution int8", "threads": "2", "rate": "100.0 GOP/s"}
    assert section("stages", document)[0]["merge"] == "0.70"
    assert section("quality", document)[1]["LPIPS-squeeze"] == "0.730"
    assert section("quality", document)[1]["NIQE"] == ""  # was not scored
    assert section("model", document)[0]["off by"] == "5%"
    (found,) = [item for item in sections(document) if item.name == "model"]
    assert (
        "edge-t int8 onnxruntime, threads 2: start 0 ns, per_tile 1 ms, per_tile_pixel 1 us, per_pixel 0 ns"
        in found.text
    )
    facts = dict(sections(document)[-1].rows)
    assert (facts["power: governor"], facts["power: boost"], facts["l4t"]) == ("performance", "not told", "not told")
    assert facts["engine edge-t int8 onnxruntime"] == "0f3a" * 16


def test_what_was_not_measured_has_no_section() -> None:
    document = report()
    document |= {"stages": {}, "tiles": [], "latency": {}, "quality": {"set": SET, "scores": {}}, "frames": []}
    assert [item.name for item in sections(document)] == ["latency", "roofline", "machine"]


def test_markdown_holds_every_cell() -> None:
    text = to_markdown(report())
    assert text.startswith("# rsd-edge bench\n\nedge-t int8 onnxruntime on A <fast> CPU, 2 cores, 2026-11-21T12:00:00")
    assert "\n\nCommand: rsd-edge bench --model '<b>edge-t'\n" in text
    assert "\n\nNote: something was <left> out\n" in text
    for item in sections(report()):
        assert f"\n## {item.title}\n" in text
        for cells in item.rows:
            assert f"| {' | '.join(cells)} |" in text


def test_the_comparison_says_what_is_slower_and_what_it_does_not_cover() -> None:
    (found,) = [
        item for item in sections(report(1.2), compare(report(), report(1.2), 0.05)) if item.name == "comparison"
    ]
    assert [cells[-1] for cells in found.rows].count("SLOWER") == 5
    assert [cells[-1] for cells in found.rows].count("not judged") == 3
    assert "above 1.05: 5 of 5 are" in found.text[1]
    forced = report()
    forced["machine"] = {**forced["machine"], "cpu": "B"}
    text = to_markdown(forced, compare(report(), forced, 0.05, force=True))
    assert "FORCED, although the reports do not compare: cpu was A <fast> CPU and is B." in text


def test_tables_of_documents_come_from_a_report() -> None:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.bench_tables(report())["bench-roofline"]() == (
        "| peak | threads | rate |\n| --- | --- | --- |\n"
        "| convolution int8 | 2 | 100.0 GOP/s |\n| memory copy | 2 | 10.0 GB/s |\n"
    )
    assert len(script.bench_tables(report())) == len(NAMES)


class Page(HTMLParser):
    """Collects what a page refers to, the ids that it has, its cells and its headings."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.cells: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("href", "src", "xlink:href", "action", "data", "poster", "srcset"):
                self.references.append(value or "")
            if name == "id":
                self.ids.append(value or "")
            self.references += re.findall(r"url\((.*?)\)", value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] in (["td"], ["th"]) and data.strip():
            self.cells.append(data)


@pytest.fixture(scope="module")
def page() -> str:
    pytest.importorskip("matplotlib")
    return to_html(report(1.2), compare(report(), report(1.2), 0.05))


def test_the_page_refers_to_nothing_outside(page: str) -> None:
    parsed = Page(page)
    assert parsed.references
    assert [reference for reference in parsed.references if not reference.strip("'\"").startswith("#")] == []
    assert not {"script", "link", "img", "iframe", "object"} & set(parsed.tags)
    assert "@import" not in page
    assert "url(" not in page[: page.index("</style>")]
    # What is left are the names of the SVG's vocabularies, which nobody fetches.
    assert set(re.findall(r"https?://[^\"'\s<]+", page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_what_a_plot_refers_to_is_in_that_plot(page: str) -> None:
    plots = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(plots) == 6
    clipped = [set(re.findall(r"url\(#(.*?)\)", plot)) for plot in plots]
    assert all(names <= set(Page(plot).ids) for names, plot in zip(clipped, plots, strict=True))
    assert sum(map(len, clipped)) == len(set().union(*clipped))  # and in no other


def test_the_page_holds_every_cell_and_plot(page: str) -> None:
    cells = Page(page).cells
    document, comparison = report(1.2), compare(report(), report(1.2), 0.05)
    found: list[Section] = sections(document, comparison)
    assert [cell for item in found for line in (item.head, *item.rows) for cell in line if cell] == cells
    plotted = re.findall(r'<section id="([^"]+)">(?:(?!</section>).)*?<svg', page, re.DOTALL)
    assert plotted == ["latency", "stages", "roofline", "threads", "quality", "model"]
    assert "&lt;b&gt;edge-t" in page
    assert "<b>" not in page  # what a model or a processor is called is text


def test_a_report_of_little_has_a_page() -> None:
    pytest.importorskip("matplotlib")
    document = report()
    document |= {"stages": {}, "tiles": [], "latency": {}, "quality": {"set": SET, "scores": {}}}
    document["frames"] = document["frames"][:1]
    document["peaks"] = document["peaks"][1:]  # without onnx
    text = to_html(document)
    assert len(re.findall("<svg", text)) == 1
    assert to_html(document) == text  # so that a committed report changes only where its numbers do


def test_without_matplotlib_the_page_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "matplotlib" else builtins.__spec__)
    error = missing_for_html()
    assert str(error) == "the HTML report needs 'matplotlib'; run: pip install 'rsd-edge[bench]'"
    with pytest.raises(type(error), match="matplotlib"):
        to_html(report())


def test_the_record_of_quality_is_the_benchmarks() -> None:
    kept = ROOT / "benchmarks" / "reports" / "quality.json"
    assert json.loads(RECORD.read_text()) == json.loads(kept.read_text()), f"copy {kept} to {RECORD}"


@pytest.mark.parametrize("model", shipped_engines())
def test_what_ships_was_scored(model: str) -> None:
    for precision in shipped_precisions(model):
        scores = scores_of(resolve_engine(model, precision))
        assert scores is not None, "score it with benchmarks/score_engine.py"
        expected = json.loads(RECORD.read_text())["sets"][SET][f"{model} {precision.value}"]
        assert scores == {metric: expected[metric] for metric in METRICS}, "rounded where it is shown, and only there"
