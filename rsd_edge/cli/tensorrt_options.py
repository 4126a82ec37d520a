"""What `rsd-edge build-engine` offers for TensorRT."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from rsd_edge.cli.paths import GivenPath
from rsd_edge.errors import InputError
from rsd_edge.export.tensorrt_options import COMPILERS, FLAGS, TensorRtOptions

CommandT = TypeVar("CommandT", bound=Callable[..., Any])

_NAMES = (
    "onnx_only",
    "from_plan",
    "rival",
    "batch",
    "workspace",
    "level",
    "timing_cache",
    "engine_flag",
    "kernels",
    "compiler",
)

_OPTIONS = (
    click.option("--onnx-only", is_flag=True, help="TensorRT: write the graphs, and how to compile them elsewhere."),
    click.option(
        "--from-plan",
        metavar="FOLDER",
        type=GivenPath(path_type=Path, exists=True, file_okay=False),
        help="TensorRT: one that --onnx-only wrote, with the plans that trtexec made in it; check and bundle them.",
    ),
    click.option(
        "--rival",
        metavar="FOLDER",
        type=GivenPath(path_type=Path, exists=True, file_okay=False),
        help="TensorRT, with --from-plan in INT8: the same in FP16, which INT8 has to outrun.",
    ),
    click.option("--batch", metavar="MIN,OPT,MAX", help="TensorRT: tiles at once; 1,1,1 if not given."),
    click.option("--workspace", type=int, metavar="MIB", help="TensorRT: scratch memory of a layer at most."),
    click.option("--level", type=int, metavar="0-5", help="TensorRT: how long to search; 3 if not given."),
    click.option(
        "--timing-cache",
        metavar="FILE",
        type=GivenPath(path_type=Path, dir_okay=False),
        help="TensorRT: kept between builds; beside the engines if not given.",
    ),
    click.option("--engine-flag", multiple=True, type=click.Choice(FLAGS), help="TensorRT: may be given repeatedly."),
    click.option("--compiler", type=click.Choice(COMPILERS), help="TensorRT: the way to a plan; onnx if not given."),
    click.option(
        "--kernels",
        metavar="FOLDER",
        type=GivenPath(path_type=Path, exists=True, file_okay=False),
        help="TensorRT: made by build-kernels, to keep whole frames on the device.",
    ),
)


def tensorrt_options(command: CommandT) -> CommandT:
    """Add the options to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True)
class Asked:
    """What a command line says about TensorRT."""

    onnx_only: bool
    from_plan: Path | None
    rival: Path | None
    fields: dict[str, Any]
    """Those of TensorRtOptions that were given."""

    @property
    def names(self) -> list[str]:
        """Of the options that were given, as they are spelled."""
        spelled = {"workspace_mib": "workspace", "flags": "engine-flag"}
        kinds = {"onnx-only": self.onnx_only, "from-plan": self.from_plan, "rival": self.rival}
        fields = (spelled.get(name, name.replace("_", "-")) for name in self.fields)
        return [f"--{name}" for name in (*(name for name, given in kinds.items() if given), *fields)]


def take_tensorrt_options(values: dict[str, Any]) -> Asked:
    """What was given of these options, which are removed from the values of a command. Raises InputError."""
    taken = {name: values.pop(name) for name in _NAMES}
    fields = {name: taken[name] for name in ("level", "timing_cache", "kernels", "compiler") if taken[name] is not None}
    if taken["workspace"] is not None:
        fields["workspace_mib"] = taken["workspace"]
    if taken["engine_flag"]:
        fields["flags"] = tuple(taken["engine_flag"])
    if taken["batch"] is not None:
        fields["batch"] = _batch(taken["batch"])
    TensorRtOptions(**fields)  # bad values are told before a model is loaded
    return Asked(taken["onnx_only"], taken["from_plan"], taken["rival"], fields)


def _batch(text: str) -> tuple[int, int, int]:
    words = text.split(",")
    if len(words) != 3 or not all(word.strip().isdecimal() for word in words):
        raise InputError(f"batch is '{text}'; it must be three growing numbers from 1 on, as in 1,2,4")
    fewest, usual, most = (int(word) for word in words)
    return fewest, usual, most
