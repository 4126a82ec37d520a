"""The pictures of a report, as SVG to be put into a page. Needs matplotlib, of the extra `bench`."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rsd_edge.bench.peaks import COPY
from rsd_edge.bench.report import METRIC_TITLES, Document, scaling

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
"""Told apart by people who see fewer colours (Okabe and Ito)."""
_MARKERS = "osD^vP*X"
_FILM_FPS = 24
_SIZE = (9.6, 4.2)
"""Inches, of 72 CSS points each."""
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be searched and copied, and takes the fonts of the page
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
}


def plots(document: Document) -> dict[str, str]:
    """SVG elements by the name of the section that they belong to; none for what was not measured."""
    from matplotlib import rc_context

    makers: dict[str, Callable[[Document], Figure | None]] = {
        "latency": _latency, "stages": _stages, "roofline": _roofline, "threads": _threads, "quality": _quality,
        "model": _model,
    }  # fmt: skip
    found = {}
    for name, make in makers.items():
        with rc_context({**_SETTINGS, "svg.hashsalt": name}):  # ids that stay the same, and meet no other plot's
            figure = make(document)
            if figure is not None:
                found[name] = _svg(figure)
    return found


def _svg(figure: Figure) -> str:
    written = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(written, format="svg", metadata=nothing, transparent=True, bbox_inches="tight")
    text = written.getvalue()
    return text[text.index("<svg") :]


def _axes(width: float = 1, height: float = 1, columns: int = 1) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_SIZE[0] * width, _SIZE[1] * height), layout="constrained")
    return figure, figure.subplots(1, columns)


def _colours(names: Iterable[str]) -> dict[str, str]:
    return {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(dict.fromkeys(names))}


def _plain_numbers(*axes: Axis) -> None:
    """1, 2, 5, 10 instead of powers of ten; over many of those, only 1, 10, 100."""
    from matplotlib.ticker import LogLocator, NullLocator

    for axis in axes:
        low, high = axis.get_view_interval()
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 3e3 * low else (1,)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter("{x:g}")


def _legend(axes: Axes) -> None:
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=8)


def _latency(document: Document) -> Figure:
    figure, axes = _axes()
    frames = document["frames"]
    colours = _colours(row["engine"] for row in frames)
    most = max(row["threads"] for row in frames)
    lines: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in frames:
        lines.setdefault((row["engine"], row["threads"]), []).append(row)
    for (engine, threads), rows in lines.items():
        rows.sort(key=lambda row: row["width"] * row["height"])
        pixels = [row["width"] * row["height"] for row in rows]
        medians = [row["ms"]["median"] for row in rows]
        style = {"color": colours[engine], "marker": "o", "markersize": 3.5, "linewidth": 1.3}
        dashes = "-" if threads == most else (0, (1 + threads, 2))
        axes.plot(pixels, medians, linestyle=dashes, label=f"{engine}, {threads} thr.", **style)
        axes.fill_between(
            pixels, [row["ms"]["p10"] for row in rows], [row["ms"]["p90"] for row in rows],
            color=colours[engine], alpha=0.12, linewidth=0,
        )  # fmt: skip
    axes.set(xscale="log", yscale="log", ylabel="ms a frame: median, 10 to 90 %", xlabel="input frame")
    sizes = {row["width"] * row["height"]: f"{row['width']}x{row['height']}" for row in frames}
    axes.set_xticks(list(sizes), list(sizes.values()))
    axes.minorticks_off()
    _plain_numbers(axes.yaxis)
    axes.axhline(1e3 / _FILM_FPS, color="#888888", linewidth=0.8, linestyle=":")
    at = (0.995, 1e3 / _FILM_FPS)
    axes.annotate(f"{_FILM_FPS} fps", at, xycoords=("axes fraction", "data"), va="bottom", ha="right", fontsize=7)
    _legend(axes)
    return figure


def _stages(document: Document) -> Figure | None:
    found = document["stages"]
    if not found:
        return None
    figure, axes = _axes(height=0.35 + 0.07 * len(found))
    names = list(found)
    left = [0.0] * len(names)
    whole = [sum(found[name].values()) for name in names]
    for stage, colour in _colours(found[names[0]]).items():
        widths = [100 * found[name][stage] / total for name, total in zip(names, whole, strict=True)]
        axes.barh(range(len(names)), widths, left=left, color=colour, label=stage, height=0.7)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(names)), [f"{name}: {ms:.0f} ms" for name, ms in zip(names, whole, strict=True)])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set(xlabel="% of the time of a frame", xlim=(0, 100))
    _legend(axes)
    return figure


def _roofline(document: Document) -> Figure | None:
    most = max(row["threads"] for row in document["peaks"])
    rates = {row["peak"]: row["rate"] for row in document["peaks"] if row["threads"] == most}
    points = [
        row
        for row in document["tiles"]
        if row["threads"] == most and row.get("operations_per_byte") and "gflop_per_s" in row
    ]
    roofs = {name: rate for name, rate in rates.items() if name != COPY}
    if not roofs:
        return None
    figure, axes = _axes()
    left, right = 1.0, 4 * max([256.0, *(row["operations_per_byte"] for row in points)])
    for (name, rate), colour in zip(roofs.items(), COLOURS, strict=False):
        ridge = rate / rates[COPY]
        axes.plot([left, ridge, right], [left * rates[COPY], rate, rate], color=colour, linewidth=1, label=name)
    shapes = dict(zip(dict.fromkeys((row["engine"], row["width"]) for row in points), _MARKERS * 8, strict=False))
    for row in points:
        axes.plot(
            row["operations_per_byte"], row["gflop_per_s"], shapes[row["engine"], row["width"]], color="#222222",
            markersize=5, label=f"{row['engine']}, tile {row['width']}",
        )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlim=(left, right), ylabel="GFLOP/s or GOP/s")
    _plain_numbers(axes.xaxis, axes.yaxis)
    axes.set_xlabel(f"operations for each byte, {most} threads; slope: memory copy, {rates[COPY]:.1f} GB/s")
    _legend(axes)
    return figure


def _threads(document: Document) -> Figure | None:
    found = list(scaling(document))
    if not found:
        return None
    figure, axes = _axes(width=0.8)
    colours = _colours(name.rpartition(" ")[0] for name, _ in found)
    sizes = dict.fromkeys(name.rpartition(" ")[2] for name, _ in found)
    markers = dict(zip(sizes, _MARKERS * len(sizes), strict=False))
    for name, by_threads in found:
        engine, _, size = name.rpartition(" ")
        style = {"color": colours[engine], "marker": markers[size], "markersize": 4}
        axes.plot(list(by_threads), list(by_threads.values()), label=name, linewidth=1, **style)
    threads = sorted({count for _, by_threads in found for count in by_threads})
    ideal = [count / threads[0] for count in threads]
    axes.plot(threads, ideal, color="#888888", linestyle=":", linewidth=1, label="in proportion")
    axes.set(xlabel="threads", ylabel=f"times as fast as on {threads[0]}")
    axes.set_xticks(threads)
    _legend(axes)
    return figure


def _quality(document: Document) -> Figure | None:
    scores = document["quality"]["scores"]
    frames = [row for row in document["frames"] if row["engine"] in scores]
    if not frames:
        return None
    most = max(row["threads"] for row in frames)
    sizes = sorted({(row["width"] * row["height"], row["width"], row["height"]) for row in frames})
    _, width, height = sizes[len(sizes) // 2]
    shown = [row for row in frames if (row["width"], row["height"], row["threads"]) == (width, height, most)]
    colours = _colours(row["engine"] for row in shown)
    figure, panels = _axes(columns=2)
    for axes, metric in zip(panels, ("lpips_squeeze", "psnr_y"), strict=True):
        for row in shown:
            if metric in scores[row["engine"]]:
                axes.plot(
                    row["per_second"], scores[row["engine"]][metric], "o", color=colours[row["engine"]],
                    label=row["engine"],
                )  # fmt: skip
        axes.set(xscale="log", xlabel=f"frames a second at {width}x{height}, {most} threads")
        _plain_numbers(axes.xaxis)
        axes.set_ylabel(METRIC_TITLES[metric][0])
        axes.set_title("up and to the right is better", fontsize=8, color="#555555")
        axes.margins(0.15)
    panels[0].invert_yaxis()
    _legend(panels[1])
    return figure


def _model(document: Document) -> Figure | None:
    held = {label: model["held_out"] for label, model in document["latency"].items() if model["held_out"]}
    if not held:
        return None
    figure, axes = _axes(width=0.8)
    for label, colour in _colours(held).items():
        pairs = [(row["measured_ms"], row["predicted_ms"]) for row in held[label]]
        axes.plot(*zip(*pairs, strict=True), "o", color=colour, markersize=4, label=label)
    ends = [row["measured_ms"] for rows in held.values() for row in rows]
    line = (0.7 * min(ends), 1.4 * max(ends))
    axes.plot(line, line, color="#888888", linewidth=0.8, linestyle=":")
    axes.set(xscale="log", yscale="log", xlabel="measured ms a frame", ylabel="predicted ms, not fitted to these")
    _plain_numbers(axes.xaxis, axes.yaxis)
    _legend(axes)
    return figure
