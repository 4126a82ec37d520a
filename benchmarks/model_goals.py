"""What the shipped models are held to, what was measured, and whether it was met; from the reports, one row a goal."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

PEER = "realesr-general-x4v3"
PEER_GFLOP = 9.9
"""Of a 64x64 tile, two operations a multiply-add."""
PEER_TIMES = f"{PEER} ncnn"
CONTROLS = ("regression", "vsd", "sinsr")
MADE_OF_PHOTOS = ("pan", "creep", "still")
"""Films that are not."""
STRETCHES = "", "-60", "-0", "-120", "-280"
"""Of the films, by the ends of their reports' names. Averages along motion were tuned on the first two."""


class Goal(NamedTuple):
    """A goal and what became of it."""

    name: str
    measured: str
    met: bool


def model_goals(reports: dict[str, Any]) -> list[Goal]:
    """All of them, from the reports by name of file."""
    return [
        *_against_peer(reports["quality"]["sets"]),
        *_cost(reports["side-by-side"]["rows"]),
        *_small_model(reports["quality"]["sets"], reports["side-by-side"]["rows"]),
        *_int8(reports["quality"]["sets"]),
        *_one_step(
            reports["quality"]["sets"], [reports[f"edge-s-roles-{name}"] for name in ("kodak24_light", "kodak24_real")]
        ),
        *_objectives(reports["objectives"]["rows"]),
        *_fidelity([reports[f"fidelity-{model}"] for model in ("edge-s", "edge-n")]),
        *_steadiness([[reports[f"temporal{model}{start}"] for start in STRETCHES] for model in ("", "-edge-s")]),
    ]


Sets = dict[str, dict[str, dict[str, Any]]]
Rows = dict[str, Any]


def _against_peer(sets: Sets) -> Iterator[Goal]:
    def ahead(metric: str, sign: int, digits: int) -> tuple[int, str]:
        """On how many sets, and the two values where least, or furthest behind."""
        pairs = {name: (rows["edge-s int8"][metric], rows[PEER][metric]) for name, rows in sets.items()}
        leads = {name: sign * (ours - theirs) for name, (ours, theirs) in pairs.items()}
        least = min(leads, key=lambda name: leads[name])
        ours, theirs = pairs[least]
        return sum(
            lead > 0 for lead in leads.values()
        ), f"least on {least}: {ours:.{digits}f} against {theirs:.{digits}f}"

    for metric, title, sign, digits in (("lpips_squeeze", "LPIPS below", -1, 3), ("psnr_y", "PSNR-Y above", 1, 2)):
        count, least = ahead(metric, sign, digits)
        yield Goal(f"edge-s int8: {title} {PEER}'s", f"{count} of {len(sets)} sets; {least}", count == len(sets))
    niqe, least = ahead("niqe", -1, 2)
    spectrum, least_spectrum = ahead("spectrum_db", -1, 1)
    either = sum(
        any(rows["edge-s int8"][metric] < rows[PEER][metric] for metric in ("niqe", "spectrum_db"))
        for rows in sets.values()
    )
    said = f"NIQE {niqe} of {len(sets)} sets ({least}), spectrum {spectrum} ({least_spectrum})"
    yield Goal(f"edge-s int8: NIQE or spectrum error below {PEER}'s", said, either == len(sets))
    worst = [max(rows["edge-s int8"][f"lattice_{what}"] for rows in sets.values()) for what in ("spread", "mean")]
    met = worst[0] <= 0.3 and worst[1] <= 0.2
    yield Goal("edge-s int8: lattice spread at most 0.3, mean 0.2", "at most {:.2f}, {:.2f}".format(*worst), met)


def _cost(rows: Rows) -> Iterator[Goal]:
    found = rows["edge-s int8 onnxruntime"]["gflop"]
    yield Goal(f"edge-s: less arithmetic than {PEER}", f"{found:.2f} of {PEER_GFLOP} GFLOP", found < PEER_GFLOP)
    for precision in ("int8", "fp32"):
        ratios = {
            f"{part} {runtime}": rows[PEER_TIMES][part]["median"]
            / rows[f"edge-s {precision} {runtime}"][part]["median"]
            for part in ("tile", "frame")
            for runtime in ("onnxruntime", "openvino")
        }
        said = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
        yield Goal(f"edge-s {precision}: less time than {PEER}", f"times as fast: {said}", min(ratios.values()) > 1)


def _small_model(sets: Sets, rows: Rows) -> Iterator[Goal]:
    behind = max(found["edge-n int8"]["lpips_squeeze"] - found[PEER]["lpips_squeeze"] for found in sets.values())
    yield Goal(f"edge-n int8: LPIPS within 0.03 of {PEER}'s", f"at worst {behind:+.3f}", behind <= 0.03)
    share = rows["edge-n int8 onnxruntime"]["gflop"] / PEER_GFLOP
    yield Goal("edge-n: under a fifth of its arithmetic", f"{share:.1%}", share < 0.2)


