"""One iteration of the student stage: where its time goes, and the same beside a plain transcription of Algorithm 1.

    python benchmarks/distill_step.py --config rsd-imagenet256 --set student.fake_steps=1 --samples 1 --rounds 4
        --json benchmarks/reports/distill-step.json

Both variants start from the same weights and take the same samples and noise, iteration by iteration in turns, each in
a process of its own, whose peak memory is its own; both must fit at once. The losses of the first iteration are those
of equal weights; later ones drift apart, since Adam makes a whole step of a gradient that is nothing but rounding.
Networks have random weights: what they cost does not depend on them.
"""

from __future__ import annotations

import itertools
import multiprocessing
import resource
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import click
from origin import origin

from rsd_edge.cli.distill import find_config
from rsd_edge.stream.atomic import write_json

LOSSES = ("fake", "discriminator", "distill", "gan", "lpips")


@dataclass(frozen=True)
class Job:
    """What one process measures."""

    plain: bool
    config: str
    overrides: tuple[str, ...]
    device: str | None
    samples: int
    rounds: int
    warmup: int
    threads: int


def measure(job: Job, turn: Callable[[], object]) -> dict[str, Any]:
    """Seconds, losses and peak memory of one variant; `turn` is called before each iteration, and may wait."""
    import torch

    from rsd_edge.distill.config import load_config
    from rsd_edge.distill.loop import draws
    from rsd_edge.distill.roles import random_teacher
    from rsd_edge.distill.runtime import Runtime
    from rsd_edge.distill.stages import prepare_torch
    from rsd_edge.distill.stages.student import StudentStage

    config = load_config(find_config(job.config), job.overrides)
    config = replace(config, threads=job.threads, student=replace(config.student, batch=job.samples, accumulate=1))
    prepare_torch(config)
    runtime = Runtime(job.device, config.precision)
    torch.manual_seed(config.seed)
    make = _plain_stage() if job.plain else StudentStage
    stage = make(config, runtime, random_teacher(config))
    batches = itertools.repeat(made_up(config.crop_of(stage.stage), job.samples))
    clock: dict[str, float] = defaultdict(float)
    seconds, losses = [], []
    for iteration in range(job.warmup + job.rounds):
        if iteration == job.warmup:
            clock.clear()
        turn()
        began = _now(torch, runtime.device)
        with _timed(stage, clock, torch):
            scalars = stage.step(iteration, draws(stage, batches, iteration))
        if iteration >= job.warmup:
            seconds.append(_now(torch, runtime.device) - began)
        losses.append({name: float(value) for name, value in scalars.items()})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if runtime.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(runtime.device)
    shares = {name: spent / job.rounds for name, spent in clock.items()}
    shares["the rest"] = statistics.mean(seconds) - sum(shares.values())
    return {"seconds": seconds, "losses": losses, "peak_mb": round(peak / 1e6), "breakdown_seconds": shares}


