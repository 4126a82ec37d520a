"""Losses on images as pure functions: RGB (n, 3, h, w) in [-1, 1], float32, one value for each sample unless said."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from rsd_edge.distill.objectives import per_sample_mean


def colour_differences(image: Tensor) -> Tensor:
    """(n, 2, h, w) of R - G and B - G: what is left of an RGB image without its luma, cheaply."""
    red, green, blue = image.unbind(dim=1)
    return torch.stack([red - green, blue - green], dim=1)


def pixel_loss(image: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of RGB. (n,)"""
    return per_sample_mean((image.float() - target.float()).abs())


def chroma_loss(image: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of the colour differences: what a luma metric does not see. (n,)

    Squared, because most of it lies in few patches of plainly wrong colour: an absolute error is content with detail
    that is gray, which is its median, and leaves them as they are at any weight.
    """
    error = colour_differences(image.float()) - colour_differences(target.float())
    return per_sample_mean(error.square())


TONE_WINDOW = 32
"""Side of the squares of `tone_loss`: eight input pixels at scale 4, a block of JPEG."""


def tone_loss(image: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of RGB averaged over squares of 32 pixels: brightness and colour of areas. (n,)

    What is wrong by one level over an area is hardly seen by losses of single pixels, and plainly by a person. Images
    smaller than a square are one square; of others, what is left over at the right and bottom is not counted.
    """
    error = image.float() - target.float()
    window = [min(TONE_WINDOW, side) for side in error.shape[2:]]
    return per_sample_mean(functional.avg_pool2d(error, window).square())


def retoned(target: Tensor, base: Tensor) -> Tensor:
    """The target with the mean colour of `base`, by sample. Same shape.

    Noise and compression move an input's mean colour by up to about a level on average. A network can only guess how
    far, from similar inputs, and somebody who compares its result with the input sees a cast. The target's areas keep
    their differences.
    """
    target, base = target.float(), base.float()
    return target + (base - target).mean(dim=(2, 3), keepdim=True)


FLAT_WINDOW = 9
FLAT_DEVIATION = 4 / 127.5
"""Local deviation of the target, four grey levels, at which an area counts 1 / e as much as a perfectly flat one."""


def flat_loss(image: Tensor, target: Tensor) -> Tensor:
    """Mean absolute distance from the target's local mean, where the target is flat. (n,)

    In sky, skin and walls there is nothing to invent: whatever the noise adds there is grain, and another seed's grain
    is another error. The local mean, not the target, is the aim, because the target has sensor noise of its own.
    """
    image, target = image.float(), target.float()
    mean = functional.avg_pool2d(target, FLAT_WINDOW, stride=1, padding=FLAT_WINDOW // 2, count_include_pad=False)
    luma = target.mean(dim=1, keepdim=True)
    centre = mean.mean(dim=1, keepdim=True)
    square = functional.avg_pool2d(
        luma.square(), FLAT_WINDOW, stride=1, padding=FLAT_WINDOW // 2, count_include_pad=False
    )
    deviation = (square - centre.square()).clamp_min(0).sqrt()
    return per_sample_mean(torch.exp(-deviation / FLAT_DEVIATION) * (image - mean).abs())


LATTICE_PERIOD = 8
"""Output pixels after which a sub-pixel network of two levels repeats: scale 4 times the generator's reduction by 2."""


def phase_moments(detail: Tensor) -> Tensor:
    """Mean and mean square of each phase of the 8-pixel grid in a batch of details (n, c, 8h, 8w). (2, c, 64)

    Of the detail without its 5x5 box average. Means over samples, so that those of a batch are the mean of its parts'.
    """
    detail = detail.float()
    fine = detail - functional.avg_pool2d(detail, 5, stride=1, padding=2, count_include_pad=False)
    phases = functional.pixel_unshuffle(fine, LATTICE_PERIOD).transpose(0, 1)
    phases = phases.reshape(detail.shape[1], LATTICE_PERIOD**2, -1)
    return torch.stack([phases.mean(dim=2), phases.square().mean(dim=2)])


GRID_STEP = 2 / 127.5
"""Gradient, two grey levels, above which gradients count by their logarithm: smooth surfaces then weigh as edges do."""


def gradient_phases(image: Tensor, target: Tensor) -> Tensor:
    """How far the 8 phases of gradients differ, beyond what the target's do, along columns and rows. (2, c, 8)

    Means of the logarithms over a batch (n, c, h, w), less those of the 8, so that those of the batch are the mean of
    its parts'. The target's take out what differs because of what the crops show.
    """
    differences = []
    for dimension in (2, 3):
        result, original = (_log_steps(one.float(), dimension).mean(dim=(0, 2, 4)) for one in (image, target))
        differences.append(result - original)
    phases = torch.stack(differences)
    return phases - phases.mean(dim=2, keepdim=True)


def _log_steps(image: Tensor, dimension: int) -> Tensor:
    """(n, c, periods, 8, steps of another line); those after the last whole period are left out."""
    steps = image.diff(dim=dimension).transpose(2, dimension)
    n, c, count, others = steps.shape
    periods = count // LATTICE_PERIOD
    whole = steps[:, :, : periods * LATTICE_PERIOD].reshape(n, c, periods, LATTICE_PERIOD, others)
    return torch.log1p(whole.abs() / GRID_STEP)


def grid_loss(phases: Tensor) -> Tensor:
    """Mean square of a whole batch's `gradient_phases`. Scalar.

    Means and variances of phases may be equal, as `lattice_loss` wants them, and the steps between them still be of
    different height, which is seen as a weave on smooth surfaces.
    """
    return phases.square().mean()


SPECTRUM_WINDOW = 32
"""Side of the windows of `spectrum_directions`, which do not overlap; what fills none at the end is left out."""

SPECTRUM_FLOOR = 0.5 / 127.5
"""Deviation, half a grey level, of the white noise whose power is added: what is below is lost in 8 bits."""

_FINE = SPECTRUM_WINDOW // 8
"""Least frequency, in periods a window: eight output pixels a period, what a bicubic base does not decide."""


def spectrum_directions(image: Tensor, target: Tensor) -> Tensor:
    """How the power of fine detail, more than the target's does, depends on its direction. (c, frequencies)

    Natural logarithms of the power spectrum, means over the windows of a batch (n, c, h, w) with sides of 32 or more,
    less the target's, and less the mean of all frequencies about as high. Those of a batch are the mean of its parts',
    as `gradient_phases` are.
    """
    bands = _bands(image.device)
    difference = (_log_power(image) - _log_power(target)).flatten(1)[:, bands.places]
    sums = difference.new_zeros(len(difference), len(bands.weights))
    means = sums.index_add(1, bands.band, difference * bands.weight) / bands.weights
    return difference - means[:, bands.band]


def direction_loss(directions: Tensor) -> Tensor:
    """Mean square of a whole batch's `spectrum_directions`. Scalar; by chance alone 3.3 over the number of windows.

    Detail of a sub-pixel network runs along rows and columns unless something asks for more: LPIPS and a discriminator
    of patches take a canvas for texture, and people do not.
    """
    weight = _bands(directions.device).weight
    return (directions.square().mean(dim=0) * weight).sum() / weight.sum()


def _log_power(image: Tensor) -> Tensor:
    """Mean logarithm of the power in Hann windows, by frequency along columns and rows. (c, 32, 17)"""
    size = SPECTRUM_WINDOW
    windows = image.float().unfold(2, size, size).unfold(3, size, size)
    taper = torch.hann_window(size, device=image.device)
    taper = taper[:, None] * taper
    spectrum = torch.fft.rfft2((windows - windows.mean(dim=(4, 5), keepdim=True)) * taper)
    floor = SPECTRUM_FLOOR**2 * taper.square().sum()
    return torch.log(spectrum.real.square() + spectrum.imag.square() + floor).mean(dim=(0, 2, 3))


class _Bands(NamedTuple):
    """The fine frequencies that a square window has in all directions."""

    places: Tensor
    """Where they are in the flattened (32, 17)."""
    band: Tensor
    """Of each, the number of those about as high."""
    weight: Tensor
    """Of each: 2 where it stands for its mirror image too, which the spectrum of real numbers leaves out."""
    weights: Tensor
    """Their sums by band."""


@lru_cache(maxsize=4)
def _bands(device: torch.device) -> _Bands:
    size = SPECTRUM_WINDOW
    y, x = torch.fft.fftfreq(size, 1 / size), torch.fft.rfftfreq(size, 1 / size)
    radius = torch.hypot(y[:, None], x).round().long()
    mirrored = ((x > 0) & (x < size // 2)).expand_as(radius)
    looked_at = (radius >= _FINE) & (radius <= size // 2)
    band, weight = radius[looked_at] - _FINE, 1.0 + mirrored[looked_at]
    found = looked_at.flatten().nonzero()[:, 0], band, weight, torch.bincount(band, weight).float()
    return _Bands(*(tensor.to(device) for tensor in found))


def lattice_loss(moments: Tensor) -> Tensor:
    """How much the 64 phases of the 8-pixel grid differ, by their `phase_moments` in a whole batch. Scalar.

    Mean absolute deviation of the phases' means, in units of the detail's deviation, plus that of the phases' relative
    deviations from 1, both per channel. Sub-pixel convolutions have filters of their own for each phase, and nothing
    else here makes them agree. The period is the network's own: a penalty on the 4 pixels of the scale alone is met by
    a pattern of 8. It is no mean over samples: what differs between the phases of one crop is mostly its content, and a
    network punished for that would learn to have less detail.
    """
    means, squares = moments.unbind()
    # Inside the root, or a phase without any detail would have an infinite gradient.
    deviations = ((squares - means.square()).clamp_min(0) + 1e-10).sqrt()
    typical = deviations.mean(dim=1, keepdim=True)
    # The unit is detached, or a noisier detail would count as a smaller lattice.
    offsets = (means - means.mean(dim=1, keepdim=True)) / typical.detach()
    return offsets.abs().mean() + (deviations / typical - 1).abs().mean()
