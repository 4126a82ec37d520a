"""The test sets of the literature: where their files lie, and what the paper measured on them.

Layouts and counts are those of the published archives, and of the scripts in the official repository of RSD (commit
f16058d) that rearrange them. No archive was at hand when this was written but Kodak's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rsd_edge.errors import InputError
from rsd_edge.evaluate.image_sets import Images, TestSet, by_stem
from rsd_edge.evaluate.protocol import PLAIN, Protocol
from rsd_edge.stream.results import IMAGE_SUFFIXES

PAPER_PROTOCOL = Protocol(rounding="pyiqa")
"""What the official script has pyiqa do; nothing is cut or resized."""
_FULL_SIZE = ("psnr_y", "ssim_y", "lpips_alex", "clipiqa", "musiq")
_CROPS = ("psnr_y", "ssim_y", "lpips_alex", "dists", "niqe_pyiqa", "musiq", "maniqa", "clipiqa", "fid")

_CROPS_NOTE = (
    "there, the official scripts do not cover these crops: that luma and borders are as in its other tables is assumed"
)


@dataclass(frozen=True)
class Part:
    """Files that belong to one side: all images in some folders whose stems end alike."""

    folders: tuple[str, ...]
    ending: str = ""
    """Of the stems; it is no part of an image's name."""
    begin: str = ""
    """Of the stems."""

    def files(self, data: Path) -> list[Path]:
        """What is there, sorted."""
        found = [path for folder in self.folders for path in self._folder(data / folder)]
        return sorted(path for path in found if path.stem.endswith(self.ending) and path.stem.startswith(self.begin))

    def words(self, count: int) -> str:
        """The part of a tree."""
        shares = count // len(self.folders)
        names = f"{self.begin}*{self.ending}" if self.begin or self.ending else "*"
        return " + ".join(f"{folder}/{names} ({shares} images)".removeprefix("./") for folder in self.folders)

    def _folder(self, folder: Path) -> list[Path]:
        if not folder.is_dir():
            return []
        files = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
        return [path for path in files if not path.name.startswith(".")]


@dataclass(frozen=True)
class Layout:
    """One way in which a set is found on disks; a part is missing where the set has none, or it is given otherwise."""

    sources: Part | None
    references: Part | None

    def parts(self) -> list[Part]:
        """Those that there are."""
        return [part for part in (self.references, self.sources) if part is not None]


@dataclass(frozen=True)
class Preset:
    """One test set."""

    title: str
    count: int
    layouts: tuple[Layout, ...]
    metrics: tuple[str, ...] = ()
    """What the paper measured; empty if it did not use the set."""
    notes: str = ""
    protocol: Protocol = PAPER_PROTOCOL

    def endings(self) -> tuple[str, ...]:
        """What results may carry on from the names of their inputs."""
        return tuple({part.ending for layout in self.layouts for part in layout.parts() if part.ending})

    def tree(self) -> str:
        """The expected folders, in a line."""
        layouts = (" and ".join(part.words(self.count) for part in layout.parts()) for layout in self.layouts)
        return ", or ".join(layouts)


def _pair(lr: str, hr: str, lr_ending: str = "", hr_ending: str = "") -> Layout:
    return Layout(Part((lr,), lr_ending), Part((hr,), hr_ending))


_REALSR = Layout(Part(("Canon/Test/4", "Nikon/Test/4"), "_LR4"), Part(("Canon/Test/4", "Nikon/Test/4"), "_HR"))
_REALSR_CROPS = (_pair("test_LR", "test_HR", "_LR4", "_HR"), _pair("test_LR", "test_HR", "_LR4", "_LR4"))

PRESETS = {
    "realsr": Preset(
        "RealSR version 3, test images of both cameras at full size",
        100,
        (_pair("LR_x4", "HR_x4"), _REALSR),
        _FULL_SIZE,
        "parts of 512 LR pixels there (--chop_size 512)",
    ),
    "realset65": Preset(
        "RealSet65, as ResShift ships it in testdata/RealSet65; no references",
        65,
        (Layout(Part((".",)), None),),
        ("clipiqa", "musiq"),
        "parts of 512 LR pixels there (--chop_size 512)",
    ),
    "realsr-crop": Preset(
        "RealSR, StableSR's crops (RealSRVal_crop128): 128x128 to 512x512",
        100,
        _REALSR_CROPS,
        _CROPS,
        _CROPS_NOTE,
    ),
    "drealsr": Preset(
        "DRealSR, StableSR's crops (DrealSRVal_crop128): 128x128 to 512x512",
        93,
        (_pair("test_LR", "test_HR"),),
        _CROPS,
        _CROPS_NOTE,
    ),
    "div2k-val": Preset(
        "DIV2K validation, StableSR's degraded crops (DIV2K_V2_val): 128x128 to 512x512",
        3000,
        (_pair("lq", "gt"),),
        _CROPS,
        _CROPS_NOTE,
    ),
    "imagenet-test": Preset(
        "ImageNet-Test of ResShift (imagenet256): 64x64 to 256x256",
        3000,
        (_pair("lq", "gt"),),
        (*_FULL_SIZE, "fid"),
        "whole images there",
    ),
    "kodak24": Preset(
        "the 24 Kodak photographs; the set has no LR images: put some of your own into LR, or give them with --lr",
        24,
        (_pair("LR", "HR"), Layout(None, Part((".",), begin="kodim"))),
        protocol=PLAIN,
    ),
}


def open_preset(name: str, data: Path, *, sources: Images | None = None, limit: int | None = None) -> TestSet:
    """The files of a test set below `data`, all of them or the first `limit` by name.

    sources: LR images to use instead of those of the set. Raises InputError if the folders are not those
    of any layout, or do not hold as many images as the set has; the message has the expected tree and what was found.
    Raises it, too, for sources in the place of a set that has nothing else.
    """
    preset = PRESETS[name]
    if sources is not None and all(layout.references is None for layout in preset.layouts):
        raise InputError(f"{name} is nothing but LR images, and --lr would replace them; leave out --lr or the preset")
    if not data.is_dir():
        raise InputError(f"{data} is not a folder; {name} is expected there as {preset.tree()}")
    layouts = preset.layouts if sources is None else [Layout(None, layout.references) for layout in preset.layouts]
    layout = next((layout for layout in layouts if _complete(layout, data, preset.count)), None)
    if layout is None:
        found = ", ".join(dict.fromkeys(_found(part, data) for layout in layouts for part in layout.parts()))
        raise InputError(f"{data} does not hold {name}: expected {preset.tree()}; found {found}")
    lr = sources or _images(layout.sources, data)
    return TestSet(_images(layout.references, data), lr, own_sources=sources is not None).first(limit)


def _complete(layout: Layout, data: Path, count: int) -> bool:
    return all(len(part.files(data)) == count for part in layout.parts())


def _found(part: Part, data: Path) -> str:
    return f"{len(part.files(data))} in " + part.words(0).replace(" (0 images)", "")


def _images(part: Part | None, data: Path) -> Images | None:
    if part is None:
        return None
    place = data / part.folders[0] if len(part.folders) == 1 else data
    return Images(str(place), by_stem(part.files(data), (part.ending,) if part.ending else ()))
