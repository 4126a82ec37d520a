"""What `rsd-edge bench` found out of engines here, kept for the forecast of `rsd-edge doctor`.

Each engine has a file for each size of its tiles and each number of threads, so that a run on one thread takes nothing
away from what is known of two; and a run replaces another only if it tells as much.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rsd_edge.bench import environment
from rsd_edge.bench.compare import LEAST_RUNS
from rsd_edge.bench.latency import LatencyModel
from rsd_edge.bench.others import disturbance
from rsd_edge.bench.reading import FORMAT
from rsd_edge.errors import InputError, OutputError
from rsd_edge.machine import cache_folder
from rsd_edge.stream.atomic import make_folder, write_json

log = logging.getLogger(__name__)

Kept = dict[str, Any]


def keep_report(document: Mapping[str, Any]) -> list[str]:
    """Remember a report for `forecast`, and say where an earlier one stays because it tells more.

    Without a home or room to write nothing is kept, and the forecast measures instead.
    """
    notes = []
    try:
        for label, threads, entry in _entries(document):
            path = kept_path(entry["engine"], threads)
            earlier = _usable(path)
            if earlier is not None and _worth(earlier) > _worth(entry):
                where = f"{label} on {threads} thread{'s' if threads > 1 else ''}"
                notes.append(
                    f"'rsd-edge doctor' stays with the report of {earlier['date']} for {where}, which "
                    f"{_advantage(earlier, entry)}; remove {path} to forget it"
                )
            else:
                make_folder(path.parent)
                write_json(path, entry)
    except (RuntimeError, OutputError) as error:
        log.info("the report cannot be kept for the forecast of 'rsd-edge doctor' (%s)", error)
    return notes


def kept_path(engine: Mapping[str, Any], threads: int) -> Path:
    """Of an engine, by its record. Raises RuntimeError where the user has no home."""
    name = f"bench-{engine['digest'][:16]}-{engine['backend']}-{engine['tile']}-{threads}.json"
    return cache_folder() / name


def read_kept(path: Path) -> Kept:
    """Raises InputError for anything but what `keep_report` wrote."""
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
        if entry["format"] != FORMAT:
            raise ValueError(f"format {entry['format']}")
        if LatencyModel.from_json(entry["latency"]).error is None:
            raise ValueError("no frame tells the error")
        _worth(entry)
        if not all(isinstance(entry[name], dict) for name in ("machine", "versions")) or not entry["date"]:
            raise TypeError("no origin")
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} cannot be read ({error}); measure again") from error
    return dict(entry)


def outdated(entry: Kept) -> str:
    """What changed since, so that it says nothing any more; empty if nothing did."""
    here = environment.machine()
    changed = [name for name in environment.SAME if entry["machine"].get(name) != here[name]]
    if changed:
        return f"{', '.join(changed)} changed"
    return "versions changed" if entry["versions"] != environment.versions() else ""


def _entries(document: Mapping[str, Any]) -> Iterator[tuple[str, int, Kept]]:
    """By label and number of threads, without what has no frame to tell the model's error by."""
    for label, latency in document["latency"].items():
        model = LatencyModel.from_json(latency)
        for threads in model.seconds:
            frames = [row for row in document["frames"] if (row["engine"], row["threads"]) == (label, threads)]
            if frames:
                yield (
                    label,
                    threads,
                    {
                        "format": FORMAT,
                        "date": document["date"],
                        "machine": document["machine"],
                        "versions": document["versions"],
                        "engine": document["engines"][label],
                        "threads": threads,
                        "load": document["load"],
                        "pixels": max(row["width"] * row["height"] for row in frames),
                        "runs": min(len(row["seconds"]) for row in frames),
                        "latency": model.on(threads).to_json(),
                    },
                )


def _usable(path: Path) -> Kept | None:
    try:
        entry = read_kept(path)
    except InputError:
        return None
    return None if outdated(entry) else entry


def _worth(entry: Kept) -> tuple[bool, bool, int]:
    """What counts most comes first: whether other programs slowed it down, enough runs, how large a frame it saw."""
    quiet = disturbance(entry["load"], int(entry["threads"])) is None
    return quiet, int(entry["runs"]) >= LEAST_RUNS, int(entry["pixels"])


def _advantage(earlier: Kept, entry: Kept) -> str:
    """The first thing in which it is worth more."""
    reasons = ("no other program disturbed", "has more runs", "has larger frames")
    pairs = zip(_worth(earlier), _worth(entry), reasons, strict=True)
    return next(reason for had, has, reason in pairs if had != has)
