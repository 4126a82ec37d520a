"""Folders of typed graphs that travel: written anywhere, compiled by trtexec on the device, made bundles there.

Beside the graphs lie `graphs.json`, which says what a plan of theirs must look like, and `reference.npz`: held-out
crops, and what fp32 makes of them.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsd_edge.bundle import BuildRecord, hash_file, plan_name, replace_folder
from rsd_edge.errors import InputError, ModelError
from rsd_edge.export.tensorrt_options import TensorRtOptions, trtexec_line
from rsd_edge.plain import from_dict, to_dict
from rsd_edge.specs import EngineSpec
from rsd_edge.stream.atomic import make_folder, output_error

log = logging.getLogger(__name__)

MANIFEST = "graphs.json"
REFERENCE = "reference.npz"
LACKS = (
    "trtexec takes the workspace as it is told, while build-engine stays within half of the free memory and, where CPU "
    "and GPU share it, searches within 60 % of it (TACTIC_DRAM)"
)

_FORMAT = 2
_DIGEST_LENGTH = 12
_TRTEXEC = {"10.3 to 10.15": "10.3", "10.16": "10.16", "11.x": "11.4"}
"""Families of versions whose tool takes the same words."""
_DEVICES = {"Jetson": True, "other GPUs": False}

Array = NDArray[np.float32]
Io = dict[str, dict[str, dict[str, Any]]]
"""By `inputs` and `outputs`, by name: `dtype` as NumPy calls it, and `shape`, -1 where it depends on the batch."""


Exchange = tuple[dict[str, NDArray[Any]], Array]
"""What one part is given, by the names of its inputs, and what it gives."""


@dataclass(frozen=True)
class Reference:
    """Held-out tiles lq (n, 3, s, s), noise (n, c, s, s), and the detail (n, 4s, 4s, 3) that fp32 makes of them."""

    lq: Array
    noise: Array
    detail: Array
    parts: Mapping[str, Exchange] = field(default_factory=dict)
    """Of a published model, what its graphs exchanged on the way, for the first step."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """By names that `of` reads."""
        named = {"lq": self.lq, "noise": self.noise, "detail": self.detail}
        for part, (inputs, output) in self.parts.items():
            named |= {f"{part}:{name}": value for name, value in inputs.items()} | {f"{part}:": output}
        return named

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]]) -> Reference:
        """What was saved. Raises KeyError."""
        parts: dict[str, Exchange] = {}
        for part in dict.fromkeys(name.partition(":")[0] for name in arrays if ":" in name):
            inputs = {name.partition(":")[2]: value for name, value in arrays.items() if name.startswith(f"{part}:")}
            output = inputs.pop("")
            parts[part] = inputs, output
        return cls(arrays["lq"], arrays["noise"], arrays["detail"], parts)


@dataclass(frozen=True)
class GraphsOnly:
    """A folder of typed graphs, to be taken to the device."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def spec(self) -> EngineSpec:
        """The engine that they are for."""
        return from_dict(EngineSpec, self.manifest["engine"])

    @property
    def graphs(self) -> dict[str, Path]:
        """Their files, by name."""
        return {name: self.path / name for name in self.manifest["files"]}

    @property
    def options(self) -> TensorRtOptions:
        """Those that the commands for trtexec were written for."""
        known = self.manifest["options"]
        fields = {**known, "batch": tuple(known["batch"]), "flags": tuple(known["flags"]), "kernels": None}
        return TensorRtOptions(**{**fields, "tile": self.manifest["tile"]})

    @property
    def record(self) -> BuildRecord:
        """Where the weights come from, and how close the graphs are to them."""
        names = ("versions", "parity", "licence", "training", "source")
        return BuildRecord(**{name: self.manifest[name] for name in names if name in self.manifest})

    def reference(self) -> Reference:
        """Raises ModelError for a file that is not what was written."""
        path = self.path / REFERENCE
        _check(path, self.manifest["reference"]["sha256"])
        try:
            with np.load(path) as arrays:
                return Reference.of(dict(arrays))
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise _damaged(path, "cannot be read") from error


