"""Quality of engines, of bicubic and of a published model on test sets with references, by the code of `rsd-edge eval`.

    python benchmarks/score_engine.py --engine edge-s:fp32 --engine edge-s:int8 --peer PARAM BIN
        --set NAME LR_DIR REF_DIR --set ... --json benchmarks/reports/quality.json

The file has the whole command.

Bicubic is the first engine at strength 0. With --seeds, `seed_std` is the standard deviation in grey
levels that another seed makes.
Rows that the JSON file holds already, of the same engine and images, are kept: a long run can be taken up again.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from origin import begun_report, origin

from rsd_edge import SuperResolver
from rsd_edge.bench.peer import NcnnPeer, peer_identity, peer_name
from rsd_edge.bench.quality import BICUBIC, BICUBIC_IDENTITY, identity_of
from rsd_edge.bundle import hash_file, resolve_engine
from rsd_edge.evaluate.catalogue import METRICS
from rsd_edge.evaluate.folder import evaluate_folders
from rsd_edge.specs import Precision
from rsd_edge.stream.atomic import write_json
from rsd_edge.stream.discovery import images_in
from rsd_edge.stream.images import read_image, write_image

Image = NDArray[np.uint8]
Scores = dict[str, float | None]
Enlarge = Callable[[Image], Image]
TestSet = tuple[str, Path, Path]


def score(enlarge: Enlarge, lq: Path, ref: Path, other_seed: Enlarge | None = None) -> Scores:
    """Mean scores over a folder, and what another seed changes."""
    deviations = []
    with tempfile.TemporaryDirectory() as folder:
        for path in images_in(lq):
            image = read_image(path)
            result = enlarge(image)
            write_image(Path(folder) / f"{path.stem}.png", result)
            if other_seed is not None:
                deviations.append(float((result.astype(np.int16) - other_seed(image)).std()) / 2**0.5)
        scores = evaluate_folders(Path(folder), ref, lq=lq)
    row = {metric: scores.mean(metric) for metric in METRICS}
    return row | ({"seed_std": float(np.mean(deviations))} if deviations else {})


def digest_of(*folders: Path) -> str:
    """SHA-256 of the images of some folders, with their names."""
    found = hashlib.sha256()
    for path in (path for folder in folders for path in images_in(folder)):
        found.update(f"{path.name} {hash_file(path)}\n".encode())
    return found.hexdigest()


def markdown(name: str, row: Scores) -> str:
    """One line of a table: METRICS in their order, empty where no image has a value."""
    cells = ["" if (value := row[key]) is None else f"{value:.{2 if key == 'psnr_y' else 3}f}" for key in METRICS]
    return f"| {name} | {' | '.join(cells)} |"


class Report:
    """The JSON document: for each set, a row for each method, with what identifies the method."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.document: dict[str, Any] = begun_report(path) | origin()

    def add(
        self, test_set: TestSet, method: str, identity: str, enlarge: Enlarge, other: Enlarge | None = None
    ) -> None:
        """Score one method on one set, unless that is known, with another seed if there is one."""
        name, lq, ref = test_set
        rows = self.document.setdefault("sets", {}).setdefault(name, {})
        made_from = {"identity": identity, "images": digest_of(lq, ref)}
        row = rows.get(method, {})
        if any(row.get(key) != value for key, value in made_from.items()) or (other and "seed_std" not in row):
            rows[method] = {**made_from, **score(enlarge, lq, ref, other)}
            write_json(self._path, self.document)
        click.echo(markdown(f"{name}: {method}", rows[method]))


@click.command()
@click.option("--engine", "engines", multiple=True, required=True, help="NAME or NAME:PRECISION.")
@click.option("--peer", nargs=2, type=click.Path(path_type=Path, exists=True), help="An ncnn .param and .bin.")
@click.option("--set", "sets", type=(str, click.Path(path_type=Path), click.Path(path_type=Path)), multiple=True)
@click.option("--json", "json_path", required=True, type=click.Path(path_type=Path))
@click.option("--threads", default=2, show_default=True)
@click.option("--seeds", is_flag=True, help="Another seed as well, for seed_std.")
def main(
    engines: tuple[str, ...],
    peer: tuple[Path, Path] | None,
    sets: tuple[TestSet, ...],
    json_path: Path,
    threads: int,
    seeds: bool,
) -> None:
    """Score all methods on every set."""
    report = Report(json_path)
    for position, engine in enumerate(engines):
        name, _, wish = engine.partition(":")
        bundle = resolve_engine(name, Precision(wish or "fp32"))
        with SuperResolver.load(name, precision=bundle.spec.precision, backend="onnxruntime", threads=threads) as one:
            for test_set in sets:
                if position == 0:
                    report.add(test_set, BICUBIC, BICUBIC_IDENTITY, lambda image: one(image, strength=0))
                method = f"{name} {bundle.spec.precision.value}"
                other = (lambda image: one(image, seed=1)) if seeds else None
                report.add(test_set, method, identity_of(bundle) or bundle.digest, one, other)
    if peer:
        network = NcnnPeer(*peer, threads)
        for test_set in sets:
            report.add(test_set, peer_name(peer[0]), peer_identity(peer[0]), network)


if __name__ == "__main__":
    main()
