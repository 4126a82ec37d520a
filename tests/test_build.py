"""build-engine's work: graph, parity, INT8, speed and bundle."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from rsd_edge import __version__
from rsd_edge.backends import TileEngine, open_engine
from rsd_edge.bundle import BuildRecord, Bundle, load_bundle, write_bundle
from rsd_edge.errors import BackendError, ImageReadError, InputError, ModelError, OutputError
from rsd_edge.export import build, gate, tensorrt_judge
from rsd_edge.export.build import Provenance, build_engine
from rsd_edge.export.deploy import DeployedTile
from rsd_edge.machine import int8_weight_bits
from rsd_edge.models.checkpoint import Checkpoint, save_checkpoint
from rsd_edge.resolver import SuperResolver
from rsd_edge.specs import Backend, EngineSpec, ModelSpec, Precision, TileSpec
from rsd_edge.stream.images import write_image

Array = NDArray[np.float32]
Photo = Callable[[int, int], NDArray[np.uint8]]


@pytest.fixture(scope="module")
def weights(tiny_weights: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "weights.safetensors"
    save_checkpoint(path, tiny_weights)
    return path


@pytest.fixture(scope="module")
def built(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_engine(str(weights), tmp_path_factory.mktemp("engines"), threads=1).path


def test_a_bundle_says_how_it_was_made(built: Path, tiny_weights: Checkpoint) -> None:
    bundle = load_bundle(built)
    assert bundle.path.name.startswith("tiny-onnxruntime-fp32-")
    assert bundle.spec == EngineSpec(tiny_weights.spec)
    manifest = bundle.manifest
    assert manifest["parity"]["psnr_db"] >= build.PARITY_FLOOR_DB
    assert 0 < manifest["parity"]["max_abs"] < 1e-4  # float32, of values up to a few
    assert manifest["parity"]["reference"] == "the network"
    assert {key: manifest["speed"][key] for key in ("tile", "threads")} == {"tile": 64, "threads": 1}
    assert list(manifest["speed"]["median_ms"]) == ["fp32"]
    assert manifest["speed"]["median_ms"]["fp32"] > 0
    assert manifest["training"] == tiny_weights.record
    assert manifest["licence"] == "not stated"
    assert manifest["device"].endswith(", 1 threads")
    assert manifest["versions"] == {
        "rsd-edge": __version__,
        **{name: importlib.metadata.version(name) for name in ("onnxruntime", "torch", "onnx", "numpy")},
    }


def test_a_bundle_says_what_it_was_made_of(built: Path, weights: Path, toy_bundle: Path, tmp_path: Path) -> None:
    bundle = load_bundle(built)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert bundle.manifest["source"] == {"model": str(weights), "digest": digest}
    from_bundle = build_engine(str(toy_bundle), tmp_path, threads=1).manifest
    assert from_bundle["source"] == {"model": str(toy_bundle), "digest": load_bundle(toy_bundle).digest}
    assert set(from_bundle["versions"]) == {"rsd-edge", "onnxruntime", "numpy"}  # its graph was exported before
    assert [path.name for path in built.iterdir() if path.name not in ("graph.onnx", "manifest.json")] == []


class NotANumber:
    """An engine that has lost its way."""

    spec = EngineSpec(ModelSpec("lost"))

    def submit(self, lq: Array, noise: Array, detail: Array) -> None:
        detail[:] = np.nan

    def collect(self, ticket: None) -> None:
        pass


def test_an_engine_that_gives_no_numbers_is_refused() -> None:
    engine = cast(TileEngine, NotANumber())
    with pytest.raises(BackendError, match=r"differs from its reference \(nan dB"):
        build._parity(engine, lambda lq, noise: np.zeros((2, 4 * lq.shape[2], 4 * lq.shape[3], 3), np.float32))


def test_a_plan_that_gives_no_numbers_is_refused() -> None:
    wanted = np.ones((1, 8, 8, 3), np.float32)
    parity = tensorrt_judge.closeness(np.full_like(wanted, np.nan), wanted)
    for figures in (parity, parity | {"psnr_db": 90.0}, parity | {"detail_db": 90.0}):
        with pytest.raises(BackendError, match="nan dB"):
            tensorrt_judge.check_gate(figures, NotANumber.spec, tensorrt_judge.GATES[Precision.FP16])


def test_a_bundle_upscales(built: Path, photo: Photo) -> None:
    image = photo(37, 50)
    with SuperResolver.load(str(built), threads=1) as resolver:
        upscaled = resolver(image)
        bicubic = resolver(image, strength=0.0)
    assert upscaled.shape == (148, 200, 3)
    assert np.abs(upscaled.astype(int) - bicubic).mean() > 1


def test_the_same_checkpoint_makes_the_same_bundle(built: Path, weights: Path, tmp_path: Path) -> None:
    again = build_engine(str(weights), tmp_path, threads=1)
    assert again.path.name == built.name
    assert again.graph_path.read_bytes() == load_bundle(built).graph_path.read_bytes()


def test_a_bundle_can_be_built_from_a_bundle(toy_bundle: Path, tmp_path: Path) -> None:
    said = Provenance("CC0-1.0", {"record": "training.json"})
    bundle = build_engine(str(toy_bundle), tmp_path, threads=1, name="toy-again", provenance=said)
    source = load_bundle(toy_bundle)
    assert bundle.path == tmp_path / "toy-again"
    assert bundle.graph_path.read_bytes() == source.graph_path.read_bytes()
    assert bundle.digest == source.digest
    assert (bundle.manifest["licence"], bundle.manifest["training"]) == ("CC0-1.0", {"record": "training.json"})
    kept = build_engine(str(bundle.path), tmp_path / "more", threads=1)
    assert (kept.manifest["licence"], kept.manifest["training"]) == ("CC0-1.0", {"record": "training.json"})


@pytest.mark.parametrize("backend", [backend for backend in Backend if backend is not Backend.TENSORRT])
def test_fp16_is_refused(weights: Path, tmp_path: Path, backend: Backend) -> None:
    output = tmp_path / "engines"
    with pytest.raises(BackendError, match=rf"{backend.value} engines for CPUs cannot be built in fp16; use .*fp32 or"):
        build_engine(str(weights), output, backend=backend, precision=Precision.FP16)
    assert not output.exists()


def detail_of(bundle: Bundle) -> NDArray[np.float32]:
    lq, noise = build.probe(bundle.spec.model, 1, 32)
    detail = np.empty((1, 128, 128, 3), np.float32)
    with open_engine(bundle.graph_path, bundle.spec, tile=TileSpec(), threads=1) as engine:
        engine.collect(engine.submit(lq, noise, detail))
    return detail


def integer_weights(bundle: Bundle) -> list[NDArray[np.int8]]:
    arrays = (numpy_helper.to_array(item) for item in onnx.load(bundle.graph_path).graph.initializer)
    return [array for array in arrays if array.dtype == np.int8 and array.ndim == 4]


@pytest.mark.usefixtures("quick_int8")
def test_a_checkpoint_becomes_an_int8_engine(built: Path, weights: Path, tmp_path: Path) -> None:
    bundle = build_engine(str(weights), tmp_path, precision=Precision.INT8, threads=1)
    floating = load_bundle(built)
    assert bundle.path.name.startswith("tiny-onnxruntime-int8-")
    assert bundle.spec == EngineSpec(floating.spec.model, precision=Precision.INT8, weight_bits=int8_weight_bits())
    manifest = bundle.manifest
    assert manifest["speed"] == {"tile": 64, "threads": 1, "median_ms": {"fp32": 20.0, "int8": 10.0}}
    assert manifest["source"] == floating.manifest["source"]
    assert manifest["versions"] == floating.manifest["versions"]
    report = json.loads((bundle.path / build.REPORT).read_text())
    assert report["calibration"] == "packaged"
    assert report["weight_bits"] == bundle.spec.weight_bits
    assert manifest["parity"] == {**report["closeness"], "reference": "fp32 on held-out crops"}
    assert manifest["parity"]["psnr_db"] >= 40
    assert manifest["parity"]["detail_snr_db"] >= 14
    layers = report["detail_snr_db_of_each_layer_alone"]
    assert set(report["layers_in_float"]) < set(layers)
    convolutions = [name for name in layers if name.endswith("Conv") and name not in report["layers_in_float"]]
    assert len(integer_weights(bundle)) == len(convolutions) >= 10
    # On a probe that was not calibrated on, at the gate's own bound for the detail.
    result, expected = detail_of(bundle), detail_of(floating)
    assert 10 * np.log10(np.mean(expected**2) / np.mean((result - expected) ** 2)) > 14


@pytest.mark.usefixtures("quick_int8")
def test_int8_that_is_not_faster_is_not_written(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "engines"
    for int8_seconds in (0.02, 0.0201):
        monkeypatch.setattr(build, "median_seconds", lambda _, seconds=int8_seconds: [0.02, seconds])
        with pytest.raises(
            BackendError,
            match=r"int8 is not faster than fp32 on this machine \(20\.\d* against 20\.0 ms a tile\); "
            "nothing was written; use --precision fp32",
        ):
            build_engine(str(toy_bundle), output, precision=Precision.INT8, threads=1)
    assert not output.exists()


@pytest.mark.usefixtures("quick_int8")
def test_int8_that_fails_its_gate_is_not_written(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = gate.Gate(detail_snr_db=200)
    monkeypatch.setattr(gate, "Gate", lambda: closed)
    with pytest.raises(BackendError, match=r"stays outside its gate .*nothing was written"):
        build_engine(str(toy_bundle), tmp_path / "engines", precision=Precision.INT8, threads=1)
    assert not (tmp_path / "engines").exists()


@pytest.mark.usefixtures("quick_int8")
def test_a_processor_that_would_saturate_gets_seven_bits(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for bits, largest in ((7, 64), (8, 127)):
        monkeypatch.setattr(build, "int8_weight_bits", lambda bits=bits: bits)
        bundle = build_engine(str(toy_bundle), tmp_path, precision=Precision.INT8, threads=1)
        assert bundle.spec.weight_bits == bits
        (weights,) = integer_weights(bundle)  # of three convolutions, the one that is neither first nor last
        assert np.abs(weights.astype(int)).max() == largest


@pytest.mark.usefixtures("quick_int8")
def test_int8_can_be_calibrated_on_own_images(toy_bundle: Path, tmp_path: Path, photo: Photo) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    write_image(folder / "a.png", photo(60, 70))
    bundle = build_engine(str(toy_bundle), tmp_path, precision=Precision.INT8, threads=1, calibration=folder)
    packaged = build_engine(str(toy_bundle), tmp_path, precision=Precision.INT8, threads=1)
    assert json.loads((bundle.path / build.REPORT).read_text())["calibration"] == "8 crops of own images"
    assert bundle.digest != packaged.digest  # other ranges
    with pytest.raises(InputError, match="calibration images serve INT8 engines and this one is fp32"):
        build_engine(str(toy_bundle), tmp_path, threads=1, calibration=folder)
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:500])
    with pytest.raises(ImageReadError, match=r"b\.png .*take it out of the calibration folder"):
        build_engine(str(toy_bundle), tmp_path / "more", precision=Precision.INT8, calibration=folder)
    assert not (tmp_path / "more").exists()


@pytest.mark.usefixtures("quick_int8")
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.INT8])
def test_engines_are_not_built_from_int8(toy_bundle: Path, tmp_path: Path, precision: Precision) -> None:
    source = build_engine(str(toy_bundle), tmp_path, precision=Precision.INT8, threads=1, name="int8").path
    with pytest.raises(ModelError, match=r"int8' is int8; engines are built from fp32 models: .*edge-s"):
        build_engine(str(source), tmp_path / "more", precision=precision)
    assert not (tmp_path / "more").exists()


@pytest.mark.openvino
@pytest.mark.usefixtures("quick_int8")
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.INT8])
def test_openvino_is_checked_and_timed_by_itself(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    pytest.importorskip("openvino")
    opened: list[TileEngine] = []
    timed: list[TileEngine] = []
    original = build.open_engine

    def opening(*arguments: object, **options: object) -> TileEngine:
        opened.append(original(*arguments, **options))
        return opened[-1]

    def timing(engines: list[TileEngine]) -> list[float]:
        timed.extend(engines)
        return [0.02, 0.01][: len(engines)]

    monkeypatch.setattr(build, "open_engine", opening)
    monkeypatch.setattr(build, "median_seconds", timing)
    bundle = build_engine(str(toy_bundle), tmp_path, backend=Backend.OPENVINO, precision=precision, threads=1)
    assert bundle.path.name.startswith(f"toy-openvino-{precision.value}-")
    assert (bundle.spec.backend, bundle.spec.precision) == (Backend.OPENVINO, precision)
    assert {type(engine).__name__ for engine in opened} == {"OpenVinoEngine"}
    assert len(timed) == (2 if precision is Precision.INT8 else 1)
    assert len(opened) > len(timed)
    assert bundle.manifest["versions"]["openvino"] == importlib.metadata.version("openvino")
    assert ("onnxruntime" in bundle.manifest["versions"]) == (precision is Precision.INT8)  # which quantised it
    assert load_bundle(bundle.path).manifest["parity"]["psnr_db"] >= (40 if precision is Precision.INT8 else 80)


def test_a_bundle_whose_graph_no_runtime_reads_is_named(toy_spec: EngineSpec, tmp_path: Path) -> None:
    (tmp_path / "graph.onnx").write_bytes(b"no graph")
    broken = write_bundle(tmp_path, toy_spec, tmp_path / "graph.onnx", BuildRecord(), name="broken")
    with pytest.raises(ModelError, match=r"graph\.onnx cannot be loaded by ONNX Runtime"):
        build_engine(str(broken.path), tmp_path / "engines", threads=1)
    assert not (tmp_path / "engines").exists()


def test_an_engine_that_differs_from_its_reference_is_refused(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph whose noise is a per cent off, as a stale export would be."""
    from rsd_edge.export import onnx_export

    original = onnx_export.export_tile

    def stale(tile: DeployedTile, path: Path) -> None:
        zc = tile.latent_channels
        with torch.no_grad():
            tile.student.head.weight[:, zc : 2 * zc] *= 1.01
        original(tile, path)

    monkeypatch.setattr(onnx_export, "export_tile", stale)
    with pytest.raises(BackendError, match=r"the engine differs from its reference \(\d\d\.\d dB.*nothing was written"):
        build_engine(str(weights), tmp_path / "engines", threads=1)
    assert not (tmp_path / "engines").exists()


