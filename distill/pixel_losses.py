"""The losses in pixel space, shared by the autoencoder and the student stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from rsd_edge.distill.data import Batch
from rsd_edge.distill.perceptual import perceptual_distance
from rsd_edge.distill.pixel_objectives import (
    chroma_loss,
    direction_loss,
    flat_loss,
    gradient_phases,
    grid_loss,
    lattice_loss,
    phase_moments,
    pixel_loss,
    retoned,
    spectrum_directions,
    tone_loss,
)
from rsd_edge.distill.randomness import Randomness
from rsd_edge.distill.runtime import Runtime
from rsd_edge.distill.stage import Part
from rsd_edge.distill.stage_config import StageConfig
from rsd_edge.models.published import bicubic_up

PIXEL_WEIGHTS = (
    "lpips_weight",
    "pixel_weight",
    "chroma_weight",
    "tone_weight",
    "flat_weight",
    "lattice_weight",
    "grid_weight",
    "direction_weight",
)
SHARED_WEIGHTS = "lattice_weight", "grid_weight", "direction_weight"
"""Of terms that compare whole batches, not samples."""
SHIFT = 16
"""Pixels of random shift of the LPIPS window."""
LARGEST_ZOOM = 2.0


def zoom_window(image: Tensor, target: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The same random window of both images, half of the time enlarged to the window's original size.

    LPIPS-squeeze begins with a stride-2 convolution and hardly sees a pattern locked to its grid. Shifting the grid and
    enlarging the pixels shows it every phase of a 4-pixel lattice.
    """
    side = image.shape[-1]
    window = side - SHIFT
    zoomed = bool(torch.rand((), generator=generator) < 0.5)
    if zoomed:
        zoom = 1 + (LARGEST_ZOOM - 1) * float(torch.rand((), generator=generator))
        window = int(window / zoom) // 2 * 2
    top, left = torch.randint(side - window + 1, (2,), generator=generator).tolist()
    pair = torch.cat([image, target])[..., top : top + window, left : left + window]
    if zoomed:
        pair = functional.interpolate(pair, size=(side - SHIFT, side - SHIFT), mode="bilinear", align_corners=False)
    first, second = pair.chunk(2)
    return first, second


def random_window(side: int, images: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
    """The same random square of `side` pixels of every image."""
    if images[0].shape[-1] <= side:
        return images
    top, left = torch.randint(images[0].shape[-1] - side + 1, (2,), generator=generator).tolist()
    return tuple(image[..., top : top + side, left : left + side] for image in images)


class BatchStatistics(NamedTuple):
    """Of a batch: `phase_moments`, `gradient_phases` and `spectrum_directions`."""

    moments: Tensor
    gradients: Tensor
    directions: Tensor


def _statistics(detail: Tensor, batch: Batch) -> BatchStatistics:
    image, target = bicubic_up(batch.y0) + detail, batch.x0
    return BatchStatistics(phase_moments(detail), gradient_phases(image, target), spectrum_directions(image, target))


class PixelCriterion:
    """Weighted LPIPS, L1, squared colour differences, tone, flatness, lattice, grid and direction penalties."""

    def __init__(self, stage: StageConfig, squeeze: nn.Module, runtime: Runtime) -> None:
        """squeeze: LPIPS-squeeze, which validation has in any case, on the device of the images."""
        self.stage, self.runtime = stage, runtime
        self.lpips = squeeze
        if stage.lpips_weight and stage.lpips != "squeeze":
            self.lpips = perceptual_distance(stage.lpips).to(next(squeeze.parameters()).device)

    @torch.no_grad()
    def survey(self, parts: Sequence[Part], detail_of: Callable[[Part], Tensor]) -> BatchStatistics | None:
        """What the parts of a batch have to know of each other: its statistics, over all parts and processes.

        None if no term asks for them or there is one part, whose own `__call__` has anyway. For several parts it costs
        a forward pass of each.
        """
        if len(parts) == 1 or not any(getattr(self.stage, name) for name in SHARED_WEIGHTS):
            return None
        with self.runtime.autocast():
            found = [_statistics(detail_of(part), part.batch) for part in parts]
        return BatchStatistics(
            *(self.runtime.mean(torch.stack(values).mean(dim=0)) for values in zip(*found, strict=True))
        )

    def __call__(
        self,
        detail: Tensor,
        base: Tensor,
        target: Tensor,
        noise: Randomness,
        scalars: dict[str, Tensor],
        shared: BatchStatistics | None = None,
    ) -> Tensor:
        """Weighted sum for the image base + detail, a scalar; the unweighted means are added to `scalars`.

        shared: what `survey` found, where the image is one of several parts of a batch.
        """
        stage = self.stage
        image = base + detail
        loss = image.new_zeros(())
        if stage.lpips_weight:
            pair = image, target
            if stage.lpips_windows:
                pair = zoom_window(image, target, noise.shared("window"))
            scalars["lpips"] = self.lpips(*pair).mean()
            loss = loss + stage.lpips_weight * scalars["lpips"]
        if stage.pixel_weight:
            scalars["pixel"] = pixel_loss(image, target).mean()
            loss = loss + stage.pixel_weight * scalars["pixel"]
        if stage.chroma_weight:
            scalars["chroma"] = chroma_loss(image, target).mean()
            loss = loss + stage.chroma_weight * scalars["chroma"]
        if stage.tone_weight:
            scalars["tone"] = tone_loss(image, retoned(target, base)).mean()
            loss = loss + stage.tone_weight * scalars["tone"]
        if stage.flat_weight:
            scalars["flat"] = flat_loss(image, target).mean()
            loss = loss + stage.flat_weight * scalars["flat"]
        if stage.grid_weight:
            own = gradient_phases(image, target)
            scalars["grid"] = grid_loss(self._whole(own, shared and shared.gradients))
            loss = loss + stage.grid_weight * scalars["grid"]
        if stage.direction_weight:
            own = spectrum_directions(image, target)
            scalars["direction"] = direction_loss(self._whole(own, shared and shared.directions))
            loss = loss + stage.direction_weight * scalars["direction"]
        if stage.lattice_weight:
            scalars["lattice"] = lattice_loss(self._whole(phase_moments(detail), shared and shared.moments))
            loss = loss + stage.lattice_weight * scalars["lattice"]
        return loss

    def _whole(self, own: Tensor, shared: Tensor | None) -> Tensor:
        """The whole batch's statistics everywhere. Through `own` each part has the gradient of its own samples, and the
        mean of those over parts and processes is the whole batch's."""
        whole = self.runtime.mean(own.detach()) if shared is None else shared
        return own + (whole - own).detach()
