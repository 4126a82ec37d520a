"""Tables of README, model cards and reports, from the JSON files of the benchmarks.

    python benchmarks/tables.py --reports benchmarks/reports README.md benchmarks/reports/README.md
        rsd_edge/zoo/*/MODEL_CARD.md

Whatever stands between `<!-- table NAME -->` and `<!-- end -->` is replaced by the table of that name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
from fidelity_tables import colour_table, grid_table, seams_table, typed_table
from markdown_table import number, table
from model_goals import model_goals
from training_tables import training_tables

from rsd_edge.bench.quality import SET
from rsd_edge.bench.reading import read_report
from rsd_edge.bench.report import sections
from rsd_edge.stream.atomic import atomic_file

QUALITY = {
    "psnr_y": ("PSNR-Y", 2),
    "ssim_y": ("SSIM-Y", 3),
    "lpips_squeeze": ("LPIPS-squeeze", 3),
    "niqe": ("NIQE", 2),
    "spectrum_db": ("spectrum error dB", 1),
    "lattice_spread": ("lattice spread", 2),
    "lattice_mean": ("lattice mean", 2),
}
BENCH = Path("bench") / "report.json"
"""Of `rsd-edge bench -o benchmarks/reports/bench`."""
_FILMS = {"intel_one-by-one-person": "one-by-one-person", "intel_bottle": "bottle", "intel_car": "car"}
_MARK = re.compile(r"(<!-- table ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


class Tables:
    """Every table by its name."""

    def __init__(
        self,
        quality: dict[str, Any],
        breakdown: dict[str, Any],
        published: dict[str, Any],
        video: dict[str, Any],
        devices: dict[str, Any],
    ) -> None:
        self._devices = devices
        self._sets, self._frames = quality["sets"], breakdown["frames"]
        self._published, self._videos = published, video["engines"]
        self._by_name: dict[str, Callable[[], str]] = {
            "quality": lambda: self._quality(list(self._sets), None),
            "quality-kodak24": lambda: self._quality([name for name in self._sets if "kodak24" in name], None),
            "quality-edge-s": lambda: self._quality(list(self._sets), "edge-s"),
            "quality-edge-n": lambda: self._quality(list(self._sets), "edge-n"),
            "breakdown": self._breakdown,
            "devices": self._device_rows,
            "published-networks": self._published_rows,
            "video": self._video_rows,
        }

    def add(self, makers: dict[str, Callable[[], str]]) -> None:
        """Further tables."""
        self._by_name |= makers

    def fill(self, text: str) -> str:
        """The text with all its tables made anew. Raises KeyError for a table that does not exist."""
        return _MARK.sub(lambda match: f"{match[1]}{self._by_name[match[2]]()}{match[3]}", text)

    def _quality(self, sets: list[str], model: str | None) -> str:
        rows = []
        for name in sets:
            for method, row in sorted(self._sets[name].items()):
                if model is None or method.startswith(model) or not method.startswith("edge-"):
                    cells = [number(row.get(key), digits) for key, (_, digits) in QUALITY.items()]
                    rows.append([name, method, *cells])
        return table(["set", "method", *(title for title, _ in QUALITY.values())], rows)

    def _device_rows(self) -> str:
        rows = []
        for model, boards in self._devices["models"].items():
            for board, precisions in boards.items():
                for precision, row in precisions.items():
                    frame = row["frame_ms"]
                    rows.append(
                        [
                            board, f"{model} {precision}", f"{row['tile_ms']:g}", f"{frame:g}", f"{1e3 / frame:.0f}",
                            str(row["memory_mib"]), row.get("bound", ""), row["source"],
                        ]
                    )  # fmt: skip
        head = ["device", "engine", "208x208 tile ms", f"{self._devices['frame']} frame ms", "fps", "MiB", "bound by"]
        return table([*head, ""], rows)

    def _breakdown(self) -> str:
        stages = next(iter(self._frames.values()))["ms_per_output_megapixel"]
        rows = []
        for stage in stages:
            times = [frame["ms_per_output_megapixel"][stage] for frame in self._frames.values()]
            rows.append([stage, *(f"{time['median']:.2f} ({time['fastest']:.2f})" for time in times)])
        return table(["stage", *(f"{name} in {frame['tiles']}" for name, frame in self._frames.items())], rows)

    def _published_rows(self) -> str:
        found, memory = self._published["rows"], self._published["memory"]["peak_mb"]
        rows = [
            [
                row["part"],
                row["runtime"],
                f"{row['ms']['median']:.{1 if row['gflop'] < 10 else 0}f}",
                number(row["gflop"], 1),
                number(row["gflop_per_s"], 0),
                f"{row['share_of_fp32_peak']:.0%}",
                number(memory[row["runtime"]][row["part"]], 0),
            ]
            for part in dict.fromkeys(row["part"] for row in found)
            for row in found
            if row["part"] == part
        ]
        return table(["part", "runtime", "ms", "GFLOP", "GFLOP/s", "of the fp32 peak", "peak memory MB"], rows)

    def _video_rows(self) -> str:
        rows = []
        for name, row in self._videos.items():
            paces = [number(row[kind]["frames_per_second"], 2) for kind in ("video", "alone")]
            spent = [number(row[kind]["processor_ms_per_frame"], 0) for kind in ("video", "alone")]
            peaks = [number(row["peak_memory_mb"][when], 0) for when in ("after a third", "at the end")]
            options = row["encoder_options"]
            encoder = f"{row['encoder']} {options['preset']}, crf {options['crf']}"
            rows.append([name, encoder, *paces, number(row["video_to_alone"], 2), *spent, *peaks])
        speeds = ["video fps", "engine alone fps", "ratio", "video CPU ms", "engine alone CPU ms"]
        return table(["engine", "encoder", *speeds, "peak MB at 1/3", "peak MB at the end"], rows)


def speed_tables(
    report: dict[str, Any], tiles: dict[str, Any], quality: dict[str, Any]
) -> dict[str, Callable[[], str]]:
    """Makers of tables by name."""
    return {
        "speed": lambda: _speed(report, quality["sets"][SET]),
        "goals": lambda: _goals(report),
        "tile-sizes": lambda: _tile_sizes(tiles),
    }


def _speed(report: dict[str, Any], scores: dict[str, Any]) -> str:
    """Scores are those of today's weights: other weights do not change how fast a graph is."""
    found = report["rows"]
    published, peer = (next(name for name in found if name.endswith(end)) for end in ("as published", "ncnn"))
    head = []
    for part in ("tile", "frame"):
        head += [f"{report[part]} {part} ms", "published / it", "peer / it"]
    rows = []
    for name in sorted(found, key=lambda name: -found[name]["frame"]["median"]):
        row, cells = found[name], [name]
        for part in ("tile", "frame"):
            median = row[part]["median"]
            cells += [
                number(median, 2 if median < 10 else 1 if median < 1000 else 0),
                *(_ratio(found[other][part]["median"] / median) for other in (published, peer)),
            ]
        share = row.get("share_of_peak")
        # Rows here end in the runtime that took the time, bicubic apart; rows of scores do not.
        quality = scores.get(name) or scores.get(name.rpartition(" ")[0], {})
        cells += [number(row.get("gflop"), 2), "" if share is None else f"{share:.0%}"]
        rows.append([*cells, number(quality.get("psnr_y"), 2), number(quality.get("lpips_squeeze"), 3)])
    return table(["method", *head, "GFLOP a tile", "of peak", "PSNR-Y", "LPIPS"], rows)


