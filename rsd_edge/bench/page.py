"""A report as one HTML file that refers to nothing outside of it. Needs matplotlib and jinja2, of the extra `bench`."""

from __future__ import annotations

from pathlib import Path

from rsd_edge.bench.compare import Comparison
from rsd_edge.bench.report import Document, sections, summary
from rsd_edge.errors import MissingDependencyError
from rsd_edge.versions import installed

_TEMPLATE = Path(__file__).with_name("report.html")
_NEEDED = ("matplotlib", "jinja2")


def missing_for_html() -> MissingDependencyError | None:
    """What to raise where a page is wanted and cannot be made; None where it can."""
    missing = [name for name in _NEEDED if not installed(name)]
    if not missing:
        return None
    return MissingDependencyError(f"the HTML report needs '{missing[0]}'; run: pip install 'rsd-edge[bench]'")


def to_html(document: Document, comparison: Comparison | None = None) -> str:
    """The whole page. Raises MissingDependencyError without the packages that it needs."""
    if (missing := missing_for_html()) is not None:
        raise missing
    from jinja2 import Environment

    from rsd_edge.bench.plots import plots

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(summary=summary(document), sections=sections(document, comparison), plots=plots(document))
