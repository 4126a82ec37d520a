"""Tables of what `fidelity.py` and `typed_graphs.py` measured: borders of tiles, grid, colours; closeness to fp32."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from markdown_table import number, table


def seams_table(reports: Iterable[dict[str, Any]]) -> str:
    """Of every engine and test set."""
    rows = []
    for report in reports:
        for name, row in report["sets"].items():
            ratios = [row[f"seam_ratio{where}"] for where in ("_in_the_reference", "_in_one_tile", "")]
            ratios += [ratios[2] / ratios[1], row["seam_to_all_in_the_reference"], row["seam_to_all"]]
            cells = [number(value, 3) for value in ratios]
            cells += [number(row[f"off_one_tile_{where}"], 2) for where in ("in_fades", "elsewhere")]
            rows.append([name, report["engine"], *cells])
    heads = [f"borders / beside them {where}" for where in ("in the reference", "in one tile", "in tiles")]
    heads += ["tiles / one tile", "borders / all others in the reference", "borders / all others in tiles"]
    heads += ["tiles - one tile in fades", "tiles - one tile elsewhere"]
    return table(["set", "engine", *heads], rows)


def grid_table(reports: Iterable[dict[str, Any]]) -> str:
    """Of every engine and test set."""
    rows = []
    for report in reports:
        for name, row in report["sets"].items():
            spans = [f"{row[f'grid_least{of}']:.2f} to {row[f'grid_most{of}']:.2f}" for of in ("", "_of_the_reference")]
            rows.append([name, report["engine"], *spans, number(row["directions_off_db"], 1)])
    return table(["set", "engine", "result", "reference", "directions, dB off the reference's"], rows)


def typed_table(report: dict[str, Any]) -> str:
    """Of the graphs for TensorRT."""
    rows = []
    for model, graphs in report["models"].items():
        for precision, row in graphs.items():
            pairs = (row["closeness"], row["by_onnxruntime_itself"])
            near, alone = ([number(pair[key], 1) for key in ("psnr_db", "detail_snr_db")] for pair in pairs)
            layers = f"{len(row['integer_layers'])} ({len(row['layers_in_float'])} left out by the gate)"
            integers = [row["method"], layers] if row["integer_layers"] else ["", ""]
            islands, largest = len(row["fp32_islands"]), number(row["largest_activation"], 0)
            rows.append([f"{model} {precision.upper()}", *near, *integers, str(islands), largest, " / ".join(alone)])
    heads = ["graph", "image", "detail", "ranges", "integer layers", "FP32 islands", "largest activation"]
    return table([*heads, "ONNX Runtime by itself"], rows)


def colour_table(reports: Iterable[dict[str, Any]]) -> str:
    """Of every engine and test set."""
    rows = []
    for report in reports:
        for name, row in report["sets"].items():
            signed = [_rgb(row[key]) for key in ("colour_shift_mean", "input_bias_mean", "bias_mean")]
            sizes = ("colour_shift_mean_of_images", "input_from_reference", "result_from_reference")
            cells = [number(row[key], 2) for key in (*sizes, "colour_shift_median_of_images")]
            largest, correlation = number(row["colour_shift_largest"], 1), number(row["correlation_with_correction"], 2)
            over = f"{row['images_shifted_by_over_half_a_level']} of {row['images']}"
            rows.append([name, report["engine"], *signed, *cells, largest, over, correlation])
    pairs = ("result - input", "input - reference", "result - reference")
    head = [f"{kind}{pair}" for kind in ("", "absolute ") for pair in pairs]
    shift = "result - input"
    return table(
        [
            "set",
            "engine",
            *head,
            f"median {shift}",
            f"largest {shift}",
            "images over 0.5",
            "correlation with correction",
        ],
        rows,
    )


def _rgb(means: list[float]) -> str:
    return ", ".join(f"{value:+.2f}" for value in reversed(means))