def in_turns(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """What `measure` returns for each, in processes of their own that never compute at the same time.

    Raises EOFError if one of them fails, which has then told why.
    """
    context = multiprocessing.get_context("spawn")
    ends: list[Connection] = []
    for job in jobs:
        here, there = context.Pipe()
        context.Process(target=_measure, args=(job, there), daemon=True).start()
        there.close()  # or the death of that process would go unnoticed
        here.recv()
        ends.append(here)
    for _ in range(jobs[0].warmup + jobs[0].rounds):
        results = []
        for end in ends:
            end.send(None)
            results.append(end.recv())
    return results


def _measure(job: Job, parent: Connection) -> None:
    def turn() -> None:
        parent.send(None)
        parent.recv()

    parent.send(measure(job, turn))


def _plain_stage() -> Any:
    """The module beside this file: the benchmarks are no package."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("plain_rsd", Path(__file__).with_name("plain_rsd.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.PlainStage


def made_up(crop: int, samples: int) -> Any:
    import torch

    from rsd_edge.distill.data import Batch

    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand((samples, 3, crop // 8, crop // 8), generator=generator).mul(2).sub(1)
    x0 = torch.nn.functional.interpolate(coarse, size=(crop, crop), mode="bicubic").clamp(-1, 1)
    return Batch(x0, torch.nn.functional.avg_pool2d(x0, 4))


def _now(torch: Any, device: Any) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def _timed(stage: Any, clock: dict[str, float], torch: Any) -> Iterator[None]:
    """Seconds of the networks' forward passes, of all backward passes and of the optimisers, while this is open."""
    device, hooks = stage.runtime.device, []

    def watch(name: str, owner: Any, method: str) -> None:
        original: Callable[..., Any] = getattr(owner, method)

        def call(*arguments: Any, **options: Any) -> Any:
            began = _now(torch, device)
            try:
                return original(*arguments, **options)
            finally:
                clock[name] += _now(torch, device) - began

        setattr(owner, method, call)
        hooks.append((owner, method, original))

    for network in _encoders(stage.latent):
        watch("encoder", *network)
    watch("decoder", stage.latent, "detail")
    watch("student forward", stage.student, "forward")
    watch("teacher forward", stage.teacher, "forward")
    for method in ("encode", "decode"):
        watch("fake model forward", stage.fake.denoiser, method)
    watch("LPIPS forward", stage.criterion.lpips, "forward")
    watch("all backward passes", torch.Tensor, "backward")
    for optimizer in stage.optimizers.values():
        watch("optimisers", optimizer, "step")
    try:
        yield
    finally:
        for owner, method, original in reversed(hooks):
            setattr(owner, method, original)


def _encoders(latent: Any) -> list[tuple[Any, str]]:
    if hasattr(latent, "autoencoder"):
        return [(latent.autoencoder, "encode")]
    return [(latent.encoder, "forward"), (latent.stem, "forward")]


def report(ours: dict[str, Any], plain: dict[str, Any], job: Job) -> dict[str, Any]:
    """Both variants side by side."""
    fastest = {name: min(which["seconds"]) for name, which in (("ours", ours), ("plain", plain))}
    settings = {name: value for name, value in asdict(job).items() if name != "plain"}
    return {
        **origin(),
        "threads": job.threads,
        "settings": settings,
        "seconds": {"ours": ours["seconds"], "plain": plain["seconds"]},
        "times_as_fast": round(fastest["plain"] / fastest["ours"], 3),
        "peak_mb": {"ours": ours["peak_mb"], "plain": plain["peak_mb"]},
        "breakdown_seconds": {"ours": ours["breakdown_seconds"], "plain": plain["breakdown_seconds"]},
        "losses": {"ours": ours["losses"], "plain": plain["losses"]},
        "loss_difference_at_equal_weights": differences(ours["losses"][:1], plain["losses"][:1]),
        "loss_difference_after_updates": differences(ours["losses"][1:], plain["losses"][1:]),
    }


def differences(ours: list[dict[str, float]], plain: list[dict[str, float]]) -> dict[str, float]:
    """The largest of each loss over some iterations."""
    pairs = list(zip(ours, plain, strict=True))
    return {name: max((abs(a[name] - b[name]) for a, b in pairs), default=0.0) for name in LOSSES}


@click.command()
@click.option("--config", default="edge-s", show_default=True, help="A ready-made configuration, or a YAML file.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE")
@click.option("--device", help="cpu, cuda or cuda:N.")
@click.option("--samples", default=4, show_default=True, help="Samples of a batch.")
@click.option("--rounds", default=3, show_default=True, help="Timed iterations.")
@click.option("--warmup", default=1, show_default=True, help="Iterations before; their losses are compared as well.")
@click.option("--threads", default=2, show_default=True)
@click.option("--json", "json_path", required=True, type=click.Path(path_type=Path))
def main(json_path: Path, **options: Any) -> None:
    """Measure and compare; fails if a loss differs by more than 1e-4 at equal weights."""
    job = Job(plain=False, **options)
    ours, plain = in_turns([replace(job, plain=plain) for plain in (False, True)])
    document = report(ours, plain, job)
    write_json(json_path, document)
    click.echo(f"{document['times_as_fast']} times as fast; peak memory {document['peak_mb']}")
    for name, spent in sorted(document["breakdown_seconds"]["ours"].items(), key=lambda item: -item[1]):
        click.echo(f"{name}: {spent:.3f} s, plain {document['breakdown_seconds']['plain'].get(name, 0):.3f} s")
    worst, later = (max(document[f"loss_difference_{when}"].values()) for when in ("at_equal_weights", "after_updates"))
    click.echo(f"largest difference of a loss: {worst:.1e} at equal weights, {later:.1e} in later iterations")
    if worst > 1e-4:
        raise click.ClickException("the two do not compute the same")


if __name__ == "__main__":
    main()
