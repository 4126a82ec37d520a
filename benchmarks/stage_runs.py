"""What bench_stages.py runs: parts of a shipped graph, and what is around them, on the tiles of a frame."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import onnx
from onnx.utils import Extractor
from turns import Job, scratch

from rsd_edge.bench.cost import convolution_flops, session
from rsd_edge.bench.peaks import CONVOLUTION, COPY
from rsd_edge.bench.peer import bicubic_run
from rsd_edge.bench.subjects import picture
from rsd_edge.bundle import resolve_engine
from rsd_edge.frames import SCALE, ParallelCompositor
from rsd_edge.kernels import traffic
from rsd_edge.noise import NoiseField
from rsd_edge.pipeline import TileNoise
from rsd_edge.specs import Precision, TileSpec
from rsd_edge.tiling import TileMerger, TilePlan, TileReader, plan_tiles

PARTS = ("stem", "generator", "decoder", "whole network")
_FLOAT, _RGB = 4, 3


@dataclass(frozen=True)
class Where:
    """The frame whose tiles a stage works on."""

    model: str
    width: int
    height: int
    threads: int
    tile: int | None = None

    def plan(self) -> TilePlan:
        """As the engine's frame path cuts it."""
        return plan_tiles(self.height, self.width, TileSpec.of(resolve_engine(self.model).spec.model, self.tile))


def one_tile(model: str, side: int, threads: int) -> Where:
    """The frame that is one tile of side x side once it has its halo."""
    core = side - 2 * resolve_engine(model).spec.model.halo
    return Where(model, core, core, threads, side)


def part(where: Where, precision: str, name: str) -> Job:
    """One of PARTS on ONNX Runtime, on all tiles of the frame, one at a time. Each part quantises its own inputs."""
    plan = where.plan()
    graph = _split(onnx.load(resolve_engine(where.model, Precision(precision)).graph_path), name)
    path = scratch() / "part.onnx"
    onnx.save(graph, path)
    opened, rng = session(graph, where.threads), np.random.default_rng(0)
    feeds = {
        item.name: rng.standard_normal((1, int(item.shape[1]), plan.tile_h, plan.tile_w), np.float32)
        for item in opened.get_inputs()
    }
    operations = plan.count * convolution_flops(path, 1, plan.tile_h, plan.tile_w)

    def run() -> None:
        for _ in range(plan.count):
            opened.run(None, feeds)

    return Job(run, operations, peak=CONVOLUTION[precision], threads=where.threads)


def _split(graph: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The exported tile concatenates before the generator and before the decoder; there it is cut."""
    inferred = onnx.shape_inference.infer_shapes(graph)
    joins = {node.name: node for node in graph.graph.node if node.op_type == "Concat"}
    z_y, z0 = joins["/Concat"].input[0], joins["/decoder/Concat"].input[0]
    cuts = {
        "stem": (["lq"], [z_y]),
        "generator": ([z_y, "noise", "lq"], [z0]),
        "decoder": ([z0, "lq"], ["detail"]),
        "whole network": (["lq", "noise"], ["detail"]),
    }
    return Extractor(inferred).extract_model(*cuts[name])


def gather(where: Where) -> Job:
    """The frame to float tiles with their halos."""
    plan, frame = where.plan(), picture(where.width, where.height)
    reader = TileReader(plan, frame.dtype)
    lq = np.empty((1, _RGB, plan.tile_h, plan.tile_w), np.float32)

    def run() -> None:
        reader.load(frame)
        for index in range(plan.count):
            reader.read([index], lq)

    return Job(run, moved=traffic.frame_tiles(plan, _FLOAT).minimum, peak=COPY, threads=where.threads)


def noise(where: Where) -> Job:
    """Drawn for every tile: a frame with a seed of its own."""
    plan, channels = where.plan(), resolve_engine(where.model).spec.model.noise_channels
    drawn = TileNoise(plan, plan.count, 1, (1, channels, plan.tile_h, plan.tile_w))
    seeds = iter(range(1 << 62))

    def run() -> None:
        field = NoiseField(next(seeds))
        for index in range(plan.count):
            drawn.batch(field, index, range(index, index + 1))

    moved = traffic.noise_field(plan.count, channels, plan.tile_h * plan.tile_w, _FLOAT).minimum
    return Job(run, moved=moved, peak=COPY, threads=where.threads)


def merge(where: Where) -> Job:
    """Seams of all tiles. The detail is zero: it is faded in place, and what is not would end as denormals."""
    plan = where.plan()
    merger, detail = TileMerger(plan), np.zeros((SCALE * plan.tile_h, SCALE * plan.tile_w, _RGB), np.float32)

    def run() -> None:
        for index in range(plan.count):
            merger.merge(index, detail)

    return Job(run)


def base(where: Where) -> Job:
    """OpenCV's bicubic enlargement of the frame, alone."""
    pixels = where.width * where.height
    run = bicubic_run(where.width, where.height, where.threads)
    return Job(run, moved=_RGB * (1 + SCALE**2) * pixels, peak=COPY, threads=where.threads)


def finish(where: Where) -> Job:
    """Merge, bicubic base and their sum, as the frame path does them."""
    plan, frame = where.plan(), picture(where.width, where.height)
    merger, detail = TileMerger(plan), np.zeros((SCALE * plan.tile_h, SCALE * plan.tile_w, _RGB), np.float32)
    pool = ThreadPoolExecutor(max(1, where.threads - 1))
    compositor = ParallelCompositor(*plan.largest_region(), frame.dtype, pool, where.threads)
    out = np.empty((SCALE * where.height, SCALE * where.width, _RGB), np.uint8)

    def run() -> None:
        for index in range(plan.count):
            compositor.add(frame, plan.finished(index), merger.merge(index, detail), 1.0, out)

    return Job(run, moved=traffic.merge_tiles(plan, _FLOAT).minimum, peak=COPY, threads=where.threads)
