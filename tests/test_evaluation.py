"""Files matched and checked, means, differences, CSV, the paper's tables and the contact sheet."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from rsd_edge.errors import InputError, OutputError
from rsd_edge.evaluate import published
from rsd_edge.evaluate.checks import check_pairs, check_sources
from rsd_edge.evaluate.folder import Results, check_results, evaluate
from rsd_edge.evaluate.image_sets import Images, TestSet, folder_images, match
from rsd_edge.evaluate.metrics import psnr_y
from rsd_edge.evaluate.presets import PRESETS
from rsd_edge.evaluate.protocol import PLAIN, Protocol
from rsd_edge.evaluate.report import (
    Evaluation,
    comparison,
    cut_warning,
    difference,
    interval_warning,
    worst_stems,
    write_csv,
)
from rsd_edge.evaluate.scoring import EvaluationSettings, Row, Scorer
from rsd_edge.evaluate.sheet import CELL, draw_sheet
from rsd_edge.evaluate.upscaling import bicubic, upscale_with
from rsd_edge.stream.images import read_image, write_image

Image = NDArray[np.uint8]
Photo = Callable[[int, int], Image]


def scored(scores: Mapping[str, Mapping[str, float | None]], name: str = "x") -> Evaluation:
    rows = tuple(Row(stem, 8, 4, values) for stem, values in scores.items())
    return Evaluation(rows, tuple(next(iter(scores.values()))), name=name)


def results(folder: Path) -> Results:
    return Results(folder.name, folder_images(folder), {})


@pytest.fixture
def folders(tmp_path: Path, photo: Photo) -> Path:
    """hr/, lr/ (every fourth pixel) and sr/ (bicubic) of three images of 24x32."""
    for name in ("hr", "lr", "sr"):
        (tmp_path / name).mkdir()
    for stem, size in (("a", (24, 32)), ("b", (32, 24)), ("c", (24, 24))):
        image = photo(*size)
        write_image(tmp_path / "hr" / f"{stem}.png", image)
        write_image(tmp_path / "lr" / f"{stem}.png", image[::4, ::4])
        write_image(tmp_path / "sr" / f"{stem}.png", bicubic(np.ascontiguousarray(image[::4, ::4])))
    return tmp_path


def test_a_border_and_rounding_reach_the_metrics(folders: Path) -> None:
    test_set = TestSet(folder_images(folders / "hr"))
    settings = EvaluationSettings(("psnr_y",), Protocol(border=5, rounding="luma"))
    found = evaluate(results(folders / "sr"), test_set, Scorer(settings))
    for row in found.rows:
        image, reference = (read_image(folders / name / f"{row.stem}.png")[5:-5, 5:-5] for name in ("sr", "hr"))
        assert row.scores["psnr_y"] == psnr_y(image, reference, rounded=True)
    assert (found.rows[0].width, found.rows[0].height) == (32, 24)


def test_results_of_another_size_are_resized_if_asked(folders: Path) -> None:
    """The LR images themselves are scored: brought to four times their size, they are the bicubic results."""
    test_set = TestSet(folder_images(folders / "hr"))
    settings = EvaluationSettings(("psnr_y", "ssim_y"), Protocol(resize="bicubic"))
    resized = evaluate(results(folders / "lr"), test_set, Scorer(settings))
    direct = evaluate(results(folders / "sr"), test_set, Scorer(replace(settings, protocol=PLAIN)))
    assert [row.scores for row in resized.rows] == [row.scores for row in direct.rows]
    with pytest.raises(
        InputError, match=r"3 of 3 images cannot be scored: .*a\.png and .* differ in size \(8x6 and 32x24"
    ):
        check_results(results(folders / "lr"), test_set, replace(settings, protocol=PLAIN))


def test_every_file_that_cannot_be_read_is_counted(folders: Path) -> None:
    (folders / "sr/a.png").write_bytes(b"no image")
    (folders / "hr/c.png").write_bytes((folders / "hr/c.png").read_bytes()[:60])
    pairs = match(folder_images(folders / "sr"), TestSet(folder_images(folders / "hr")))
    with pytest.raises(InputError) as error:
        check_pairs(pairs, EvaluationSettings())
    assert "2 of 3 images cannot be scored: " in str(error.value)
    assert "sr/a.png is not an image" in str(error.value)
    assert "hr/c.png" in str(error.value)
    (folders / "lr/b.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"^2 of 3 images cannot be scored: .*lr/b\.png is empty"):
        check_sources(TestSet(folder_images(folders / "hr"), folder_images(folders / "lr")), EvaluationSettings())


def test_four_times_an_lr_image_must_fit_its_reference(folders: Path, photo: Photo) -> None:
    write_image(folders / "lr/a.png", photo(7, 8))
    with pytest.raises(InputError, match=r"x4 of .*lr/a\.png and .*hr/a\.png differ in size \(32x28 and 32x24\)"):
        check_sources(TestSet(folder_images(folders / "hr"), folder_images(folders / "lr")), EvaluationSettings())
    with pytest.raises(InputError, match="there are no LR images to upscale; give them with --lr"):
        check_sources(TestSet(folder_images(folders / "hr")), EvaluationSettings())


def test_a_subset_takes_what_the_set_names(folders: Path) -> None:
    test_set = TestSet(folder_images(folders / "hr")).first(2)
    found = match(folder_images(folders / "sr"), test_set, subset=True)
    assert [pair.stem for pair in found] == ["a", "b"]
    (folders / "sr/b.png").unlink()
    with pytest.raises(InputError, match=r"1 images of .*hr have no partner in .*sr \(b\)"):
        match(folder_images(folders / "sr"), test_set, subset=True)


def test_endings_are_no_part_of_a_name(folders: Path) -> None:
    (folders / "sr/a.png").rename(folders / "sr/a_LR4.png")
    assert sorted(folder_images(folders / "sr", ("_LR4", "_HR")).paths) == ["a", "b", "c"]


def test_bicubic_results_are_the_base(folders: Path) -> None:
    (folders / "new").mkdir()
    calls: list[tuple[int, int]] = []
    made = upscale_with(
        None,
        folder_images(folders / "lr"),
        folders / "new",
        name="bicubic",
        progress=lambda done, total: calls.append((done, total)),
    )
    for stem, path in made.images.paths.items():
        assert np.array_equal(read_image(path), read_image(folders / "sr" / f"{stem}.png"))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert made.method["model"] == "bicubic"


def test_differences_are_paired() -> None:
    """Images differ by tens and the methods by about one: only pairs can tell."""
    first = {str(i): {"psnr_y": 20.0 + 10 * (i % 3), "niqe": None} for i in range(9)}
    other = {stem: {"psnr_y": (row["psnr_y"] or 0) + 1 + int(stem) / 100, "niqe": None} for stem, row in first.items()}
    found = difference(scored(other), scored(first), "psnr_y")
    assert found is not None
    assert found.mean == pytest.approx(1.04, rel=1e-12)
    assert found.images == 9
    assert found.interval is not None
    assert 1 < found.interval.low < found.mean < found.interval.high < 1.09
    assert difference(scored(other), scored(first), "niqe") is None


def test_differences_are_over_images_that_have_both() -> None:
    first = scored({"a": {"niqe": 1.0}, "b": {"niqe": None}, "c": {"niqe": 3.0}})
    other = scored({"a": {"niqe": 2.0}, "b": {"niqe": 9.0}, "d": {"niqe": 3.0}})
    found = difference(other, first, "niqe")
    assert found is not None
    assert (found.mean, found.images, found.interval) == (1.0, 1, None)


def test_a_comparison_has_the_first_at_the_top() -> None:
    first, other = (
        scored({"a": {"ssim_y": x}, "b": {"ssim_y": x + 0.1}}, name) for x, name in ((0.5, "p"), (0.6, "q"))
    )
    data = json.loads(json.dumps(comparison([first, other]), allow_nan=False))
    assert (data["name"], data["ssim_y"]) == ("p", pytest.approx(0.55))
    assert [item["name"] for item in data["others"]] == ["q"]
    assert data["differences"][0]["minus"] == "p"
    assert data["differences"][0]["ssim_y"]["mean"] == pytest.approx(0.1)
    assert data["intervals"]["ssim_y"] == [0.5, pytest.approx(0.6)]
    assert "others" not in comparison([first])


def test_intervals_over_few_images_come_with_a_warning() -> None:
    """Those of the metric with the fewest images, as NIQE has on small ones, and those of differences."""
    many = {str(i): {"psnr_y": float(i), "niqe": float(i) if i < 4 else None} for i in range(12)}
    few = {stem: row for stem, row in many.items() if int(stem) < 3}
    for rows, images in ((many, 4), (few, 3)):
        text = scored(rows).to_json()["bootstrap"]["warning"]
        assert text is not None
        assert f"over {images} images" in text
    enough = scored(psnr_alone(many))
    assert enough.to_json()["bootstrap"]["warning"] is None
    assert interval_warning([enough, enough]) is None
    shared = scored({stem if int(stem) < 5 else f"other {stem}": row for stem, row in psnr_alone(many).items()})
    assert shared.to_json()["bootstrap"]["warning"] is None
    assert "over 5 images" in (interval_warning([enough, shared]) or "")
    assert "over 5 images" in comparison([enough, shared])["differences"][0]["warning"]
    assert scored({"a": {"psnr_y": 1.0}}).to_json()["bootstrap"]["warning"] is None  # there is no interval


def psnr_alone(rows: dict[str, dict[str, float | None]]) -> dict[str, dict[str, float | None]]:
    return {stem: {"psnr_y": row["psnr_y"]} for stem, row in rows.items()}


def test_csv_has_a_line_for_each_image_of_each_method(tmp_path: Path) -> None:
    first = scored({'a "1", x': {"psnr_y": math.inf, "niqe": None}}, "p")
    other = scored({'a "1", x': {"psnr_y": 1 / 3, "niqe": 2.5}}, "q")
    write_csv(tmp_path / "x.csv", [first, other])
    with (tmp_path / "x.csv").open(newline="") as file:
        lines = list(csv.reader(file))
    assert lines[0] == ["method", "stem", "width", "height", "psnr_y", "niqe"]
    assert lines[1] == ["p", 'a "1", x', "8", "4", "inf", ""]
    assert [float(cell) for cell in lines[2][2:]] == [8, 4, 1 / 3, 2.5]
    with pytest.raises(OutputError):
        write_csv(tmp_path / "x.csv" / "y.csv", [first])


def test_worst_is_what_the_metric_says() -> None:
    values = {"a": 1.0, "b": -3.0, "c": 2.0, "d": None}
    for metric, expected in (("lpips_squeeze", ["b", "c"]), ("spectrum_bias_db", ["b", "c"]), ("psnr_y", ["a", "c"])):
        found = scored({stem: {metric: value} for stem, value in values.items()})
        assert worst_stems(found, metric, 2) == expected


def test_the_paper_has_a_table_for_each_set_that_it_measured() -> None:
    for name, preset in PRESETS.items():
        table = published.table(name)
        assert (table is None) is (not preset.metrics)
        if table is not None:
            assert {published.COLUMNS[column] for column in table.columns[1:]} == set(preset.metrics)
            assert all(len(cells) == len(table.columns) for cells in table.rows.values())
            assert "RSD" in table.rows
    assert len(published.tables()) == 6 + 1 + 2
    assert "2503.13358" in published.source()
    realsr = published.table("realsr")
    assert realsr is not None
    assert realsr.rows["RSD"] == [1, 25.91, 0.754, 0.273, 0.7060, 65.860]


def test_a_measurement_that_agrees_stands_beside_the_paper() -> None:
    paper = published.table("realset65")
    assert paper is not None
    whole = scored({str(i): {"clipiqa": 0.7, "musiq": 69.0} for i in range(65)})
    found = published.beside(replace(whole, protocol=PRESETS["realset65"].protocol), "realset65", paper)
    assert found.cells == pytest.approx((None, 0.7, 69.0))
    assert not any("compare" in text for text in found.differences)
    assert any("512" in text for text in found.differences)


def test_what_differs_is_said_and_leaves_its_cell_empty() -> None:
    paper = published.table("realsr")
    assert paper is not None
    scores = {"psnr_y": 25.0, "ssim_y": 0.7, "lpips_squeeze": 0.3, "musiq": 60.0}
    found = published.beside(scored({str(i): scores for i in range(100)}), "realsr", paper)
    assert found.cells == pytest.approx((None, 25.0, None, None, None, 60.0))
    words = " ".join(found.differences)
    assert "PSNR does not" not in words  # nothing is rounded, there neither
    assert "SSIM does not compare: BT.601 studio-range luma, not rounded, 11x11" in words
    assert "LPIPS does not compare: lpips_squeeze 0.3000 measured on SqueezeNet here, on AlexNet there" in words
    assert "CLIPIQA was not measured; --metrics clipiqa does" in words
    few = published.beside(scored({"a": scores, "b": scores}), "realsr", paper)
    assert set(few.cells) == {None}
    assert "no column compares: 2 images here, 100 there" in few.differences


def test_references_that_are_cut_are_told(tmp_path: Path, photo: Photo) -> None:
    reference = photo(64, 96)
    sets = {"ref": {"a": reference, "b": reference}, "res": {"a": reference[:62, :93], "b": reference}}
    for folder, images in sets.items():
        for stem, image in images.items():
            (tmp_path / folder).mkdir(exist_ok=True)
            write_image(tmp_path / folder / f"{stem}.png", image)
    test_set = TestSet(folder_images(tmp_path / "ref"))
    found = evaluate(results(tmp_path / "res"), test_set, Scorer(EvaluationSettings(("psnr_y",))))
    assert [row.reference_cut for row in found.rows] == [(3, 2), (0, 0)]
    assert found.to_json()["references_cut"] == 1
    told = cut_warning([found])
    assert told is not None
    assert told.startswith("for 1 of 2 results the reference was cut by up to 3 columns at the right and 2 rows below")
    assert cut_warning([scored({"x": {"psnr_y": 30.0}})]) is None


def test_protocols_that_cut_or_resize_do_not_compare() -> None:
    paper = published.table("realset65")
    assert paper is not None
    rows = scored({str(i): {"clipiqa": 0.7, "musiq": 69.0} for i in range(65)})
    for protocol, words in ((Protocol(4, "none", "pyiqa"), "4 pixels cut"), (Protocol(0, "area", "pyiqa"), "resized")):
        found = published.beside(replace(rows, protocol=protocol), "realset65", paper)
        assert set(found.cells) == {None}
        assert any(words in text for text in found.differences)


def sheet_inputs(folder: Path, image: Image, result: Image) -> tuple[Results, TestSet]:
    paths = {name: folder / f"{name}.png" for name in ("hr", "lr", "sr")}
    write_image(paths["hr"], image)
    write_image(paths["lr"], image[::4, ::4])
    write_image(paths["sr"], result)
    one = {name: Images(name, {"x": path}) for name, path in paths.items()}
    return Results("tool/sr", one["sr"], {}), TestSet(one["hr"], one["lr"])


def test_the_sheet_shows_where_a_result_is_wrong(tmp_path: Path) -> None:
    """Gray images of two cells by two, with one wrong square near the lower right."""
    gray = np.full((2 * CELL, 2 * CELL, 3), 90, np.uint8)
    wrong = gray.copy()
    wrong[400:432, 360:392] = (10, 200, 250)
    inputs, test_set = sheet_inputs(tmp_path, gray, wrong)
    page = draw_sheet(["x"], [inputs], [scored({"x": {"psnr_y": 30.0}}, "tool/sr")], test_set, "psnr_y")
    coloured = np.argwhere((page == (10, 200, 250)).all(axis=2))
    assert len(coloured) == 32 * 32  # all of it, and on one picture only
    left = CELL + 8 + CELL + 8  # behind LR and base
    assert left <= coloured[:, 1].min() < coloured[:, 1].max() < left + CELL
    assert page.shape == (18 + 8 + 18 + CELL + 18 + 8, 4 * CELL + 3 * 8, 3)
    assert np.array_equal(page[100, 50], (90, 90, 90))


def test_small_images_and_sheets_without_references(tmp_path: Path, photo: Photo) -> None:
    inputs, _ = sheet_inputs(tmp_path, photo(24, 32), photo(24, 32))
    page = draw_sheet(["x"], [inputs], [scored({"x": {"niqe": 3.0}}, "tool/sr")], TestSet(), "niqe")
    assert page.shape[1] == CELL
    assert np.array_equal(page[44 : 44 + 24, :32], photo(24, 32))
