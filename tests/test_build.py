"""build-engine's work: graph, parity, speed and bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from rsd_edge.bundle import load_bundle
from rsd_edge.errors import BackendError, InputError, ModelError, OutputError
from rsd_edge.export import build
from rsd_edge.export.build import Provenance, build_engine
from rsd_edge.models.checkpoint import Checkpoint, save_checkpoint
from rsd_edge.models.edge import EdgeTile
from rsd_edge.pipeline import SuperResolver
from rsd_edge.specs import Backend, EngineSpec, Precision

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
    assert manifest["speed"]["threads"] == 1
    assert 0 < manifest["speed"]["median_ms"] <= manifest["speed"]["slowest_ms"]
    assert manifest["training"] == tiny_weights.record
    assert manifest["licence"] == "not stated"
    assert manifest["device"].endswith(", 1 threads")
    assert set(manifest["versions"]) == {"rsd_edge", "onnxruntime", "numpy"}


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


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.FP16])
def test_other_precisions_are_refused(weights: Path, tmp_path: Path, precision: Precision) -> None:
    output = tmp_path / "engines"
    with pytest.raises(
        BackendError, match=rf"onnxruntime engines in {precision.value} cannot be built .*precision fp32"
    ):
        build_engine(str(weights), output, backend=Backend.ONNXRUNTIME, precision=precision)
    assert not output.exists()


def test_an_engine_that_differs_from_its_reference_is_refused(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph whose prior is a per cent off, as a stale export would be."""
    from rsd_edge.export import onnx_export

    original = onnx_export.export_tile

    def stale(tile: EdgeTile, path: Path) -> None:
        tile.noise_scale *= 1.01
        original(tile, path)
        tile.noise_scale /= 1.01

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


def test_an_unwritable_output_is_named(toy_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        build_engine(str(toy_bundle), tmp_path / "file", threads=1)


def test_the_probe_looks_like_a_photograph(tiny_weights: Checkpoint) -> None:
    """In range, with energy falling with frequency: white noise would hide errors of flat areas."""
    lq, noise = build._probe(tiny_weights.spec, 2, 64)
    assert lq.shape == (2, 3, 64, 64)
    assert noise.shape == (2, 5, 64, 64)
    assert np.abs(lq).max() <= 1
    spectrum = np.abs(np.fft.rfft2(lq)).mean(axis=(0, 1))
    assert spectrum[1:4, 1:4].mean() > 5 * spectrum[28:32, 28:32].mean()
    assert noise.std() == pytest.approx(1, abs=0.02)  # 4 standard errors of 40,000 draws
