"""The published networks part by part on several runtimes, and the edge models beside them, at one 64x64 tile.

    python benchmarks/published_networks.py --threads 2 --json benchmarks/reports/published-networks.json

Every runtime has a process of its own, with random weights, so that OpenVINO is apart from torch. The processes take
turns, one at work at a time, so that all of them see the same machine. Peak memory comes from further processes, one
for each runtime and part, which hold nothing but that part and are not timed; `--memory-only` measures it anew and
leaves the times of a report as they are.

- `torch as published`: attention masks made on every call, attention as an explicit softmax, plain memory layout.
- `torch`, `torch bf16`: this project's, with fused attention, kept masks and channels_last.
- `onnxruntime`, `openvino bf16`: the graphs of `rsd-edge build-engine`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from origin import origin
from processes import Runs, Subject, Workers

from rsd_edge.backends import open_engine
from rsd_edge.bench import environment
from rsd_edge.bench.cost import convolution_flops
from rsd_edge.bench.memory import METHOD, in_own_process, peak_megabytes
from rsd_edge.bench.peaks import convolution_peak
from rsd_edge.bench.timing import Run, Times
from rsd_edge.bundle import DECODER, ENCODER, GENERATOR, resolve_engine
from rsd_edge.specs import ModelSpec, Precision, PublishedArchitecture, TileSpec
from rsd_edge.stream.atomic import write_json

if TYPE_CHECKING:
    from torch import Tensor

    from rsd_edge.export.parts import Part
    from rsd_edge.models.checkpoint import Checkpoint

TILE = 64
FULL_SIZE = ModelSpec("random", "resshift", multiple_of=TILE, architecture=PublishedArchitecture())
WHOLE = "whole"
PEAK = "peak"
PARTS = {ENCODER: "encoder", GENERATOR: "generator", DECODER: "decoder"}
EDGE = (("edge-s", Precision.FP32), ("edge-s", Precision.INT8), ("edge-n", Precision.FP32), ("edge-n", Precision.INT8))


def random_checkpoint() -> Checkpoint:
    """Full-size networks of the ResShift family with random weights, to be run in one step."""
    import torch

    from rsd_edge.models import published
    from rsd_edge.models.checkpoint import Checkpoint, state_of
    from rsd_edge.models.swin_unet import SwinUNet
    from rsd_edge.models.vq import VqAutoencoder

    torch.manual_seed(0)
    parts = {
        published.GENERATOR: state_of(SwinUNet(FULL_SIZE.published.unet)),
        published.AUTOENCODER: state_of(VqAutoencoder(FULL_SIZE.published.vq)),
    }
    return Checkpoint(FULL_SIZE, parts, {})


def random_parts(threads: int) -> dict[str, Part]:
    """The networks, and inputs of one tile."""
    import torch

    from rsd_edge.export.parts import parts_of
    from rsd_edge.models.published import published_model

    torch.set_num_threads(threads)
    return parts_of(published_model(random_checkpoint()), TILE)


def in_sequence(runs: Runs) -> Runs:
    """The parts, and all of them one after the other."""
    return {**runs, WHOLE: lambda: [run() for run in runs.values()]}


@contextmanager
def as_published() -> Iterator[None]:
    """What the published code does otherwise: no mask is kept, and the matrix of scores is formed."""
    from unittest.mock import patch

    from torch.nn import functional

    from rsd_edge.models import swin_unet

    def explicit(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        scores: Tensor = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        return (scores if attn_mask is None else scores + attn_mask).softmax(-1) @ v

    with (
        patch.object(swin_unet, "shifted_window_mask", swin_unet.shifted_window_mask.__wrapped__),
        patch.object(functional, "scaled_dot_product_attention", explicit),
    ):
        yield


def without_the_rest(parts: dict[str, Part], names: Sequence[str]) -> dict[str, Part]:
    """Some of the parts, and of the autoencoder only the half that they use."""
    for name, other in ((ENCODER, "decoder"), (DECODER, "encoder")):
        if list(names) == [name]:
            delattr(parts[name][0].autoencoder, other)
    return {name: parts[name] for name in names}


def torch_runs(
    threads: int,
    folder: Path,
    names: Sequence[str] = tuple(PARTS),
    *,
    published: bool = False,
    precision: Precision = Precision.FP32,
) -> Runs:
    """Eager torch."""
    import torch

    from rsd_edge.models.detail import DTYPES, channels_last
    from rsd_edge.models.swin_unet import GroupNorm32

    parts = without_the_rest(random_parts(threads), names)
    for network, _, _ in parts.values():
        if not published:
            for child in network.children():
                channels_last(child).to(DTYPES[precision])
        for module in network.modules():
            if isinstance(module, GroupNorm32):
                module.float()

    def runner(name: str) -> Run:
        network, inputs, _ = parts[name]

        @torch.no_grad()
        def run() -> object:
            if not published:
                return network(*inputs.values())
            with as_published():
                return network(*inputs.values())

        return run

    return in_sequence({PARTS[name]: runner(name) for name in parts})


def onnxruntime_runs(threads: int, folder: Path, names: Sequence[str] = tuple(PARTS)) -> Runs:
    """The graphs as OnnxPartsEngine opens them, each with the example inputs of the export."""
    from rsd_edge.backends.onnx_parts import open_session

    sessions = {name: open_session(folder / name, threads) for name in names}
    feeds = {name: dict(np.load(folder / f"{name}.npz")) for name in names}
    runs: Runs = {PARTS[name]: lambda name=name: sessions[name].run(None, feeds[name]) for name in names}  # type: ignore[misc]
    return in_sequence(runs)


def peak_runs(threads: int, folder: Path) -> Runs:
    """What the machine computes at best."""
    return {PEAK: convolution_peak(threads, integer=False)[0]}


def openvino_runs(threads: int, folder: Path, names: Sequence[str] = tuple(PARTS)) -> Runs:
    """The same graphs, bfloat16 inside."""
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "bf16", "PERFORMANCE_HINT": "LATENCY"}
    runs: Runs = {}
    for name in names:
        feeds = dict(np.load(folder / f"{name}.npz"))
        model = core.read_model(folder / name)
        model.reshape({port.any_name: list(feeds[port.any_name].shape) for port in model.inputs})
        request = core.compile_model(model, "CPU", settings).create_infer_request()
        runs[PARTS[name]] = lambda request=request, feeds=feeds: request.infer(feeds)  # type: ignore[misc]
    return in_sequence(runs)


def edge_runs(threads: int, folder: Path, names: Sequence[str] = (), *, name: str, precision: Precision) -> Runs:
    """A shipped engine, whole."""
    bundle = resolve_engine(name, precision)
    engine = open_engine(bundle.graph_path, bundle.spec, tile=TileSpec.of(bundle.spec.model), threads=threads)
    rng = np.random.default_rng(0)
    lq = rng.uniform(-1, 1, (1, 3, TILE, TILE)).astype(np.float32)
    noise = rng.standard_normal((1, bundle.spec.model.noise_channels, TILE, TILE), np.float32)
    detail = np.empty((1, 4 * TILE, 4 * TILE, 3), np.float32)
    return {WHOLE: lambda: engine.collect(engine.submit(lq, noise, detail))}


SUBJECTS = {
    "torch as published": Subject(torch_runs, {"published": True}),
    "torch": Subject(torch_runs, {}),
    "torch bf16": Subject(torch_runs, {"precision": Precision.BF16}),
    "onnxruntime": Subject(onnxruntime_runs, {}),
    "openvino bf16": Subject(openvino_runs, {}),
    PEAK: Subject(peak_runs, {}),
    **{
        f"{name} {precision.value}": Subject(edge_runs, {"name": name, "precision": precision})
        for name, precision in EDGE
    },
}


def one_part(subject: str, label: str, threads: int, folder: Path) -> Run:
    """Nothing but one part of a subject, or all of them."""
    names = [name for name in PARTS if label in (PARTS[name], WHOLE)]
    return SUBJECTS[subject].make(threads, folder, names, **SUBJECTS[subject].options)[label]


def measure_memory(threads: int, folder: Path) -> dict[str, Any]:
    """Of each runtime and part, in processes of their own."""
    megabytes: dict[str, dict[str, int]] = {}
    for subject, kind in SUBJECTS.items():
        if subject == PEAK:
            continue
        labels = [WHOLE] if kind.make is edge_runs else [*PARTS.values(), WHOLE]
        for label in labels:
            found = peak_megabytes(one_part, subject, label, threads, folder)
            assert found is not None
            megabytes.setdefault(subject, {})[label] = found
            click.echo(f"{subject:20} {label:10} {found:7} MB")
    return {"method": METHOD, "versions": environment.versions(), "peak_mb": megabytes}


def write_graphs(folder: Path, threads: int) -> dict[str, float]:
    """Graphs and their inputs into `folder`; the GFLOP of each part."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from rsd_edge.export.parts import export_parts

    parts = random_parts(threads)
    flops = {}
    for name, (network, inputs, _) in parts.items():
        with as_published(), FlopCounterMode(display=False) as counter, torch.no_grad():
            network(*inputs.values())
        flops[PARTS[name]] = counter.get_total_flops() / 1e9
        np.savez(folder / f"{name}.npz", **{key: value.numpy() for key, value in inputs.items()})  # type: ignore[arg-type]
    export_parts(parts, folder)
    return {**flops, WHOLE: sum(flops.values())}


