"""All shipped engines on all backends beside a published model, in one run: a tile, a frame, and where the time goes.

    python -P benchmarks/compare_engines.py --peer PARAM BIN --threads 2 --json benchmarks/reports/engines.json

Every figure is taken in turns with the others, so ratios hold even where the machine's speed does not. The frame goes
through the whole path of `rsd-edge run` but for file I/O: halo, noise, engine, merge, bicubic base. The peer's frame is
its network alone, on the whole frame without tiles.
"""

from __future__ import annotations

import importlib.metadata
import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from rsd_edge import SuperResolver, __version__
from rsd_edge.backends import open_engine
from rsd_edge.backends.base import TileEngine
from rsd_edge.bench.cost import convolution_flops
from rsd_edge.bench.peaks import convolution_peak
from rsd_edge.bench.peer import NcnnPeer
from rsd_edge.bench.subjects import tile_run
from rsd_edge.bench.timing import Effort, Run, Times, take_turns
from rsd_edge.bundle import resolve_engine, shipped_engines, shipped_precisions
from rsd_edge.machine import cpu_name
from rsd_edge.specs import Backend, Precision, TileSpec

TILE = 64
FRAME = (180, 320)
TILE_SIZES = (64, 96, 128, 160, 208, 256)
PEER = "peer"


def engines_here() -> list[tuple[str, Precision, Backend]]:
    """Every shipped engine on every installed backend."""
    return [
        (name, precision, backend)
        for name in shipped_engines()
        for precision in shipped_precisions(name)
        for backend in (Backend.ONNXRUNTIME, Backend.OPENVINO)
    ]


def label(name: str, precision: Precision, backend: Backend) -> str:
    return f"{name} {precision.value} {backend.value}"


