"""`build-engine --backend tensorrt`: typed graphs to plans on the device that will run them, judged there and bundled.

A bundle's name is a digest of all that its plans depend on: graphs, options, TensorRT, GPU and driver. Where there is
one of that name already, it is returned as it is.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rsd_edge import __version__
from rsd_edge.backends.tensorrt.cuda import Cuda
from rsd_edge.backends.tensorrt.device import target_of
from rsd_edge.backends.tensorrt.library import load_tensorrt
from rsd_edge.bundle import (
    GRAPH,
    KERNELS,
    MANIFEST,
    BuildRecord,
    Bundle,
    hash_file,
    load_bundle,
    plan_name,
    write_bundle,
)
from rsd_edge.errors import BackendError, InputError, MissingDependencyError, ModelError
from rsd_edge.export.tensorrt_network import BuildProgress, Compiled, compile_graph
from rsd_edge.export.tensorrt_options import TIMINGS, TensorRtOptions
from rsd_edge.export.torch_tensorrt import TorchPart, compile_part
from rsd_edge.kernels.manifest import MANIFEST as PACK_MANIFEST
from rsd_edge.kernels.manifest import pack_files
from rsd_edge.kernels.sequences import FRAME_KERNELS
from rsd_edge.specs import EDGE_FAMILY, Backend, EngineSpec, Precision
from rsd_edge.stream.locking import locked

log = logging.getLogger(__name__)


_KEY_LENGTH = 12


@dataclass(frozen=True)
class Site:
    """Where plans are made: the library, the device, and what they are called there."""

    trt: Any
    cuda: Cuda
    target: dict[str, str]


@dataclass(frozen=True)
class Job:
    """What is built, how, and where."""

    site: Site
    spec: EngineSpec
    options: TensorRtOptions

    @property
    def tile(self) -> int:
        """The side of a tile."""
        return self.options.tile_of(self.spec.model)

    def name(self, key: str) -> str:
        """Of the bundle's folder."""
        return f"{self.spec.model.name}-tensorrt-{self.spec.precision.value}-{key[:_KEY_LENGTH]}"


@dataclass(frozen=True)
class Made:
    """A folder of plans beside their graphs, and how each came about, by the name of its graph."""

    folder: Path
    compiled: Mapping[str, Compiled]
    by: str = "build-engine"

    @property
    def flags(self) -> dict[str, Any]:
        """What was asked of the builder and done, and what was not and why."""
        parts = list(self.compiled.values())
        return {
            "set": sorted({flag for part in parts for flag in part.flags_set}),
            "skipped": {flag: why for part in parts for flag, why in part.flags_skipped.items()},
        }

    @property
    def stripped(self) -> bool:
        """The plans have no weights."""
        return "strip-plan" in self.flags["set"]


def build_bundle(
    graphs: Mapping[str, Path],
    spec: EngineSpec,
    output: Path,
    record: BuildRecord,
    *,
    reference: Mapping[str, Path],
    options: TensorRtOptions | None = None,
    faster_than: Mapping[str, Path] | None = None,
    modules: Mapping[str, TorchPart] | None = None,
    reports: Mapping[str, Any] | None = None,
    progress: BuildProgress | None = None,
) -> Bundle:
    """A bundle with the plans of some graphs, in the folder `output`.

    graphs: strongly typed, by the names that they have in a bundle. record: what is known of the weights; parity in it
    is kept as that of the graphs. reference: float graphs of the same names, which judge the plans. faster_than: for
    INT8, the FP16 graphs; INT8 is refused unless it is faster. modules: for torch-tensorrt, the networks.
    Raises MissingDependencyError or BackendError without TensorRT or a GPU, ModelError for graphs that TensorRT cannot
    read, BackendError for an engine that cannot be built, strays from its reference or is not worth its precision.
    Nothing is written then.
    """
    options = options or TensorRtOptions()
    options.tile_of(spec.model)
    if spec.precision is Precision.INT8 and faster_than is None:
        raise InputError("an INT8 engine is kept only where it is faster than FP16; pass the FP16 graphs as well")
    site = open_site()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            given = dict(graphs)
            if options.kernels is not None:
                given = _for_kernels(given, spec, folder / "planes.onnx")
                if faster_than is not None:  # rows on one side alone would cost it the way back from planes
                    faster_than = _for_kernels(faster_than, spec, folder / "rival_planes.onnx")
            key = identity(given, spec, options, site.target)
            job = Job(site, spec, _with_cache(options, output))
            with locked(output, job.name(key), "builds"):
                known = usable(output / job.name(key))
                if known is not None:
                    return known
                maker = _Maker(job, folder, modules, progress)
                made = maker.make(given, "own")
                findings = maker.judge(made, reference, faster_than)
                return write_made(job, made, findings, record, key, output, reports)
    finally:
        site.cuda.close()


def open_site(instead: str = "or write the graphs for another device with --onnx-only") -> Site:
    """TensorRT and the GPU at hand. Raises what is missing, and how to go on without them."""
    try:
        trt = load_tensorrt()
        cuda = Cuda()
    except (MissingDependencyError, BackendError) as error:
        raise type(error)(f"{error}; {instead}") from error
    return Site(trt, cuda, target_of(trt, cuda))