def model_goals_table(reports: Path) -> str:
    """What the shipped models are held to."""
    goals = model_goals({path.stem: _load(path) for path in reports.glob("*.json")})
    return table(["goal", "measured", ""], [[goal.name, goal.measured, _verdict(goal.met)] for goal in goals])


def _verdict(met: bool) -> str:
    return "met" if met else "**missed**"


def _ratio(value: float) -> str:
    return f"{value:.{2 if value < 0.1 else 3}g}" if value < 1000 else f"{value:.0f}"


def _goals(report: dict[str, Any]) -> str:
    rows = [
        [goal["name"], goal["by"], f"{goal['wanted']:g}", _ratio(goal["measured"]), "met" if goal["met"] else "missed"]
        for goal in report["goals"]
    ]
    return table(["goal", "of the two runtimes", "at least", "measured", ""], rows)


def _tile_sizes(report: dict[str, Any]) -> str:
    rows = [
        [
            f"{model} int8 {side}x{side}",
            number(row["median"], 1),
            number(row["per_64x64"], 2),
            number(row["per_64x64_without_halo"], 2),
        ]
        for model, tiles in report["tiles"].items()
        for side, row in tiles.items()
    ]
    return table(["tile", "ms", "ms per 64x64 computed", "ms per 64x64 of the picture"], rows)


