from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner

from rsd_edge.errors import InputError
from rsd_edge.evaluate.niqe import patch_features
from rsd_edge.export.fit_niqe import fit, main
from rsd_edge.stream.images import write_image

AMPLITUDES = (20, 20, 20, 16, 14)
"""Of the noise in each row of patches: against the sharpest, 0.8 counts and 0.7 does not; patches scatter by 1 %."""
SHARP_ROWS = 4

Image = npt.NDArray[np.uint8]


def picture(seed: int) -> Image:
    noise = np.random.default_rng(seed).normal(0, 1, (480, 480, 1))
    return (128 + noise * np.repeat(AMPLITUDES, 96)[:, None, None] + np.zeros(3)).round().clip(0, 255).astype(np.uint8)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for seed in range(2):
        write_image(folder / f"{seed}.png", picture(seed))
    return folder


def test_the_model_is_of_sharp_patches(photographs: Path) -> None:
    model, patches = fit(sorted(photographs.iterdir()))
    sharp = np.concatenate([patch_features(picture(seed))[0][: SHARP_ROWS * 5] for seed in range(2)])
    assert patches == len(sharp) == 40
    assert model.mean == pytest.approx(sharp.sum(axis=0) / 40, rel=1e-12)
    centred = sharp - sharp.mean(axis=0)
    assert model.covariance == pytest.approx(centred.T @ centred / 39, rel=1e-9, abs=1e-15)


def test_the_file_holds_model_and_counts(photographs: Path, tmp_path: Path) -> None:
    outputs = [tmp_path / "a.npz", tmp_path / "b.npz"]
    for output in outputs:
        result = CliRunner().invoke(main, ["--images", str(photographs), "-o", str(output)])
        assert result.exit_code == 0
        assert "40 patches of 2 images" in result.output
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    model, _ = fit(sorted(photographs.iterdir()))
    with np.load(outputs[0]) as data:
        assert np.array_equal(data["mean"], model.mean)
        assert np.array_equal(data["covariance"], model.covariance)
        assert (int(data["images"]), int(data["patches"])) == (2, 40)


def test_few_patches_are_refused(photographs: Path) -> None:
    with pytest.raises(InputError, match="20 sharp patches do not make a model of 36 features"):
        fit([photographs / "0.png"])


def test_small_images_are_named(photographs: Path) -> None:
    write_image(photographs / "2.png", picture(0)[:95])
    with pytest.raises(InputError, match=r"2\.png is smaller than 96x96"):
        fit(sorted(photographs.iterdir()))
