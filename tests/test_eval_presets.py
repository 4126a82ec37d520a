from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from rsd_edge.errors import InputError
from rsd_edge.evaluate import presets
from rsd_edge.evaluate.catalogue import CATALOGUE
from rsd_edge.evaluate.image_sets import folder_images
from rsd_edge.evaluate.presets import PRESETS, open_preset


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """Makes a preset that wants fewer images."""

    def shrink(name: str, count: int) -> None:
        monkeypatch.setitem(presets.PRESETS, name, replace(PRESETS[name], count=count))

    return shrink


def touch(folder: Path, names: Iterable[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def test_every_preset_measures_what_exists() -> None:
    for preset in PRESETS.values():
        assert set(preset.metrics) <= set(CATALOGUE)
        assert preset.layouts
        assert str(preset.count // 2) in preset.tree() or str(preset.count) in preset.tree()


def test_realsr_as_it_is_published(tmp_path: Path, small: Callable[[str, int], None]) -> None:
    small("realsr", 4)
    for camera in ("Canon", "Nikon"):
        names = [f"{camera}_{index}_{kind}.png" for index in ("001", "002") for kind in ("HR", "LR4", "LR3")]
        touch(tmp_path / camera / "Test" / "4", names)
    found = open_preset("realsr", tmp_path)
    assert found.references is not None
    assert found.sources is not None
    stems = ["Canon_001", "Canon_002", "Nikon_001", "Nikon_002"]
    assert sorted(found.references.paths) == sorted(found.sources.paths) == stems
    assert found.references.paths["Nikon_002"] == tmp_path / "Nikon/Test/4/Nikon_002_HR.png"
    assert found.sources.paths["Nikon_002"] == tmp_path / "Nikon/Test/4/Nikon_002_LR4.png"
    assert set(PRESETS["realsr"].endings()) == {"_HR", "_LR4"}


def test_realsr_as_the_official_script_rearranges_it(tmp_path: Path, small: Callable[[str, int], None]) -> None:
    small("realsr", 2)
    touch(tmp_path / "HR_x4", ["Canon_001.png", "Nikon_001.png"])
    touch(tmp_path / "LR_x4", ["Canon_001.png", "Nikon_001.png", ".hidden.png", "notes.txt"])
    found = open_preset("realsr", tmp_path, limit=1)
    assert found.sources is not None
    assert found.sources.paths == {"Canon_001": tmp_path / "LR_x4/Canon_001.png"}


@pytest.mark.parametrize("ending", ["_HR", "_LR4"])
def test_crops_whose_references_are_named_either_way(
    ending: str, tmp_path: Path, small: Callable[[str, int], None]
) -> None:
    small("realsr-crop", 1)
    touch(tmp_path / "test_LR", ["Canon_001_LR4.png"])
    touch(tmp_path / "test_HR", [f"Canon_001{ending}.png"])
    found = open_preset("realsr-crop", tmp_path)
    assert found.references is not None
    assert list(found.references.paths) == ["Canon_001"]


def test_a_set_without_references(tmp_path: Path, small: Callable[[str, int], None]) -> None:
    small("realset65", 3)
    touch(tmp_path, ["a.png", "b.jpeg", "c.jpg"])
    found = open_preset("realset65", tmp_path)
    assert found.references is None
    assert found.sources is not None
    assert sorted(found.sources.paths) == ["a", "b", "c"]


def test_kodak_takes_lr_images_from_elsewhere(tmp_path: Path, small: Callable[[str, int], None]) -> None:
    small("kodak24", 2)
    touch(tmp_path / "kodak", ["kodim01.png", "kodim02.png", "montage.png"])
    touch(tmp_path / "lr", ["kodim01.png", "kodim02.png"])
    found = open_preset("kodak24", tmp_path / "kodak", sources=folder_images(tmp_path / "lr"))
    assert found.references is not None
    assert found.sources is not None
    assert list(found.references.paths) == list(found.sources.paths) == ["kodim01", "kodim02"]


def test_a_set_of_lr_images_alone_is_not_replaced(tmp_path: Path) -> None:
    touch(tmp_path / "any", ["a.png"])
    with pytest.raises(InputError, match="realset65 is nothing but LR images, and --lr would replace them; leave out"):
        open_preset("realset65", tmp_path, sources=folder_images(tmp_path / "any"))


def test_a_limit_leaves_own_lr_images_known_as_such(tmp_path: Path, small: Callable[[str, int], None]) -> None:
    small("div2k-val", 2)
    for name in ("gt", "lq", "own"):
        touch(tmp_path / name, ["a.png", "b.png"])
    assert open_preset("div2k-val", tmp_path, sources=folder_images(tmp_path / "own"), limit=1).own_sources
    assert not open_preset("div2k-val", tmp_path, limit=1).own_sources


def test_a_wrong_layout_tells_the_right_one_and_what_is_there(tmp_path: Path) -> None:
    touch(tmp_path / "HR_x4", ["Canon_001.png", "Nikon_001.png"])
    with pytest.raises(InputError) as error:
        open_preset("realsr", tmp_path)
    message = str(error.value)
    assert "does not hold realsr: expected HR_x4/* (100 images) and LR_x4/* (100 images), or " in message
    assert "Canon/Test/4/*_HR (50 images) + Nikon/Test/4/*_HR (50 images) and Canon/Test/4/*_LR4 (50 images)" in message
    assert "found 2 in HR_x4/*, 0 in LR_x4/*, 0 in Canon/Test/4/*_HR + Nikon/Test/4/*_HR" in message
    assert "\n" not in message


def test_a_missing_folder_tells_the_layout_too(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none is not a folder; div2k-val is expected there as gt/\* \(3000 images\)"):
        open_preset("div2k-val", tmp_path / "none")
