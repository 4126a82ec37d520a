"""`rsd-edge eval` with models, several methods, presets, sheets and the paper's tables; small images, a toy engine."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rsd_edge import SuperResolver
from rsd_edge.cli import evaluate, main
from rsd_edge.cli.evaluate_outputs import folder_names
from rsd_edge.errors import InputError
from rsd_edge.evaluate import presets
from rsd_edge.evaluate.presets import PRESETS
from rsd_edge.evaluate.upscaling import bicubic
from rsd_edge.stream.images import read_image, write_image

if TYPE_CHECKING:
    from rsd_edge.models.checkpoint import Checkpoint

Photo = Callable[[int, int], NDArray[np.uint8]]


def rsd_eval(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["eval", *arguments])
    assert isinstance(stop.value.code, int)
    return stop.value.code


@pytest.fixture
def folder(tmp_path: Path, photo: Photo, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, laid out as the preset imagenet-test, here of three images of 32x24, with results in sr/."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(presets.PRESETS, "imagenet-test", replace(PRESETS["imagenet-test"], count=3))
    for name in ("gt", "lq", "sr"):
        Path(name).mkdir()
    Path("few").mkdir()
    for stem, width in (("a", 24), ("b", 28), ("c", 32)):
        image = photo(24, width)
        lr = np.ascontiguousarray(image[::4, ::4])
        write_image(Path(f"gt/{stem}.png"), image)
        write_image(Path(f"lq/{stem}.png"), lr)
        write_image(Path(f"sr/{stem}.png"), bicubic(lr))
    for stem in ("a", "b"):
        shutil.copy(f"sr/{stem}.png", "few")
    return tmp_path


def json_of(path: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(Path(path).read_text())
    return data


@pytest.mark.usefixtures("folder")
def test_an_engine_upscales_first(toy_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ("--lr", "lq", "--ref", "gt", "--metrics", "psnr_y,psnr_rgb", "--threads", "1")
    assert (
        rsd_eval(
            "--model", str(toy_bundle), *common, "--seed", "3", "--tile", "48", "--save", "made", "--json", "x.json"
        )
        == 0
    )
    data = json_of("x.json")
    assert data["method"]["model"] == "toy"
    assert (data["method"]["tile"], data["method"]["seed"]) == (48, 3)
    assert data["name"] == str(toy_bundle)
    assert data["protocol"]["chop"] == "tiles of 48 LR pixels, halo included"
    with SuperResolver.load(toy_bundle, threads=1, tile=48) as enlarge:
        for stem in ("a", "b", "c"):
            expected = enlarge(read_image(f"lq/{stem}.png"), seed=3)
            assert np.array_equal(read_image(f"made/{stem}.png"), expected)
    assert rsd_eval("--pred", "made", *common, "--json", "y.json") == 0
    assert json_of("y.json")["rows"] == data["rows"]
    assert json_of("y.json")["protocol"]["chop"].startswith("not known")
    assert capsys.readouterr().out.splitlines()[0].split() == ["image", "psnr_y", "psnr_rgb"]


@pytest.mark.usefixtures("folder", "one_torch_thread")
def test_a_checkpoint_upscales_on_torch(tiny_weights: Checkpoint) -> None:
    from rsd_edge.models.checkpoint import save_checkpoint

    save_checkpoint(Path("tiny.safetensors"), tiny_weights)
    arguments = ("--lr", "lq", "--ref", "gt", "--metrics", "psnr_y", "--limit", "1", "--tile", "48", "--device", "cpu")
    assert rsd_eval("--model", "tiny.safetensors", *arguments, "--json", "x.json") == 0
    data = json_of("x.json")
    assert (data["method"]["backend"], data["method"]["model"], data["images"]) == ("torch", "tiny", 1)


@pytest.mark.usefixtures("folder")
def test_methods_are_compared_with_the_first(toy_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    methods = ("--pred", "sr", "--model", str(toy_bundle), "--model", "bicubic")
    outputs = ("--json", "out/x.json", "--csv", "out/x.csv", "--sheet", "out/x.png", "--worst", "2")
    assert rsd_eval(*methods, "--preset", "imagenet-test", "--data", ".", "--metrics", "psnr_y,ssim_y", *outputs) == 0
    data = json_of("out/x.json")
    assert [data["name"], *(other["name"] for other in data["others"])] == ["sr", str(toy_bundle), "bicubic"]
    assert data["rows"] == data["others"][1]["rows"]  # sr holds bicubic results
    toy, same = data["differences"]
    assert toy["minus"] == "sr"
    assert toy["psnr_y"]["mean"] == pytest.approx(data["others"][0]["psnr_y"] - data["psnr_y"], abs=1e-9)
    low, high = toy["psnr_y"]["interval"]
    assert low <= toy["psnr_y"]["mean"] <= high
    assert same["psnr_y"] == {"mean": 0, "interval": [0, 0], "images": 3}
    assert data["test_set"]["preset"] == "imagenet-test"
    assert "fid" in data["test_set"]["paper_measures"]
    assert data["protocol"]["rounding"] == "pyiqa"  # the paper's
    assert len(Path("out/x.csv").read_text().splitlines()) == 1 + 3 * 3
    assert read_image("out/x.png").shape[1] == 5 * 256 + 4 * 8  # LR, three results, reference; bicubic not twice
    out = capsys.readouterr().out
    assert f"{toy_bundle} minus sr, image by image" in out.replace("\n", " ").replace("  ", " ")


@pytest.mark.usefixtures("folder")
def test_json_on_stdout_is_alone_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert rsd_eval("--pred", "sr", "--ref", "gt", "--metrics", "psnr_y", "--json", "-") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["images"] == 3
    assert "mean of 3" in err
    assert not Path("-").exists()
    assert rsd_eval("--pred", "sr", "--ref", "gt", "--metrics", "psnr_y", "--csv", "-") == 2
    assert "error: --csv has no - for stdout" in capsys.readouterr().err


@pytest.mark.usefixtures("folder")
def test_scores_are_told_although_something_cannot_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    """Images of 24 pixels have no NIQE, which is known only when they are scored."""
    arguments = ("--pred", "sr", "--ref", "gt", "--metrics", "psnr_y,niqe", "--sheet", "x.png", "--worst-by", "niqe")
    assert rsd_eval(*arguments, "--json", "x.json") == 2
    out, err = capsys.readouterr()
    assert err == "error: --worst-by is 'niqe', which is not measured; use one of psnr_y\n"
    assert "mean of 3" in out
    assert "NIQE not measured: it needs images of two 96x96 patches or more" in out
    assert json_of("x.json")["images"] == 3


@pytest.mark.usefixtures("folder")
def test_the_protocol_of_a_preset_can_be_replaced(photo: Photo, capsys: pytest.CaptureFixture[str]) -> None:
    write_image(Path("sr/a.png"), photo(30, 30))
    arguments = ("--pred", "sr", "--preset", "imagenet-test", "--data", ".", "--metrics", "psnr_y", "--json", "x.json")
    assert rsd_eval(*arguments, "--rounding", "luma") == 2
    assert "differ in size (30x30 and 24x24)" in capsys.readouterr().err
    assert rsd_eval(*arguments, "--rounding", "luma", "--resize", "area") == 0
    protocol = json_of("x.json")["protocol"]
    assert (protocol["rounding"], protocol["resize"]) == ("luma", "area")


@pytest.mark.usefixtures("folder")
def test_the_paper_stands_beside(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--pred", "sr", "--preset", "imagenet-test", "--data", ".", "--metrics", "psnr_y,lpips_squeeze")
    assert rsd_eval(*arguments, "--published", "--threads", "1") == 0
    out = capsys.readouterr().out
    assert "arXiv 2503.13358" in out
    rows = {line.split("  ")[0].strip(): line.split() for line in out.splitlines()}
    assert rows["RSD"][1:] == ["1", "24.31", "0.657", "0.193", "0.681", "58.947", "25.46"]
    assert rows["SUPIR"][-1] == "24.70"
    mean = next(line for line in out.splitlines() if line.strip().startswith("mean of 3")).split()[3]
    assert rows["here: sr"][:2] == ["here:", "sr"]
    assert float(rows["here: sr"][2]) == pytest.approx(float(mean), abs=0.0051)  # in the paper's two decimals
    assert len(rows["here: sr"]) == 3  # PSNR has the paper's protocol; all else was not measured, or in another way
    assert "LPIPS does not compare: lpips_squeeze" in out
    assert "FID was not measured; --metrics fid does" in out


@pytest.mark.usefixtures("folder")
def test_results_of_other_lr_images_do_not_stand_in_the_papers_columns(capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree("lq", "own")
    arguments = ("--preset", "imagenet-test", "--data", ".", "--metrics", "psnr_y", "--published")
    for more, cells in ((("--lr", "own"), 2), ((), 3)):
        assert rsd_eval("--model", "bicubic", *arguments, *more) == 0
        out = capsys.readouterr().out
        (line,) = (line for line in out.splitlines() if line.strip().startswith("here: bicubic"))
        assert len(line.split()) == cells
        assert ("no column compares: the LR images are those of --lr here" in out) == bool(more)


def test_all_tables_of_the_paper_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert rsd_eval("--published") == 0
    out = capsys.readouterr().out
    for title in ("RealSR at full size", "RealSet65", "ImageNet-Test", "DIV2K-Val", "DRealSR", "Cost on an A100"):
        assert title in out
    assert rsd_eval("--published", "--preset", "drealsr") == 0
    assert "RealSet65" not in capsys.readouterr().out


@pytest.mark.usefixtures("folder")
def test_without_references_only_some_metrics_remain(photo: Photo, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("big", "big/lr"):
        Path(name).mkdir()
    write_image(Path("big/x.png"), photo(96, 192))
    write_image(Path("big/lr/x.png"), photo(24, 48))
    assert rsd_eval("--pred", "big", "--json", "x.json") == 0
    assert [name for name in json_of("x.json")["rows"][0] if name not in ("stem", "size")] == ["niqe"]
    assert rsd_eval("--pred", "big", "--lr", "big/lr", "--sheet", "x.png", "--json", "x.json") == 0
    assert json_of("x.json")["lattice_spread"] is not None
    assert rsd_eval("--pred", "sr", "--ref", "gt", "--no-reference", "--json", "x.json") == 0
    assert "psnr_y" not in json_of("x.json")
    assert "NIQE not measured" in capsys.readouterr().out  # images of 24 pixels
    assert rsd_eval("--pred", "big", "--metrics", "psnr_y") == 2
    assert "psnr_y needs references" in capsys.readouterr().err


@pytest.mark.usefixtures("folder")
def test_tools_that_add_to_names() -> None:
    for path in list(Path("sr").iterdir()):
        path.rename(path.with_name(f"{path.stem}_out.png"))
    assert rsd_eval("--pred", "sr", "--ref", "gt", "--metrics", "psnr_y") == 2
    assert rsd_eval("--pred", "sr", "--ref", "gt", "--metrics", "psnr_y", "--ending", "_out", "--json", "x.json") == 0
    assert [row["stem"] for row in json_of("x.json")["rows"]] == ["a", "b", "c"]


@pytest.mark.usefixtures("folder")
def test_lr_images_whose_names_end_otherwise_than_those_of_the_references() -> None:
    """As those of DIV2K: 0801x4.png and 0801.png."""
    for path in list(Path("lq").iterdir()):
        path.rename(path.with_name(f"{path.stem}x4.png"))
    arguments = ("--model", "bicubic", "--lr", "lq", "--ref", "gt", "--metrics", "psnr_y", "--save", "made")
    assert rsd_eval(*arguments) == 2
    assert rsd_eval(*arguments, "--ending", "x4") == 0
    assert sorted(path.name for path in Path("made").iterdir()) == ["a.png", "b.png", "c.png"]


@pytest.mark.usefixtures("folder")
def test_a_limit_takes_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--preset", "imagenet-test", "--data", ".", "--limit", "2", "--metrics", "psnr_y")
    assert rsd_eval("--pred", "sr", *arguments, "--published", "--json", "x.json") == 0
    assert [row["stem"] for row in json_of("x.json")["rows"]] == ["a", "b"]
    assert "no column compares: 2 images here, 3 there" in capsys.readouterr().out


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "there is nothing to score; give results with --pred, or a model with --model"),
        ("--pred sr --pred sr", "the same --pred or --model is given twice"),
        ("--pred sr --preset imagenet-test", "--preset and --data belong together"),
        ("--pred sr --ref gt --preset imagenet-test --data .", "--preset brings its references; leave --ref out"),
        ("--pred sr --ref gt --save made --tile 48", "--save, --tile: for --model, and there is none"),
        ("--model bicubic --ref gt", "there are no LR images to upscale; give them with --lr"),
        ("--model bicubic --lr lq --ref gt --save lq", "lq holds images that are read and might be replaced"),
        ("--model bicubic --lr lq --ref gt --save gt", "gt holds images that are read and might be replaced"),
        ("--pred sr --model bicubic --lr lq --ref gt --save sr", "sr holds images that are read and might be replaced"),
        ("--pred sr --model bicubic --lr lq --ref gt --no-reference --save gt", "gt holds images that are read"),
        ("--pred sr --ref gt --sheet sr/a.png", "cannot write sr/a.png: it is one of the images that are scored"),
        ("--pred sr --ref gt --lr lq --sheet few/../lq/a.png", "cannot write few/../lq/a.png: it is one of the images"),
        ("--model bicubic --lr lq --ref gt --save new --sheet new/a.png", "cannot write new/a.png: it is one of the"),
        ("--pred sr --ref gt --sheet new/x.csv", "two of --json, --csv and --sheet are the same file"),
        ("--model none --lr lq --ref gt --save new", "engine 'none' is neither a shipped engine"),
        ("--pred sr --ref gt --metrics psnr", "metric 'psnr' is not known"),
        ("--pred sr --ref gt --metrics paper", "--metrics paper needs a --preset that the paper measured"),
        ("--pred sr --ref gt --metrics fid", "FID of 3 images means little"),
        ("--pred sr --ref gt --sheet x.txt", "cannot write x.txt"),
        ("--pred sr --ref gt --metrics ssim_y --sheet x.png --worst-by niqe", "--worst-by is 'niqe', which is not"),
        ("--pred sr --ref gt --worst-by niqe", "--worst-by is for --sheet"),
        ("--pred sr --ref gt --metrics fid --force-fid --sheet x.png", "--sheet goes by a metric of single images"),
        ("--pred few --model bicubic --lr lq --ref gt --save new", "1 images of gt have no partner in few (c)"),
        ("--model bicubic --preset imagenet-test --data . --ending _out", "--ending is for --pred and --lr, and there"),
        ("--pred sr --ref gt --border -1", "border is -1; it must be at least 0"),
        ("--pred sr --ref gt --border 12", "3 of 3 images cannot be scored: sr/a.png: a border of 12 leaves"),
        ("--pred sr --ref gt --threads 0", "threads is 0"),
        ("--pred sr --ref gt --device cpu", "--device cpu: for checkpoints (.safetensors) and metrics of pyiqa"),
        ("--model bicubic --lr lq --ref gt --save new --device cuda", "--device cuda: for checkpoints (.safetensors)"),
        ("--pred sr --pred few --metrics niqe", "1 images of sr have no partner in few (c)"),
        ("--pred sr --limit 1", "--limit counts references or LR images"),
        ("--pred sr --preset realsr --data gt", "gt does not hold realsr: expected HR_x4/* (100 images) and"),
    ],
)
def test_bad_requests_are_one_line_and_leave_nothing(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in Path().rglob("*.png")}
    assert rsd_eval(*arguments.split(), *(("--json", "new/x.json", "--csv", "new/x.csv") if arguments else ())) == 2
    assert {path: path.read_bytes() for path in Path().rglob("*.png")} == before
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1
    assert not Path("new").exists()


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("size", "metrics", "message"),
    [
        ((3, 3), "default", "x4 of lq/d.png: LPIPS needs sides of at least 16 pixels, not 12x12; use larger images"),
        ((2, 2), "psnr_y,ssim_y", "x4 of lq/d.png: SSIM needs sides of at least 11 pixels, not 8x8; use larger images"),
        (
            (1, 9),
            "lattice_mean",
            "x4 of lq/d.png: the lattice needs LR sides of at least 2 pixels, not 9x1; use",
        ),
    ],
)
def test_images_too_small_for_a_metric_are_refused_before_anything_is_upscaled(
    size: tuple[int, int], metrics: str, message: str, photo: Photo, capsys: pytest.CaptureFixture[str]
) -> None:
    height, width = size
    write_image(Path("lq/d.png"), photo(height, width))
    write_image(Path("gt/d.png"), photo(4 * height, 4 * width))
    arguments = ("--model", "bicubic", "--lr", "lq", "--ref", "gt", "--save", "made", "--threads", "1")
    assert rsd_eval(*arguments, "--metrics", metrics) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert not Path("made").exists()
    assert rsd_eval(*arguments, "--metrics", "psnr_y,niqe") == 0


@pytest.mark.usefixtures("folder")
def test_results_are_checked_before_anything_is_upscaled(photo: Photo, capsys: pytest.CaptureFixture[str]) -> None:
    """Results of x2 have no lattice, however they are resized."""
    for path in Path("sr").iterdir():
        write_image(path, read_image(path)[::2, ::2])
    arguments = ("--pred", "sr", "--model", "bicubic", "--lr", "lq", "--ref", "gt", "--save", "made", "--threads", "1")
    assert rsd_eval(*arguments, "--metrics", "psnr_y") == 2
    assert "sr/a.png and gt/a.png differ in size (12x12 and 24x24)" in capsys.readouterr().err
    assert rsd_eval(*arguments, "--resize", "bicubic") == 2
    assert "3 of 3 images cannot be scored: sr/a.png: the lattice is defined at x4" in capsys.readouterr().err
    assert not Path("made").exists()
    assert rsd_eval(*arguments, "--resize", "bicubic", "--metrics", "psnr_y") == 0


@pytest.mark.usefixtures("folder")
def test_sigterm_leaves_no_temporary_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def others(number: int, frame: object) -> None:
        pytest.fail("the signal reached what handled it before")

    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(evaluate, "evaluate", lambda *_: signal.raise_signal(signal.SIGTERM))
    kept = signal.signal(signal.SIGTERM, others)
    try:
        assert rsd_eval("--model", "bicubic", "--lr", "lq", "--ref", "gt", "--metrics", "psnr_y") == 143
        assert list((tmp_path / "temporary").iterdir()) == []
        assert signal.getsignal(signal.SIGTERM) is others
    finally:
        signal.signal(signal.SIGTERM, kept)


@pytest.mark.usefixtures("folder")
def test_saved_results_are_not_replaced_by_those_of_another_model(
    toy_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("--lr", "lq", "--ref", "gt", "--metrics", "psnr_y", "--threads", "1", "--save", "made")
    assert rsd_eval("--model", "bicubic", *common) == 0
    before = Path("made/a.png").read_bytes()
    assert rsd_eval("--model", str(toy_bundle), *common) == 2
    assert "error: made/a.png is there already, perhaps of another model; choose" in capsys.readouterr().err
    assert Path("made/a.png").read_bytes() == before
    assert rsd_eval("--model", str(toy_bundle), "--model", "bicubic", *common) == 0  # in folders of their own
    assert Path("made/a.png").read_bytes() == Path("made/bicubic/a.png").read_bytes() == before


@pytest.mark.usefixtures("folder")
def test_checkpoints_of_one_name_have_folders_of_their_own(toy_bundle: Path) -> None:
    for run in ("one", "two"):
        shutil.copytree(toy_bundle, f"{run}/engine")
    models = ("--model", "one/engine", "--model", str(Path("two/engine").resolve()), "--model", "bicubic")
    assert rsd_eval(*models, "--lr", "lq", "--ref", "gt", "--metrics", "psnr_y", "--save", "made") == 0
    assert sorted(path.name for path in Path("made").iterdir()) == ["bicubic", "one-engine", "two-engine"]


@pytest.mark.usefixtures("folder")
def test_no_folder_of_results_is_another_one() -> None:
    assert folder_names(["..", ".", "edge-n"]) == [Path.cwd().parent.name, Path.cwd().name, "edge-n"]


def test_a_model_that_is_named_by_two_paths_has_no_folder_of_its_own() -> None:
    with pytest.raises(InputError, match="two models would share a folder of --save; score them apart, each with"):
        folder_names(["a/w.safetensors", "./a/w.safetensors"])


@pytest.mark.usefixtures("folder")
def test_pyiqa_is_missed_before_anything_is_upscaled(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    arguments = ("--model", str(toy_bundle), "--lr", "lq", "--ref", "gt", "--metrics", "musiq", "--save", "made")
    assert rsd_eval(*arguments, "--json", "x.json", "--device", "cpu") == 2
    err = capsys.readouterr().err
    assert "musiq needs the package pyiqa" in err
    assert "pip install 'rsd-edge[pyiqa]'" in err
    assert not Path("made").exists()
    assert not Path("x.json").exists()
