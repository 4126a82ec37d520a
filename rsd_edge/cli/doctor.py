"""`rsd-edge doctor`: what this machine has, and what can run on it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from rsd_edge.cli import FAILED
from rsd_edge.cli.paths import GivenPath
from rsd_edge.specs import Backend


@click.command("doctor")
@click.argument("folders", nargs=-1, metavar="[FOLDER]...", type=GivenPath(path_type=Path, exists=True))
@click.option(
    "--backend", type=click.Choice([backend.value for backend in Backend]), help="Fail if this one cannot run."
)
@click.option("--no-speed", is_flag=True, help="Leave out the rates to expect, which may take a few seconds.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def command(folders: tuple[Path, ...], backend: str | None, no_speed: bool, as_json: bool) -> int:
    """Tell what this machine has: GPU, TensorRT, video, cameras; which engines can run, and why others cannot.

    Every runtime that is installed is loaded to see whether it works, which takes seconds where torch is one of them.
    FOLDERs with engines are looked at besides those of the package, of --auto-build and ./engines. With --backend, the
    exit code is 2 if that backend cannot run here. The frames a second to expect come from the last report of
    `rsd-edge bench`, or from a few small frames enlarged now.
    """
    from rsd_edge.doctor import examine

    facts = examine(folders, speed=not no_speed)
    click.echo(json.dumps(facts, indent=2) if as_json else "\n".join(_lines(facts)))
    return FAILED if backend is not None and not facts["backends"][backend]["usable"] else 0


def _lines(facts: dict[str, Any]) -> Iterator[str]:
    cpu, gpu, opencv = facts["cpu"], facts["gpu"], facts["opencv"]
    yield f"rsd-edge    {facts['rsd_edge']}, Python {facts['python']}, {facts['system']}"
    yield f"cpu         {cpu['name']}, {cpu['cores']} cores, {' '.join(cpu['features']) or 'no features known'}"
    if facts["l4t"]:
        yield f"Jetson      {facts['l4t']}"
    if gpu["problem"]:
        yield f"gpu         {gpu['problem']}"
    else:
        memory = "shared with the CPU" if gpu["integrated"] else "its own"
        yield (
            f"gpu         {gpu['name']}, capability {gpu['capability']}, {gpu['memory_mib']} MiB ({memory}), "
            f"{gpu['free_mib']} free"
        )
        yield f"cuda        {gpu['cuda']}, driver {facts['driver'] or 'unknown'} serves {gpu['cuda_of_driver']}"
    tensorrt = facts["tensorrt"]
    yield f"tensorrt    {tensorrt['version'] or tensorrt['problem']}"
    yield f"opencv      {opencv['version'] or opencv['problem']}"
    gstreamer = facts["gstreamer"]
    yield f"gstreamer   {gstreamer['problem'] or 'through ' + gstreamer['through']}"
    pyav = facts["pyav"]
    yield f"pyav        {pyav['problem'] or pyav['version'] + ', encoders ' + (', '.join(pyav['encoders']) or 'none')}"
    cameras = [f"{camera['device']} ({camera['name']})" for camera in facts["cameras"]]
    yield f"cameras     {', '.join(cameras) or 'none'}"
    for name, backend in facts["backends"].items():
        yield f"backend     {name}: {'usable' if backend['usable'] else backend['problem']}"
    if facts["engine_folder"]["problem"]:
        yield f"engine      those of --auto-build are not looked at: {facts['engine_folder']['problem']}"
    for engine in facts["engines"]:
        yield f"engine      {_engine(engine)}"
    if facts["speed"] is not None:
        yield from _speed(facts["speed"])


def _speed(speed: dict[str, Any]) -> Iterator[str]:
    if speed["problem"]:
        yield f"speed       {speed['problem']}"
        return
    rates = ", ".join(f"{size} {rate:g}" for size, rate in speed["fps"].items())
    yield f"speed       {speed['engine']}, {speed['threads']} threads, frames a second to expect: {rates}"
    yield f"            from what its tiles cost: {speed['source']}"
    frames = " and ".join(dict.fromkeys(name.partition(" ")[0] for name in speed["held_out"]))
    yield (
        f"            checked on {frames}, left out of that: the computed time of such a frame is off by up to "
        f"{speed['error']:.0%} of the measured one, in four runs of five"
    )
    if speed["warning"]:
        yield f"warning     {speed['warning']}"


def _engine(engine: dict[str, Any]) -> str:
    what = " ".join(filter(None, (engine["backend"], engine["precision"])))
    state = "; ".join(engine["why"]) if engine["why"] else "usable"
    stale = f", but stale: {'; '.join(engine['stale'])}" if engine["stale"] and engine["usable"] else ""
    return f"{engine['path']} ({what or 'unknown'}): {state}{stale}"
