"""Which engine is chosen, why, and what is remembered. Nothing here takes a real time."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rsd_edge import bundle as bundle_module
from rsd_edge import selection, versions
from rsd_edge.bundle import BuildRecord, Bundle, write_bundle
from rsd_edge.errors import BackendError, ModelError
from rsd_edge.machine import cache_folder
from rsd_edge.selection import Candidate, Choice, choose
from rsd_edge.specs import Backend, EngineSpec, ModelSpec, Precision, TileSpec

FP32, INT8 = Precision.FP32, Precision.INT8
ORT, OPENVINO = Backend.ONNXRUNTIME, Backend.OPENVINO
MODEL = ModelSpec(name="edge-t", halo=12, multiple_of=4)
ALL = ["fp32 on onnxruntime", "fp32 on openvino", "int8 on onnxruntime", "int8 on openvino"]


class World:
    """Stands for the machine: which runtimes it has, how fast they are, and what was tried on it."""

    def __init__(self) -> None:
        self.milliseconds = {label: 10.0 + index for index, label in enumerate(ALL)}
        self.versions = {"onnxruntime": "1.31.1", "openvino": "2026.4.1"}
        self.packages: dict[str, list[str]] = {}
        self.broken: set[Backend] = set()
        self.wrong: dict[str, float] = {}
        self.timed: list[list[str]] = []
        self.open: list[str] = []
        self.options: list[dict[str, Any]] = []

    @contextmanager
    def open_engine(self, graph: Path, spec: EngineSpec, **options: Any) -> Iterator[SimpleNamespace]:
        if spec.backend in self.broken:
            raise BackendError(f"{spec.backend.value} is broken; mend it")
        assert graph.is_file()
        label = f"{spec.precision.value} on {spec.backend.value}"
        self.options.append(options)
        self.open.append(label)
        try:
            yield SimpleNamespace(label=label)
        finally:
            self.open.remove(label)

    def median_seconds(self, engines: Sequence[SimpleNamespace]) -> list[float]:
        labels = [engine.label for engine in engines]
        assert set(labels) <= set(self.open)
        self.timed.append(labels)
        return [self.milliseconds[label] / 1e3 for label in labels]

    def detail_of(self, engine: SimpleNamespace) -> NDArray[np.float32]:
        return np.array([0, 1, self.wrong.get(engine.label, 2)], np.float32)

    def version(self, package: str) -> str:
        if package not in self.versions:
            raise metadata.PackageNotFoundError(package)
        return self.versions[package]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    """A machine with VNNI and both runtimes, a user with an empty cache, and a zoo with one model in two precisions."""
    made = World()
    monkeypatch.setattr(selection, "installed", lambda name: name in made.versions)
    packages = {"version": made.version, "packages_distributions": lambda: made.packages}
    monkeypatch.setattr(versions, "metadata", SimpleNamespace(**{**vars(metadata), **packages}))
    monkeypatch.setattr(selection, "open_engine", made.open_engine)
    monkeypatch.setattr(selection, "median_seconds", made.median_seconds)
    monkeypatch.setattr(selection, "detail_of", made.detail_of)
    monkeypatch.setattr(selection, "int8_weight_bits", lambda: 8)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(bundle_module, "ZOO", tmp_path / "zoo")
    for precision in (FP32, INT8):
        ship(precision)
    return made


def ship(precision: Precision, *, weights: str = "weights", model: ModelSpec = MODEL, bits: int = 8) -> Bundle:
    spec = EngineSpec(model, precision=precision, weight_bits=bits if precision is INT8 else None)
    return write(bundle_module.ZOO / model.name, spec, weights, name=precision.value)


def write(parent: Path, spec: EngineSpec, weights: str = "weights", **options: Any) -> Bundle:
    graph = parent.parent / "source.onnx"
    graph.parent.mkdir(parents=True, exist_ok=True)
    graph.write_text(weights)
    return write_bundle(parent, spec, graph, BuildRecord(source={"model": "edge-t", "digest": "0"}), **options)


def label(choice: Choice) -> str:
    return choice.candidate.label


@pytest.mark.parametrize(
    ("precision", "backend", "expected"),
    [
        (FP32, None, "fp32 on onnxruntime"),
        (INT8, None, "int8 on onnxruntime"),
        (FP32, OPENVINO, "fp32 on openvino"),
        (INT8, OPENVINO, "int8 on openvino"),
        (INT8, ORT, "int8 on onnxruntime"),
    ],
)
def test_a_precision_that_is_asked_for_is_taken_untimed(
    world: World, precision: Precision, backend: Backend | None, expected: str
) -> None:
    choice = choose("edge-t", precision, backend, 2)
    assert (label(choice), choice.times_ms, choice.remembered) == (expected, {}, False)
    assert choice.candidate.bundle.path == bundle_module.ZOO / "edge-t" / precision.value
    assert world.timed == world.options == []
    assert not cache_folder().exists()


@pytest.mark.parametrize("fastest", ALL)
def test_the_fastest_of_all_is_taken(world: World, fastest: str) -> None:
    world.milliseconds[fastest] = 9.99
    choice = choose("edge-t", None, None, 2)
    assert label(choice) == fastest
    assert choice.times_ms == world.milliseconds
    assert choice.candidate.bundle.spec.precision.value == fastest.partition(" ")[0]
    assert world.timed == [ALL]
    assert world.open == []  # all are closed again
    assert world.options == [{"tile": TileSpec(halo=12, multiple_of=4), "threads": 2}] * 4


@pytest.mark.parametrize("backend", [ORT, OPENVINO])
def test_a_backend_that_is_asked_for_leaves_the_precision_open(world: World, backend: Backend) -> None:
    world.milliseconds[f"int8 on {backend.value}"] = 1.0
    assert label(choose("edge-t", None, backend, 2)) == f"int8 on {backend.value}"
    assert world.timed == [[f"fp32 on {backend.value}", f"int8 on {backend.value}"]]


def test_openvino_is_a_candidate_only_where_it_is_installed(world: World) -> None:
    del world.versions["openvino"]
    world.milliseconds.update({"fp32 on openvino": 1.0, "int8 on openvino": 1.0})
    assert label(choose("edge-t", None, None, 2)) == "fp32 on onnxruntime"
    assert world.timed == [["fp32 on onnxruntime", "int8 on onnxruntime"]]


def test_a_model_in_one_precision_leaves_the_backend_open(world: World) -> None:
    ship(FP32, model=ModelSpec(name="edge-u"))
    world.milliseconds["fp32 on openvino"] = 1.0
    assert label(choose("edge-u", None, None, 2)) == "fp32 on openvino"
    assert world.timed == [["fp32 on onnxruntime", "fp32 on openvino"]]
    del world.versions["openvino"]
    assert label(choose("edge-u", None, None, 2)) == "fp32 on onnxruntime"
    assert len(world.timed) == 1  # with one candidate there is nothing to time


def test_a_folder_is_of_one_precision_and_keeps_its_backend(world: World, tmp_path: Path) -> None:
    folder = write(tmp_path / "engines", EngineSpec(MODEL, OPENVINO, INT8, 8)).path
    assert label(choose(folder, None, None, 2)) == "int8 on openvino"
    assert label(choose(str(folder), INT8, None, 2)) == "int8 on openvino"
    assert label(choose(folder, None, ORT, 2)) == "int8 on onnxruntime"
    with pytest.raises(ModelError, match=r"is int8, not fp32; leave the precision out, or build .* --precision fp32'"):
        choose(folder, FP32, None, 2)
    assert world.timed == []


def test_a_folder_with_engines_in_it_is_no_shipped_model(world: World) -> None:
    with pytest.raises(ModelError, match=r"edge-t is not an engine bundle: it has no manifest\.json"):
        choose(bundle_module.ZOO / "edge-t", None, None, 2)
    assert world.timed == []


def test_a_precision_that_does_not_ship_is_refused(world: World) -> None:
    ship(FP32, model=ModelSpec(name="edge-u"))
    with pytest.raises(ModelError, match=r"'edge-u' ships in fp32, not in int8; .* --model edge-u --backend .* int8'"):
        choose("edge-u", INT8, None, 2)
    assert world.timed == []


def test_a_choice_is_remembered(world: World) -> None:
    world.milliseconds["int8 on openvino"] = 4.25
    first = choose("edge-t", None, None, 2)
    world.milliseconds["int8 on openvino"] = 100.0
    second = choose("edge-t", None, None, 2)
    assert (label(first), first.remembered) == (label(second), False)
    assert (second.times_ms, second.remembered) == (first.times_ms, True)
    assert second.times_ms["int8 on openvino"] == 4.25
    assert len(world.timed) == 1
    (file,) = cache_folder().iterdir()
    kept = json.loads(file.read_text())
    assert (kept["threads"], kept["labels"]) == (2, ALL)  # for people who look into the file


@pytest.mark.parametrize(
    "change", ["threads", "weights", "runtime", "optional runtime", "package", "features", "processor", "cores"]
)
def test_what_the_answer_depends_on_is_part_of_the_question(
    world: World, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    choose("edge-t", None, None, 2)
    match change:
        case "weights":
            ship(INT8, weights="other weights")
        case "runtime":
            world.versions["onnxruntime"] = "1.32.0"
        case "optional runtime":
            world.versions["openvino"] = "2027.0.0"
        case "package":
            monkeypatch.setattr(versions, "__version__", "9.9.9")
        case "features":
            monkeypatch.setattr(selection, "cpu_features", lambda: frozenset({"avx2"}))
        case "processor":
            monkeypatch.setattr(selection, "cpu_name", lambda: "another processor")
        case "cores":
            monkeypatch.setattr(selection, "os", SimpleNamespace(cpu_count=lambda: 1000, environ=selection.os.environ))
    threads = 3 if change == "threads" else 2
    assert not choose("edge-t", None, None, threads).remembered
    assert choose("edge-t", None, None, threads).remembered
    assert len(world.timed) == 2


def test_questions_are_told_apart_by_their_candidates(world: World) -> None:
    choose("edge-t", None, None, 2)
    assert not choose("edge-t", None, ORT, 2).remembered
    ship(INT8)  # the same engine again is the same engine
    assert choose("edge-t", None, None, 2).remembered
    assert choose("edge-t", None, ORT, 2).remembered
    assert len(world.timed) == 2


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"times_ms": null}',
        b'{"times_ms": {"fp32 on onnxruntime": 1}}',
        *(
            json.dumps({"times_ms": {**dict.fromkeys(ALL, 1.0), ALL[1]: value}}).encode()
            for value in (None, "fast", 0, -1, float("nan"), float("inf"))
        ),
    ],
)
def test_a_damaged_memory_is_replaced(world: World, content: bytes) -> None:
    choose("edge-t", None, None, 2)
    (file,) = cache_folder().iterdir()
    file.write_bytes(content)
    again = choose("edge-t", None, None, 2)
    assert (again.times_ms, again.remembered) == (world.milliseconds, False)
    assert choose("edge-t", None, None, 2).remembered
    assert len(world.timed) == 2


def test_a_cache_that_cannot_be_written_costs_time_only(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "taken"))
    check_nothing_is_remembered(world, caplog)


def test_a_user_without_a_home_has_no_memory(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr(Path, "home", homeless)
    check_nothing_is_remembered(world, caplog)


def check_nothing_is_remembered(world: World, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "rsd_edge.selection"):
        for _ in range(2):
            choice = choose("edge-t", None, None, 2)
            assert (label(choice), choice.remembered) == ("fp32 on onnxruntime", False)
    assert len(world.timed) == 2
    assert [record.getMessage().partition(" (")[0] for record in caplog.records] == [
        "times of the engines cannot be kept"
    ] * 2


def test_weights_that_would_saturate_are_left_out_of_an_open_choice(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "int8_weight_bits", lambda: 7)
    world.milliseconds.update({"int8 on onnxruntime": 1.0, "int8 on openvino": 1.0})
    assert label(choose("edge-t", None, None, 2)) == "fp32 on onnxruntime"
    assert world.timed == [["fp32 on onnxruntime", "fp32 on openvino"]]
    ship(INT8, bits=7)
    assert label(choose("edge-t", None, None, 2)) == "int8 on onnxruntime"


def test_weights_that_would_saturate_are_refused_when_asked_for(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(selection, "int8_weight_bits", lambda: 7)
    with pytest.raises(
        ModelError,
        match=r"'edge-t' holds 8-bit weights in int8, whose products saturate on this processor .*VNNI\); "
        r"use --precision fp32, or .*'rsd-edge build-engine --model edge-t --backend onnxruntime --precision int8'$",
    ) as caught:
        choose("edge-t", INT8, None, 2)
    assert "\n" not in str(caught.value)
    folder = write(tmp_path / "engines", EngineSpec(MODEL, OPENVINO, INT8)).path  # 8 bits unless it says otherwise
    with pytest.raises(
        ModelError, match=r"use an fp32 engine, or build .* --model edge-t --backend openvino --precision int8'$"
    ):
        choose(folder, None, None, 2)
    narrow = write(tmp_path / "engines", EngineSpec(MODEL, precision=INT8, weight_bits=7)).path
    assert label(choose(narrow, None, None, 2)) == "int8 on onnxruntime"


def test_a_runtime_that_nobody_asked_for_and_does_not_work(world: World) -> None:
    world.broken.add(OPENVINO)
    with pytest.raises(BackendError, match=r"^openvino is broken; mend it, or choose --backend onnxruntime$"):
        choose("edge-t", None, None, 2)
    with pytest.raises(BackendError, match=r"^openvino is broken; mend it$"):
        choose("edge-t", None, OPENVINO, 2)
    assert world.open == []
    assert not cache_folder().exists()
    assert label(choose("edge-t", None, ORT, 2)) == "fp32 on onnxruntime"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 9.0])
def test_a_runtime_with_wrong_results_is_left_out_and_told_of(
    world: World, caplog: pytest.LogCaptureFixture, value: float
) -> None:
    world.milliseconds["int8 on openvino"] = 1.0
    world.wrong["int8 on openvino"] = value
    for _ in range(2):
        choice = choose("edge-t", None, None, 2)
        assert (label(choice), choice.remembered) == ("fp32 on onnxruntime", False)
    told = "int8 on openvino is left out, because its results are wrong on this machine; run: pip install --force-rei"
    assert caplog.text.count(told) == 2
    world.wrong["int8 on openvino"] = 2.1
    assert label(choose("edge-t", None, None, 2)) == "int8 on openvino"


def test_a_machine_on_which_nothing_gives_numbers(world: World) -> None:
    world.wrong = dict.fromkeys(ALL, float("nan"))
    with pytest.raises(BackendError, match="no engine of edge-t gives numbers here; run: pip install --force-reinst"):
        choose("edge-t", None, None, 2)


def test_a_backend_that_is_not_installed_fails_where_it_is_opened(world: World) -> None:
    """Its version is part of the question, and there is none."""
    del world.versions["openvino"]
    world.broken.add(OPENVINO)
    with pytest.raises(BackendError, match=r"^openvino is broken; mend it$"):
        choose("edge-t", None, OPENVINO, 2)


def test_a_runtime_from_a_package_of_another_name(world: World) -> None:
    del world.versions["onnxruntime"]
    world.versions["onnxruntime-gpu"] = "1.30.0"
    world.packages["onnxruntime"] = ["onnxruntime-gpu"] * 2  # Python lists it once for each of its files
    choose("edge-t", None, None, 2)
    (file,) = cache_folder().iterdir()
    assert json.loads(file.read_text())["versions"]["onnxruntime"] == "onnxruntime-gpu 1.30.0"


def test_a_choice_says_what_and_why(world: World) -> None:
    world.milliseconds["int8 on openvino"] = 4.25
    timed = choose("edge-t", None, OPENVINO, 2)
    assert str(timed) == (
        "int8 on openvino (fp32 on openvino 11.0, int8 on openvino 4.2 ms a 64x64 tile, timed just now)"
    )
    assert str(choose("edge-t", None, OPENVINO, 2)).endswith(" 4.2 ms a 64x64 tile, remembered)")
    assert str(choose("edge-t", FP32, None, 2)) == "fp32 on onnxruntime"
    assert timed.record() == {
        "model": "edge-t",
        "precision": "int8",
        "backend": "openvino",
        "digest": timed.candidate.bundle.digest,
        "times_ms": {"fp32 on openvino": 11.0, "int8 on openvino": 4.25},
    }
    json.dumps(timed.record())


def test_a_record_is_of_the_backend_that_runs() -> None:
    spec = EngineSpec(MODEL)
    built = Bundle(Path("somewhere"), spec, Path("somewhere/graph.onnx"), "0f3a", {})
    record = Choice(Candidate(built, EngineSpec(MODEL, OPENVINO)), {}).record()
    assert (record["backend"], record["times_ms"]) == ("openvino", {})
