"""Two reports side by side: how much slower each row became, and how sure that is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsd_edge.bench import environment
from rsd_edge.bench.reading import timed_rows
from rsd_edge.errors import InputError
from rsd_edge.evaluate.bootstrap import CONFIDENCE, RESAMPLES, SEED, Interval

LEAST_RUNS = 5
"""With fewer, resampling says little more than what the fastest and the slowest run were."""

Report = Mapping[str, Any]


@dataclass(frozen=True)
class Change:
    """One row of both reports. Ratios are new over old: above 1 is slower."""

    name: str
    old_ms: float
    new_ms: float
    ratio: float
    low: float
    high: float
    judged: bool
    """An engine's row with enough runs. Peers and the machine's peaks are there to tell the machine from the engine."""
    slower: bool
    """Judged, and the whole interval lies above the threshold."""


@dataclass(frozen=True)
class Comparison:
    """Of a report with an older one."""

    old: str
    """Date and command of the older one."""
    threshold: float
    """Share by which a row may be slower."""
    changes: tuple[Change, ...]
    unmatched: tuple[str, ...]
    """Rows that only one of them has."""
    forced: tuple[str, ...]
    """Why they do not compare, if that was asked for all the same."""
    versions: tuple[str, ...]
    """What changed between them, such as `onnxruntime 1.30.0 -> 1.31.1`."""

    @property
    def slower(self) -> list[Change]:
        """Rows that became slower."""
        return [change for change in self.changes if change.slower]

    def to_json(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {**asdict(self), "confidence": CONFIDENCE, "resamples": RESAMPLES}


def differences(old: Report, new: Report) -> list[str]:
    """Why the times of two reports do not compare: what differs of machine, models and precisions, by name."""
    found = [
        f"{name} was {_shown(old['machine'].get(name))} and is {_shown(new['machine'].get(name))}"
        for name in environment.SAME
        if old["machine"].get(name) != new["machine"].get(name)
    ]
    if missing := sorted(set(old["engines"]) - set(new["engines"])):
        found.append(f"{', '.join(missing)} was measured and now is not")
    if added := sorted(set(new["engines"]) - set(old["engines"])):
        found.append(f"{', '.join(added)} was not measured before")
    for label in sorted(set(old["engines"]) & set(new["engines"])):
        digests = [str(report["engines"][label].get("digest"))[:12] for report in (old, new)]
        if digests[0] != digests[1]:
            found.append(f"{label} was {digests[0]} and is {digests[1]}")
    return found


def check_comparable(old: Report, new: Report, *, force: bool) -> list[str]:
    """What differs. Raises InputError if anything does, unless `force` is given. Needs machine and engines alone."""
    against = differences(old, new)
    if against and not force:
        raise InputError(f"the reports do not compare: {'; '.join(against)}; add --force to compare them all the same")
    return against


def compare(old: Report, new: Report, threshold: float, *, force: bool = False, seed: int = SEED) -> Comparison:
    """Every row of both. threshold: share by which a row may be slower, such as 0.05.

    Raises InputError for reports that do not compare, unless `force` is given.
    """
    against = check_comparable(old, new, force=force)
    before, after = timed_rows(old), timed_rows(new)
    rng = np.random.default_rng(seed)
    changes = [_change(name, before[name], after[name], threshold, rng) for name in after if name in before]
    if not changes:
        raise InputError("the reports have no row in common; measure the same --sizes with the same --threads")
    return Comparison(
        f"{old['date']}: {old['command']}",
        threshold,
        tuple(changes),
        tuple(sorted(set(before) ^ set(after))),
        tuple(against),
        tuple(_versions(old["versions"], new["versions"])),
    )


def ratio_interval(old: NDArray[np.float64], new: NDArray[np.float64], rng: np.random.Generator) -> Interval:
    """Interval of median(new) / median(old) at CONFIDENCE, by resampling the runs of both."""
    medians = [
        np.median(seconds[rng.integers(0, len(seconds), (RESAMPLES, len(seconds)))], axis=1) for seconds in (new, old)
    ]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(medians[0] / medians[1], [tail, 1 - tail])
    return Interval(float(low), float(high))


def _change(name: str, old: Report, new: Report, threshold: float, rng: np.random.Generator) -> Change:
    before, after = (np.array(row["seconds"], np.float64) for row in (old, new))
    low, high = ratio_interval(before, after, rng)
    medians = float(np.median(before)), float(np.median(after))
    of_engine = "peak" not in new and not new.get("peer")
    judged = of_engine and min(len(before), len(after)) >= LEAST_RUNS
    return Change(
        name,
        1e3 * medians[0],
        1e3 * medians[1],
        medians[1] / medians[0],
        low,
        high,
        judged,
        judged and low > 1 + threshold,
    )


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {item}" for name, item in value.items() if item is not None) or "unknown"
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return "unknown" if value is None else str(value)


def _versions(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[str]:
    for name in sorted(set(old) | set(new)):
        if old.get(name) != new.get(name):
            yield f"{name} {old.get(name, 'none')} -> {new.get(name, 'none')}"