def identity(
    graphs: Mapping[str, Path],
    spec: EngineSpec,
    options: TensorRtOptions,
    target: Mapping[str, str],
    plans: Mapping[str, Path] | None = None,
) -> str:
    """A digest of everything that plans depend on. plans: those that something else compiled."""
    pack = () if options.kernels is None else (options.kernels / PACK_MANIFEST,)
    facts = {
        "kernels": [hash_file(path) for path in pack if path.is_file()],
        "graphs": {name: hash_file(path) for name, path in graphs.items()},
        "model": spec.model.name,
        "precision": spec.precision.value,
        "tile": options.tile_of(spec.model),
        "options": options.identity(),
        "target": dict(target),
        **({"plans": {name: hash_file(path) for name, path in plans.items()}} if plans else {}),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class _Maker:
    """Compiles and judges, in a folder that goes away."""

    def __init__(
        self,
        job: Job,
        folder: Path,
        modules: Mapping[str, TorchPart] | None,
        progress: BuildProgress | None,
    ) -> None:
        self._job = job
        self._folder, self._modules, self._progress = folder, modules, progress

    def make(self, graphs: Mapping[str, Path], name: str) -> Made:
        """Plans of graphs, beside copies of them."""
        folder = self._folder / name
        folder.mkdir()
        compiled = {}
        for graph, path in graphs.items():
            shutil.copyfile(path, folder / graph)
            compiled[graph] = self._compile(graph, folder / graph)
            (folder / plan_name(graph)).write_bytes(compiled[graph].plan)
        return Made(folder, compiled)

    def judge(
        self, made: Made, reference: Mapping[str, Path], faster_than: Mapping[str, Path] | None
    ) -> dict[str, Any]:
        """Parity and speed. Raises BackendError for an engine that is not to be kept."""
        from rsd_edge.export.tensorrt_judge import judge, made_by_float

        spec, options = self._job.spec, self._job.options
        rivals = {}
        if faster_than is not None and spec.precision is Precision.INT8:
            rivals[Precision.FP16] = self.make(faster_than, "rival").folder
        return judge(
            made.folder, spec, options, made_by_float(reference, spec, options), rivals, stripped=made.stripped
        )

    def _compile(self, name: str, path: Path) -> Compiled:
        job = self._job
        if job.options.compiler == "onnx":
            return compile_graph(job.site.trt, job.site.cuda, path, job.options, job.tile, self._progress)
        if self._modules is None or name not in self._modules:
            raise InputError(
                "--compiler torch-tensorrt compiles networks and not graphs; give --model a .safetensors checkpoint"
            )
        return Compiled(compile_part(self._modules[name], job.spec.precision, job.options))


def write_made(
    job: Job,
    made: Made,
    findings: Mapping[str, Any],
    record: BuildRecord,
    key: str,
    output: Path,
    reports: Mapping[str, Any] | None,
) -> Bundle:
    """The bundle of plans that were judged. Raises OutputError, ModelError for unfit kernels."""
    site, options = job.site, job.options
    target = {
        **site.target,
        "key": key,
        "options": {**_plain(options.identity()), "tile": job.tile},
        "compiled_by": made.by,
        "flags": made.flags,
        "limits": {graph: part.limits for graph, part in made.compiled.items()},
        "timing_cache": {graph: part.timing_cache for graph, part in made.compiled.items()},
    }
    files = {file.name: file for file in sorted(made.folder.iterdir())}
    if options.kernels is not None:
        files |= _kernel_files(options.kernels, site.cuda.device.sm)
    complete = replace(
        record,
        versions={**record.versions, "rsd-edge": __version__, "tensorrt": str(site.trt.__version__)},
        device=", ".join(str(site.target[part]) for part in ("gpu", "l4t", "driver") if part in site.target),
        parity={**findings["parity"], "graph": dict(record.parity)},
        speed=findings["speed"],
        target=target,
    )
    spec = replace(job.spec, backend=Backend.TENSORRT)
    return write_bundle(output, spec, files, complete, name=job.name(key), reports=reports)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON holds them."""
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


def _for_kernels(graphs: Mapping[str, Path], spec: EngineSpec, target: Path) -> dict[str, Path]:
    """The graphs with the detail laid out as the kernels of frames read it."""
    if spec.model.family != EDGE_FAMILY:
        raise InputError(f"kernels serve edge models, and '{spec.model.name}' is of family {spec.model.family}")
    from rsd_edge.export.planes import with_planes

    return {GRAPH: with_planes(graphs[GRAPH], target)}


def _kernel_files(folder: Path, sm: int) -> dict[str, Path]:
    """What the frame path needs of a pack for one architecture, by the names in a bundle. Raises ModelError."""
    return {f"{KERNELS}/{file}": folder / file for file in pack_files(folder, sm, FRAME_KERNELS)}


def _with_cache(options: TensorRtOptions, output: Path) -> TensorRtOptions:
    return options if options.timing_cache is not None else replace(options, timing_cache=output / TIMINGS)


def usable(folder: Path) -> Bundle | None:
    """A bundle that was made before; one that is damaged is made again."""
    if not (folder / MANIFEST).is_file():
        return None
    try:
        bundle = load_bundle(folder)
    except ModelError as error:
        log.warning("%s; it is built again", error)
        return None
    log.info("%s was built before, from the same and for this device", folder)
    return bundle
