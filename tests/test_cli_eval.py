from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from rsd_edge.cli import main
from rsd_edge.stream.images import read_image, write_image

ASSETS = Path(__file__).resolve().parents[1] / "assets"
LATTICE = ["lattice_spread", "lattice_mean"]
METRICS = ["psnr_y", "ssim_y", "lpips_squeeze", *LATTICE, "niqe", "spectrum_db", "spectrum_bias_db"]

Image = npt.NDArray[np.uint8]


def rsd_edge(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert isinstance(stop.value.code, int)
    return stop.value.code


def upscale(image: Image) -> Image:
    return np.asarray(cv2.resize(image, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC), np.uint8)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with bicubic results in pred/ for two photographs in ref/ and lr/."""
    monkeypatch.chdir(tmp_path)
    for name in ("pred", "ref", "lr"):
        Path(name).mkdir()
    for stem in ("text", "face"):
        shutil.copy(ASSETS / f"{stem}.png", "lr")
        shutil.copy(ASSETS / "reference" / f"{stem}.jpg", "ref")
        write_image(Path(f"pred/{stem}.png"), upscale(read_image(ASSETS / f"{stem}.png")))
    return tmp_path


def evaluate(*arguments: str) -> dict[str, Any]:
    assert rsd_edge("eval", "--pred", "pred", "--ref", "ref", "--json", "out/x.json", "--threads", "1", *arguments) == 0
    data: dict[str, Any] = json.loads(Path("out/x.json").read_text())
    return data


@pytest.mark.usefixtures("folder")
def test_scores_of_two_photographs(capsys: pytest.CaptureFixture[str]) -> None:
    data = evaluate("--lr", "lr")
    assert data["images"] == 2
    assert [row["stem"] for row in data["rows"]] == ["face", "text"]
    assert data["rows"][0]["size"] == [512, 512]
    for metric in METRICS:
        assert data[metric] == pytest.approx(np.mean([row[metric] for row in data["rows"]]), rel=1e-12)
        assert metric in data["protocol"]
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["image", *METRICS]
    means = [f"{data['psnr_y']:.3f}", *(f"{data[metric]:.4f}" for metric in METRICS[1:])]
    place = next(place for place, line in enumerate(table) if line.strip().startswith("mean of 2"))
    assert table[place].split() == ["mean", "of", "2", *means]
    assert table[place + 1].strip().startswith("95 % from")
    assert table[-1] == f"warning: {data['bootstrap']['warning']}"
    assert "over 2 images say little" in table[-1]
    # What this command gave when it reproduced the published check values of other photographs. JPEG decoders may
    # differ by a grey level in single pixels, worth about 0.01 dB and 0.001 of LPIPS here.
    assert data["psnr_y"] == pytest.approx(29.996, abs=0.02)
    assert data["lpips_squeeze"] == pytest.approx(0.1981, abs=0.001)
    assert (data["lattice_spread"], data["lattice_mean"]) == (0, 0)  # bicubic results have no detail
    # NIQE is of the bicubic images alone. Builds of OpenCV may round one pixel in some hundred the other way, which
    # is worth 0.04 of NIQE on such smooth images, and 0.1 dB where they hold nothing but rounding noise.
    assert data["niqe"] == pytest.approx(7.377, abs=0.05)
    assert data["spectrum_db"] == pytest.approx(18.77, abs=0.15)
    assert data["spectrum_bias_db"] == pytest.approx(-data["spectrum_db"], rel=1e-12)  # too little in every ring


@pytest.mark.usefixtures("folder")
def test_without_sources_the_lattice_is_not_measured(capsys: pytest.CaptureFixture[str]) -> None:
    data = evaluate()
    assert data["lattice_spread"] is None
    assert data["rows"][0]["lattice_mean"] is None
    out = capsys.readouterr().out
    assert "lattice not measured" in out
    assert out.splitlines()[0].split() == ["image", *(metric for metric in METRICS if metric not in LATTICE)]
    assert "NIQE not" not in out


@pytest.mark.usefixtures("folder")
def test_images_too_small_for_niqe_and_spectrum_are_null(capsys: pytest.CaptureFixture[str]) -> None:
    """They keep their other scores, and the means are over the images that are large enough."""
    for name in ("pred/tiny.png", "ref/tiny.png"):
        small(name, 63, 100)
    data = evaluate()
    assert [row["stem"] for row in data["rows"]] == ["face", "text", "tiny"]
    assert data["rows"][2]["ssim_y"] == pytest.approx(1, abs=1e-12)
    for metric in ("niqe", "spectrum_db", "spectrum_bias_db"):
        assert data["rows"][2][metric] is None
        assert data[metric] == pytest.approx((data["rows"][0][metric] + data["rows"][1][metric]) / 2, rel=1e-12)
    for stem in ("face.png", "text.png"):
        Path("pred", stem).unlink()
        Path("ref", stem).with_suffix(".jpg").unlink()
    capsys.readouterr()
    assert evaluate()["niqe"] is None
    out = capsys.readouterr().out
    assert "NIQE not measured" in out
    assert "spectrum not measured" in out


@pytest.mark.usefixtures("folder")
def test_perfect_results_have_no_finite_psnr(capsys: pytest.CaptureFixture[str]) -> None:
    for stem in ("text", "face"):
        write_image(Path(f"pred/{stem}.png"), read_image(f"ref/{stem}.jpg"))
    data = evaluate()
    assert (data["psnr_y"], data["lpips_squeeze"]) == (None, 0)
    assert data["ssim_y"] == pytest.approx(1, abs=1e-12)
    assert "inf" in capsys.readouterr().out


@pytest.mark.usefixtures("folder")
def test_references_lose_what_no_whole_source_pixel_covers() -> None:
    whole = evaluate()
    for stem in ("text", "face"):
        padded = np.pad(read_image(f"ref/{stem}.jpg"), ((0, 3), (0, 2), (0, 0)))
        Path(f"ref/{stem}.jpg").unlink()
        write_image(Path(f"ref/{stem}.png"), padded)
    assert evaluate()["rows"] == whole["rows"]


@pytest.mark.usefixtures("folder")
def test_names_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """What is markup or an emoji to the package that draws the table is a part of a name here."""
    Path("pred/face.png").rename("pred/photo[final].png")
    Path("ref/face.jpg").rename("ref/photo[final].jpg")
    Path("pred/text.png").rename("pred/a:cat:b.png")
    Path("ref/text.jpg").rename("ref/a:cat:b.jpg")
    evaluate("--metrics", "psnr_y")
    out = capsys.readouterr().out
    assert "photo[final]" in out
    assert "a:cat:b" in out


def small(path: str, height: int, width: int) -> None:
    write_image(Path(path), np.zeros((height, width, 3), np.uint8))


def empty(folder: str) -> None:
    for path in Path(folder).iterdir():
        path.unlink()


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: Path("ref/face.jpg").unlink(), "1 images of pred have no partner in ref (face)"),
        (lambda: Path("pred/face.png").unlink(), "1 images of ref have no partner in pred (face)"),
        (lambda: Path("lr/face.png").unlink(), "1 images of pred have no partner in lr (face)"),
        (lambda: small("pred/face.bmp", 9, 9), "pred/face.bmp and face.png have the same stem"),
        (
            lambda: small("pred/face.png", 9, 513),
            "pred/face.png and ref/face.jpg differ in size (513x9 and 512x512)",
        ),
        (lambda: small("pred/face.png", 508, 512), "pred/face.png and ref/face.jpg differ in size"),
        (lambda: small("lr/face.png", 127, 128), "pred/face.png: the lattice is defined at x4"),
        (lambda: Path("pred/face.png").write_bytes(b"no"), "pred/face.png is not an image"),
        (lambda: shutil.rmtree("ref"), "ref does not exist; give a folder of images"),
        (lambda: empty("ref"), "ref contains no images"),
    ],
)
def test_bad_input_is_one_line(change: Any, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    change()
    assert rsd_edge("eval", "--pred", "pred", "--ref", "ref", "--lr", "lr", "--json", "x.json", "--threads", "1") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1
    assert not Path("x.json").exists()


@pytest.mark.usefixtures("folder")
def test_tiny_images_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("pred/face.png", "ref/face.png"):
        small(name, 10, 40)
    Path("ref/face.jpg").unlink()
    assert rsd_edge("eval", "--pred", "pred", "--ref", "ref") == 2
    assert capsys.readouterr().err == (
        "error: pred/face.png: SSIM needs sides of at least 11 pixels, not 40x10; use larger images\n"
    )
