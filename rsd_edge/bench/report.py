"""A report for people: the same sections of text and tables for Markdown and HTML, from the document of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rsd_edge.bench.compare import LEAST_RUNS, Comparison
from rsd_edge.bench.quality import METRICS
from rsd_edge.evaluate.bootstrap import CONFIDENCE

Document = Mapping[str, Any]

METRIC_TITLES = {
    "psnr_y": ("PSNR-Y dB", 2),
    "ssim_y": ("SSIM-Y", 3),
    "lpips_squeeze": ("LPIPS-squeeze", 3),
    "niqe": ("NIQE", 2),
}


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it; plots have the same names as sections."""

    name: str
    title: str
    text: tuple[str, ...] = ()
    """Paragraphs."""
    head: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = field(default=())


def sections(document: Document, comparison: Comparison | None = None) -> list[Section]:
    """All sections that the document has something for."""
    makers: tuple[Callable[[Document], Section | None], ...] = (
        _frames, _stages, _peaks, _tiles, _threads, _quality, _latency, _machine,
    )  # fmt: skip
    found = [section for maker in makers if (section := maker(document)) is not None]
    return [*([_comparison(comparison)] if comparison else []), *found]


def summary(document: Document) -> list[str]:
    """What was measured, on what, when and by which command."""
    machine = document["machine"]
    lines = [
        f"{', '.join(document['engines'])} on {machine['cpu']}, {machine['cores']} cores, {document['date']}",
        f"Command: {document['command']}",
    ]
    return lines + [f"Note: {note}" for note in document["notes"]]


def to_markdown(document: Document, comparison: Comparison | None = None) -> str:
    """The report without its plots."""
    parts = ["# rsd-edge bench", *summary(document)]
    for section in sections(document, comparison):
        parts += [f"## {section.title}", *section.text]
        if section.head:
            lines = [section.head, ("---",) * len(section.head), *section.rows]
            parts.append("\n".join(f"| {' | '.join(map(_escaped, line))} |" for line in lines))
    return "\n\n".join(parts) + "\n"


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")


def number(value: float | None, digits: int = 1) -> str:
    """For a table: empty for None."""
    return "" if value is None else f"{value:.{digits}f}"


def share(value: float | None) -> str:
    """In percent, empty for None."""
    return "" if value is None else f"{value:.0%}"


def milliseconds(row: Mapping[str, Any]) -> list[str]:
    """Median and percentiles of a row, with more digits where they are small."""
    times = row["ms"]
    digits = 2 if times["median"] < 10 else 1 if times["median"] < 1000 else 0
    return [number(times[name], digits) for name in ("median", "p90", "p99")]


_TIMES = ("p50 ms", "p90 ms", "p99 ms", "runs")


def _frames(document: Document) -> Section | None:
    rows = [
        (
            row["engine"], f"{row['width']}x{row['height']}", str(row["threads"]), row.get("tiles", ""),
            row.get("tile", ""), *milliseconds(row), str(row["ms"]["runs"]), number(row["per_second"], 2),
            number(row.get("gflop"), 2), number(row.get("gflop_per_s"), 0), share(row.get("share_of_peak")),
            number(row.get("peak_mb"), 0),
        )
        for row in document["frames"]
    ]  # fmt: skip
    text = (
        "Whole frames, uint8 to uint8, x4: halo, noise, engine, merging and bicubic base, but no files. Everything "
        "takes its turn in every round (A B A B), after a pause and a run that does not count. With fewer than 100 "
        "runs p99 is little else than the slowest. Engines are given by model, precision and runtime; peers enlarge "
        "whole frames without tiles.",
        "GFLOP: convolutions, halos included. Share of peak: of the convolutions that this processor manages in the "
        f"same precision on as many threads, measured in the same run. Memory: {document['memory_method']}."
        if document["memory_method"]
        else "GFLOP: convolutions, halos included. Share of peak: of convolutions in the same precision, measured in "
        "the same run.",
    )
    head = ("engine", "frame", "threads", "tiles", "tile", *_TIMES, "fps", "GFLOP", "GFLOP/s", "of peak", "peak MB")
    return Section("latency", "Latency by size", text, head, tuple(rows))


def _stages(document: Document) -> Section | None:
    found = document["stages"]
    if not found:
        return None
    stages = list(next(iter(found.values())))
    rows = [(name, *(number(row[stage], 2) for stage in stages)) for name, row in found.items()]
    text = ("Median milliseconds of each stage of a frame whose noise was drawn before, as in a film.",)
    return Section("stages", "Where the time of a frame goes", text, ("frame", *stages), tuple(rows))


def _peaks(document: Document) -> Section:
    rows = [(row["peak"], str(row["threads"]), f"{row['rate']:.1f} {row['unit']}") for row in document["peaks"]]
    text = (
        "The fastest of all runs: convolutions of 128 channels, 3x3 on 64x64; square matrices of 768; U8 x S8 for "
        "INT8; copies of 64 MiB, with every byte counted where it is read and where it is written.",
    )
    return Section("roofline", "What the machine computes and moves", text, ("peak", "threads", "rate"), tuple(rows))


def _tiles(document: Document) -> Section | None:
    rows = [
        (
            row["engine"], f"{row['width']}x{row['height']}", str(row["threads"]), *milliseconds(row),
            str(row["ms"]["runs"]), number(row.get("gflop_per_s"), 0), share(row.get("share_of_peak")),
            number(row.get("operations_per_byte"), 0),
        )
        for row in document["tiles"]
    ]  # fmt: skip
    if not rows:
        return None
    text = ("The engine alone on one tile. FLOP/byte: were each layer to read and write memory by itself.",)
    head = ("engine", "tile", "threads", *_TIMES, "GFLOP/s", "of peak", "FLOP/byte")
    return Section("tiles", "Bare tiles", text, head, tuple(rows))


