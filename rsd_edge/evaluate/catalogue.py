"""The metrics by name: what each of them measures, what it needs, and which way is better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rsd_edge.errors import InputError

METRICS = (
    "psnr_y",
    "ssim_y",
    "lpips_squeeze",
    "lattice_spread",
    "lattice_mean",
    "niqe",
    "spectrum_db",
    "spectrum_bias_db",
)
"""What is measured unless something else is asked for: all that the core installation can."""
DEFAULT_GROUP, PAPER_GROUP = "default", "paper"
FID = "fid"


@dataclass(frozen=True)
class Metric:
    """One metric. In `words`, what is in braces stands for the protocol's choices."""

    words: str
    lower_better: bool = True
    """For spectrum_bias_db, whose best value is 0, of its absolute value."""
    reference: bool = True
    """It compares with a reference image."""
    source: bool = False
    """It needs the LR image."""
    pyiqa: str | None = None
    """Its name in the optional package pyiqa, if it comes from there."""
    decimals: int = 4


CATALOGUE = {
    "psnr_y": Metric("dB, BT.601 studio-range luma, {psnr_luma}, peak 255, {border}", False, decimals=3),
    "ssim_y": Metric(
        "BT.601 studio-range luma, {ssim_luma}, 11x11 Gaussian window of sigma 1.5, where the window fits{structure}, "
        "{border}",
        lower_better=False,
    ),
    "psnr_rgb": Metric("dB, over the three channels, peak 255, {border}", lower_better=False, decimals=3),
    "ssim_rgb": Metric("mean over the three channels, otherwise as ssim_y", lower_better=False),
    "lpips_squeeze": Metric("LPIPS 0.1 on SqueezeNet 1.1, RGB in [-1, 1], {border}; lower is better"),
    "lattice_spread": Metric(
        "BT.601 studio-range luma of output - bicubic x4 of the LR image (8 bits), minus its Gaussian blur of sigma 2; "
        "(max - min) / mean of the variances of the 16 phases of a 4x4 lattice; never cut or resized; lower is better",
        reference=False,
        source=True,
    ),
    "lattice_mean": Metric(
        "of the same, standard deviation of the 16 means, in grey levels; lower is better", reference=False, source=True
    ),
    "niqe": Metric(
        "of the output alone, BT.601 studio-range luma, not rounded, {border}, whole 96x96 patches, statistics fitted "
        "by this project: values do not compare with those of other fits; lower is better; null below two patches "
        "that are not flat",
        reference=False,
    ),
    "spectrum_db": Metric(
        "BT.601 studio-range luma, not rounded, {border}, Hann window, rings of radial frequency 1/32 cycle a pixel "
        "wide from 1/16 to 1/2; mean of |10 log10(power of output / power of reference)|, powers at least that of "
        "8-bit rounding; lower is better; null for sides below 64 pixels"
    ),
    "spectrum_bias_db": Metric(
        "the same with its sign: positive for more detail than the reference has; nearest to 0 is best"
    ),
    "lpips_alex": Metric("pyiqa's lpips: LPIPS 0.1 on AlexNet, {border}; lower is better", pyiqa="lpips"),
    "dists": Metric("pyiqa's dists, {border}; lower is better", pyiqa="dists"),
    FID: Metric(
        "pyiqa's fid (clean-fid: Inception features of images resized to 299x299), of the whole files, one number for "
        "the set; lower is better",
        pyiqa="fid",
        decimals=2,
    ),
    "niqe_pyiqa": Metric("pyiqa's niqe, {border}; lower is better", reference=False, pyiqa="niqe"),
    "musiq": Metric("pyiqa's musiq (KonIQ-10k), {border}", False, reference=False, pyiqa="musiq", decimals=3),
    "clipiqa": Metric("pyiqa's clipiqa, {border}", lower_better=False, reference=False, pyiqa="clipiqa"),
    "maniqa": Metric("pyiqa's maniqa-pipal, {border}", lower_better=False, reference=False, pyiqa="maniqa-pipal"),
}


def choose_metrics(
    wanted: Sequence[str], *, reference: bool, source: bool, paper: Sequence[str] = ()
) -> tuple[str, ...]:
    """The metrics to measure, in the order of `wanted`, each once.

    wanted: names of CATALOGUE, `default` for METRICS, `paper` for those given as `paper`; none of them is `default`.
    reference, source: whether reference and LR images are there. Of a group, what needs a missing reference is left
    out, and so are the lattice metrics where neither is there. Raises InputError for unknown names, for one that needs
    what is missing, and if nothing is left.
    """
    chosen: dict[str, None] = {}
    for name in wanted or (DEFAULT_GROUP,):
        if name in (DEFAULT_GROUP, PAPER_GROUP):
            chosen |= dict.fromkeys(_measurable(METRICS if name == DEFAULT_GROUP else paper, reference, source))
            continue
        if name not in CATALOGUE:
            known = ", ".join((DEFAULT_GROUP, PAPER_GROUP, *CATALOGUE))
            raise InputError(f"metric '{name}' is not known; use some of {known}")
        if CATALOGUE[name].reference and not reference:
            raise InputError(f"{name} needs references; give --ref, or leave {name} out of --metrics")
        if CATALOGUE[name].source and not source:
            raise InputError(f"{name} needs the images that were upscaled; give --lr, or leave {name} out of --metrics")
        chosen[name] = None
    if not chosen:
        raise InputError("there is nothing to measure; name metrics with --metrics, or give references with --ref")
    return tuple(chosen)


def _measurable(names: Sequence[str], reference: bool, source: bool) -> list[str]:
    """With references the lattice stays in without LR images too, as values that are missing."""
    items = [(name, CATALOGUE[name]) for name in names]
    return [name for name, item in items if reference or (not item.reference and (source or not item.source))]
