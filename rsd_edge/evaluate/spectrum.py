"""The error of the power spectrum: has an upscaled image as much detail as its reference, at each fineness?

It does not ask whether the detail is the right one, and so shows what fidelity metrics reward (blur) and what they
punish twice (detail in another place). With a scale of 4 the LR image holds frequencies up to 1/8 cycle a pixel at
best, and less after blur and noise; what lies beyond is the upscaler's own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rsd_edge.evaluate.metrics import BGR_TO_Y, Image, Plane, check_pair, to_y

RINGS_PER_CYCLE = 32
"""Rings are 1/32 cycle a pixel wide."""
FIRST_RING = 2
"""They start at 1/16 cycle a pixel, an octave below what an LR image can hold at x4, and end at 1/2."""
SMALLEST_SIDE = 64
"""Below this a ring is narrower than the window's main lobe is to one side."""
ROUNDING_POWER = sum(weight**2 for weight in BGR_TO_Y) / 12
"""What rounding each channel to 8 bits adds to the luma of a smooth image, in grey levels squared."""


@dataclass(frozen=True)
class Spectrum:
    """What the spectra of an image and its reference differ by, in dB of power (3 dB is a factor of 2)."""

    error: float
    """Mean over the rings of the absolute difference; 0 is perfect."""
    bias: float
    """Mean over the rings of the difference; positive if the image has more detail than its reference."""


def measure_spectrum(image: Image, reference: Image) -> Spectrum | None:
    """Compare the radial power spectra of two uint8 (h, w, 3) BGR images of one shape.

    A ring's difference is 10 log10(power of the image / power of the reference), see `ring_power`. All rings of a width
    of 1/32 from 1/16 to 1/2 cycle a pixel count alike. Power below that of 8-bit rounding (0.027 grey levels squared)
    counts as that much, so that flat areas do not make infinite differences. None for images with a side below 64
    pixels, which are too small for such rings. Raises InputError if the shapes differ.
    """
    check_pair(image, reference)
    if min(image.shape[:2]) < SMALLEST_SIDE:
        return None
    power, expected = (np.maximum(ring_power(to_y(picture)), ROUNDING_POWER) for picture in (image, reference))
    difference = 10 * np.log10(power / expected)
    return Spectrum(error=float(np.abs(difference).mean()), bias=float(difference.mean()))


def ring_power(plane: Plane) -> npt.NDArray[np.float64]:
    """Mean power (14,) of a plane (h, w) over the rings [k/32, (k+1)/32) cycle a pixel of radial frequency, k = 2...15.

    Under a periodic Hann window on both axes, whose weighted mean of the plane is taken off before; in squared units of
    the plane, such that white noise has its variance in every ring.
    """
    height, width = plane.shape
    window = np.outer(_hann(height), _hann(width))
    centred = plane - (plane * window).sum() / window.sum()
    power = np.square(np.abs(np.fft.rfft2(centred * window))) / np.square(window).sum()
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    rings = (radius * RINGS_PER_CYCLE).astype(np.intp)
    # The half that rfft2 leaves out mirrors all columns but the first; the last, at 1/2, is beyond all rings.
    weights = np.full(power.shape, 2.0)
    weights[:, 0] = 1
    total = np.bincount(rings.ravel(), (power * weights).ravel())
    count = np.bincount(rings.ravel(), weights.ravel())
    inside = slice(FIRST_RING, RINGS_PER_CYCLE // 2)
    return np.asarray(total[inside] / count[inside], np.float64)


def _hann(length: int) -> npt.NDArray[np.float64]:
    return np.asarray(np.hanning(length + 1)[:-1], np.float64)