def make_graphs(threads: int, folder: Path) -> dict[str, float]:
    """Write them in a process that ends with its memory, and return the GFLOP of each part."""
    return in_own_process(write_graphs, folder, threads)


def measure(threads: int, rounds: int, folder: Path, gflop: Mapping[str, float]) -> dict[str, Any]:
    """Times of all subjects, in turns."""
    workers = Workers(SUBJECTS, threads, folder)
    taken: dict[tuple[str, str], list[float]] = {}
    for turn in range(rounds + 1):
        for subject, parts in workers.runs.items():
            for part in parts:
                seconds = workers.seconds(subject, part)
                if turn:  # the first is a warm-up
                    taken.setdefault((subject, part), []).extend(seconds)
    peak = convolution_peak(threads, integer=False)[1] / min(taken.pop((PEAK, PEAK))) / 1e9
    rows = []
    for (subject, part), seconds in taken.items():
        work = gflop[part] if subject.split()[0] not in ("edge-s", "edge-n") else edge_gflop(subject)
        times = Times(tuple(seconds))
        rate = work / times.median
        rows.append(
            {
                "runtime": subject,
                "part": part,
                "ms": times.summary(),
                "gflop": round(work, 2),
                "gflop_per_s": round(rate, 1),
                "share_of_fp32_peak": round(rate / peak, 2),
            }
        )
    return {"peak_gflop_per_s": round(peak, 1), "rows": rows}


