from __future__ import annotations

import re
from pathlib import Path

import pytest

from rsd_edge.errors import ImageReadError, InputError, OutputError
from rsd_edge.stream.discovery import plan_jobs


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Planning looks at names only, so empty files will do."""
    for name in ("in/a.png", "in/b.JPG", "in/sub/c.webp", "in/sub/deeper/d.tiff", "other/a.png", "other/e.bmp"):
        touch(tmp_path / name)
    for name in ("in/notes.txt", "in/.hidden.png", "in/.cache/f.png", "empty/readme.md", "nested/sub/g.png"):
        touch(tmp_path / name)
    return tmp_path


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def plan(root: Path, inputs: str, output: str, **options: bool | str) -> dict[str, str]:
    jobs = plan_jobs([root / name for name in inputs.split()], root / output, **options)
    return {relative(job.source, root): relative(job.target, root) for job in jobs}


def relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def test_one_file_to_one_file(root: Path) -> None:
    assert plan(root, "in/a.png", "out/x.jpeg") == {"in/a.png": "out/x.jpeg"}


def test_one_file_to_a_folder(root: Path) -> None:
    assert plan(root, "in/b.JPG", "out") == {"in/b.JPG": "out/b.png"}
    assert plan(root, "in/b.JPG", "out.v2", suffix=".webp") == {"in/b.JPG": "out.v2/b.webp"}


def test_an_existing_folder_is_a_folder_whatever_its_name(root: Path) -> None:
    (root / "album.png").mkdir()
    assert plan(root, "in/a.png", "album.png") == {"in/a.png": "album.png/a.png"}


def test_a_folder_gives_its_images_only(root: Path) -> None:
    assert plan(root, "in", "out") == {"in/a.png": "out/a.png", "in/b.JPG": "out/b.png"}


def test_recursion_mirrors_the_tree(root: Path) -> None:
    assert plan(root, "in", "out", recursive=True) == {
        "in/a.png": "out/a.png",
        "in/b.JPG": "out/b.png",
        "in/sub/c.webp": "out/sub/c.png",
        "in/sub/deeper/d.tiff": "out/sub/deeper/d.png",
    }


def test_links_to_files_count_and_links_to_folders_are_told(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "in" / "sub" / "file.png").symlink_to(root / "other" / "e.bmp")
    (root / "in" / "sub" / "nothing.png").symlink_to("missing.png")
    (root / "in" / "sub" / "circle.png").symlink_to("circle.png")
    (root / "in" / "sub" / "up").symlink_to(root / "in")
    found = plan(root, "in", "out", recursive=True)
    assert {"in/sub/file.png", "in/sub/nothing.png", "in/sub/circle.png"} < found.keys()
    assert len(found) == 7
    assert [record.getMessage() for record in caplog.records] == [
        f"{root / 'in/sub/up'} leads to another folder, which is left out; name it as an input as well"
    ]


def test_several_folders_keep_their_names(root: Path) -> None:
    assert plan(root, "in other", "out") == {
        "in/a.png": "out/in/a.png",
        "in/b.JPG": "out/in/b.png",
        "other/a.png": "out/other/a.png",
        "other/e.bmp": "out/other/e.png",
    }


def test_our_own_results_are_never_read(root: Path) -> None:
    before = plan(root, "in", "in/x4", recursive=True)
    for target in before.values():
        touch(root / target)
    assert plan(root, "in", "in/x4", recursive=True) == before
    assert plan(root, "in", "in/sub/../x4", recursive=True).keys() == before.keys()


def test_our_own_results_are_never_read_through_a_link(root: Path) -> None:
    touch(root / "results" / "old.png")
    (root / "in" / "link").symlink_to(root / "results")
    assert "in/link/old.png" not in plan(root, "in", "results", recursive=True)


def test_output_must_not_be_the_input_folder(root: Path) -> None:
    with pytest.raises(InputError, match="in is both input and output"):
        plan(root, "in", "other/../in")


def test_a_result_never_replaces_an_input(root: Path) -> None:
    with pytest.raises(OutputError, match=r"a\.png is an input and would be replaced"):
        plan(root, "in/a.png", "in/sub/../a.png")
    touch(root / "in" / "a_png.png")
    with pytest.raises(OutputError, match=r"in/a_png\.png is an input and would be replaced"):
        plan(root, "in/a.png in/a_png.png", "in")


def test_a_result_beside_its_input_takes_no_name_that_another_picture_may_have(root: Path) -> None:
    touch(root / "in" / "b.png")
    assert plan(root, "in/b.JPG", "in") == {"in/b.JPG": "in/b_JPG.png"}
    assert plan(root, "in/a.png", "other/../in") == {"in/a.png": "other/../in/a_png.png"}
    [job] = plan_jobs([root / "in" / "b.JPG"], root / "in")
    assert job.note == "named b_JPG.png because its input is in the same folder"


def test_equal_stems_are_told_apart(root: Path) -> None:
    touch(root / "in" / "a.jpg")
    jobs = plan_jobs([root / "in"], root / "out")
    assert {job.source.name: job.target.name for job in jobs} == {
        "a.jpg": "a_jpg.png",
        "a.png": "a_png.png",
        "b.JPG": "b.png",
    }
    assert [bool(job.note) for job in jobs] == [True, True, False]
    assert "a_jpg.png because another input is named a too" in jobs[0].note


def test_what_still_collides_is_refused(root: Path) -> None:
    with pytest.raises(InputError, match=r"in/a\.png and .*other/a\.png would both become .*out/a_png\.png"):
        plan(root, "in/a.png other/a.png", "out")
    touch(root / "in" / "a.jpg")
    touch(root / "in" / "a_png.bmp")
    with pytest.raises(InputError, match=r"would both become .*out/a_png\.png; run them into two folders"):
        plan(root, "in", "out")


def test_a_file_named_twice_is_done_once(root: Path) -> None:
    assert plan(root, "in/a.png in in/sub/../a.png", "out").keys() == {"in/a.png", "in/b.JPG"}


def test_one_output_file_for_many_inputs(root: Path) -> None:
    with pytest.raises(InputError, match=r"x\.png is one file but the input is 2 inputs; give a folder"):
        plan(root, "in/a.png in/b.JPG", "x.png")
    with pytest.raises(InputError, match=r"x\.png is one file but the input is the folder"):
        plan(root, "in", "x.png")


def test_missing_input(root: Path) -> None:
    with pytest.raises(ImageReadError, match=r"gone\.png does not exist"):
        plan_jobs([root / "gone.png"], root / "out")


def test_one_missing_input_of_several_is_left_to_its_own_job(root: Path) -> None:
    (root / "here.png").touch()
    jobs = plan_jobs([root / "gone.png", root / "here.png"], root / "out")
    assert [job.source.name for job in jobs] == ["gone.png", "here.png"]


def test_one_folder_of_several_without_images_is_left_to_its_own_job(root: Path) -> None:
    touch(root / "empty.jpg")
    jobs = plan_jobs([root / "empty", root / "empty.jpg", root / "in"], root / "out")
    assert [job.target.name for job in jobs] == ["*.png", "empty.png", "a.png", "b.png"]
    problem, *others = [job.problem for job in jobs]
    assert problem.startswith(f"{root / 'empty'} contains no images")
    assert not any(others)


def test_no_format_that_is_not_read_is_offered(root: Path) -> None:
    with pytest.raises(InputError, match=r" or videos \(\.mp4 [^)]*\.mxf\); name a folder"):
        plan(root, "empty", "out")


@pytest.mark.parametrize("name", ["c.jfif", "c.jpe"])
def test_rarer_names_of_jpeg_count_in_folders(root: Path, name: str) -> None:
    touch(root / "in" / name)
    assert plan(root, "in", "out")[f"in/{name}"] == "out/c.png"


@pytest.mark.parametrize(("folder", "recursive", "cure"), [("nested", False, "--recursive"), ("empty", True, "name a")])
def test_folder_without_images(root: Path, folder: str, recursive: bool, cure: str) -> None:
    with pytest.raises(InputError, match=rf"{folder} contains no images \(\.png .*{re.escape(cure)}"):
        plan(root, folder, "out", recursive=recursive)


def test_output_format_that_does_not_exist(root: Path) -> None:
    with pytest.raises(OutputError, match=r"'\.gif' is not an output format"):
        plan(root, "in/a.png", "x.gif")


def test_formats_that_are_not_read_count_in_folders(root: Path) -> None:
    for name in ("c.gif", "c.ppm", "c.tga", "c.txt"):
        touch(root / "in" / name)
    assert plan(root, "in", "out").keys() == {"in/a.png", "in/b.JPG", "in/c.gif", "in/c.ppm", "in/c.tga"}