def scaling(document: Document) -> Iterator[tuple[str, dict[int, float]]]:
    """(engine and frame, times as fast as on the fewest threads, by threads) of all that ran on several numbers."""
    medians: dict[str, dict[int, float]] = {}
    for row in document["frames"]:
        name = f"{row['engine']} {row['width']}x{row['height']}"
        medians.setdefault(name, {})[row["threads"]] = row["ms"]["median"]
    for name, by_threads in medians.items():
        if len(by_threads) > 1:
            first = by_threads[min(by_threads)]
            yield name, {threads: first / by_threads[threads] for threads in sorted(by_threads)}


def _threads(document: Document) -> Section | None:
    found = list(scaling(document))
    if not found:
        return None
    columns = sorted({threads for _, by_threads in found for threads in by_threads})
    rows = [(name, *(number(by_threads.get(threads), 2) for threads in columns)) for name, by_threads in found]
    text = ("Times as fast as on the fewest threads.",)
    return Section("threads", "Threads", text, ("frame", *map(str, columns)), tuple(rows))


def _quality(document: Document) -> Section | None:
    quality = document["quality"]
    rows = [
        (name, *(number(scores.get(metric), METRIC_TITLES[metric][1]) for metric in METRICS))
        for name, scores in quality["scores"].items()
    ]
    if not rows:
        return None
    text = (
        f"Mean scores over {quality['set']} from the record that ships with rsd-edge; not measured in this run. PSNR-Y "
        "and SSIM-Y: higher is better; LPIPS-squeeze, a loss of the shipped models' training, and NIQE, by this "
        "project's own statistics: lower is better. An engine that is not listed was not scored; scores belong to a "
        "graph and were made with ONNX Runtime, and another runtime's differ in the fourth digit.",
    )
    titles = tuple(METRIC_TITLES[metric][0] for metric in METRICS)
    return Section("quality", "Speed against quality", text, ("method", *titles), tuple(rows))


def _latency(document: Document) -> Section | None:
    models = document["latency"]
    if not models:
        return None
    rows = [
        (label, row["name"], number(row["measured_ms"]), number(row["predicted_ms"]), share(row["error"]))
        for label, model in models.items()
        for row in model["held_out"]
    ]
    text = [
        "seconds = start + tiles x per tile + tile pixels x per tile pixel + pixels x per pixel, fitted to small "
        "frames for each number of threads and held against the frames above, which the fit never saw.",
    ]
    for label, model in models.items():
        for threads, terms in model["seconds"].items():
            costs = ", ".join(f"{name} {_cost(seconds)}" for name, seconds in terms.items())
            text.append(f"{label}, threads {threads}: {costs}")
        text.append(
            f"{label}: off by {share(model['error'])} at most on the medians held out, and by "
            f"{share(model['error_of_runs'])} on four runs in five"
        )
    head = ("engine", "held out", "measured ms", "predicted ms", "off by")
    return Section("model", "Latency model", tuple(text), head, tuple(rows))


def _cost(seconds: float) -> str:
    for unit, size in (("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size / 10:
            return f"{seconds / size:.3g} {unit}"
    return f"{1e9 * seconds:.3g} ns"


def _machine(document: Document) -> Section:
    facts = {**document["machine"], **{f"load {when}": value for when, value in document["load"].items()}}
    power = {f"power: {name}": value for name, value in facts.pop("power").items()}
    versions = " ".join(f"{name} {version}" for name, version in document["versions"].items())
    engines = {f"engine {label}": str(record.get("digest")) for label, record in document["engines"].items()}
    rows = [(name, _shown(value)) for name, value in {**facts, **power, "versions": versions, **engines}.items()]
    return Section("machine", "Machine", (), ("", ""), tuple(rows))


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return "not told" if value is None else str(value)


def _comparison(comparison: Comparison) -> Section:
    rows = [
        (
            change.name, number(change.old_ms, 2), number(change.new_ms, 2), number(change.ratio, 3),
            f"{change.low:.3f} to {change.high:.3f}",
            "SLOWER" if change.slower else "" if change.judged else "not judged",
        )
        for change in comparison.changes
    ]  # fmt: skip
    text = [
        f"Against {comparison.old}. Ratio of the medians, new over old, and its {CONFIDENCE:.0%} interval over the "
        "runs of both; it does not cover what changed on the machine between them, which peers and peaks tell.",
        f"A row is slower if its whole interval lies above {1 + comparison.threshold:g}: {len(comparison.slower)} of "
        f"{sum(change.judged for change in comparison.changes)} are. Not judged: peers, peaks, and rows of fewer than "
        f"{LEAST_RUNS} runs.",
    ]
    if comparison.forced:
        text.append(f"FORCED, although the reports do not compare: {'; '.join(comparison.forced)}.")
    if comparison.versions:
        text.append(f"Versions: {'; '.join(comparison.versions)}.")
    if comparison.unmatched:
        text.append(f"In one of the two only: {', '.join(comparison.unmatched)}.")
    head = ("row", "old ms", "new ms", "ratio", "interval", "")
    return Section("comparison", "Comparison", tuple(text), head, tuple(rows))