@pytest.mark.parametrize("content", [None, b"", b"weights", "truncated"])
def test_a_corrupt_checkpoint_is_named(weights: Path, tmp_path: Path, content: bytes | str | None) -> None:
    path = tmp_path / "bad.safetensors"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"bad\.safetensors") as caught:
        build_engine(str(path), tmp_path / "engines")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "engines").exists()


def test_what_is_no_model_is_named(toy_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="'edge-z' is neither a shipped engine"):
        build_engine("edge-z", tmp_path)
    with pytest.raises(InputError, match="threads is 0"):
        build_engine(str(toy_bundle), tmp_path, threads=0)


def test_an_unwritable_output_is_named_before_the_work(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "from_bundle", None)
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file" / "engines", Path("/proc/engines")):
        with pytest.raises(OutputError, match=f"cannot write (into )?{output}: .*; choose a folder"):
            build_engine(str(toy_bundle), output, threads=1)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_probe_looks_like_a_photograph(tiny_weights: Checkpoint) -> None:
    """In range, with energy falling with frequency: white noise would hide errors of flat areas."""
    lq, noise = build.probe(tiny_weights.spec, 2, 64)
    assert lq.shape == (2, 3, 64, 64)
    assert noise.shape == (2, 5, 64, 64)
    assert np.abs(lq).max() <= 1
    spectrum = np.abs(np.fft.rfft2(lq)).mean(axis=(0, 1))
    assert spectrum[1:4, 1:4].mean() > 5 * spectrum[28:32, 28:32].mean()
    assert noise.std() == pytest.approx(1, abs=0.02)  # 4 standard errors of 40,000 draws
