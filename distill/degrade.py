"""HR crop to LR crop by a preset: Real-ESRGAN's second order, a lighter one, BSRGAN's shuffle, plain bicubic."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from rsd_edge.distill.blur_kernels import draw_sinc, draw_size
from rsd_edge.distill.degrade_steps import (
    Image,
    add_noise,
    apply_pass,
    bicubic_reduced,
    blur,
    draw_quality,
    filtered,
    from_uint8,
    jpeg,
    resize,
    to_uint8,
)
from rsd_edge.distill.presets import Light, Preset, SecondOrder, Shuffled
from rsd_edge.distill.shuffle import degrade_shuffled
from rsd_edge.frames import SCALE


def degrade(rng: Generator, hr: NDArray[np.uint8], preset: Preset) -> NDArray[np.uint8]:
    """HR (h, w, 3) uint8 BGR, sides multiples of 4, to LR (h / 4, w / 4, 3) uint8 BGR."""
    image = from_uint8(hr)
    if isinstance(preset, SecondOrder):
        return to_uint8(degrade_second_order(rng, image, preset))
    if isinstance(preset, Light):
        return to_uint8(degrade_light(rng, image, preset))
    if isinstance(preset, Shuffled):
        return to_uint8(degrade_shuffled(rng, image, preset))
    return to_uint8(bicubic_reduced(image))


def degrade_second_order(rng: Generator, image: Image, settings: SecondOrder) -> Image:
    """A pass, JPEG, perhaps a second pass, then the resize to LR with its sinc, and JPEG, in either order."""
    height, width = image.shape[:2]
    lr = (height // SCALE, width // SCALE)
    image = jpeg(apply_pass(rng, image, settings.first, (height, width)), draw_quality(rng, settings.first_jpeg))
    if rng.random() < settings.second_share:
        image = apply_pass(rng, image, settings.second, lr)
    quality = draw_quality(rng, settings.jpeg)
    jpeg_first = rng.random() < 0.5
    if jpeg_first:
        image = jpeg(image, quality)
    image = resize(rng, image, *lr)
    sinc = settings.final_sinc
    if rng.random() < sinc.share:
        image = filtered(image, draw_sinc(rng, draw_size(rng, sinc.sizes), sinc.cutoff))
    return image if jpeg_first else jpeg(image, quality)


def degrade_light(rng: Generator, image: Image, settings: Light) -> Image:
    """Blur, the reduction, noise, JPEG; all mild, each but the reduction left out at times."""
    height, width = image.shape[:2]
    image = resize(rng, blur(rng, image, settings.blur), height // SCALE, width // SCALE)
    image = add_noise(rng, image, settings.noise)
    return jpeg(image, draw_quality(rng, settings.jpeg)) if rng.random() < settings.jpeg_share else image
