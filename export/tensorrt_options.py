"""How a TensorRT engine is built; apart, so that reading the command line needs nothing else."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rsd_edge.errors import InputError
from rsd_edge.specs import EDGE_FAMILY, ModelSpec, TileSpec

FLAGS = ("version-compatible", "hardware-compatible", "refit", "strip-plan")
COMPILERS = ("onnx", "torch-tensorrt")
LEVELS = range(6)

_PUBLISHED_TILE = 64
USUAL_WORKSPACE_MIB = {True: 1024, False: 4096}
"""By whether CPU and GPU share memory."""
TIMINGS = "timing.cache"
"""Beside the engines, where no other file is named."""
REPORT = "typed.json"
"""In a bundle, what typing found out."""
SAME_CAPABILITY_SINCE = (10, 16)
"""TensorRT that builds for all GPUs of one compute capability; older ones only for desktop GPUs from Ampere on."""
_TRTEXEC_WORDS = {
    "version-compatible": ("--versionCompatible", "--excludeLeanRuntime"),
    "refit": ("--refit",),
    "strip-plan": ("--stripWeights",),  # of plans that are stripped, refitting with the same weights is the default
}


@dataclass(frozen=True)
class TensorRtOptions:
    """What the command line says about an engine; the defaults suit building on the device that runs it."""

    tile: int | None = None
    """LR pixels on a side, halo included; None for 208, or 64 for a published model."""
    batch: tuple[int, int, int] = (1, 1, 1)
    """Tiles at once: the fewest, those that the engine is tuned for, the most."""
    workspace_mib: int | None = None
    """Scratch memory of a layer at most; None for 1 GiB where CPU and GPU share memory, 4 GiB elsewhere. Never more
    than half of what is free."""
    level: int = 3
    """0 builds fast, 5 searches longest."""
    timing_cache: Path | None = None
    """Kept between builds; None for a file beside the engines."""
    flags: tuple[str, ...] = field(default=())
    """Of FLAGS."""
    compiler: str = "onnx"
    kernels: Path | None = None
    """A folder of `rsd-edge build-kernels`, for whole frames on the device."""
    threads: int | None = None

    def __post_init__(self) -> None:
        fewest, usual, most = self.batch
        if not 1 <= fewest <= usual <= most:
            raise InputError(f"batch is {self.batch}; it must be three growing numbers from 1 on, as in 1,2,4")
        if self.level not in LEVELS:
            raise InputError(f"level is {self.level}; it must be from 0 to {LEVELS.stop - 1}")
        if self.compiler not in COMPILERS:
            raise InputError(f"compiler is '{self.compiler}'; it must be one of {', '.join(COMPILERS)}")
        unknown = [flag for flag in self.flags if flag not in FLAGS]
        if unknown:
            raise InputError(f"engine flag '{unknown[0]}' is unknown; it must be one of {', '.join(FLAGS)}")
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise InputError(f"workspace is {self.workspace_mib} MiB; it must be at least 1")

    def tile_of(self, model: ModelSpec) -> int:
        """The side of a tile. Raises InputError for one that the model cannot take."""
        side = self.tile or (TileSpec.size if model.family == EDGE_FAMILY else _PUBLISHED_TILE)
        return TileSpec.of(model, side, self.batch[1]).size

    @property
    def words(self) -> list[str]:
        """Those that are not the usual ones, as the command line takes them; of paths, from where it was given."""
        usual = TensorRtOptions()
        single = {"tile": "tile", "workspace_mib": "workspace", "level": "level", "timing_cache": "timing-cache"}
        single |= {"compiler": "compiler", "kernels": "kernels", "threads": "threads"}
        words = [] if self.batch == usual.batch else ["--batch", ",".join(map(str, self.batch))]
        for name, option in single.items():
            if getattr(self, name) != getattr(usual, name):
                words += [f"--{option}", str(getattr(self, name))]
        return [*words, *(word for flag in self.flags for word in ("--engine-flag", flag))]

    def identity(self) -> dict[str, Any]:
        """What distinguishes engines; where the cache is and how many threads judge it do not."""
        kept = asdict(self)
        for name in ("timing_cache", "threads"):
            del kept[name]
        return {**kept, "batch": list(self.batch), "flags": sorted(self.flags), "kernels": self.kernels is not None}


def trtexec_line(
    graph: Path,
    shapes: Mapping[str, tuple[int, ...]],
    options: TensorRtOptions,
    *,
    tensorrt: str = "10.3",
    integrated: bool = False,
) -> str:
    """The command of NVIDIA's own tool that builds the same engine, for TensorRT of that version.

    shapes: of one tile, by the name of the input; those with a batch begin with 1. integrated: for a GPU that shares
    the memory of the CPU. Version 11 has no flag for strong types, since there is nothing else. What trtexec cannot be
    told: to stay within half of the free memory, and, if integrated, to search within 60 % of it (TACTIC_DRAM).
    """
    version = tuple(int(part) for part in tensorrt.split(".")[:2])
    words = ["trtexec", f"--onnx={graph}", f"--saveEngine={graph.with_suffix('.plan')}", "--skipInference"]
    if version[0] < 11:
        words.append("--stronglyTyped")
    for name, count in zip(("minShapes", "optShapes", "maxShapes"), options.batch, strict=True):
        limits = (f"{key}:{'x'.join(map(str, _with_batch(shape, count)))}" for key, shape in shapes.items())
        if shapes:  # those of a graph without open sizes are refused
            words.append(f"--{name}={','.join(limits)}")
    words += [
        "--noTF32",
        f"--builderOptimizationLevel={options.level}",
        f"--memPoolSize=workspace:{options.workspace_mib or USUAL_WORKSPACE_MIB[integrated]}",
        "--profilingVerbosity=detailed",
        f"--timingCacheFile={options.timing_cache or TIMINGS}",
    ]
    words += [word for flag in options.flags for word in _TRTEXEC_WORDS.get(flag, ())]
    if "hardware-compatible" in options.flags:
        if version >= SAME_CAPABILITY_SINCE:
            words.append("--hardwareCompatibilityLevel=sameComputeCapability")
        elif not integrated:
            words.append("--hardwareCompatibilityLevel=ampere+")
    return shlex.join(words)


def _with_batch(shape: tuple[int, ...], count: int) -> tuple[int, ...]:
    return (count, *shape[1:]) if len(shape) > 1 else shape
