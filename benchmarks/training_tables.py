"""Tables of what was trained to be compared: objectives, fine-tunes, sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from markdown_table import number, table

Report = dict[str, Any]
CONTROL = "regression"
_SCORED = (("lpips_squeeze", 4), ("psnr_y", 2), ("niqe", 2), ("lattice_spread", 2))


def training_tables(reports: Path, load: Callable[[Path], Report]) -> dict[str, Callable[[], str]]:
    """Makers of tables by name, of the reports in a folder."""
    makers = {
        "finetunes": finetunes_table,
        "architectures": architectures_table,
        "objectives": objectives_table,
        "objectives-weight": objectives_table,
        "objectives-seeds": seeds_table,
    }

    def of_report(name: str, make: Callable[[Report], str]) -> Callable[[], str]:
        return lambda: make(load(reports / f"{name}.json"))

    return {name: of_report(name, make) for name, make in makers.items()}


def finetunes_table(report: Report) -> str:
    """Of fine-tunes with one setting changed in each."""
    return _tried(report, "fine-tune", {})


def architectures_table(report: Report) -> str:
    """Of models with one size changed in each."""
    return _tried(report, "sizes", {"GFLOP a tile": lambda row: f"{row['gflop']:.2f}"})


def _tried(report: Report, what: str, columns: dict[str, Callable[[Report], str]]) -> str:
    metrics = (("lpips_squeeze", 4), ("psnr_y", 2), ("niqe", 2), ("spectrum_db", 1))
    sets = list(next(iter(report["rows"].values()))["sets"])
    rows = [
        [
            name,
            *(column(row) for column in columns.values()),
            *(" / ".join(number(row["sets"][test][metric], digits) for metric, digits in metrics) for test in sets),
        ]
        for name, row in report["rows"].items()
    ]
    return table([what, *columns, *(f"{test}: LPIPS / PSNR-Y / NIQE / spectrum error dB" for test in sets)], rows)


def objectives_table(report: Report) -> str:
    """Of objectives side by side, the first seed of each."""
    columns = {
        "lpips_squeeze": ("LPIPS-squeeze", 4),
        "psnr_y": ("PSNR-Y", 2),
        "lattice_spread": ("lattice spread", 2),
        "lattice_mean": ("lattice mean", 2),
        "lattice8_mean": ("lattice mean, period 8", 2),
        "seed_std": ("between noises, levels", 1),
    }
    rows = [
        [name, *(number(runs[0][key], digits) for key, (_, digits) in columns.items())]
        for name, runs in report["rows"].items()
    ]
    return table(["objective", *(name for name, _ in columns.values())], rows)


def seeds_table(report: Report) -> str:
    """Of objectives with several seeds of the training each: figures of all seeds, how far each is from regression with
    the same seed, and means over the seeds of the scores on test sets."""
    columns = {"lpips_squeeze": ("LPIPS-squeeze", 4), "psnr_y": ("PSNR-Y", 2), "lattice8_mean": ("lattice mean, 8", 2)}
    seeds = [run["seed"] for run in report["rows"][CONTROL]]
    tests = list(report["rows"][CONTROL][0].get("sets", {}))
    rows = []
    for name, runs in report["rows"].items():
        cells = [name]
        for key, (_, digits) in columns.items():
            values = [run[key] for run in runs]
            cells.append(f"{mean(values):.{digits}f} ({', '.join(number(value, digits) for value in values)})")
        cells.append("" if name == CONTROL else _from_control(report["rows"][CONTROL], runs))
        for test in tests:
            means = ((mean(run["sets"][test][key] for run in runs), digits) for key, digits in _SCORED)
            cells.append(" / ".join(number(value, digits) for value, digits in means))
        rows.append(cells)
    named = f"mean (seeds {', '.join(map(str, seeds))})"
    head = ["objective", *(f"{title}: {named}" for title, _ in columns.values()), "LPIPS less regression's"]
    head += [f"{test}: LPIPS / PSNR-Y / NIQE / lattice spread" for test in tests]
    return table(head, rows)


def _from_control(control: list[Report], runs: list[Report]) -> str:
    pairs = zip(runs, control, strict=True)
    differences = [run["lpips_squeeze"] - other["lpips_squeeze"] for run, other in pairs]
    spread = f" (deviation {stdev(differences):.4f})" if len(differences) > 1 else ""
    return f"{mean(differences):+.4f}{spread}"
