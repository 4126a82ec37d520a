"""Which of several engines is the fastest on the machine at hand: half a second of timing, remembered.

What an engine costs depends on the processor's integer instructions, its caches and its threads more than any table
could say, so the candidates are timed, in turns, on the tile they will see, and the answer is kept in the user's cache
folder under a key of everything it depends on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsd_edge.backends import open_engine
from rsd_edge.backends.base import TileEngine
from rsd_edge.bundle import Bundle, rebuild_command, resolve_engine, shipped_precisions
from rsd_edge.engines import tensorrt_engine
from rsd_edge.errors import BackendError, ModelError, OutputError
from rsd_edge.frames import SCALE
from rsd_edge.machine import cache_folder, cpu_features, cpu_name, int8_weight_bits
from rsd_edge.specs import Backend, EngineSpec, Precision, TileSpec
from rsd_edge.stream.atomic import write_json
from rsd_edge.versions import installed, versions_of

log = logging.getLogger(__name__)

TILE = 64
"""LR pixels on a side of the tile that is timed."""
BUDGET_SECONDS = 0.5
_ROUNDS = range(3, 16)
"""Timed runs of each candidate: the fewest, for machines that take longer than the budget, and the most."""
_STRAY = 0.1
"""Of the spread of the detail: runtimes that round INT8 in their own ways are 0.02 apart, a wrong result 1 or more."""

_Array = NDArray[np.float32]


@dataclass(frozen=True)
class Candidate:
    """A bundle and the backend that would run it."""

    bundle: Bundle
    spec: EngineSpec

    @property
    def label(self) -> str:
        """For people: `int8 on onnxruntime`."""
        return f"{self.spec.precision.value} on {self.spec.backend.value}"


@dataclass(frozen=True)
class Choice:
    """The fastest candidate and the times, in milliseconds a tile, that made it so."""

    candidate: Candidate
    times_ms: dict[str, float]
    remembered: bool = False

    def record(self) -> dict[str, Any]:
        """What ran, for reports."""
        spec = self.candidate.spec
        return {
            "model": spec.model.name,
            "precision": spec.precision.value,
            "backend": spec.backend.value,
            "digest": self.candidate.bundle.digest,
            "times_ms": dict(self.times_ms),
        }

    def __str__(self) -> str:
        if not self.times_ms:
            return self.candidate.label
        times = ", ".join(f"{label} {ms:.1f}" for label, ms in self.times_ms.items())
        when = "remembered" if self.remembered else "timed just now"
        return f"{self.candidate.label} ({times} ms a {TILE}x{TILE} tile, {when})"


def choose(
    model: str | Path,
    precision: Precision | None,
    backend: Backend | None,
    threads: int,
    *,
    tile: int | None = None,
    batch: int = 1,
) -> Choice:
    """The engine to run: what was asked for, or the fastest of what is there.

    model: a shipped name or a bundle folder. precision: None leaves it open for a shipped name; a folder is of one
    precision. backend: None leaves it open where the precision is open, and is the one that the engine was built for
    where it is not. threads: CPU threads. tile, batch: for TensorRT, whose engines of a shipped model differ in them.
    Raises ModelError for an engine that does not exist or would saturate on this processor, BackendError if one fails.
    """
    if backend is Backend.TENSORRT and shipped_precisions(str(model)):
        bundle = tensorrt_engine(str(model), precision, tile=tile, batch=batch)
        return Choice(Candidate(bundle, bundle.spec), {})
    found = _candidates(model, precision, backend)
    if len(found) == 1:
        return Choice(found[0], {})
    memory = _Memory(found, threads)
    times = memory.recall()
    remembered = times is not None
    if times is None:
        times = _time(found, threads)
        if len(times) == len(found):  # what was left out is told of each time
            memory.keep(times)
    fastest = min(times, key=lambda label: times[label])
    return Choice(next(candidate for candidate in found if candidate.label == fastest), times, remembered)


def median_seconds(engines: Sequence[TileEngine], budget: float = BUDGET_SECONDS) -> list[float]:
    """Median time of each engine for one tile of TILE x TILE, run in turns so that all see the same machine."""
    lq, noise, detail = _tile(engines[0])
    for engine in engines:
        engine.prepare(1, TILE, TILE)
    seconds: list[list[float]] = [[] for _ in engines]
    end = time.perf_counter() + budget
    for turn in range(_ROUNDS.stop):
        if turn >= _ROUNDS.start and time.perf_counter() > end:
            break
        for engine, taken in zip(engines, seconds, strict=True):
            # Once unmeasured: threads of the engine before may still be looking for work.
            engine.collect(engine.submit(lq, noise, detail))
            began = time.perf_counter()
            engine.collect(engine.submit(lq, noise, detail))
            taken.append(time.perf_counter() - began)
    return [float(np.median(taken)) for taken in seconds]


def detail_of(engine: TileEngine) -> _Array:
    """What an engine makes of the tile that is timed."""
    lq, noise, detail = _tile(engine)
    engine.collect(engine.submit(lq, noise, detail))
    return detail


def _tile(engine: TileEngine) -> tuple[_Array, _Array, _Array]:
    """What `submit` takes."""
    noise = np.random.default_rng(0).standard_normal((1, engine.spec.model.noise_channels, TILE, TILE), np.float32)
    return np.clip(noise[:, :3], -1, 1), noise, np.empty((1, SCALE * TILE, SCALE * TILE, 3), np.float32)


def _candidates(model: str | Path, precision: Precision | None, backend: Backend | None) -> list[Candidate]:
    shipped = shipped_precisions(str(model))
    open_choice = precision is None and bool(shipped)
    wishes: Sequence[Precision | None] = shipped if open_choice else [precision]
    bundles = [resolve_engine(model, wish) for wish in wishes]
    safe = [bundle for bundle in bundles if not saturates(bundle.spec)]
    if not safe:
        raise ModelError(
            f"engine '{model}' holds {_weight_bits(bundles[0].spec)}-bit weights in int8, whose products saturate on "
            f"this processor (it reports no VNNI); use {'--precision fp32' if shipped else 'an fp32 engine'}, or build "
            f"one for this processor with '{rebuild_command(bundles[0])}'"
        )
    return [
        Candidate(bundle, replace(bundle.spec, backend=runtime))
        for bundle in safe
        for runtime in _backends(bundle, backend, open_choice=open_choice)
    ]


def _backends(bundle: Bundle, wish: Backend | None, open_choice: bool) -> list[Backend]:
    own = bundle.spec.backend
    if wish is not None:
        if wish is not own and Backend.TENSORRT in (wish, own):
            cure = "give a checkpoint" if wish is Backend.TORCH else f"run '{rebuild_command(bundle, wish)}'"
            raise BackendError(
                f"{bundle.path} was built for {own.value} and {wish.value} does not run it; leave the backend out, or "
                f"{cure}"
            )
        return [wish]
    if open_choice and own is not Backend.OPENVINO and installed("openvino"):
        return [own, Backend.OPENVINO]
    return [own]


def saturates(spec: EngineSpec) -> bool:
    """Its products do not fit into the sums of this processor."""
    on_cpu = spec.backend is not Backend.TENSORRT
    return on_cpu and spec.precision is Precision.INT8 and _weight_bits(spec) > int8_weight_bits()


def _weight_bits(spec: EngineSpec) -> int:
    return spec.weight_bits or 8


def _time(candidates: Sequence[Candidate], threads: int) -> dict[str, float]:
    with ExitStack() as stack:
        engines = []
        for candidate in candidates:
            try:
                engines.append(stack.enter_context(_open(candidate, threads)))
            except BackendError as error:
                others = {other.spec.backend for other in candidates} - {candidate.spec.backend}
                if not others:
                    raise
                # Nobody asked for this runtime; it is installed, and does not work.
                raise BackendError(f"{error}, or choose --backend {min(others).value}") from error
        sound = _sound(candidates, engines)
        seconds = median_seconds([engine for _, engine in sound])
    return {label: round(1e3 * value, 3) for (label, _), value in zip(sound, seconds, strict=True)}


def _sound(candidates: Sequence[Candidate], engines: Sequence[TileEngine]) -> list[tuple[str, TileEngine]]:
    """Those whose detail is made of numbers, in each precision the same as that of the first; others are told of."""
    sound: list[tuple[str, TileEngine]] = []
    references: dict[Precision, _Array] = {}
    for candidate, engine in zip(candidates, engines, strict=True):
        detail = detail_of(engine)
        reference = references.get(candidate.spec.precision, detail)
        with np.errstate(invalid="ignore"):  # what is not finite compares as wrong
            right = bool(np.abs(detail - reference).mean() <= _STRAY * reference.std())
        if right:
            references[candidate.spec.precision] = reference
            sound.append((candidate.label, engine))
        else:
            log.warning(
                "%s is left out, because its results are wrong on this machine; run: pip install --force-reinstall %s",
                candidate.label, candidate.spec.backend.value,
            )  # fmt: skip
    if not sound:
        model, runtime = candidates[0].spec.model.name, candidates[0].spec.backend.value
        raise BackendError(f"no engine of {model} gives numbers here; run: pip install --force-reinstall {runtime}")
    return sound


def _open(candidate: Candidate, threads: int) -> TileEngine:
    model = candidate.spec.model
    tile = TileSpec(halo=model.halo, multiple_of=model.multiple_of)
    return open_engine(candidate.bundle.graph_path, candidate.spec, tile=tile, threads=threads)


class _Memory:
    """One small JSON file for each question, under a hash of everything that the answer depends on."""

    def __init__(self, candidates: Sequence[Candidate], threads: int) -> None:
        self._labels = [candidate.label for candidate in candidates]
        runtimes = {candidate.spec.backend.value for candidate in candidates}
        self._question = {
            "engines": [candidate.bundle.digest for candidate in candidates],
            "labels": self._labels,
            "versions": versions_of(*runtimes),
            "machine": [cpu_name(), sorted(cpu_features()), os.cpu_count()],
            "threads": threads,
        }
        self._key = hashlib.sha256(json.dumps(self._question, sort_keys=True).encode()).hexdigest()[:16]

    def recall(self) -> dict[str, float] | None:
        """The times kept for this question, None if there are none that can be read."""
        try:
            kept = json.loads(self._path().read_text(encoding="utf-8"))["times_ms"]
            times = {label: float(kept[label]) for label in self._labels}
        except (OSError, RuntimeError, ValueError, KeyError, TypeError):
            return None
        return times if all(0 < ms < math.inf for ms in times.values()) else None

    def keep(self, times: dict[str, float]) -> None:
        """Without a home or room to write there is nothing to remember by, which costs the half second again."""
        try:
            path = self._path()
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"times_ms": times, **self._question})
        except (OSError, RuntimeError, OutputError) as error:
            log.info("times of the engines cannot be kept (%s); they are taken again next time", error)

    def _path(self) -> Path:
        return cache_folder() / f"engine-{self._key}.json"