def live_tables(
    live: dict[str, Any], temporal: dict[str, Any], endurance: dict[str, Any]
) -> dict[str, Callable[[], str]]:
    """Makers of tables by name."""
    return {
        "endurance": lambda: _endurance(endurance),
        "slow-engine": lambda: _slow_engine(live["slow_engine"]),
        "live": lambda: _sizes(live),
        "reuse": lambda: _reuse(live),
        "temporal": lambda: _temporal(temporal),
    }


def _sizes(live: dict[str, Any]) -> str:
    head = ["camera at", "result", "fps", "dropped", "latency p50 ms", "p95", "p99", "engine ms", "pre + post ms"]
    rows = []
    for run in live["sizes"]:
        latency, stages = run["latency_ms"], run["stages_p50_ms"]
        rows.append(
            [
                f"{run['source_size'][0]}x{run['source_size'][1]}, {live['rate']:g} fps",
                f"{run['result_size'][0]}x{run['result_size'][1]}",
                f"{run['sr_fps']:.1f}",
                f"{run['dropped']} of {run['captured']}",
                *(f"{latency[name]:.0f}" for name in ("p50", "p95", "p99")),
                f"{stages['engine']:.1f}",
                f"{stages['pre'] + stages['post']:.1f}",
            ]
        )
    return table(head, rows)


def _reuse(live: dict[str, Any]) -> str:
    head = ["film", "tile", "threshold", "tiles computed", "ms a frame", "times as fast"]
    head += ["mean difference", "largest", "PSNR dB"]
    rows = []
    for name, film in live["reuse"].items():
        for row in film["rows"]:
            psnr = "same bytes" if row["psnr_db"] is None else f"{row['psnr_db']:.1f}"
            threshold = {None: "no reuse", 0.0: "0, exact"}.get(row["threshold"], f"{row['threshold'] or 0:g}")
            rows.append(
                [
                    f"{_FILMS.get(name, name)}, {'x'.join(map(str, film['size']))}",
                    str(row["tile"]),
                    threshold,
                    f"{100 * row['tiles_computed']:.1f} %",
                    f"{row['ms_per_frame']:.0f}",
                    f"{row['times_as_fast']:.2f}",
                    f"{row['mean_difference']:.3f}",
                    str(row["largest_difference"]),
                    psnr,
                ]
            )
    return table(head, rows)


def _slow_engine(run: dict[str, Any]) -> str:
    head = ["engine", "frames captured", "delivered", "dropped", "engine p50 ms", "engine p99", "latency p50"]
    head += ["latency p99", "two frame times and the engine's p99"]
    latency, frame = run["latency_ms"], 1000 / run["capture_fps"]
    times = [run["stages_p50_ms"]["engine"], run["engine_p99_ms"], latency["p50"], latency["p99"]]
    counts = [str(run[name]) for name in ("captured", "delivered", "dropped")]
    bound = 2 * frame + run["engine_p99_ms"]
    return table(head, [[run["engine"], *counts, *(f"{value:.0f}" for value in (*times, bound))]])