def write_graphs(
    output: Path,
    spec: EngineSpec,
    graphs: Mapping[str, Path],
    io: Mapping[str, Io],
    record: BuildRecord,
    options: TensorRtOptions,
    reference: Reference,
    reports: Mapping[str, Any],
) -> GraphsOnly:
    """A folder within `output`, named by a digest of spec, graphs and options, and of the commands that obey these.

    One of that name is returned as it is, with the plans that trtexec left in it, unless it is damaged. Raises
    OutputError; nothing is written then.
    """
    identity = {
        "engine": to_dict(spec),
        "tile": options.tile_of(spec.model),
        "batch": list(options.batch),
        "options": json.loads(json.dumps(options.identity())),
        "files": {name: {"sha256": hash_file(path), "bytes": path.stat().st_size} for name, path in graphs.items()},
        "trtexec": _lines(io, options),
    }
    digest = sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    target = output / f"{spec.model.name}-tensorrt-{spec.precision.value}-onnx-{digest[:_DIGEST_LENGTH]}"
    known = _intact(target)
    if known is not None:
        return known
    manifest = {
        "format": _FORMAT,
        "digest": digest,
        **identity,
        "io": dict(io),
        "trtexec_lacks": LACKS,
        "reports": dict(reports),
        **{key: value for key, value in to_dict(record).items() if value},
    }
    make_folder(output)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=output) as temporary:
            fresh = Path(temporary) / "new"
            fresh.mkdir()
            for name, path in graphs.items():
                shutil.copyfile(path, fresh / name)
            np.savez_compressed(fresh / REFERENCE, **reference.arrays())  # type: ignore[arg-type]
            manifest["reference"] = {"file": REFERENCE, "sha256": hash_file(fresh / REFERENCE)}
            (fresh / MANIFEST).write_text(f"{json.dumps(manifest, indent=2)}\n", encoding="utf-8")
            replace_folder(fresh, target, aside=Path(temporary) / "old")
    except OSError as error:
        raise output_error(target, error) from error
    return GraphsOnly(target, manifest)


def read_graphs(folder: Path) -> GraphsOnly:
    """A folder that `write_graphs` wrote, with plans beside its graphs. Raises ModelError, InputError without plans."""
    found = _read(folder)
    for name in found.graphs:
        if not (folder / plan_name(name)).is_file():
            raise InputError(
                f"{folder / plan_name(name)} is missing; make it with the trtexec command in {folder / MANIFEST}, in "
                "that folder"
            )
    return found


def _intact(folder: Path) -> GraphsOnly | None:
    """What was written before; what is damaged is written again."""
    if not (folder / MANIFEST).is_file():
        return None
    try:
        known = _read(folder)
        known.reference()
    except ModelError as error:
        log.warning("%s; that is done now, and plans in it go with it", error)
        return None
    return known


def _read(folder: Path) -> GraphsOnly:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{folder} has no {MANIFEST}; name a folder that 'rsd-edge build-engine --onnx-only' wrote"
        ) from None
    except (OSError, ValueError) as error:
        raise _damaged(path, "cannot be read") from error
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise _damaged(path, f"is not of format {_FORMAT}, which this version reads")
    found = GraphsOnly(folder, manifest)
    try:
        listed = {name: str(entry["sha256"]) for name, entry in manifest["files"].items()}
        _ = found.spec, found.options, found.record, manifest["reference"]["sha256"], manifest["io"]
    except (ModelError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, "is not what was written") from error
    for name, digest in listed.items():
        _check(folder / name, digest)
    return found


def _lines(io: Mapping[str, Io], options: TensorRtOptions) -> dict[str, list[str]]:
    """Commands for all graphs, by what they are for."""
    return {
        f"{family}, {device}": [
            trtexec_line(Path(name), _open_shapes(known), options, tensorrt=version, integrated=integrated)
            for name, known in io.items()
        ]
        for family, version in _TRTEXEC.items()
        for device, integrated in _DEVICES.items()
    }


def _open_shapes(io: Io) -> dict[str, tuple[int, ...]]:
    """Shapes for one tile of the inputs whose batch is left open; trtexec refuses those of others."""
    return {
        name: tuple(1 if size < 0 else size for size in given["shape"])
        for name, given in io["inputs"].items()
        if -1 in given["shape"]
    }


def _check(path: Path, digest: str) -> None:
    if not path.is_file():
        raise _damaged(path, "is missing")
    if hash_file(path) != digest:
        raise _damaged(path, f"is not the file that {MANIFEST} names")


def _damaged(path: Path, problem: str) -> ModelError:
    return ModelError(f"{path} {problem}; write the graphs again with 'rsd-edge build-engine --onnx-only'")
