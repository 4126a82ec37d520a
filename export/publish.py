"""A finished run becomes a model that ships: bundles, training record and credits under rsd_edge/zoo.

    python -P -m rsd_edge.export.publish --run runs/edge-s --credits train.csv --licence Apache-2.0

The model card beside them is written by hand: it holds judgement as well as figures.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from rsd_edge.bundle import WEIGHTS_FILE, ZOO, Bundle, load_bundle
from rsd_edge.distill.run_log import LOG_FILE
from rsd_edge.distill.stages import STAGES
from rsd_edge.errors import InputError, ModelError
from rsd_edge.export.build import Provenance, build_engine
from rsd_edge.models.checkpoint import load_checkpoint
from rsd_edge.specs import Precision
from rsd_edge.stream.atomic import atomic_file, make_folder, write_json

RECORD_FILE = "training.json"
CREDITS_FILE = "credits.csv"
PRECISIONS = (Precision.FP32, Precision.INT8)
CREDIT_FIELDS = ("photo_id", "author", "licence", "licence_stated_in", "source_repo", "source_file")


def publish(run: Path, credits: Path, licence: str, zoo: Path = ZOO, *, stage_name: str = "") -> list[Bundle]:
    """Write `zoo`/<model name> from the run's last stage: an engine in fp32, and one in INT8.

    Of a fine-tune of the model that `zoo` has, record and credits are that model's, with one stage more, under
    `stage_name`, and its photographs. The folder is replaced as a whole once both engines are done; of what it held,
    only files of other names, such as the model card, stay. Raises ModelError for a run that is not finished and for a
    record that would have a gap, InputError for a bad credits file and a name that is missing, taken or of no use,
    BackendError if one of the engines cannot be built, OutputError if the folder cannot be written.
    """
    photos = _credits(credits)
    folders = [run / stage for stage in STAGES if (run / stage).is_dir()]
    if not folders:
        raise ModelError(f"{run} holds no finished stage; run 'rsd-edge distill' first")
    latest, weights = _stage(folders[-1]), folders[-1] / WEIGHTS_FILE
    home = zoo / load_checkpoint(weights).spec.name
    if "started_from" in latest:
        stages = _continued(home, latest, stage_name)
        photos = _united(home / CREDITS_FILE, photos)
    elif stage_name:
        raise InputError(f"--stage-name is {stage_name}, but {run} is no fine-tune of a model that ships; leave it out")
    else:
        stages = {folder.name: _stage(folder) for folder in folders}
    said = Provenance(
        licence,
        {"record": f"../{RECORD_FILE}", "photographs": f"../{CREDITS_FILE}", "photographs_used": len(photos)},
        model=WEIGHTS_FILE,  # not where they lie on this machine
    )
    make_folder(zoo)
    with tempfile.TemporaryDirectory(prefix=f".{home.name}-", dir=zoo) as temporary:
        fresh = Path(temporary) / "new"
        for precision in PRECISIONS:
            build_engine(str(weights), fresh, precision=precision, name=precision.value, provenance=said)
        write_json(fresh / RECORD_FILE, stages)
        with atomic_file(fresh / CREDITS_FILE) as file:
            file.write(credits_table(photos).encode())
        _replace(home, fresh, aside=Path(temporary) / "old")
    return [load_bundle(home / precision.value) for precision in PRECISIONS]


def _replace(home: Path, fresh: Path, aside: Path) -> None:
    if home.is_dir():
        for path in home.iterdir():
            if path.is_file() and not (fresh / path.name).exists():
                shutil.copy2(path, fresh)
        os.replace(home, aside)
    try:
        os.replace(fresh, home)
    except OSError:
        if aside.is_dir():
            os.replace(aside, home)
        raise


def _stage(folder: Path) -> dict[str, Any]:
    """The record of one stage: its configuration and time, and the validation figures along the way."""
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        raise ModelError(f"stage {folder.name} of {folder.parent} is not finished; run 'rsd-edge distill' again")
    record = dict(load_checkpoint(weights).record)
    config = record.pop("config")
    record["config"] = {"seed": config["seed"], "precision": config["precision"], **config[record["stage"]]}
    record["data"] = {key: value for key, value in config["data"].items() if key not in ("train", "val")}
    rows = [json.loads(line) for line in (folder / LOG_FILE).read_text(encoding="utf-8").splitlines()]
    record["validation"] = [{"iteration": row["iteration"], **row["validation"]} for row in rows if "validation" in row]
    return record


def _continued(home: Path, latest: dict[str, Any], name: str) -> dict[str, Any]:
    """The stages of what is in `home`, and then one that began with it."""
    begun = latest["started_from"]
    shipped = load_bundle(home / Precision.FP32.value) if home.is_dir() else None
    if shipped is None or begun.get("digest") != shipped.digest:
        said = ", ".join(f"{key} {value}" for key, value in begun.items())
        raise ModelError(
            f"the fine-tune began with {said}, not with the model in {home}, so the record would have a gap; begin it "
            f"with finetune_from={home.name}"
        )
    before: dict[str, Any] = json.loads((home / RECORD_FILE).read_text(encoding="utf-8"))
    if not name:
        raise InputError(f"give this stage a name with --stage-name; the record has {', '.join(before)} already")
    if name in before:
        raise InputError(f"--stage-name is {name}, and the record has {', '.join(before)} already; choose another one")
    return {**before, name: latest}


def _united(credits: Path, photos: Iterable[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """The photographs of a published table, and those that are not among them."""
    with credits.open(encoding="utf-8", newline="") as file:
        rows: list[Mapping[str, str]] = list(csv.DictReader(file))
    known = {_source(row) for row in rows}
    return [*rows, *(photo for photo in photos if _source(photo) not in known)]


def _source(photo: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(photo[name] for name in ("source_repo", "source_file", "photo_id"))


def _credits(path: Path) -> list[Mapping[str, str]]:
    """One row a photograph, from a table with one row a crop."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    missing = [name for name in CREDIT_FIELDS if not rows or name not in rows[0]]
    if missing:
        raise InputError(f"credits file {path} lacks the columns {', '.join(missing)}")
    photos: dict[str, Mapping[str, str]] = {}
    for row in rows:
        publisher = row["source_repo"].rstrip("/").split("github.com/")[-1]
        named = row["author"] or f"not named; published by {publisher}"
        photos.setdefault(row["photo_id"], {**row, "author": named})
    return list(photos.values())


def credits_table(photos: Iterable[Mapping[str, str]]) -> str:
    """CSV with the columns CREDIT_FIELDS, one row a photograph."""
    table = io.StringIO()
    writer = csv.DictWriter(table, CREDIT_FIELDS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(photos)
    return table.getvalue()


@click.command()
@click.option("--run", required=True, type=click.Path(path_type=Path, exists=True), help="Folder of a finished run.")
@click.option("--credits", "credit_table", required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--licence", required=True, help="Licence of the weights, an SPDX name.")
@click.option("--stage-name", default="", help="Of a fine-tune of the shipped model: its name in the record.")
def main(run: Path, credit_table: Path, licence: str, stage_name: str) -> None:
    """Publish a finished run into the package."""
    for bundle in publish(run, credit_table, licence, stage_name=stage_name):
        click.echo(f"{bundle.path}: {bundle.manifest['parity']}, {bundle.manifest['speed']}")


if __name__ == "__main__":
    main()