_LONG_RUNS = {
    "revives_two_hundred_times_leaves_nothing_behind[mjpeg]": "MJPEG over HTTP that dies and revives",
    "revives_two_hundred_times_leaves_nothing_behind[ts]": "MPEG-TS over TCP that dies and revives",
    "no_more_memory_than_two_thousand[fixed]": "the test pattern, noise fixed",
    "no_more_memory_than_two_thousand[flow]": "the test pattern, noise moved by flow",
    "no_more_memory_than_two_thousand[blend]": "the test pattern, detail blended",
}


def _endurance(endurance: dict[str, Any]) -> str:
    rows = []
    for test, run in endurance.items():
        name = next((words for end, words in _LONG_RUNS.items() if test.endswith(end)), None)
        if name is None:
            continue
        (early, before), (late, after) = run["after"].items()
        what = f"{early} and {late} {'deaths' if 'revivals' in run else 'frames'}"
        pairs = (f"{before[key]:g}, {after[key]:g}" for key in ("threads", "handles", "resident_mb"))
        rows.append([name, str(run.get("revivals", "-")), str(run["frames"]), what, *pairs])
    return table(["source", "revivals", "frames", "looked at after", "threads", "handles", "memory MB"], rows)


def _temporal(temporal: dict[str, Any]) -> str:
    films = temporal["films"]
    methods = list(next(iter(films.values()))["methods"])
    head = ["method", *(f"{_FILMS.get(name, name)}: warped error / texture / LPIPS / PSNR-Y" for name in films)]
    rows = []
    for method in methods:
        cells = []
        for film in films.values():
            row = film["methods"][method]
            close = (number(row["lpips_squeeze"], 3), number(row["psnr_y"], 2))
            cells.append(" / ".join((f"{row['warped_error']:.2f}", f"{row['texture']:.2f}", *close)))
        rows.append([temporal["peer"] if method == "peer" else method, *cells])
    return table(head, rows)


def bench_tables(report: dict[str, Any]) -> dict[str, Callable[[], str]]:
    """Makers of the tables of a report of `rsd-edge bench`: bench-latency, bench-roofline and so on."""
    return {f"bench-{section.name}": partial(table, section.head, section.rows) for section in sections(report)}


def _load(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


@click.command()
@click.option("--reports", required=True, type=click.Path(path_type=Path, exists=True), help="Folder of JSON files.")
@click.argument("documents", nargs=-1, type=click.Path(path_type=Path, exists=True))
def main(reports: Path, documents: tuple[Path, ...]) -> None:
    """Fill the tables of all documents."""
    names = ("quality", "frame-breakdown", "published-networks", "video", "devices")
    tables = Tables(*(_load(reports / f"{name}.json") for name in names))
    speed, tiles, quality = (_load(reports / f"{name}.json") for name in ("side-by-side", "tile-sizes", "quality"))
    tables.add(speed_tables(speed, tiles, quality))
    tables.add(live_tables(*(_load(reports / f"{name}.json") for name in ("live", "temporal", "live-long"))))
    tables.add({"model-goals": lambda: model_goals_table(reports)})
    tables.add(training_tables(reports, _load))
    fidelity = [_load(reports / f"fidelity-{model}.json") for model in ("edge-s", "edge-n")]
    tables.add({"seams": lambda: seams_table(fidelity), "colour": lambda: colour_table(fidelity)})
    tables.add({"grid": lambda: grid_table(fidelity)})
    tables.add({"typed-graphs": lambda: typed_table(_load(reports / "typed-graphs.json"))})
    if (reports / BENCH).is_file():
        tables.add(bench_tables(read_report(reports / BENCH)))
    for path in documents:
        filled = tables.fill(path.read_text(encoding="utf-8"))
        with atomic_file(path) as file:
            file.write(filled.encode())


if __name__ == "__main__":
    main()
