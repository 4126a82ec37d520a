"""Published checkpoints to one safetensors file that says what it is, whose it is and what it was made from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rsd_edge.bundle import hash_file
from rsd_edge.errors import ModelError
from rsd_edge.licences import licences_of, named
from rsd_edge.models.checkpoint import Checkpoint, save_checkpoint
from rsd_edge.models.official import NAMED, for_family, read_parts
from rsd_edge.models.official_config import read_official_config
from rsd_edge.specs import ModelSpec, PublishedArchitecture, ScheduleSpec
from rsd_edge.stream.atomic import check_writable


@dataclass(frozen=True)
class Request:
    """What to import."""

    files: Sequence[Path]
    family: str
    config: Path | None = None
    """The configuration that came with the files; None for the sizes and the 15 steps of the first release."""
    named: int | None = NAMED
    """How many tensors that do not fit an error names; None for all."""

    @property
    def steps_assumed(self) -> bool:
        """Whether nothing says how many steps a ResShift takes: no configuration, and no name of a file."""
        return self.family == "resshift" and self.config is None and not any(map(_steps_said, self.files))


def import_weights(request: Request, output: Path) -> Checkpoint:
    """Read, check and write. Raises ModelError, with nothing written, for what does not fit; OutputError."""
    if output.suffix != ".safetensors":
        raise ModelError(f"the output is {output}; its name must end in .safetensors")
    check_writable(output.parent)
    arch, schedule = for_family(PublishedArchitecture(), request.family), ScheduleSpec()
    if request.config is not None:
        arch, schedule = read_official_config(request.config)
        _check_noise(request, arch)
    else:
        _check_names(request.files, schedule.steps)
    parts = read_parts(request.files, arch, request.named)
    model = ModelSpec(
        name=output.stem,
        family=request.family,
        steps=schedule.steps if request.family == "resshift" else 1,
        multiple_of=arch.unet.multiple_of,
        schedule=schedule,
        architecture=arch,
    )
    licences = licences_of(request.family)
    record = {
        "licence": named(licences),
        "licences": {part: {"name": licence.name, "url": licence.url} for part, licence in licences.items()},
        "sources": [{"file": path.name, "sha256": hash_file(path)} for path in request.files],
        "config": {"file": request.config.name, "sha256": hash_file(request.config)} if request.config else None,
        "steps_assumed": request.steps_assumed,
    }
    checkpoint = Checkpoint(model, parts, record)
    save_checkpoint(output, checkpoint)
    return checkpoint


def _check_noise(request: Request, arch: PublishedArchitecture) -> None:
    if arch != for_family(arch, request.family):
        raise ModelError(
            f"{request.config} gives the generator {arch.unet.noise_channels} noise channels, which does not suit the "
            f"family {request.family}; students of RSD have one, the others none"
        )


def _check_names(files: Sequence[Path], steps: int) -> None:
    """The schedule is not in a checkpoint, but file names tell its steps."""
    for path in files:
        said = _steps_said(path)
        if said not in (None, steps):
            raise ModelError(
                f"{path.name} says {said} steps, and without a configuration {steps} are assumed; "
                "give the one that came with it with --config"
            )


def _steps_said(path: Path) -> int | None:
    said = re.search(r"_s(\d+)(?=_|\.|$)", path.name)
    return int(said[1]) if said else None
