from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from rsd_edge.errors import InputError
from rsd_edge.evaluate.catalogue import CATALOGUE, METRICS, choose_metrics
from rsd_edge.evaluate.protocol import PLAIN, Protocol


def noise(height: int, width: int) -> Any:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_border_is_cut_off_at_each_side() -> None:
    image = noise(9, 8)
    assert np.array_equal(Protocol(border=3).cut(image), image[3:6, 3:5])
    assert np.array_equal(PLAIN.cut(image), image)
    with pytest.raises(InputError, match="a border of 4 leaves nothing of 8x9"):
        Protocol(border=4).cut(image)


@pytest.mark.parametrize(
    ("result", "reference", "fits"),
    [((8, 8), (8, 8), True), ((8, 8), (11, 9), True), ((8, 8), (12, 8), False), ((8, 8), (7, 8), False)],
)
def test_which_sizes_fit(result: tuple[int, int], reference: tuple[int, int], fits: bool) -> None:
    assert PLAIN.fits(result, reference) is fits
    assert Protocol(resize="area").fits(result, reference)


def test_a_reference_is_cut_and_a_result_resized() -> None:
    image, reference = noise(8, 8), noise(10, 9)
    same, cut = PLAIN.align(image, reference)
    assert same is image
    assert np.array_equal(cut, reference[:8, :8])
    resized, whole = Protocol(resize="bicubic").align(image, reference)
    assert whole is reference
    assert np.array_equal(resized, cv2.resize(image, (9, 10), interpolation=cv2.INTER_CUBIC))
    assert Protocol(resize="bicubic").align(image, image)[0] is image


@pytest.mark.parametrize("wrong", [{"border": -1}, {"resize": "linear"}, {"rounding": "up"}])
def test_unknown_choices_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        Protocol(**wrong)


def test_words_tell_every_choice() -> None:
    plain, other, pyiqa = (
        protocol.words(tuple(CATALOGUE))
        for protocol in (PLAIN, Protocol(4, "area", "luma"), Protocol(rounding="pyiqa"))
    )
    assert set(CATALOGUE) <= set(plain)
    assert "not rounded, peak 255, no border cut" in plain["psnr_y"]
    assert "rounded to whole levels, peak 255, 4 pixels cut off at each side" in other["psnr_y"]
    assert pyiqa["psnr_y"] == plain["psnr_y"]
    assert "rounded to whole levels, 11x11" in other["ssim_y"]
    assert "negative structure counted as 0" in pyiqa["ssim_y"]
    assert "up to 3 pixels larger" in plain["matching"]
    assert "resized" in other["matching"]
    assert not any("{" in text or "}" in text for text in (*plain.values(), *other.values()))


def test_groups_leave_out_what_cannot_be_measured() -> None:
    assert choose_metrics([], reference=True, source=True) == METRICS
    assert choose_metrics([], reference=True, source=False) == METRICS  # the lattice will be missing values
    assert choose_metrics([], reference=False, source=False) == ("niqe",)
    assert choose_metrics([], reference=False, source=True) == ("lattice_spread", "lattice_mean", "niqe")
    chosen = choose_metrics(["musiq", "paper", "niqe"], reference=False, source=False, paper=("psnr_y", "musiq"))
    assert chosen == ("musiq", "niqe")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["psnr"], "metric 'psnr' is not known; use some of default, paper, psnr_y"),
        (["niqe", "dists"], "dists needs references; give --ref"),
        (["lattice_mean"], "lattice_mean needs the images that were upscaled; give --lr"),
        (["paper"], "there is nothing to measure"),
    ],
)
def test_single_metrics_must_be_measurable(names: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose_metrics(names, reference=False, source=False)
