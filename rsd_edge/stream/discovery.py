"""Which files a command reads, and where the result of each goes. Decided before any work is done."""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rsd_edge.errors import ImageReadError, InputError, OutputError
from rsd_edge.stream.missing import missing
from rsd_edge.stream.passwords import without_password
from rsd_edge.stream.results import IMAGE_SUFFIXES, check_suffix
from rsd_edge.video.formats import CONTAINERS, VIDEO_SUFFIXES, is_video, result_suffix

log = logging.getLogger(__name__)

_OTHER_IMAGE_SUFFIXES = (
    *(".gif", ".avif", ".heic", ".heif", ".jp2", ".jxl", ".exr", ".hdr", ".psd", ".svg", ".pdf"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".pam", ".tga"),
)

_FILE_SUFFIX = re.compile(r"\.[a-z]{2,5}")
"""Of what is meant as a file and not as a folder such as v1.2."""
_DOCUMENTS = (".svg", ".pdf")
_MEDIA = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
PICTURES_AND_FILMS = (*_MEDIA, *(suffix for suffix in _OTHER_IMAGE_SUFFIXES if suffix not in _DOCUMENTS))
"""What counts in a folder: pictures of other formats fail by name instead of being passed over."""


@dataclass(frozen=True)
class Job:
    """One image or video to read and the file to write."""

    source: Path
    target: Path
    note: str = ""
    """Why the target's name is not simply the source's."""
    address: str = ""
    """Of a camera or a stream, as it was given, instead of the source."""
    problem: str = ""
    """Why nothing can come of it, where that is known before the work."""

    @property
    def name(self) -> str:
        """What to call the source; no password is in it."""
        return without_password(self.address) if self.address else str(self.source)


def plan_jobs(inputs: Sequence[Path], output: Path, *, recursive: bool = False, suffix: str = ".png") -> list[Job]:
    """Pair every input image or video with its output file, in a stable order.

    A folder stands for the images and videos in it, known by their suffix, and with `recursive` for those in all its
    sub-folders; images of formats that are not read and links to nothing count too, so that each is refused by name;
    hidden files, and the output folder where it lies inside, are left out, and links to folders with a warning.
    `output` is a file if it ends in an image or video suffix, and then there must be one input, a file. Otherwise it is
    a folder: results take the name of their source with the new suffix (videos keep theirs where it can be written, and
    get .mkv where not) and keep its place in the tree, below the name of its folder if several folders were given.
    Sources that would share a result get their old suffix into the name (a_jpg.png, a_png.png), and so do those whose
    result goes into their own folder, where an a.png would be another picture.

    A folder without images is a job with a problem, like each of several inputs that is missing.

    Raises ImageReadError if the only input is missing, InputError if it is a folder without images, for a single output
    file for several inputs, and results that still collide, OutputError for a format that cannot be written and for a
    result that would replace an input.
    """
    if len(inputs) == 1 and not inputs[0].exists():
        # One of several is left to its own job, which fails without stopping the others.
        raise ImageReadError(missing(inputs[0]))
    target = output.suffix.lower()
    if target in _OTHER_IMAGE_SUFFIXES:
        check_suffix(output)
    if target in _MEDIA and not output.is_dir():
        jobs = [Job(_only_file(inputs, output), output)]
        _check_kind(jobs[0])
    elif _FILE_SUFFIX.fullmatch(target) and len(inputs) == 1 and inputs[0].is_file() and not output.is_dir():
        known = ", ".join(CONTAINERS if is_video(inputs[0]) else IMAGE_SUFFIXES)
        raise OutputError(
            f"cannot write {output}: '{output.suffix}' is not an output format; use one of {known}, or make that "
            "folder first if it is to be one"
        )
    else:
        jobs = _apart(list(_jobs(inputs, output, recursive, suffix)))
    _protect_inputs(jobs)
    return jobs


def images_in(
    folder: Path,
    *,
    recursive: bool = False,
    leave_out: Path | None = None,
    cure: str = "",
    suffixes: Sequence[str] = IMAGE_SUFFIXES,
) -> list[Path]:
    """The image files of a folder, known by their suffix, sorted; `suffixes` tells what else counts.

    Raises InputError if there are none; `cure` is what the caller has to offer beside another folder.
    """
    found = sorted(_walk(folder, recursive, leave_out, suffixes))
    if not found:
        others = [suffix for suffix in suffixes if suffix in VIDEO_SUFFIXES]
        more = f" or videos ({' '.join(others)})" if others else ""
        raise InputError(
            f"{folder} contains no images ({' '.join(IMAGE_SUFFIXES)}){more}; name a folder that does{cure}"
        )
    return found