def _int8(sets: Sets) -> Iterator[Goal]:
    for model in ("edge-s", "edge-n"):
        pairs = [(found[f"{model} int8"], found[f"{model} fp32"]) for found in sets.values()]
        lpips = max(abs(int8["lpips_squeeze"] - fp32["lpips_squeeze"]) for int8, fp32 in pairs)
        psnr = max(abs(int8["psnr_y"] - fp32["psnr_y"]) for int8, fp32 in pairs)
        said = f"at most {lpips:.4f}, {psnr:.3f} dB"
        yield Goal(f"{model}: INT8 within 0.005 LPIPS and 0.3 dB of fp32", said, lpips <= 0.005 and psnr <= 0.3)


def _one_step(sets: Sets, roles: list[dict[str, Any]]) -> Iterator[Goal]:
    pairs = [
        (sets[report["lr"]]["edge-s fp32"]["lpips_squeeze"], report["rows"]["teacher, all steps"]["lpips_squeeze"])
        for report in roles
    ]
    said = ", ".join(f"{ours:.3f} against {theirs:.3f}" for ours, theirs in pairs)
    distilled = ", ".join(f"{report['rows']['student, 1 step']['lpips_squeeze']:.3f}" for report in roles)
    said = f"{', '.join(report['lr'] for report in roles)}: {said} (as it was distilled, before: {distilled})"
    said += "; other sets not measured"
    met = all(ours < theirs for ours, theirs in pairs)
    yield Goal(
        "edge-s fp32, fine-tuned in pixels: one step better than 15 of its teacher, which was not, in LPIPS", said, met
    )


def _objectives(rows: Rows) -> Iterator[Goal]:
    def lpips(name: str) -> float:
        return float(rows[name][0]["lpips_squeeze"])

    for gan in ("", " + GAN"):
        ours = lpips(f"rsd, N = 4{gan}")
        others = {name: lpips(name + gan) for name in CONTROLS}
        said = f"{ours:.4f}; " + ", ".join(f"{name} {value:.4f}" for name, value in others.items())
        title = f"rsd better in LPIPS than regression, vsd and sinsr{', with GAN' if gan else ''}"
        yield Goal(title, said, ours < min(others.values()))


def _fidelity(reports: list[dict[str, Any]]) -> Iterator[Goal]:
    for report in reports:
        engine, sets = report["engine"], report["sets"]
        quotients = [row["seam_ratio"] / row["seam_ratio_in_one_tile"] for row in sets.values()]
        far = max(quotients, key=lambda quotient: abs(quotient - 1))
        yield _borders(f"{engine}: gradients at borders of tiles to those eight input pixels away", sets, "seam_ratio")
        title = f"{engine}: the same over that at the same places of one tile within 0.02 of 1"
        yield Goal(title, f"farthest {far:.3f}", abs(far - 1) <= 0.02)
        yield _borders(f"{engine}: gradients at borders of tiles to all others", sets, "seam_to_all")
        for title, means, of_images in (
            ("input", "colour_shift_mean", "colour_shift_mean_of_images"),
            ("reference", "bias_mean", "result_from_reference"),
        ):
            yield _colour(
                f"{engine}: single images on average within 0.5 levels of the {title}'s mean colour", sets, of_images
            )
            yield _colour(f"{engine}: whole sets within 0.5 levels of the {title}'s mean colour", sets, means)


def _borders(what: str, sets: Rows, key: str) -> Goal:
    ratios, originals = ([row[name] for row in sets.values()] for name in (key, f"{key}_in_the_reference"))
    said = f"{sum(ratio <= 1.02 for ratio in ratios)} of {len(sets)} sets; {min(ratios):.3f} to {max(ratios):.3f}"
    said += f" (the photographs themselves: {min(originals):.3f} to {max(originals):.3f})"
    return Goal(f"{what} at most 1.02", said, max(ratios) <= 1.02)


def _colour(title: str, sets: Rows, key: str) -> Goal:
    shifts = {name: max(map(abs, row[key] if isinstance(row[key], list) else [row[key]])) for name, row in sets.items()}
    most = max(shifts, key=lambda name: shifts[name])
    count = sum(shift <= 0.5 for shift in shifts.values())
    return Goal(title, f"{count} of {len(sets)} sets; most on {most}: {shifts[most]:.3f}", count == len(sets))


def _steadiness(models: list[list[dict[str, Any]]]) -> Iterator[Goal]:
    """models: of each, the reports of its stretches of the films."""
    ways = (
        ("fixed noise, detail blended", "files of video (--temporal blend)"),
        ("fixed noise", "cameras, unless told to blend"),
    )
    for (method, way), reports in itertools.product(ways, models):
        films = [
            film["methods"]
            for report in reports
            for name, film in report["films"].items()
            if name not in MADE_OF_PHOTOS
        ]
        ratios = [rows[method]["warped_error"] / rows["bicubic"]["warped_error"] for rows in films]
        met = sum(ratio <= 1.1 for ratio in ratios)
        said = f"{met} of {len(ratios)} stretches; {min(ratios):.2f} to {max(ratios):.2f}"
        said += f", mean {sum(ratios) / len(ratios):.2f}"
        engine = reports[0]["engine"].rpartition(" ")[0]
        yield Goal(f"{engine}, {way}: warped error at most 1.1 of bicubic's", said, max(ratios) <= 1.1)
