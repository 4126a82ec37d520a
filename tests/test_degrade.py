from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import Generator
from numpy.typing import NDArray

from rsd_edge.distill import degrade as chains
from rsd_edge.distill import degrade_steps as steps
from rsd_edge.distill.blur_kernels import Shape, draw_shape, make
from rsd_edge.distill.degrade import degrade
from rsd_edge.distill.degrade_steps import (
    add_noise,
    apply_pass,
    bicubic_reduced,
    draw_factor,
    draw_quality,
    filter2d,
    gaussian_noise,
    jpeg,
    poisson_noise,
    separable_terms,
    to_uint8,
    trimmed,
)
from rsd_edge.distill.presets import PRESET_NAMES, Bicubic, Blur, Light, Noise, Pass, Preset, Presets, SecondOrder
from rsd_edge.opencv import cv2

Photo = Callable[[int, int], NDArray[np.uint8]]
Image = NDArray[np.float32]

DRAWS = 2000
REAL = SecondOrder()


def rng(seed: int = 0) -> Generator:
    return np.random.default_rng(seed)


def flat(value: float, side: int = 128) -> NDArray[np.uint8]:
    return np.full((side, side, 3), round(255 * value), np.uint8)


def preset(name: str) -> Preset:
    return Presets().named(name)


def assert_share(count: int, total: int, share: float) -> None:
    """Within four standard deviations of a binomial."""
    assert abs(count - total * share) <= 4 * math.sqrt(total * share * (1 - share)), (count / total, share)


@pytest.mark.parametrize("name", PRESET_NAMES)
def test_a_sample_depends_on_its_seed_alone(photo: Photo, name: str) -> None:
    hr = photo(64, 96)
    before = hr.copy()
    first = degrade(rng(3), hr, preset(name))
    assert first.shape == (16, 24, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(hr, before)
    np.random.default_rng(0).random(7)
    assert np.array_equal(first, degrade(rng(3), hr, preset(name)))
    assert np.array_equal(first, degrade(rng(4), hr, preset(name))) == (name == "bicubic")


@pytest.mark.parametrize("name", PRESET_NAMES)
@pytest.mark.parametrize("size", [(64, 64), (72, 104), (256, 256)])
def test_lr_images_are_a_quarter_as_large_and_keep_the_mean(photo: Photo, name: str, size: tuple[int, int]) -> None:
    hr = photo(*size)
    lr = np.stack([degrade(rng(seed), hr, preset(name)) for seed in range(12)])
    assert lr.shape == (12, size[0] // 4, size[1] // 4, 3)
    assert lr.dtype == np.uint8
    # Noise at white and black is clipped to one side; 10 grey levels are far from what a lost channel or scale makes.
    assert np.abs(lr.mean(axis=(0, 1, 2)) - hr.mean(axis=(0, 1))).max() < 10


def test_presets_are_ordered_by_what_they_do(photo: Photo) -> None:
    """Down a ramp that runs across, only noise varies; on a photograph, PSNR to the clean reduction counts."""
    ramp = np.broadcast_to(np.arange(64, 192, dtype=np.uint8)[None, :, None], (128, 128, 3)).copy()
    hr = photo(128, 128)
    clean = degrade(rng(), hr, Bicubic()).astype(float)

    def noise(name: str) -> float:
        return float(np.mean([degrade(rng(seed), ramp, preset(name)).std(axis=0).mean() for seed in range(40)]))

    def psnr(name: str) -> float:
        errors = [np.square(degrade(rng(seed), hr, preset(name)) - clean).mean() for seed in range(60)]
        return float(np.mean(10 * np.log10(255**2 / np.array(errors))))

    assert noise("bicubic") < 0.1  # values at a half round either way
    assert 2 < noise("light") < 0.9 * noise("real")
    assert psnr("light") > psnr("real") + 2
    assert psnr("light") > psnr("bsrgan") + 2


def test_noise_is_drawn_by_its_shares_and_within_its_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, float, bool]] = []
    for kind in ("gaussian", "poisson"):

        def record(rng: Generator, image: Image, level: float, gray: bool, kind: str = kind) -> Image:
            calls.append((kind, level, gray))
            return image

        monkeypatch.setattr(steps, f"{kind}_noise", record)
    image, generator = np.zeros((4, 4, 3), np.float32), rng(2)
    for noise in (REAL.first.noise, REAL.second.noise, Light().noise, Noise(share=0.3)):
        calls.clear()
        for _ in range(DRAWS):
            add_noise(generator, image, noise)
        assert_share(len(calls), DRAWS, noise.share) if noise.share < 1 else None
        if noise.share == 1:
            assert len(calls) == DRAWS
        kinds = Counter(kind for kind, _, _ in calls)
        assert_share(kinds["gaussian"], len(calls), noise.gaussian_share)
        assert_share(sum(gray for _, _, gray in calls), len(calls), noise.gray_share)
        for kind, (low, high) in (("gaussian", noise.gaussian), ("poisson", noise.poisson)):
            levels = [level for name, level, _ in calls if name == kind]
            margin = 0.04 * (high - low)  # missed by 300 draws once in 2e5
            assert low <= min(levels) < low + margin
            assert high - margin < max(levels) <= high


