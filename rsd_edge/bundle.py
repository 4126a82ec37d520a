"""Engine bundles: a folder that holds one engine and says what it is.

    edge-s-onnxruntime-fp32-0f3a9c12b4de/
        manifest.json    what was built from what, where, and how well it does
        graph.onnx       the network

Published models have encoder.onnx, generator.onnx and decoder.onnx in the place of graph.onnx. For TensorRT there is a
plan beside each graph (graph.plan), and kernels/ may hold those that the frame path launches.

The last part of the folder's name is a digest of the engine's spec and of its files, so engines that differ never share
a folder. Engines that ship with the package have the same contents under plain names: rsd_edge/zoo/<model>/<precision>.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from rsd_edge.errors import ModelError, OutputError
from rsd_edge.machine import cpu_name
from rsd_edge.plain import from_dict, to_dict
from rsd_edge.specs import EDGE_FAMILY, Backend, EngineSpec, Precision

FORMAT = 3
MANIFEST = "manifest.json"
WEIGHTS_FILE = "weights.safetensors"
"""What a stage of training leaves in its folder, which is no bundle."""
GRAPH = "graph.onnx"
ENCODER, GENERATOR, DECODER = "encoder.onnx", "generator.onnx", "decoder.onnx"
KERNELS = "kernels"
"""Folder of ahead-of-time kernels within a bundle."""
ZOO = Path(__file__).with_name("zoo")

_DIGEST_LENGTH = 12
_READ_SIZE = 1 << 20
PICKLES = (".pth", ".pt", ".ckpt")


@dataclass(frozen=True)
class BuildRecord:
    """How an engine came about; part of the manifest, for people and reports."""

    versions: dict[str, str] = field(default_factory=dict)
    """Versions of rsd_edge, of the runtime and of the exporter at build time."""
    device: str = ""
    """The machine on which parity and speed were measured."""
    parity: dict[str, Any] = field(default_factory=dict)
    speed: dict[str, Any] = field(default_factory=dict)
    licence: str = ""
    training: dict[str, Any] = field(default_factory=dict)
    """Where the weights come from: a training record, or a reference to one."""
    source: dict[str, str] = field(default_factory=dict)
    """What the engine was built from: `model`, as it was asked for, the `digest` of that, and, if there were any, the
    folder of own images for `calibration` and, of the command that builds it again, further `options` and those that
    only `tensorrt` takes."""
    target: dict[str, Any] = field(default_factory=dict)
    """Of a TensorRT engine: the only library and GPU that it runs on, and how it was compiled."""


@dataclass(frozen=True)
class Bundle:
    """An engine on disk whose files have been checked."""

    path: Path
    spec: EngineSpec
    graph_path: Path
    """The graph, or the folder with the graphs of a published model or the plans of a TensorRT engine."""
    digest: str
    manifest: Mapping[str, Any]


def shipped_engines() -> list[str]:
    """Names of the models inside the package."""
    names = {manifest.parent.parent.name for manifest in ZOO.glob(f"*/*/{MANIFEST}")}
    return sorted(name for name in names if not name.startswith("."))  # one that is being written


def shipped_precisions(model: str) -> list[Precision]:
    """Precisions in which a model ships, fp32 first; none for what is not the name of a shipped model."""
    if model not in shipped_engines():  # a path would lead out of the zoo
        return []
    return [precision for precision in Precision if (ZOO / model / precision.value / MANIFEST).is_file()]


def resolve_engine(engine: str | Path, precision: Precision | None = None) -> Bundle:
    """The bundle for a shipped name or the path of a bundle folder; a name wins over a folder of the same name.

    precision: which of the shipped ones, None for fp32; of a folder, what it must be, None for whatever it is.
    Raises ModelError if there is no such engine, listing what ships, or if the bundle cannot be used.
    """
    if str(engine) in shipped_engines():
        return _shipped(str(engine), precision or Precision.FP32)
    path = Path(engine)
    if path.is_dir():
        bundle = load_bundle(path)
        if precision not in (None, bundle.spec.precision):
            raise ModelError(
                f"engine '{engine}' is {bundle.spec.precision.value}, not {precision.value}; leave the precision out"
                f"{_or_build(bundle, precision)}"
            )
        return bundle
    if path.suffix in PICKLES and path.is_file():
        raise unconverted(path)
    if path.exists():
        raise ModelError(
            f"engine '{engine}' is a file; pass the folder that 'rsd-edge build-engine' made, the one with {MANIFEST}"
        )
    names = ", ".join(shipped_engines()) or "none in this installation"
    raise ModelError(f"engine '{engine}' is neither a shipped engine ({names}) nor a bundle folder")


def _shipped(model: str, precision: Precision) -> Bundle:
    shipped = shipped_precisions(model)
    if precision not in shipped:
        names = ", ".join(item.value for item in shipped)
        cure = _or_build(load_bundle(ZOO / model / shipped[0].value), precision)
        raise ModelError(f"'{model}' ships in {names}, not in {precision.value}; use one of these{cure}")
    return load_bundle(ZOO / model / precision.value)


def _or_build(bundle: Bundle, precision: Precision) -> str:
    """The rest of a cure: what builds the same model in another precision; empty where nothing does."""
    spec = bundle.spec
    match precision:
        case Precision.FP16:
            backend = Backend.TENSORRT
        case Precision.FP32:
            backend = Backend.ONNXRUNTIME
        case Precision.INT8 if spec.model.family == EDGE_FAMILY or spec.backend is Backend.TENSORRT:
            backend = spec.backend
        case _:
            return ""
    other = replace(bundle, spec=replace(spec, precision=precision, backend=backend))
    return f", or build that one with '{rebuild_command(other)}'"


def staleness(bundle: Bundle) -> list[str]:
    """Reasons to build an engine again, each with what it was built from or on, what is here now, and the command.

    There are none for engines inside the package: they come with it, and are timed against each other where they run.
    """
    if _ships(bundle.path):
        return []
    reasons = []
    source = _source(bundle)
    model, digest = source.get("model", ""), source.get("digest")
    if digest and Precision.FP32 in shipped_precisions(model):
        now = str(read_manifest(ZOO / model / Precision.FP32.value).get("digest"))
        if now != digest:
            reasons.append(
                f"{bundle.path} was built from {model} {digest[:_DIGEST_LENGTH]}, but this version ships {model} "
                f"{now[:_DIGEST_LENGTH]}; run '{rebuild_command(bundle)}'"
            )
    device = str(bundle.manifest.get("device") or "an unnamed machine")
    if bundle.spec.backend is Backend.TENSORRT:  # its own device is compared when it is opened
        return reasons
    if bundle.spec.precision is Precision.INT8 and device.rpartition(", ")[0] != cpu_name():
        reasons.append(
            f"{bundle.path} was found faster than fp32 on {device}, but this is {cpu_name()}, where it may not be; "
            f"run '{rebuild_command(bundle)}' here"
        )
    return reasons


def rebuild_command(bundle: Bundle, backend: Backend | None = None) -> str:
    """What builds an engine again, on this machine and from what is here now. backend: for this one instead."""
    spec = bundle.spec
    source = {"model": spec.model.name} if _ships(bundle.path) else _source(bundle)
    runtime = backend or spec.backend
    words = ["rsd-edge", "build-engine", "--model", source.get("model") or "MODEL", "--backend", runtime.value]
    if runtime is spec.backend or spec.precision is Precision.INT8:  # of floats, each backend has its own
        words += ["--precision", spec.precision.value]
    tensorrt = runtime is Backend.TENSORRT
    if source.get("calibration") and (tensorrt or spec.precision is Precision.INT8):  # other floats have no ranges
        words += ["--calibration", source["calibration"]]
    kinds = ("options", "tensorrt") if tensorrt else ("options",)
    return " ".join([shlex.join(words), *(source[kind] for kind in kinds if source.get(kind))])


def _source(bundle: Bundle) -> dict[str, str]:
    """What a bundle was built from, and with which options; empty where its manifest does not say."""
    source = bundle.manifest.get("source")
    return {name: str(value) for name, value in source.items()} if isinstance(source, dict) else {}


def _ships(folder: Path) -> bool:
    return folder.resolve().is_relative_to(ZOO.resolve())


def load_bundle(path: Path | str) -> Bundle:
    """Read a bundle and check every file against its hash.

    Raises ModelError that names the file, what is wrong with it and the command that mends it.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    try:
        spec = from_dict(EngineSpec, manifest["engine"])
        files, reports = _listed(manifest["files"]), _listed(manifest.get("reports", {}))
    except (ModelError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(folder / MANIFEST, f"is not a valid manifest ({_describe(error)})") from error
    for name in (*graphs_of(spec), *plans_of(spec)):
        if name not in files:
            raise _damaged(folder / MANIFEST, f"does not list {name}")
    for name, (sha256, size) in {**reports, **files}.items():
        if not _is_inside(name):
            raise _damaged(folder / MANIFEST, f"lists '{name}', which is not a file of the bundle")
        try:
            _check_file(folder / name, sha256, size)
        except OSError as error:
            raise ModelError(f"{folder / name} cannot be read ({error.strerror}); check its permissions") from error
    digest = _digest(spec, {name: sha256 for name, (sha256, _) in files.items()})
    if manifest.get("digest") != digest:
        raise _damaged(folder / MANIFEST, "was changed after the build: its engine does not match its digest")
    single = graphs_of(spec) == (GRAPH,) and not plans_of(spec)
    return Bundle(folder, spec, folder / GRAPH if single else folder, digest, manifest)


def _is_inside(name: str) -> bool:
    """A file of the bundle, or of its folder of kernels."""
    path = PurePosixPath(name)
    return str(path) == name and not path.is_absolute() and ".." not in path.parts and "\\" not in name


def _listed(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[str, int]]:
    return {str(name): (str(entry["sha256"]), int(entry["bytes"])) for name, entry in entries.items()}


def graphs_of(spec: EngineSpec) -> tuple[str, ...]:
    """Names of the graphs that an engine consists of."""
    return (GRAPH,) if spec.model.family == EDGE_FAMILY else (ENCODER, GENERATOR, DECODER)


def plan_name(graph: str) -> str:
    """Of the plan that was compiled from a graph."""
    return f"{Path(graph).stem}.plan"


def plans_of(spec: EngineSpec) -> tuple[str, ...]:
    """Names of the plans that an engine consists of, besides its graphs; none but for TensorRT."""
    return tuple(plan_name(graph) for graph in graphs_of(spec)) if spec.backend is Backend.TENSORRT else ()


def write_bundle(
    parent: Path | str,
    spec: EngineSpec,
    graph: Path | str | Mapping[str, Path],
    record: BuildRecord,
    *,
    name: str | None = None,
    reports: Mapping[str, Any] | None = None,
) -> Bundle:
    """Make a bundle of a graph in a folder of `parent`, and read it back.

    graph: a file; or several, by the names that they have in the bundle, for a published model. name: the folder's
    name; None derives it from the contents. reports: JSON documents to keep beside the graph, by file name; they do not
    change the digest. A bundle of that name is replaced as a whole, and only once the new one is complete. Raises
    OutputError if the folder cannot be written, ModelError if a graph cannot be
    read.
    """
    sources = dict(graph) if isinstance(graph, Mapping) else {GRAPH: Path(graph)}
    target_parent = Path(parent)
    files = {file: _entry(source) for file, source in sources.items()}
    digest = _digest(spec, {file: str(entry["sha256"]) for file, entry in files.items()})
    texts = {file: f"{json.dumps(document, indent=2)}\n".encode() for file, document in (reports or {}).items()}
    manifest = {
        "format": FORMAT,
        "digest": digest,
        "engine": to_dict(spec),
        "files": files,
        "reports": {
            file: {"sha256": hashlib.sha256(text).hexdigest(), "bytes": len(text)} for file, text in texts.items()
        },
        **to_dict(record),
    }
    stem = f"{spec.model.name}-{spec.backend.value}-{spec.precision.value}"
    target = target_parent / (name or f"{stem}-{digest[:_DIGEST_LENGTH]}")
    try:
        target_parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target_parent) as temporary:
            fresh = Path(temporary) / "new"
            fresh.mkdir()
            for file, source in sources.items():
                (fresh / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, fresh / file)
            for file, text in {MANIFEST: f"{json.dumps(manifest, indent=2)}\n".encode(), **texts}.items():
                (fresh / file).write_bytes(text)
            replace_folder(fresh, target, aside=Path(temporary) / "old")
    except OSError as error:
        raise OutputError(
            f"bundle {target} cannot be written ({error.strerror}); free space or choose another folder"
        ) from error
    return load_bundle(target)


