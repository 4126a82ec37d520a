"""The shipped INT8 engines on bare tiles of several sizes, in one run: what a halo costs, and what waits for memory.

python benchmarks/tile_sizes.py --threads 2 --json benchmarks/reports/tile-sizes.json
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
from origin import origin

from rsd_edge.bench.subjects import Wish, tile_run
from rsd_edge.bench.timing import Effort, take_turns
from rsd_edge.bundle import resolve_engine, shipped_engines
from rsd_edge.specs import Backend, Precision
from rsd_edge.stream.atomic import write_json

BARE = 64
SIDES = (64, 96, 128, 160, 208, 256)
_BURST = 5
"""Runs in a turn, after as many that do not count: a small tile is over before sleeping threads are back."""


def measure(model: str, threads: int, rounds: int) -> dict[str, Any]:
    """By side: the time of a tile, and of as much as a bare 64x64 tile, with the halo and without."""
    wishes = {side: Wish(model, Precision.INT8.value, Backend.ONNXRUNTIME.value, tile=side) for side in SIDES}
    with ExitStack() as stack:
        engines = {side: stack.enter_context(wish.load(threads)).engine for side, wish in wishes.items()}
        runs = {str(side): tile_run(engine, side) for side, engine in engines.items()}
        times = take_turns(runs, Effort(rounds), runs=_BURST, warm_up=_BURST)
    halo = resolve_engine(model, Precision.INT8).spec.model.halo
    return {
        str(side): {
            **times[str(side)].summary(),
            "per_64x64": round(1e3 * times[str(side)].median * BARE**2 / side**2, 3),
            "per_64x64_without_halo": round(1e3 * times[str(side)].median * BARE**2 / (side - 2 * halo) ** 2, 3),
        }
        for side in SIDES
    }


@click.command()
@click.option("--threads", default=2, show_default=True)
@click.option("--rounds", default=15, show_default=True)
@click.option("--json", "json_path", required=True, type=click.Path(path_type=Path))
def main(threads: int, rounds: int, json_path: Path) -> None:
    """Measure, print and store."""
    document = {
        **origin(),
        "threads": threads,
        "tiles": {model: measure(model, threads, rounds) for model in shipped_engines()},
    }
    click.echo(json.dumps(document["tiles"], indent=1))
    write_json(json_path, document)


if __name__ == "__main__":
    main()
