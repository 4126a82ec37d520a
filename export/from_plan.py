"""`build-engine --from-plan`: plans that trtexec made of travelled graphs, checked on their device and bundled.

Needs TensorRT and a GPU, and neither torch nor onnx.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from rsd_edge.backends.tensorrt.plan import Plan, Shape, Tensor
from rsd_edge.bundle import Bundle, plan_name
from rsd_edge.errors import InputError, ModelError
from rsd_edge.export.graphs_only import MANIFEST, GraphsOnly, Io, read_graphs
from rsd_edge.export.tensorrt_build import Job, Made, Site, identity, open_site, usable, write_made
from rsd_edge.export.tensorrt_judge import judge
from rsd_edge.export.tensorrt_network import Compiled
from rsd_edge.export.tensorrt_options import REPORT
from rsd_edge.specs import Precision
from rsd_edge.stream.atomic import check_writable
from rsd_edge.stream.locking import locked

_STRIPPED = "strip-plan"
_ANYWHERE = "hardware-compatible"


def bundle_plans(folder: Path, output: Path, *, rival: Path | None = None) -> Bundle:
    """A bundle in the folder `output`, of the graphs and plans in one that `--onnx-only` wrote.

    Names, shapes and types of each plan are compared with its graph, and its numbers with fp32 on held-out crops; its
    times are measured. rival: for INT8, the folder with graphs and plans in FP16, which it has to outrun.
    Raises MissingDependencyError or BackendError without TensorRT or a GPU, InputError for folders without plans,
    ModelError for plans that were made elsewhere or of other graphs, BackendError for those that stray from fp32 or are
    not worth their precision, OutputError. Nothing is written then.
    """
    check_writable(output)
    given = read_graphs(folder)
    other = _rival(given, rival)
    site = open_site("plans are opened where they run")
    try:
        job = Job(site, given.spec, given.options)
        with tempfile.TemporaryDirectory() as scratch:
            made = _taken(site, given, Path(scratch) / "own")
            rivals = {} if other is None else {Precision.FP16: _taken(site, other, Path(scratch) / "rival").folder}
            plans = {name: made.folder / plan_name(name) for name in given.graphs}
            key = identity(given.graphs, given.spec, given.options, site.target, plans)
            with locked(output, job.name(key), "builds"):
                known = usable(output / job.name(key))
                if known is not None:
                    return known
                reference = given.reference()
                findings = judge(made.folder, given.spec, given.options, reference, rivals, stripped=made.stripped)
                reports = {REPORT: given.manifest["reports"]}
                return write_made(job, made, findings, given.record, key, output, reports)
    finally:
        site.cuda.close()


def _rival(given: GraphsOnly, folder: Path | None) -> GraphsOnly | None:
    if given.spec.precision is not Precision.INT8:
        if folder is not None:
            raise InputError(
                f"--rival is for INT8 plans, and {given.path} is {given.spec.precision.value}; leave it out"
            )
        return None
    if folder is None:
        raise InputError(
            "an INT8 engine is kept only where it is faster than FP16; add --rival FOLDER, with graphs and plans of "
            "the same model in FP16"
        )
    other = read_graphs(folder)
    same = (other.spec.model, other.options.tile, other.options.batch)
    if other.spec.precision is not Precision.FP16 or same != (
        given.spec.model,
        given.options.tile,
        given.options.batch,
    ):
        raise InputError(f"{folder} is not {given.path} in FP16: model, tile and batch must be the same; write it anew")
    return other


def _taken(site: Site, given: GraphsOnly, folder: Path) -> Made:
    """Checked, and copied to where they cannot change any more."""
    compiled = {name: _checked(site, given, name) for name in given.graphs}
    folder.mkdir()
    for name, graph in given.graphs.items():
        shutil.copyfile(graph, folder / name)
        shutil.copyfile(graph.with_name(plan_name(name)), folder / plan_name(name))
    return Made(folder, compiled, by="trtexec")


def _checked(site: Site, given: GraphsOnly, name: str) -> Compiled:
    flags, graph = given.options.flags, given.graphs[name]
    plan = Plan(site.trt, graph.with_name(plan_name(name)), weights=graph if _STRIPPED in flags else None)
    _check_io(plan, given.manifest["io"][name], given.options.batch)
    skipped = {}
    if _ANYWHERE in flags and plan.engine.hardware_compatibility_level == site.trt.HardwareCompatibilityLevel.NONE:
        skipped[_ANYWHERE] = "the plan was built without it"
    return Compiled(b"", [flag for flag in flags if flag not in skipped], skipped, timing_cache="kept by trtexec")


def _check_io(plan: Plan, io: Io, batch: tuple[int, int, int]) -> None:
    """Raise ModelError for a plan that takes or gives anything else than its graph."""
    for kind, found in (("inputs", plan.inputs), ("outputs", plan.outputs)):
        if set(found) != set(io[kind]):
            raise _other(plan, f"has {kind} {sorted(found)} and not {sorted(io[kind])}")
        for name, tensor in found.items():
            _check_tensor(plan, tensor, io[kind][name]["dtype"], tuple(io[kind][name]["shape"]))
    for name, tensor in plan.inputs.items():
        limits = tuple(shape[0] for shape in (tensor.smallest, tensor.usual, tensor.largest))
        if -1 in io["inputs"][name]["shape"] and limits != batch:
            raise _other(plan, f"takes {limits} tiles in '{name}' and not {batch}")


def _check_tensor(plan: Plan, tensor: Tensor, dtype: str, shape: Shape) -> None:
    if tensor.dtype.name != dtype:
        raise _other(plan, f"has '{tensor.name}' of type {tensor.dtype.name} and not {dtype}")
    fits = len(tensor.shape) == len(shape)
    if not fits or any(a != b and -1 not in (a, b) for a, b in zip(tensor.shape, shape, strict=True)):
        raise _other(plan, f"has '{tensor.name}' of shape {tensor.shape} and not {shape}")


def _other(plan: Plan, problem: str) -> ModelError:
    return ModelError(
        f"{plan.path} {problem}: it is not of the graph beside it; make it again with the trtexec command in "
        f"{plan.path.with_name(MANIFEST)}"
    )
