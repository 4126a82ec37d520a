"""The published networks, the edge models and what people use today: one tile, one frame and their quality, in one run.

    python benchmarks/side_by_side.py --peer realesr-general-x4v3.ncnn.param \\
        --json benchmarks/reports/side-by-side.json

Everything runs in a process of its own and takes its turn in every round, the published networks in the first
`--slow-rounds` of them, since a frame of theirs takes minutes. Their weights are random. A tile is an engine alone; a
frame goes through the whole path of `rsd-edge run` but for files. The peer's tile is its network, its frame whole.

- `as published`: torch as the published code does it: attention masks made on every call, scores formed, plain layout.
- `torch`, `torch bf16`: `rsd-edge run --model`. `openvino bf16`: the graphs of `rsd-edge build-engine` in OpenVINO.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import click
import numpy as np
from numpy.typing import NDArray
from processes import Runs, Subject, Workers
from published_networks import FULL_SIZE, WHOLE, as_published, make_graphs, random_checkpoint, versions

from rsd_edge.backends.onnx_parts import PartsEngine
from rsd_edge.bench.cost import convolution_flops
from rsd_edge.bench.peaks import convolution_peak
from rsd_edge.bench.peer import NcnnPeer, bicubic_run, peer_name, peer_run
from rsd_edge.bench.quality import BICUBIC, SET, scores_of, scores_of_peer
from rsd_edge.bench.subjects import Wish, frame_run, tile_run
from rsd_edge.bench.timing import Times
from rsd_edge.bundle import DECODER, ENCODER, GENERATOR, resolve_engine, shipped_engines, shipped_precisions
from rsd_edge.machine import cpu_name
from rsd_edge.resolver import SuperResolver
from rsd_edge.specs import Backend, EngineSpec, Precision, TileSpec

TILE, FRAME = "tile", "frame"
SIDE = 64
SIZE = (320, 180)
PEAK = "peak"
PUBLISHED = "full network as published"
FULL = "full network"
CHOPPED = TileSpec(SIDE, halo=4, feather=4, fixed=True)
"""For frames of the full networks, a tile every 56 pixels: with the default halo of 16 they would compute two and a
half times as much; whole, as the published code takes them, they would form scores of 15 GB in each attention of the
autoencoder."""


def checkpoint_runs(
    threads: int, folder: Path, *, precision: Precision = Precision.FP32, published: bool = False
) -> Runs:
    """The full networks on torch."""
    import torch

    from rsd_edge.backends.torch import TorchEngine
    from rsd_edge.models import detail

    torch.set_num_threads(threads)
    plain = mock.patch.object(detail, "channels_last", lambda network: network) if published else nullcontext()
    with plain:
        engine = TorchEngine(random_checkpoint(), precision, threads, tile=CHOPPED)
    runs = {TILE: tile_run(engine, SIDE), FRAME: frame_run(SuperResolver(engine), *SIZE)}

    def as_they_were(name: str) -> object:
        with as_published():
            return runs[name]()

    return {name: lambda name=name: as_they_were(name) for name in runs} if published else runs  # type: ignore[misc]


class OpenVinoParts(PartsEngine):
    """The three graphs, in bfloat16 inside."""

    def __init__(self, folder: Path, threads: int) -> None:
        import openvino

        core = openvino.Core()
        settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "bf16", "PERFORMANCE_HINT": "LATENCY"}
        self._requests = {}
        for name in (ENCODER, GENERATOR, DECODER):
            model = core.read_model(folder / name)
            shapes = np.load(folder / f"{name}.npz")
            model.reshape({port.any_name: list(shapes[port.any_name].shape) for port in model.inputs})
            self._requests[name] = core.compile_model(model, "CPU", settings).create_infer_request()
        super().__init__(EngineSpec(FULL_SIZE, Backend.OPENVINO, Precision.BF16), threads, CHOPPED, takes_noise=False)

    def _run(self, part: str, **inputs: NDArray[Any]) -> NDArray[np.float32]:
        result = self._requests[part].infer(inputs)
        return np.array(next(iter(result.values())), np.float32)


def openvino_runs(threads: int, folder: Path) -> Runs:
    """The full networks as graphs."""
    engine = OpenVinoParts(folder, threads)
    return {TILE: tile_run(engine, SIDE), FRAME: frame_run(SuperResolver(engine), *SIZE)}


def edge_runs(threads: int, folder: Path, *, wish: Wish) -> Runs:
    """A shipped engine; each size has one of its own."""
    tile = Wish(wish.model, wish.precision, wish.backend, tile=SIDE).load(threads)
    return {TILE: tile_run(tile.engine, SIDE), FRAME: frame_run(wish.load(threads), *SIZE)}


def ncnn_runs(threads: int, folder: Path, *, param: Path) -> Runs:
    """A published model in ncnn's format."""
    tile = np.random.default_rng(0).random((3, SIDE, SIDE), np.float32)
    network = NcnnPeer(param, param.with_suffix(".bin"), threads).network(tile)
    return {TILE: network, FRAME: peer_run(param, *SIZE, threads)}


def bicubic_runs(threads: int, folder: Path) -> Runs:
    """OpenCV's."""
    return {TILE: bicubic_run(SIDE, SIDE, threads), FRAME: bicubic_run(*SIZE, threads)}


def peak_runs(threads: int, folder: Path) -> Runs:
    """What the machine computes at best, by precision."""
    return {name: convolution_peak(threads, integer=name == "int8")[0] for name in ("fp32", "int8")}


@dataclass(frozen=True)
class Method:
    """Something to compare."""

    subject: Subject
    gflop: float | None = None
    """Of a 64x64 tile."""
    precision: str | None = None
    """Whose peak it is held against."""
    quality: Mapping[str, float] | None = None
    slow: bool = False