class Comparison:
    """Rows measured together."""

    def __init__(self, threads: int, peer: tuple[Path, Path] | None, rounds: int) -> None:
        self.threads, self.effort = threads, Effort(rounds)
        self.peer = NcnnPeer(*peer, threads) if peer else None
        self.peaks: dict[str, float] = {}

    def measure_peaks(self) -> dict[str, float]:
        """Best convolution rate of the machine in GFLOP/s (or GOP/s), float32 and INT8."""
        runs = {name: convolution_peak(self.threads, integer=name == "int8") for name in ("fp32", "int8")}
        times = take_turns({name: run for name, (run, _) in runs.items()}, self.effort, runs=3)
        self.peaks = {name: round(runs[name][1] / min(times[name].seconds) / 1e9, 1) for name in runs}
        return self.peaks

    def tiles(self) -> dict[str, Any]:
        """One 64x64 tile on every engine, beside the peer."""
        with ExitStack() as stack:
            subjects: dict[str, Run] = {}
            flops: dict[str, int] = {}
            for row in engines_here():
                engine = stack.enter_context(self._engine(*row, TILE, self.threads))
                subjects[label(*row)] = tile_run(engine, TILE)
                flops[label(*row)] = convolution_flops(resolve_engine(row[0], row[1]).graph_path, 1, TILE, TILE)
            if self.peer:
                rgb = np.random.default_rng(0).random((3, TILE, TILE), np.float32)
                subjects[PEER] = self.peer.network(rgb)
            times = take_turns(subjects, self.effort, runs=10, warm_up=5)
        return {name: self._row(name, taken, times, flops.get(name)) for name, taken in times.items()}

    def frames(self) -> dict[str, Any]:
        """One 320x180 frame through the whole path on every engine, beside the peer's network."""
        frame = np.random.default_rng(0).integers(0, 256, (*FRAME, 3), dtype=np.uint8)
        out = np.empty((4 * FRAME[0], 4 * FRAME[1], 3), np.uint8)
        with ExitStack() as stack:
            subjects: dict[str, Run] = {}
            for name, precision, backend in engines_here():
                options = {"precision": precision, "backend": backend, "threads": self.threads}
                resolver = stack.enter_context(SuperResolver.load(name, **options))
                resolver.warm_up(*FRAME)
                subjects[label(name, precision, backend)] = lambda resolver=resolver: resolver(frame, out=out)
            if self.peer:
                subjects[PEER] = self.peer.network(np.random.default_rng(0).random((3, *FRAME), np.float32))
            times = take_turns(subjects, self.effort)
        return {name: self._row(name, taken, times, None) for name, taken in times.items()}

    def threads_table(self) -> dict[str, Any]:
        """A 64x64 tile on one thread, and on every further one that was asked for."""
        with ExitStack() as stack:
            subjects = {}
            for name, precision, backend in engines_here():
                if backend is Backend.ONNXRUNTIME:
                    for threads in range(1, self.threads + 1):
                        engine = stack.enter_context(self._engine(name, precision, backend, TILE, threads))
                        subjects[f"{name} {precision.value}, {threads} threads"] = tile_run(engine, TILE)
            times = take_turns(subjects, self.effort, warm_up=5)
        return {name: taken.summary() for name, taken in times.items()}

    def sizes_table(self) -> dict[str, Any]:
        """Tiles of several sizes: the tile, its halo taken off, and the time for as much as a bare 64x64 tile."""
        table = {}
        for name, precision, backend in engines_here():
            if precision is not Precision.INT8 or backend is not Backend.ONNXRUNTIME:
                continue
            halo = resolve_engine(name, precision).spec.model.halo
            with ExitStack() as stack:
                engines = [self._engine(name, precision, backend, side, self.threads) for side in TILE_SIZES]
                subjects = {
                    str(side): tile_run(stack.enter_context(engine), side)
                    for side, engine in zip(TILE_SIZES, engines, strict=True)
                }
                times = take_turns(subjects, self.effort)
            for side in TILE_SIZES:
                seconds, useful = times[str(side)].median, side - 2 * halo
                table[f"{name} {precision.value} {side}x{side}"] = {
                    **times[str(side)].summary(),
                    "per_64x64": round(1e3 * seconds * TILE**2 / side**2, 3),
                    "per_64x64_without_halo": round(1e3 * seconds * TILE**2 / useful**2, 3),
                }
        return table

    def _engine(self, name: str, precision: Precision, backend: Backend, side: int, threads: int) -> TileEngine:
        bundle = resolve_engine(name, precision)
        spec, model = replace(bundle.spec, backend=backend), bundle.spec.model
        tile = TileSpec(size=max(side, TILE), halo=model.halo, multiple_of=model.multiple_of)
        return open_engine(bundle.graph_path, spec, tile=tile, threads=threads)

    def _row(self, name: str, taken: Times, times: dict[str, Times], flops: int | None) -> dict[str, Any]:
        row: dict[str, Any] = {"ms": taken.summary()}
        if PEER in times:
            row["times_as_fast_as_peer"] = round(times[PEER].median / taken.median, 2)
        if flops is not None:
            rate = flops / taken.median / 1e9
            row |= {"gflop": round(flops / 1e9, 3), "gflop_per_s": round(rate, 1)}
            row["share_of_peak"] = round(rate / self.peaks["int8" if " int8 " in name else "fp32"], 3)
        return row


@click.command()
@click.option("--peer", nargs=2, type=click.Path(path_type=Path, exists=True), help="An ncnn .param and .bin.")
@click.option("--threads", default=2, show_default=True)
@click.option("--rounds", default=15, show_default=True)
@click.option("--json", "json_path", required=True, type=click.Path(path_type=Path))
def main(peer: tuple[Path, Path] | None, threads: int, rounds: int, json_path: Path) -> None:
    """Measure, print and store."""
    comparison = Comparison(threads, peer, rounds)
    document: dict[str, Any] = {
        "machine": cpu_name(),
        "threads": threads,
        "peer": peer[0].stem if peer else None,
        "versions": {name: importlib.metadata.version(name) for name in ("onnxruntime", "openvino", "numpy")}
        | {"rsd_edge": __version__},
        "engines": {
            f"{name} {precision.value}": resolve_engine(name, precision).digest
            for name in shipped_engines()
            for precision in shipped_precisions(name)
        },
    }
    parts = {
        "peak_gflop_per_s": comparison.measure_peaks,
        "tile_64x64": comparison.tiles,
        "frame_320x180": comparison.frames,
        "threads": comparison.threads_table,
        "tile_sizes": comparison.sizes_table,
    }
    for name, measure in parts.items():
        document[name] = measure()
        click.echo(f"{name}\n{json.dumps(document[name], indent=1)}")
    json_path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
