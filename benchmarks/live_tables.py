"""Tables of live runs and of steadiness over time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

Table = Callable[[list[str], Iterable[list[str]]], str]

_FILMS = {"intel_one-by-one-person": "one-by-one-person", "intel_bottle": "bottle", "intel_car": "car"}


def live_tables(live: dict[str, Any], temporal: dict[str, Any], table: Table) -> dict[str, Callable[[], str]]:
    """Makers of tables by name."""
    return {
        "live": lambda: _sizes(live, table),
        "reuse": lambda: _reuse(live, table),
        "temporal": lambda: _temporal(temporal, table),
    }


def _sizes(live: dict[str, Any], table: Table) -> str:
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


def _reuse(live: dict[str, Any], table: Table) -> str:
    head = ["film", "threshold", "tiles computed", "times as fast", "mean difference", "largest", "PSNR dB"]
    rows = []
    for name, film in live["reuse"].items():
        for row in film["rows"]:
            psnr = "same bytes" if row["psnr_db"] is None else f"{row['psnr_db']:.1f}"
            rows.append(
                [
                    _FILMS.get(name, name),
                    f"{row['threshold']:g}" if row["threshold"] else "0, exact",
                    f"{100 * row['tiles_computed']:.1f} %",
                    f"{row['times_as_fast']:.2f}",
                    f"{row['mean_difference']:.3f}",
                    str(row["largest_difference"]),
                    psnr,
                ]
            )
    return table(head, rows)


def _temporal(temporal: dict[str, Any], table: Table) -> str:
    films = temporal["films"]
    methods = list(next(iter(films.values()))["methods"])
    head = ["method", *(f"{_FILMS.get(name, name)}: warped error / still variance / texture" for name in films)]
    rows = []
    for method in methods:
        cells = []
        for film in films.values():
            row = film["methods"][method]
            still = "-" if row["still_variance"] is None else f"{row['still_variance']:.2f}"
            cells.append(f"{row['warped_error']:.2f} / {still} / {row['texture']:.2f}")
        rows.append([temporal["peer"] if method == "peer" else method, *cells])
    return table(head, rows)