def methods(gflop: float, peer: Path | None) -> Iterator[tuple[str, Method]]:
    """All of them by name. gflop: of the full networks."""
    for name, options in (
        (PUBLISHED, {"published": True}),
        (f"{FULL}, torch", {}),
        (f"{FULL}, torch bf16", {"precision": Precision.BF16}),
    ):
        yield name, Method(Subject(checkpoint_runs, options), gflop, "fp32", slow=True)
    yield f"{FULL}, openvino bf16", Method(Subject(openvino_runs), gflop, "fp32", slow=True)
    for model in shipped_engines():
        for precision in shipped_precisions(model):
            bundle = resolve_engine(model, precision)
            work = convolution_flops(bundle.graph_path, 1, SIDE, SIDE) / 1e9
            for backend in (Backend.ONNXRUNTIME, Backend.OPENVINO):
                subject = Subject(edge_runs, {"wish": Wish(model, precision.value, backend.value)})
                label = f"{model} {precision.value} {backend.value}"
                yield label, Method(subject, work, precision.value, scores_of(bundle))
    if peer is not None:
        name = peer_name(peer)
        yield f"{name} ncnn", Method(Subject(ncnn_runs, {"param": peer}), quality=scores_of_peer(name))
    yield BICUBIC, Method(Subject(bicubic_runs), quality=scores_of_peer(BICUBIC))


@dataclass(frozen=True)
class Goal:
    """What was wanted, and what came out."""

    name: str
    wanted: float
    measured: float

    @property
    def met(self) -> bool:
        """At least what was wanted."""
        return self.measured >= self.wanted


def goals(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[Goal]:
    """Of the faster runtime of each engine."""
    ours = [row for name, row in rows.items() if name.startswith(f"{FULL},")]
    for part in (TILE, FRAME):
        edge = min(row[part]["median"] for name, row in rows.items() if name.startswith("edge-s int8"))
        as_they_were = rows[PUBLISHED][part]["median"]
        yield Goal(f"edge-s int8 against the full network as published, {part}", 300, as_they_were / edge)
        optimised = min(row[part]["median"] for row in ours)
        yield Goal(f"edge-s int8 against the full network at its fastest, {part}", 100, optimised / edge)
    for model in shipped_engines():
        for precision, wanted in (("fp32", 0.8), ("int8", 0.6)):
            shares = [row["share_of_peak"] for name, row in rows.items() if name.startswith(f"{model} {precision}")]
            yield Goal(f"{model} {precision}, share of the convolutions' peak, tile", wanted, max(shares))


def measure(
    compared: Mapping[str, Method], threads: int, rounds: int, slow_rounds: int, folder: Path
) -> dict[str, Any]:
    """Rows by method, the peaks and the goals."""
    subjects = {name: method.subject for name, method in compared.items()} | {PEAK: Subject(peak_runs)}
    workers = Workers(subjects, threads, folder)
    taken: dict[tuple[str, str], list[float]] = {}
    for turn in range(rounds):
        for subject, runs in workers.runs.items():
            slow = subject != PEAK and compared[subject].slow
            if slow and turn >= slow_rounds:
                continue
            for run in runs:
                # A frame of a slow one would take minutes to warm up what its tile has warmed already.
                warm_up = 0 if slow and (turn or run == FRAME) else 1
                seconds = workers.seconds(subject, run, warm_up=warm_up)
                taken.setdefault((subject, run), []).append(seconds)
                click.echo(f"round {turn + 1}: {subject}, {run}: {1e3 * seconds:.2f} ms")
    peaks = {
        name: convolution_peak(threads, integer=name == "int8")[1] / min(taken[PEAK, name]) / 1e9
        for name in workers.runs[PEAK]
    }
    rows = {}
    for name, method in compared.items():
        times = {run: Times(tuple(taken[name, run])) for run in (TILE, FRAME)}
        row: dict[str, Any] = {run: found.summary() for run, found in times.items()}
        if method.gflop is not None and method.precision is not None:
            rate = method.gflop / times[TILE].median
            row |= {"gflop": round(method.gflop, 3), "gflop_per_s": round(rate, 1)}
            row["share_of_peak"] = round(rate / peaks[method.precision], 3)
        rows[name] = row | {"quality": method.quality}
    found = [{**asdict(goal), "met": goal.met} for goal in goals(rows)]
    return {"peaks": {name: round(rate, 1) for name, rate in peaks.items()}, "rows": rows, "goals": found}


@click.command()
@click.option("--peer", type=click.Path(path_type=Path, exists=True), help="A .param of ncnn with its .bin beside it.")
@click.option("--threads", default=2, show_default=True)
@click.option("--rounds", default=15, show_default=True)
@click.option("--slow-rounds", default=2, show_default=True, help="Of the published networks.")
@click.option("--json", "json_path", required=True, type=click.Path(path_type=Path))
def main(peer: Path | None, threads: int, rounds: int, slow_rounds: int, json_path: Path) -> None:
    """Measure, print and store."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        compared = dict(methods(make_graphs(threads, folder)[WHOLE], peer))
        document = {
            "machine": cpu_name(),
            "threads": threads,
            "tile": f"{SIDE}x{SIDE}",
            "frame": "x".join(map(str, SIZE)),
            "quality_set": SET,
            "versions": versions(),
            **measure(compared, threads, rounds, slow_rounds, folder),
        }
    for goal in document["goals"]:
        click.echo(f"{'met' if goal['met'] else 'MISSED'}: {goal['name']}: {goal['measured']:.3g}, {goal['wanted']:g}")
    json_path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