def _walk(folder: Path, recursive: bool, leave_out: Path | None, suffixes: Sequence[str]) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename} cannot be listed ({error.strerror}); allow this user to read it")

    for parent, folders, names in os.walk(folder, onerror=refuse):
        for name in names:
            path = Path(parent, name)
            # A link to nothing is refused by name.
            if not name.startswith(".") and path.suffix.lower() in suffixes and (path.is_file() or path.is_symlink()):
                yield path
        kept = [name for name in folders if recursive and not name.startswith(".")]
        folders[:] = [name for name in kept if leave_out is None or Path(parent, name).resolve() != leave_out]
        for path in (Path(parent, name) for name in folders):
            if path.is_symlink():
                log.warning("%s leads to another folder, which is left out; name it as an input as well", path)


def _only_file(inputs: Sequence[Path], output: Path) -> Path:
    if len(inputs) > 1 or inputs[0].is_dir():
        given = f"{len(inputs)} inputs" if len(inputs) > 1 else f"the folder {inputs[0]}"
        raise InputError(f"{output} is one file but the input is {given}; give a folder with -o")
    return inputs[0]


def _jobs(inputs: Sequence[Path], output: Path, recursive: bool, suffix: str) -> Iterator[Job]:
    """One for every image and its place below the output folder."""
    folders = {path.resolve() for path in inputs if path.is_dir()}
    into = output.resolve()
    seen = set()
    for path in inputs:
        if not path.is_dir():
            pairs = [(path, Path(_result_name(path, suffix).name))]
        elif path.resolve() == into:
            raise InputError(f"{path} is both input and output: results would be inputs next time; choose another -o")
        else:
            below = Path(path.resolve().name) if len(folders) > 1 else Path()
            deeper = "" if recursive else ", or add --recursive for its sub-folders"
            try:
                images = images_in(path, recursive=recursive, leave_out=into, cure=deeper, suffixes=PICTURES_AND_FILMS)
            except InputError as error:
                if len(inputs) == 1:
                    raise
                yield Job(path, output / path.resolve().name / f"*{suffix}", problem=str(error))
                continue
            pairs = [(image, below / _result_name(image.relative_to(path), suffix)) for image in images]
        for source, name in pairs:
            if (_real(source), name) not in seen:
                seen.add((_real(source), name))
                yield Job(source, output / name)


def _result_name(source: Path, suffix: str) -> Path:
    return source.with_suffix(result_suffix(source) if is_video(source) else suffix)


def _check_kind(job: Job) -> None:
    """A video does not become an image, and an image no video."""
    if is_video(job.source) and not is_video(job.target):
        raise OutputError(f"{job.source} is a video and {job.target} an image; end -o in {', '.join(CONTAINERS)}")
    if is_video(job.target) and not is_video(job.source):
        raise OutputError(f"{job.source} is no video by its name and {job.target} is one; end both alike")


def _apart(jobs: list[Job]) -> list[Job]:
    """Give jobs that share a target names of their own."""
    by_target = defaultdict(list)
    for job in jobs:
        by_target[_key(job.target)].append(job)
    named = [_beside_others(job, shared=len(by_target[_key(job.target)]) > 1) for job in jobs]
    owners: dict[str, Job] = {}
    for job in named:
        other = owners.setdefault(_key(job.target), job)
        if other is not job:
            both = f"{other.source} and {job.source}"
            raise InputError(f"{both} would both become {job.target}; run them into two folders")
    return named


def _beside_others(job: Job, *, shared: bool) -> Job:
    """With the source's suffix in the target's name, where another picture has that name or may have it."""
    if shared:
        why = f"another input is named {job.source.stem} too"
    elif _real(job.target.parent) == _real(job.source.parent):
        why = "its input is in the same folder"
    else:
        return job
    target = job.target.with_name(f"{job.target.stem}_{job.source.suffix.lstrip('.')}{job.target.suffix}")
    return replace(job, target=target, note=f"named {target.name} because {why}")


def _protect_inputs(jobs: list[Job]) -> None:
    sources = {_real(job.source) for job in jobs}
    for job in jobs:
        if _real(job.target) in sources:
            raise OutputError(f"{job.target} is an input and would be replaced by a result; choose another -o")


def _real(path: Path) -> str:
    """Equal for two ways to one file; also of links that lead in a circle."""
    return os.path.normcase(os.path.realpath(path))


def _key(path: Path) -> str:
    """Equal for two spellings of one file on systems that ignore case."""
    return os.path.normcase(path)
