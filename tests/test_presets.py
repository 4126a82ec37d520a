from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rsd_edge.distill.config import config_to_dict, load_config
from rsd_edge.distill.data_config import DataConfig
from rsd_edge.distill.presets import Blur, Noise, Pass, Presets, Resize, SecondOrder, Shuffled, Sinc
from rsd_edge.errors import InputError, ModelError
from rsd_edge.plain import from_dict


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("model: {name: tiny}\n")
    return path


def test_the_ranges_are_the_official_ones() -> None:
    kinds = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    assert SecondOrder() == SecondOrder(
        first=Pass(
            Blur(1.0, (3, 21), kinds, (0.2, 3.0), (0.5, 4.0), (1.0, 2.0), 0.1),
            Resize((0.2, 0.7, 0.1), (0.15, 1.5)),
            Noise(1.0, 0.5, (1, 30), (0.05, 3.0), 0.4),
        ),
        first_jpeg=(30, 95),
        second_share=0.5,
        second=Pass(
            Blur(0.8, (3, 15), kinds, (0.2, 1.5), (0.5, 4.0), (1.0, 2.0), 0.1),
            Resize((0.3, 0.4, 0.3), (0.3, 1.2)),
            Noise(1.0, 0.5, (1, 25), (0.05, 2.5), 0.4),
        ),
        final_sinc=Sinc(0.8, (7, 21), (1 / 3, 1.0)),
        jpeg=(30, 95),
    )
    assert Shuffled() == Shuffled(
        half_share=0.25,
        sizes=(7, 25),
        variance=(0.0, 8.0),
        sigma=(0.0, 2.8),
        anisotropic_share=0.5,
        shifted_share=0.25,
        noise=(2, 25),
        gray_share=0.4,
        correlated_share=0.2,
        jpeg_share=0.9,
        jpeg=(30, 95),
    )


def test_a_configuration_changes_single_ranges(path: Path) -> None:
    """What it leaves out of the second pass stays the second pass's, not the first's."""
    overrides = [
        "data.presets.real.second.noise.gaussian=[1, 10]",
        "data.presets.real.first.blur.sigma=[0.5, 2]",
        "data.presets.bsrgan.jpeg=[60, 90]",
        "data.presets.light.noise.share=0.5",
    ]
    config = load_config(path, overrides)
    default, changed = Presets(), config.data.presets
    second = replace(default.real.second, noise=replace(default.real.second.noise, gaussian=(1.0, 10.0)))
    first = replace(default.real.first, blur=replace(default.real.first.blur, sigma=(0.5, 2.0)))
    assert changed.real == replace(default.real, first=first, second=second)
    assert changed.bsrgan == replace(default.bsrgan, jpeg=(60, 90))
    assert changed.light == replace(default.light, noise=replace(default.light.noise, share=0.5))
    assert from_dict(type(config), config_to_dict(config)) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("real.first.blur.sigma=[3, 1]", r"blur sigma is \[3\.0, 1\.0\]; it must rise"),
        ("real.first.blur.sizes=[3, 20]", r"blur sizes are \[3, 20\]; kernels have odd sides"),
        ("real.first.blur.kinds=[1, 1, 0, 0, 0, 0]", "blur kinds are .*; they must add up to 1"),
        ("real.first.blur.sinc=1.5", "blur has a share of 1.5"),
        ("real.second.resize.up_down_keep=[0.5, 0.6, 0.1]", "resize up_down_keep are .* add up to 1"),
        ("real.second.resize.factor=[1.2, 1.5]", r"resize factor is \[1\.2, 1\.5\]; it must reach from 1"),
        ("real.first.noise.gray_share=-0.1", "noise has a share of -0.1"),
        ("real.first.noise.gaussian=[1, 300]", "noise gaussian is"),
        ("real.second_share=2", "second_share has a share of 2"),
        ("real.jpeg=[30, 101]", r"jpeg is \[30, 101\]; it must rise, within 1 to 100"),
        ("real.final_sinc.cutoff=[0.5, 1.5]", "final_sinc cutoff is"),
        ("real.final_sinc.sizes=[7, 20]", "final_sinc sizes"),
        ("light.jpeg=[0, 95]", "jpeg is"),
        ("bsrgan.gray_share=0.9", "gray_share and correlated_share together has a share of 1.1"),
        ("bsrgan.sizes=[8, 25]", "bsrgan sizes"),
    ],
)
def test_ranges_that_are_none_are_named(path: Path, override: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_config(path, [f"data.presets.{override}"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rain.x=1", r"unknown key 'data\.presets\.rain'; known keys: real, light, bsrgan, bicubic"),
        ("real.first.haze=1", r"unknown key 'data\.presets\.real\.first\.haze'; known keys: blur, resize, noise"),
        ("bicubic.sigma=1", r"unknown key 'data\.presets\.bicubic\.sigma'"),
        ("real.first.noise.gaussian=3", r"'data\.presets\.real\.first\.noise\.gaussian' must be a list"),
    ],
)
def test_unknown_ranges_are_named(path: Path, override: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_config(path, [f"data.presets.{override}"])


def test_an_unknown_degradation_is_named() -> None:
    with pytest.raises(InputError, match="unknown degradation 'rain'; choose from real, light, bsrgan, bicubic"):
        DataConfig(degradations={"rain": 1.0})


def test_paired_data_is_not_rescaled() -> None:
    with pytest.raises(InputError, match=r"data\.rescale would part HR images from their LR images"):
        DataConfig(train="a", train_lr="b", rescale=True)