@pytest.mark.parametrize("which", ["first", "second"])
def test_factors_are_drawn_by_their_shares_and_within_their_range(which: str) -> None:
    resize = getattr(REAL, which).resize
    generator = rng(3)
    factors = np.array([draw_factor(generator, resize.up_down_keep, resize.factor) for _ in range(DRAWS)])
    up, down, keep = resize.up_down_keep
    for count, share in (((factors > 1).sum(), up), ((factors < 1).sum(), down), ((factors == 1).sum(), keep)):
        assert_share(int(count), DRAWS, share)
    low, high = resize.factor
    assert low <= factors.min() < low + 0.02
    assert high - 0.02 < factors.max() <= high


def test_jpeg_qualities_cover_their_range_and_never_leave_it(photo: Photo, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = rng(4)
    assert {draw_quality(generator, (30, 95)) for _ in range(DRAWS)} == set(range(30, 96))
    used: list[int] = []

    def record(image: Image, quality: int) -> Image:
        used.append(quality)
        return image

    monkeypatch.setattr(chains, "jpeg", record)
    hr = photo(64, 64)
    for settings, times in ((REAL, 2), (replace(REAL, jpeg=(40, 41), first_jpeg=(50, 50)), 2)):
        used.clear()
        for seed in range(40):
            degrade(rng(seed), hr, settings)
        assert len(used) == 40 * times
        assert all(settings.first_jpeg[0] <= quality <= settings.first_jpeg[1] for quality in used[::2])
        assert all(settings.jpeg[0] <= quality <= settings.jpeg[1] for quality in used[1::2])
    used.clear()
    for seed in range(400):
        degrade(rng(seed), hr, Light())
    assert_share(len(used), 400, 0.9)
    assert 50 <= min(used) <= max(used) <= 95


def test_the_second_order_is_what_it_says(photo: Photo, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of the steps, and the share of what is left out at times; each step is recorded, none is done."""
    log: list[str] = []

    def record(name: str, result: Callable[..., Image]) -> None:
        def step(*arguments: Any) -> Image:
            log.append(name)
            return result(*arguments)

        monkeypatch.setattr(chains, name, step)

    record("apply_pass", lambda rng, image, settings, base: image)
    record("jpeg", lambda image, quality: image)
    record("resize", lambda rng, image, height, width: image[:height, :width])
    record("filtered", lambda image, shape: image)
    orders: Counter[tuple[str, ...]] = Counter()
    hr = photo(64, 64)
    for seed in range(DRAWS):
        log.clear()
        degrade(rng(seed), hr, REAL)
        orders[tuple(log)] += 1
    one, two = ("apply_pass", "jpeg"), ("apply_pass", "jpeg", "apply_pass")
    for start in (one, two):
        for sinc, share in ((("filtered",), 0.8), ((), 0.2)):
            for tail in (("jpeg", "resize", *sinc), ("resize", *sinc, "jpeg")):
                assert_share(orders.pop(start + tail), DRAWS, 0.5 * 0.5 * share)
    assert not orders


def test_the_first_pass_resizes_hr_and_the_second_lr(photo: Photo, monkeypatch: pytest.MonkeyPatch) -> None:
    bases: list[tuple[int, int]] = []

    def record(rng: Generator, image: Image, settings: Pass, base: tuple[int, int]) -> Image:
        bases.append(base)
        return image

    monkeypatch.setattr(chains, "apply_pass", record)
    degrade(rng(), photo(64, 96), replace(REAL, second_share=1.0))
    assert bases == [(64, 96), (16, 24)]


def test_passes_get_the_ranges_of_their_preset(photo: Photo) -> None:
    quiet = Noise(share=0)
    still = replace(REAL.first, blur=Blur(share=0), noise=quiet)
    only_jpeg = SecondOrder(first=still, second_share=0, final_sinc=replace(REAL.final_sinc, share=0))
    hr = flat(0.4, 64)
    for seed in range(10):
        assert np.abs(degrade(rng(seed), hr, only_jpeg).astype(int) - 102).max() <= 1  # JPEG's colours round
    loud = replace(only_jpeg, first=replace(still, noise=Noise(gaussian_share=1, gaussian=(60, 60))))
    assert np.mean([degrade(rng(seed), hr, loud).std() for seed in range(10)]) > 8


def test_a_pass_resizes_within_its_range() -> None:
    image = np.full((100, 100, 3), 0.5, np.float32)
    generator = rng()
    sides = np.array([apply_pass(generator, image, REAL.first, (100, 100)).shape[0] for _ in range(400)])
    assert sides.min() >= 15
    assert sides.max() <= 150
    assert np.mean(sides < 100) == pytest.approx(0.7, abs=0.1)  # 4 standard deviations
    assert np.mean(sides > 100) == pytest.approx(0.2, abs=0.08)
    assert apply_pass(rng(), image, REAL.second, (25, 20)).shape[0] <= 30


def test_a_pass_stays_in_range() -> None:
    white = np.ones((64, 64, 3), np.float32)
    for seed in range(10):
        image = apply_pass(rng(seed), white, REAL.first, (64, 64))
        assert image.dtype == np.float32
        assert image.min() >= 0
        assert image.max() <= 1


@pytest.mark.parametrize("side", [64, 240])
def test_fast_filters_do_what_plain_ones_do(photo: Photo, side: int) -> None:
    """Trimmed, taken apart, or as a line for each axis: within an eighth of a grey level of the whole kernel."""
    image = np.asarray(photo(side, side) / 255, np.float32)
    generator = rng(5)
    shapes = [draw_shape(generator, Blur(sizes=(9, 21), sinc=0.2)) for _ in range(60)]
    assert len({shape.kind for shape in shapes}) >= 6
    for shape in shapes:
        plain = cv2.filter2D(image.astype(np.float64), -1, make(shape), borderType=cv2.BORDER_REFLECT_101)
        assert np.abs(steps.filtered(image, shape) - plain).max() <= 0.125 / 255 * 2  # trimming and terms, each once
        assert image.dtype == steps.filtered(image, shape).dtype


def test_a_kernel_is_taken_apart_into_few_terms_and_trimmed_to_what_it_weighs() -> None:
    slanted = make(Shape("aniso", 21, 2.5, 1.2, 0.6))
    terms = separable_terms(slanted)
    assert 1 < len(terms) < 10
    np.testing.assert_allclose(sum(np.outer(*term) for term in terms), slanted, rtol=0, atol=5e-4)
    assert len(separable_terms(make(Shape("iso", 21, 2.0, 2.0)))) == 1
    small = trimmed(make(Shape("iso", 21, 0.5, 0.5)))
    assert small.shape == (5, 5)  # a Gaussian of 0.5 has 4e-5 of its weight beyond 2 pixels
    assert small.sum() == pytest.approx(1, abs=1e-6)  # float32 weights
    assert trimmed(slanted).shape[0] > 13


def test_a_filter_reflects_the_image_at_its_border() -> None:
    ramp = np.zeros((9, 9, 1), np.float32)
    ramp[0] = 1
    kernel = np.zeros((3, 3), np.float32)
    kernel[2, 1] = 1  # takes the row below
    assert filter2d(ramp, kernel)[-1].max() == 0
    assert cv2.filter2D(ramp, -1, kernel[::-1].copy(), borderType=cv2.BORDER_REFLECT_101)[1].max() == 1
    assert filter2d(ramp[::-1].copy(), kernel[::-1].copy())[0].max() == 0


def keys(x: float) -> float:
    """Keys' cubic convolution kernel with a = -0.5."""
    x = abs(x)
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def test_bicubic_is_the_stretched_kernel_on_a_reflected_signal() -> None:
    """Against a loop over an explicitly padded signal."""
    signal = rng(1).uniform(0, 1, 24)
    padded = np.pad(signal, 12, mode="symmetric")
    expected = []
    for out in range(6):
        centre = 4 * out + 1.5
        weights = np.array([keys((position - 12 - centre) / 4) for position in range(48)])
        expected.append((weights * padded).sum() / weights.sum())
    image = np.asarray(np.broadcast_to(signal[:, None, None], (24, 24, 3)), np.float32)
    reduced = bicubic_reduced(image)
    assert reduced.shape == (6, 6, 3)
    for rows in (reduced, bicubic_reduced(image.swapaxes(0, 1).copy()).swapaxes(0, 1)):
        np.testing.assert_allclose(rows[:, 2, 1], expected, rtol=0, atol=1e-6)  # float32


def test_bicubic_agrees_with_torch_away_from_the_ends() -> None:
    """torch cuts the kernel at the border where this reflects the image; four output pixels inside they are one."""
    signal = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theirs = torch.nn.functional.interpolate(signal, scale_factor=0.25, mode="bicubic", antialias=True)[0].numpy()
    ours = bicubic_reduced(np.asarray(signal[0].numpy().transpose(1, 2, 0), np.float32, order="C"))
    inner = (slice(4, -4), slice(4, -4))
    np.testing.assert_allclose(ours[inner], theirs.transpose(1, 2, 0)[inner], rtol=0, atol=2e-6)  # float32 sums of 17


def test_the_bicubic_preset_only_resizes(photo: Photo) -> None:
    assert np.array_equal(degrade(rng(), flat(0.4), Bicubic()), np.full((32, 32, 3), 102, np.uint8))
    hr = photo(64, 64)
    expected = bicubic_reduced(np.asarray(hr / 255, np.float32))
    assert np.abs(degrade(rng(), hr, Bicubic()) - 255 * expected.clip(0, 1)).max() <= 0.501  # rounded to 8 bits


@pytest.mark.parametrize("gray", [False, True])
def test_gaussian_noise_has_the_given_deviation(gray: bool) -> None:
    image = np.full((400, 400, 3), 0.5, np.float32)
    noise = (gaussian_noise(rng(), image, 25.0, gray) - image) * 255
    assert noise.std() == pytest.approx(25, rel=0.007)  # 4 standard errors of 160,000 draws
    assert abs(noise.mean()) < 0.25
    fourth = float(np.mean((noise / 25) ** 4))
    assert fourth == pytest.approx(3, abs=0.1)  # a normal distribution; 4 standard errors of 160,000 draws
    assert (np.ptp(noise, axis=2).max() < 1e-4) == gray


@pytest.mark.parametrize("gray", [False, True])
def test_poisson_noise_grows_with_the_light(gray: bool) -> None:
    """All 256 values occur, so counts are at 256 levels: variance value / 256, times the scale squared."""
    ramp = np.repeat(np.arange(256, dtype=np.float32) / 255, 100)[:, None, None]
    image = np.asarray(np.broadcast_to(ramp, (25600, 8, 3)), np.float32)
    noise = poisson_noise(rng(), image, 2.0, gray) - image
    for value in (64, 128, 255):
        rows = slice(100 * value, 100 * value + 100)
        expected = 2.0 * math.sqrt(value / 255 / 256)
        assert noise[rows].std() == pytest.approx(expected, rel=0.1)  # 4 standard errors of 800 draws
    bright = slice(6400, None)
    assert (noise / np.sqrt(ramp / 256).clip(1e-9))[bright].std() == pytest.approx(2, rel=0.009)  # 150,000 draws
    assert noise[:100].std() == 0
    assert abs(float(noise[-100:].mean())) < 0.02  # 4 standard errors
    assert (np.ptp(noise, axis=2).max() < 1e-5) == gray


def test_shot_noise_in_the_dark_is_whole_counts() -> None:
    """At two distinct values there are two counts at white: mean 1 at 128, of which a share e^-1 is none."""
    image = np.full((400, 400, 3), 128 / 255, np.float32)
    image[0, 0] = 0
    counts = (poisson_noise(rng(), image, 1.0, False)[1:]) * 2
    np.testing.assert_allclose(counts, np.round(counts), rtol=0, atol=1e-5)
    none = float(np.mean(np.round(counts) == 0))
    assert none == pytest.approx(math.exp(-256 / 255), abs=0.004)  # 4 standard errors of 480,000, and a slice


def test_jpeg_and_gray_noise_take_the_colours_in_opencvs_order(photo: Photo) -> None:
    """The codec weighs red and blue differently: swapped, a strongly compressed photograph comes out otherwise."""
    bgr = photo(64, 64)
    coded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 30])[1]
    np.testing.assert_array_equal(to_uint8(jpeg(bgr.astype(np.float32) / 255, 30)), cv2.imdecode(coded, 1))
    blue = np.zeros((64, 64, 3), np.float32)
    blue[..., 0] = 1  # luma 0.114: the variance of its shot noise tells it from red, whose luma is 0.299
    noise = poisson_noise(rng(), blue, 1.0, True) - blue
    assert noise.std() == pytest.approx(math.sqrt(0.114 / 2), rel=0.1)  # peak 2: one distinct value; 4096 draws


def test_jpeg_loses_more_at_lower_quality(photo: Photo) -> None:
    image = np.asarray(photo(64, 64) / 255, np.float32)
    errors = [float(np.abs(jpeg(image, quality) - image).mean()) for quality in (95, 60, 30)]
    assert 0 < errors[0] < errors[1] < errors[2] < 0.2


def test_images_become_bytes_by_rounding_what_lies_in_range() -> None:
    values = np.array([[[-0.5, 0.4 / 255, 0.6 / 255], [254.6 / 255, 1.0, 2.0]]], np.float32)
    assert to_uint8(values).tolist() == [[[0, 0, 1], [255, 255, 255]]]