def _entry(source: Path) -> dict[str, str | int]:
    try:
        return {"sha256": hash_file(source), "bytes": source.stat().st_size}
    except OSError as error:
        raise ModelError(f"graph {source} cannot be read ({error.strerror})") from error


def replace_folder(fresh: Path, target: Path, aside: Path) -> None:
    """Rename `fresh` to `target`. A folder cannot be renamed over another one, so the old one steps aside first."""
    if not target.exists():
        os.replace(fresh, target)
        return
    os.replace(target, aside)
    try:
        os.replace(fresh, target)
    except OSError:
        os.replace(aside, target)
        raise


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a bundle says of itself, unchecked but for its format. Raises ModelError."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        weights = folder / WEIGHTS_FILE
        cure = f"give {weights}" if weights.is_file() else "make one with 'rsd-edge build-engine'"
        raise ModelError(f"{folder} is not an engine bundle: it has no {MANIFEST}; {cure}") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    except ValueError as error:
        raise _damaged(path, "is not JSON") from error
    if not isinstance(manifest, dict):
        raise _damaged(path, "is not a JSON object")
    if manifest.get("format") != FORMAT:
        raise ModelError(
            f"{path} has bundle format {manifest.get('format')} and this version reads format {FORMAT}; "
            f"{_mend(folder)} with this version"
        )
    return manifest