def edge_gflop(subject: str) -> float:
    """Of a shipped engine, by its label."""
    name, precision = subject.split()
    return convolution_flops(resolve_engine(name, Precision(precision)).graph_path, 1, TILE, TILE) / 1e9


@click.command()
@click.option("--threads", default=2, show_default=True)
@click.option("--rounds", default=3, show_default=True, help="Runs of each; one more is not counted.")
@click.option("--json", "json_path", required=True, type=click.Path(path_type=Path))
@click.option("--note", default="", help="Kept in the report, for instance what else the machine was doing.")
@click.option("--memory-only", is_flag=True, help="Measure memory anew; the times in the report stay.")
def main(threads: int, rounds: int, json_path: Path, note: str, memory_only: bool) -> None:
    """Measure, print and store."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        gflop = make_graphs(threads, folder)
        if memory_only:
            document = json.loads(json_path.read_text(encoding="utf-8"))
        else:
            document = {
                **origin(),
                "threads": threads,
                "tile": TILE,
                "note": note,
                **measure(threads, rounds, folder, gflop),
            }
        document["memory"] = measure_memory(threads, folder)
    for row in document["rows"]:
        click.echo(
            f"{row['runtime']:20} {row['part']:10} {row['ms']['median']:9.1f} ms {row['gflop']:8.2f} GFLOP "
            f"{row['gflop_per_s']:7.1f} GFLOP/s {row['share_of_fp32_peak']:5.0%} of the fp32 peak"
        )
    write_json(json_path, document)


if __name__ == "__main__":
    main()
