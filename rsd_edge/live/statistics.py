"""What a live run counts and times; memory does not grow with its length."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

STAGES = ("capture", "pre", "engine", "post", "sink")
QUANTILES = (50, 95, 99)

_KEPT = 1 << 16
"""The last so many: at 30 frames per second, of 36 minutes."""
_RECENT = 90
_STALE = 1.0
"""Seconds without a frame after which a source that is open gives no signal."""


class Series:
    """The latest values of something in a ring, with the first of all, their number and sum."""

    def __init__(self) -> None:
        self._ring = np.empty(_KEPT, np.float64)
        self.count, self.total, self.first = 0, 0.0, 0.0

    def add(self, value: float) -> None:
        """Append one."""
        if not self.count:
            self.first = value
        self._ring[self.count % _KEPT] = value
        self.count += 1
        self.total += value

    def latest(self, most: int = _KEPT) -> NDArray[np.float64]:
        """Up to so many of the last values, oldest first."""
        most = min(most, self.count, _KEPT)
        return self._ring.take(np.arange(self.count - most, self.count), mode="wrap")

    def quantiles(self, most: int = _KEPT) -> dict[str, float] | None:
        """p50, p95, p99 and max of up to so many of the last values; None if there are none."""
        values = self.latest(most)
        if not len(values):
            return None
        found = np.percentile(values, [*QUANTILES, 100])
        return {name: float(value) for name, value in zip([f"p{q}" for q in QUANTILES] + ["max"], found, strict=True)}

    def rate(self, now: float) -> float:
        """Of times: how many a second, lately."""
        times = self.latest(_RECENT)
        if len(times) < 2:
            return 0.0
        # A source that has gone quiet becomes slower with each second, instead of keeping the rate it had.
        span = max(times[-1] - times[0], (now - times[0]) - 2 * (times[-1] - times[0]) / (len(times) - 1))
        return float((len(times) - 1) / span) if span > 0 else 0.0


class Statistics:
    """Counted by the threads of a run, read by whoever shows it. Times in seconds of the run's clock."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now, self._lock = now, threading.Lock()
        self.began = now()
        self.captures, self.results, self.latency = Series(), Series(), Series()
        self.stages = {name: Series() for name in STAGES}
        self.dropped = self.damaged = self.reconnects = self.size_changes = self.tiles = self.tiles_reused = 0
        self.open = False
        """The source is open, whether or not it gives frames."""
        self.size: tuple[int, int] | None = None
        """(width, height) of the source, as it was last."""
        self.result_size: tuple[int, int] | None = None

    def captured(self, at: float, seconds: float, size: tuple[int, int]) -> None:
        """One frame came after so many seconds of reading."""
        with self._lock:
            self.captures.add(at)
            self.stages["capture"].add(seconds)
            self.size_changes += self.size not in (None, size)
            self.size = size

    def stage(self, name: str, seconds: float) -> None:
        """A stage worked on one frame."""
        with self._lock:
            self.stages[name].add(seconds)

    def delivered(self, captured: float, size: tuple[int, int]) -> None:
        """A result has reached all sinks."""
        now = self._now()
        with self._lock:
            self.results.add(now)
            self.latency.add(now - captured)
            self.result_size = size

    def computed(self, tiles: int, reused: int) -> None:
        """Tiles of one frame."""
        with self._lock:
            self.tiles += tiles
            self.tiles_reused += reused

    @property
    def signal(self) -> str:
        """`live`, or `no signal` where the source is away or silent."""
        with self._lock:
            if not (self.open and self.captures.count):
                return "no signal"
            recent = self.captures.latest(_RECENT)
            usual = float(np.median(np.diff(recent))) if len(recent) > 2 else 0.0
            return "live" if self._now() - recent[-1] <= max(_STALE, 3 * usual) else "no signal"

    def now(self) -> dict[str, Any]:
        """For a display: the state, rates and the times of the last frames, in milliseconds."""
        signal = self.signal
        with self._lock:
            at = self._now()
            return {
                "signal": signal,
                "seconds": round(at - self.began, 3),
                "source": self.size,
                "result": self.result_size,
                "capture_fps": round(self.captures.rate(at), 2),
                "sr_fps": round(self.results.rate(at), 2),
                "captured": self.captures.count,
                "delivered": self.results.count,
                "dropped": self.dropped,
                "not_finished": self._not_finished(),
                "reconnects": self.reconnects,
                "tiles_reused": self._reused(),
                "latency_ms": _milliseconds(self.latency.quantiles(_RECENT)),
                "stages_ms": {name: _milliseconds(times.quantiles(_RECENT)) for name, times in self.stages.items()},
            }

    def report(self) -> dict[str, Any]:
        """Of the whole run; times of its last 65536 frames if there were more."""
        with self._lock:
            passed = self._now() - self.began
            return {
                "seconds": round(passed, 3),
                "source_size": self.size,
                "size_changes": self.size_changes,
                "result_size": self.result_size,
                "capture_fps": _mean_rate(self.captures),
                "sr_fps": _mean_rate(self.results, self.captures.first),
                "captured": self.captures.count,
                "delivered": self.results.count,
                "dropped": self.dropped,
                "damaged": self.damaged,
                "not_finished": self._not_finished(),
                "reconnects": self.reconnects,
                "tiles": self.tiles,
                "tiles_reused": self._reused(),
                "latency_ms": _milliseconds(self.latency.quantiles()),
                "stages_ms": {name: _milliseconds(times.quantiles()) for name, times in self.stages.items()},
            }

    def _not_finished(self) -> int:
        """Frames under way; at the end of a run, those that its end left without a result."""
        return self.captures.count - self.results.count - self.dropped

    def _reused(self) -> float:
        return round(self.tiles_reused / self.tiles, 4) if self.tiles else 0.0