def unconverted(path: Path) -> ModelError:
    """The error for a file with one of PICKLES' suffixes where a checkpoint is wanted."""
    return ModelError(f"'{path}' is a PyTorch checkpoint; convert it with 'rsd-edge import-weights' and give that")


def missing_checkpoint(path: Path) -> ModelError:
    """The error for a checkpoint that is not there."""
    return ModelError(
        f"checkpoint {path} does not exist; make it with `rsd-edge distill` or `rsd-edge import-weights`, or give "
        "another path"
    )


def _check_file(path: Path, sha256: str, size: int) -> None:
    if not path.is_file():
        raise _damaged(path, "is missing")
    found = path.stat().st_size
    if found != size:
        raise _damaged(path, f"has {found} bytes where the manifest says {size}")
    if hash_file(path) != sha256:
        raise _damaged(path, "does not match the hash in the manifest")


def _damaged(path: Path, problem: str) -> ModelError:
    return ModelError(f"{path} {problem}; {_mend(path.parent)}")


def _mend(folder: Path) -> str:
    if _ships(folder):
        return "run 'pip install --force-reinstall --no-deps .' in a clone of rsd-edge"
    return "build the engine again with 'rsd-edge build-engine'"


def _describe(error: Exception) -> str:
    return f"it has no {error}" if isinstance(error, KeyError) else str(error)


def _digest(spec: EngineSpec, hashes: Mapping[str, str]) -> str:
    identity = json.dumps({"format": FORMAT, "engine": to_dict(spec), "files": dict(hashes)}, sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hex, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_SIZE):
            digest.update(block)
    return digest.hexdigest()
