from __future__ import annotations

import io
import logging
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from rsd_edge.distill.sources import Entry, list_images, pair, read_entry
from rsd_edge.errors import ImageReadError, InputError
from rsd_edge.stream.images import read_image

Photo = Callable[[int, int], NDArray[np.uint8]]


def write_shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as shard:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            shard.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def pngs(hr_photos: Path) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in sorted(hr_photos.rglob("*.png"))}


def test_a_folder_is_searched_with_its_folders(hr_photos: Path) -> None:
    entries = list_images(str(hr_photos))
    assert [entry.key for entry in entries] == ["a", "b", "c", "more/d"]
    assert np.array_equal(read_entry(entries[3]), read_image(hr_photos / "more" / "d.png"))


def test_a_list_names_files_relative_to_itself(hr_photos: Path, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes((hr_photos / "a.png").read_bytes())
    listed = tmp_path / "list.txt"
    listed.write_text(f"x.png\n\n  {hr_photos / 'more' / 'd.png'}  \nabsent.png\n")
    entries = list_images(str(listed))
    assert [entry.key for entry in entries] == ["x", "d", "absent"]
    assert np.array_equal(read_entry(entries[0]), read_image(hr_photos / "a.png"))
    with pytest.raises(ImageReadError, match=r"absent\.png does not exist"):  # met when it is read, like a damaged one
        read_entry(entries[2])


def test_a_line_that_begins_with_a_hash_is_a_comment(hr_photos: Path, tmp_path: Path) -> None:
    (tmp_path / "#1.png").write_bytes((hr_photos / "a.png").read_bytes())
    listed = tmp_path / "list.txt"
    listed.write_text("# photographs of 2026\n  # more\n./#1.png\n#1.png\n")
    (entry,) = list_images(str(listed))
    assert np.array_equal(read_entry(entry), read_image(hr_photos / "a.png"))


def test_a_link_to_nothing_is_met_like_a_missing_file(hr_photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "links"
    (folder / "more").mkdir(parents=True)
    for name in ("more/gone.png", ".hidden.png", "notes.txt"):
        (folder / name).symlink_to(tmp_path / "nowhere.png")
    (gone,) = list_images(str(folder))
    with pytest.raises(ImageReadError, match=r"gone\.png is a link to .*nowhere\.png, which leads nowhere"):
        read_entry(gone)
    (folder / "a.png").symlink_to(hr_photos / "a.png")
    assert [entry.key for entry in list_images(str(folder))] == ["a", "more/gone"]


def test_a_list_may_come_from_windows_and_name_any_bytes(hr_photos: Path, tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9.png")
    (tmp_path / odd).write_bytes((hr_photos / "b.png").read_bytes())
    (tmp_path / "a.png").write_bytes((hr_photos / "a.png").read_bytes())
    (tmp_path / "L.TXT").write_bytes(b"\xef\xbb\xbfa.png\r\ncaf\xe9.png\r\n")
    entries = list_images(str(tmp_path / "L.TXT"))
    assert [Path(entry.path).name for entry in entries] == ["a.png", odd]
    assert np.array_equal(read_entry(entries[1]), read_image(hr_photos / "b.png"))


def test_links_to_folders_are_followed_and_each_folder_is_searched_once(hr_photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "train"
    folder.mkdir()
    (folder / "photos").symlink_to(hr_photos)
    (folder / "up").symlink_to(folder)
    assert [entry.key for entry in list_images(str(folder))] == [f"photos/{key}" for key in ("a", "b", "c", "more/d")]


def test_a_shard_is_read_in_any_order(pngs: dict[str, bytes], hr_photos: Path, tmp_path: Path) -> None:
    members = {f"000/{name}.png": data for name, data in pngs.items()} | {"000/a.json": b"{}", "notes.txt": b"x"}
    entries = list_images(str(write_shard(tmp_path / "s.tar", members)))
    assert [entry.key for entry in entries] == ["000/a", "000/b", "000/c", "000/d"]
    for index in (2, 0, 3):
        path = next(hr_photos.rglob(f"{'abcd'[index]}.png"))
        assert np.array_equal(read_entry(entries[index]), read_image(path))


def test_shards_are_numbered_listed_or_in_a_folder(pngs: dict[str, bytes], tmp_path: Path) -> None:
    for number, name in ((7, "a"), (8, "b"), (9, "c"), (10, "d")):
        write_shard(tmp_path / f"s-{number:03}.tar", {f"{name}.png": pngs[name]})
    assert [entry.key for entry in list_images(str(tmp_path / "s-{008..010}.tar"))] == ["b", "c", "d"]
    assert [entry.key for entry in list_images(str(tmp_path))] == ["a", "b", "c", "d"]
    (tmp_path / "list.txt").write_text("s-009.tar\ns-007.tar\n")
    assert [entry.key for entry in list_images(str(tmp_path / "list.txt"))] == ["c", "a"]
    with pytest.raises(InputError, match=r"data source '.*s-011\.tar' does not exist"):
        list_images(str(tmp_path / "s-{010..011}.tar"))


def test_a_shard_of_pairs_is_read_by_role(pngs: dict[str, bytes], tmp_path: Path) -> None:
    members = {"1.hr.png": pngs["a"], "1.lr.png": pngs["b"], "2.lr.png": pngs["c"], "2.hr.png": pngs["d"]}
    shard = str(write_shard(tmp_path / "pairs.tar", members))
    pairs = pair(list_images(shard), list_images(shard, "lr"))
    assert [(hr.member, lr.member) for hr, lr in pairs] == [("1.hr.png", "1.lr.png"), ("2.hr.png", "2.lr.png")]


def test_members_of_neither_role_are_left_out_and_counted(
    pngs: dict[str, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    members = {"1.hr.png": pngs["a"], "2.png": pngs["b"], "3.png": pngs["c"]}
    entries = list_images(str(write_shard(tmp_path / "MIXED.TAR", members)))
    assert [entry.member for entry in entries] == ["1.hr.png"]
    assert "MIXED.TAR: 2 images that are neither .hr nor .lr are left out" in caplog.text


def test_damaged_members_are_named_when_they_are_read(pngs: dict[str, bytes], tmp_path: Path) -> None:
    members = {"good.png": pngs["a"], "half.png": pngs["b"][:500], "empty.png": b"", "text.jpg": b"hello there"}
    entries = list_images(str(write_shard(tmp_path / "s.tar", members)))
    assert read_entry(entries[0]).shape == (80, 96, 3)
    for entry, reason in zip(entries[1:], ("is truncated", "is not an image", "is not an image"), strict=True):
        with pytest.raises(ImageReadError, match=rf"s\.tar:{entry.member} {reason}"):
            read_entry(entry)


def test_a_cut_shard_gives_what_it_holds(
    pngs: dict[str, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shard = write_shard(tmp_path / "s.tar", {f"{name}.png": data for name, data in pngs.items()})
    entries = list_images(str(shard))
    shard.write_bytes(shard.read_bytes()[: entries[2].offset + 100])
    with caplog.at_level(logging.WARNING):
        found = list_images(str(shard))
    assert [entry.key for entry in found] == ["a", "b", "c"]
    assert "s.tar is damaged" in caplog.text
    assert read_entry(found[1]).shape == (72, 72, 3)
    with pytest.raises(ImageReadError, match=r"s\.tar:c\.png is truncated"):
        read_entry(found[2])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", r"data source '' does not exist; set data\.train and data\.val"),
        ("absent", "data source '.*absent' does not exist"),
        ("absent.txt", "does not exist"),
        ("notes.md", "is no folder, list"),
        ("blank.txt", "names no images"),
        ("odd.txt", r"list .*odd.txt is no text in UTF-8; save it as such"),
        ("no.tar", "shard .* cannot be read .* uncompressed tar"),
        ("texts.tar", "names no images"),
        ("void", r"contains no images \(.*\) or shards \(\.tar\); name another"),
        ("gone.txt", "shard .*gone.tar does not exist"),
    ],
)
def test_what_is_no_source_is_named(tmp_path: Path, source: str, message: str) -> None:
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "blank.txt").write_text("\n\n")
    (tmp_path / "odd.txt").write_bytes("a.png\n".encode("utf-16"))
    (tmp_path / "no.tar").write_bytes(b"x" * 2000)
    (tmp_path / "gone.txt").write_text("gone.tar\n")
    write_shard(tmp_path / "texts.tar", {"a.json": b"{}"})
    (tmp_path / "void").mkdir()
    with pytest.raises(InputError, match=message) as caught:
        list_images(source and str(tmp_path / source))
    assert "\n" not in str(caught.value)


def test_pairs_share_a_name_whatever_their_suffix(hr_photos: Path, tmp_path: Path) -> None:
    for name in ("c", "more/d", "a", "b", "spare"):
        (tmp_path / f"{name}.jpg").parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.jpg").write_bytes(b"")
    pairs = pair(list_images(str(hr_photos)), list_images(str(tmp_path)))
    assert [(hr.key, lr.key) for hr, lr in pairs] == [(key, key) for key in ("a", "b", "c", "more/d")]
    assert all(lr.path.endswith(".jpg") for _, lr in pairs)
    (tmp_path / "more" / "d.jpg").unlink()
    with pytest.raises(InputError, match=r"1 of 4 HR images have no LR image of the same name, the first is .*d\.png"):
        pair(list_images(str(hr_photos)), list_images(str(tmp_path)))
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"a\.jpg and .*a\.png are both 'a' of a pair"):
        pair(list_images(str(hr_photos)), list_images(str(tmp_path)))


def test_two_hr_images_of_one_name_are_refused() -> None:
    hr = [Entry("a", "hr/a.jpg"), Entry("a", "hr/a.png")]
    with pytest.raises(InputError, match=r"hr/a\.jpg and hr/a\.png are both 'a' of a pair; rename one"):
        pair(hr, [Entry("a", "lr/a.png")])