def _mean_rate(times: Series, began: float | None = None) -> float | None:
    """A second, between the first and the last, and no more than all of them since `began`: frames that gathered while
    the first one was made come out at once, and make a short run look fast."""
    if times.count < 2:
        return None
    last = float(times.latest(1)[0])
    spans = [(times.count - 1, last - times.first)] + ([] if began is None else [(times.count, last - began)])
    rates = [count / span for count, span in spans if span > 0]
    return round(min(rates), 3) if rates else None


def _milliseconds(found: dict[str, float] | None) -> dict[str, float] | None:
    return None if found is None else {name: round(1000 * value, 3) for name, value in found.items()}


def prometheus(statistics: Statistics) -> str:
    """The same in Prometheus' text format, times in seconds as is usual there."""
    found = statistics.now()
    lines: list[str] = []

    def metric(name: str, kind: str, what: str, *samples: tuple[str, float]) -> None:
        lines.extend((f"# HELP rsd_edge_{name} {what}", f"# TYPE rsd_edge_{name} {kind}"))
        lines.extend(f"rsd_edge_{name}{labels} {value:.15g}" for labels, value in samples)

    metric("signal", "gauge", "1 while frames arrive.", ("", float(found["signal"] == "live")))
    metric("capture_fps", "gauge", "Frames captured per second, lately.", ("", found["capture_fps"]))
    metric("sr_fps", "gauge", "Frames delivered per second, lately.", ("", found["sr_fps"]))
    for name, what in (
        ("captured", "Frames captured."),
        ("delivered", "Frames delivered."),
        ("dropped", "Frames that gave way to newer ones."),
        ("reconnects", "Times that the source came back."),
    ):
        metric(
            f"frames_{name}_total" if name != "reconnects" else "reconnects_total", "counter", what, ("", found[name])
        )
    metric("tiles_reused_ratio", "gauge", "Share of tiles that were not computed again.", ("", found["tiles_reused"]))
    _summary(lines, "latency_seconds", "From capture to delivery, of the last frames.", [("", statistics.latency)])
    stages = [(name, times) for name, times in statistics.stages.items()]
    _summary(lines, "stage_seconds", "Of each stage, of the last frames.", stages)
    return "\n".join(lines) + "\n"


def _summary(lines: list[str], name: str, what: str, series: list[tuple[str, Series]]) -> None:
    lines.extend((f"# HELP rsd_edge_{name} {what}", f"# TYPE rsd_edge_{name} summary"))
    for stage, times in series:
        label, labels = (f'stage="{stage}",', f'{{stage="{stage}"}}') if stage else ("", "")
        for quantile, value in (times.quantiles(_RECENT) or {}).items():
            if quantile != "max":
                lines.append(f'rsd_edge_{name}{{{label}quantile="0.{quantile[1:]}"}} {value:.6g}')
        lines.append(f"rsd_edge_{name}_sum{labels} {times.total:.15g}")
        lines.append(f"rsd_edge_{name}_count{labels} {times.count}")
