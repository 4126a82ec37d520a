"""What bench_frames.py and bench_machine.py run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from turns import Job

from rsd_edge import SuperResolver
from rsd_edge.bench.peaks import CONVOLUTION, COPY, peaks
from rsd_edge.bench.subjects import Subject, Wish, frame_run
from rsd_edge.bundle import resolve_engine
from rsd_edge.specs import Precision
from rsd_edge.tiling import plan_tiles


def peak(name: str, threads: int) -> Job:
    """What the machine does at best, as a row of its own."""
    found = peaks(threads)[name]
    return Job(found.run, moved=found.amount) if name == COPY else Job(found.run, found.amount)


def frame(wish: Wish, width: int, height: int, threads: int) -> Job:
    """A whole frame through the path of `rsd-edge run` but for files."""
    subject, resolver = Subject.of(wish, threads), wish.load(threads)
    plan = plan_tiles(height, width, resolver.engine.tile)
    operations = subject.operations(plan.count, plan.tile_h, plan.tile_w)
    peak_name = None if operations is None else subject.peak  # without onnx there is neither
    return Job(frame_run(resolver, width, height), operations, peak=peak_name, threads=threads, frames=1)


def torch_frame(model: str, precision: str, width: int, height: int, threads: int) -> Job:
    """The same networks in torch, with random weights: what they cost does not depend on them."""
    from rsd_edge.backends.torch import TorchEngine
    from rsd_edge.models.checkpoint import Checkpoint, state_of
    from rsd_edge.models.edge import EdgeDecoder, EdgeGenerator, EdgeStem

    spec = resolve_engine(model).spec.model
    arch = spec.edge
    networks = {
        "stem": EdgeStem(arch),
        "student": EdgeGenerator(arch, noise_channel=True),
        "decoder": EdgeDecoder(arch),
    }
    checkpoint = Checkpoint(spec, {name: state_of(network) for name, network in networks.items()})
    run = frame_run(SuperResolver(TorchEngine(checkpoint, Precision(precision), threads)), width, height)
    return Job(run, torch_operations(run), peak=CONVOLUTION.get(precision), threads=threads, frames=1)


def torch_operations(run: Callable[[], Any]) -> int:
    """Of one run on torch: convolutions and matrix products, backward passes included."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())
