"""Figures on the fixed validation crops while a stage trains. The frozen test sets are for `rsd-edge eval`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rsd_edge.distill.objectives import per_sample_mean
from rsd_edge.evaluate.metrics import BGR_TO_Y

RGB_TO_Y = BGR_TO_Y[::-1]


def luma(image: Tensor) -> Tensor:
    """(n, 3, h, w) RGB in [-1, 1] to (n, 1, h, w) Y in grey levels [16, 235], from 8-bit pixels."""
    pixels = (image.float().clamp(-1, 1) + 1).mul(127.5).round()
    weights = torch.tensor(RGB_TO_Y, device=image.device).view(1, 3, 1, 1)
    return (pixels * weights).sum(dim=1, keepdim=True) + 16


def psnr_y(image: Tensor, target: Tensor) -> float:
    mse = per_sample_mean((luma(image) - luma(target)).square())
    return float((10 * torch.log10(255**2 / mse.clamp_min(1e-8))).mean())


@torch.no_grad()
def image_figures(image: Tensor, target: Tensor, lpips: nn.Module) -> dict[str, float]:
    """Mean LPIPS-squeeze and PSNR-Y of images (n, 3, h, w) in [-1, 1] against their references."""
    distance = lpips(image.float().clamp(-1, 1), target).mean()
    return {"lpips_squeeze": round(float(distance), 4), "psnr_y": round(psnr_y(image, target), 3)}


def lattice_figures(detail: Tensor) -> dict[str, float]:
    """How far a detail (n, 3, 4h, 4w) betrays its grids: spread of variances, deviation of means (grey levels).

    Luma of the detail without its Gaussian blur (sigma 2), taken apart into the 16 phases of the 4-pixel grid (the
    scale) and the 64 of the 8-pixel grid (the scale times the generator's reduction). The 4-pixel figures are those of
    `rsd_edge.evaluate.lattice`, but on floating-point detail and pooled over the batch.
    """
    weights = torch.tensor(RGB_TO_Y, device=detail.device).view(1, 3, 1, 1)
    y = (detail.float() * 127.5 * weights).sum(dim=1, keepdim=True)
    taps = torch.exp(-0.5 * (torch.arange(-8, 9, device=detail.device) / 2.0) ** 2)
    taps = taps / taps.sum()
    smooth = torch.nn.functional.conv2d(y, taps.view(1, 1, 1, -1), padding=(0, 8))
    smooth = torch.nn.functional.conv2d(smooth, taps.view(1, 1, -1, 1), padding=(8, 0))
    inner = (y - smooth)[..., 8:-8, 8:-8]
    figures: dict[str, float] = {}
    for name, period in (("lattice", 4), ("lattice8", 8)):
        phases = torch.nn.functional.pixel_unshuffle(inner, period)
        variance, mean = phases.var(dim=(0, 2, 3)), phases.mean(dim=(0, 2, 3))
        spread = (variance.max() - variance.min()) / variance.mean().clamp_min(1e-12)  # a flat detail has none
        figures |= {f"{name}_spread": round(float(spread), 3), f"{name}_mean": round(float(mean.std(correction=0)), 3)}
    return figures
