from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

from rsd_edge import SuperResolver
from rsd_edge.backends.onnx_parts import OnnxPartsEngine
from rsd_edge.backends.torch import TorchEngine
from rsd_edge.bundle import DECODER, ENCODER, GENERATOR, Bundle, load_bundle
from rsd_edge.cli import main
from rsd_edge.errors import BackendError, InputError, ModelError
from rsd_edge.export import build_published
from rsd_edge.export.build import build_engine
from rsd_edge.export.build_published import PARITY, part_error
from rsd_edge.export.parts import export_parts, parts_of
from rsd_edge.export.parts_options import PartsOptions
from rsd_edge.export.typed_build import build_tensorrt
from rsd_edge.models.checkpoint import Checkpoint, save_checkpoint, state_of
from rsd_edge.models.official import for_family
from rsd_edge.models.published import PublishedModel, published_model
from rsd_edge.models.swin_unet import SwinUNet
from rsd_edge.models.vq import VqAutoencoder
from rsd_edge.specs import (
    Backend,
    ModelSpec,
    Precision,
    PublishedArchitecture,
    ScheduleSpec,
    SwinUNetArchitecture,
    VqArchitecture,
)
from rsd_edge.stream.images import read_image, write_image

SIDE = 16
SMALL = PublishedArchitecture(
    SwinUNetArchitecture(
        image_size=SIDE,
        noise_channels=1,
        model_channels=32,
        channel_mult=(1, 2),
        num_res_blocks=(1, 1),
        attention_resolutions=(16, 8),
        num_head_channels=16,
        swin_embed_dim=32,
    ),
    VqArchitecture(ch=32, num_res_blocks=1, n_embed=128),
)
"""Two levels: a fraction of the published graph to trace, with windows that are shifted and windows that are not."""


@pytest.fixture(scope="module")
def weights(
    randomise: Callable[[nn.Module, int], nn.Module], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Checkpoint]:
    """A small student of two steps, and its file."""
    # A schedule of its own, so that one that is not in the graphs shows.
    spec = ModelSpec("rsd", "rsd", halo=4, multiple_of=SIDE, schedule=ScheduleSpec(steps=2), architecture=SMALL)
    networks = {"generator": SwinUNet(SMALL.unet), "autoencoder": VqAutoencoder(SMALL.vq)}
    parts = {name: state_of(randomise(network, seed)) for seed, (name, network) in enumerate(networks.items())}
    checkpoint = Checkpoint(spec, parts, {"licence": "L"})
    path = tmp_path_factory.mktemp("weights") / "rsd.safetensors"
    save_checkpoint(path, checkpoint)
    return path, checkpoint


@pytest.fixture(scope="module")
def bundle(weights: tuple[Path, Checkpoint], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("engines")
    return build_engine(str(weights[0]), folder, threads=2, published=PartsOptions(tile=SIDE))


def test_a_bundle_holds_the_parts_and_says_how_close_they_are(bundle: Bundle) -> None:
    assert {path.name for path in bundle.path.iterdir()} == {"manifest.json", ENCODER, GENERATOR, DECODER}
    assert bundle.graph_path == bundle.path
    parity = bundle.manifest["parity"]
    assert parity["max_abs"].keys() == {ENCODER, GENERATOR, DECODER}
    assert max(parity["max_abs"].values()) < 5e-4  # fp32, of images up to 10
    assert bundle.manifest["licence"] == "L"
    for name in (ENCODER, GENERATOR, DECODER):
        session = ort.InferenceSession(str(bundle.path / name), providers=["CPUExecutionProvider"])
        (output,) = session.get_outputs()
        assert output.shape[0] == "n"
        assert all(isinstance(size, int) for size in output.shape[1:])


def test_a_damaged_part_is_named(bundle: Bundle, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    copy.mkdir()
    for path in bundle.path.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / DECODER).write_bytes(b"x" * (bundle.path / DECODER).stat().st_size)
    with pytest.raises(ModelError, match=r"decoder\.onnx does not match the hash"):
        load_bundle(copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["files"][DECODER]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelError, match=r"does not list decoder\.onnx"):
        load_bundle(copy)


def test_the_engine_computes_what_torch_does(bundle: Bundle, weights: tuple[Path, Checkpoint]) -> None:
    """Two tiles at once; codes are looked up in latents of two runtimes, so a few may differ."""
    rng = np.random.default_rng(0)
    lq = rng.uniform(-1, 1, (2, 3, SIDE, SIDE)).astype(np.float32)
    noise = rng.standard_normal((2, 4, SIDE, SIDE), np.float32)
    details = [np.empty((2, 4 * SIDE, 4 * SIDE, 3), np.float32) for _ in range(3)]
    with (
        OnnxPartsEngine(bundle.path, bundle.spec, 2) as engine,
        TorchEngine(weights[1], Precision.FP32, 2) as reference,
    ):
        assert engine.tile.fixed
        assert engine.tile.size == SIDE
        engine.collect(engine.submit(lq, noise, details[0]))
        reference.collect(reference.submit(lq, noise, details[1]))
        noise[:, 3] *= -1
        engine.collect(engine.submit(lq, noise, details[2]))
        with pytest.raises(BackendError, match="this engine takes tiles of 16x16, not 8x16"):
            engine.submit(lq[:, :, :8], noise[:, :, :8], details[0][:, :32])
    assert details[1].std() > 0.1
    assert (np.abs(details[0] - details[1]) < 1e-3).mean() > 0.99
    assert (np.abs(details[0] - details[2]) > 1e-2).mean() > 0.5  # eps reaches the generator
    with pytest.raises(BackendError, match="the engine for rsd is closed"):
        engine.submit(lq, noise, details[0])


def test_a_bundle_enlarges_images(bundle: Bundle) -> None:
    with SuperResolver.load(bundle.path, threads=2) as enlarge:
        assert enlarge(np.zeros((20, 24, 3), np.uint8)).shape == (80, 96, 3)
    for options, message in (
        ({"steps": 2}, "model 'rsd' of family rsd takes 1 steps, not 2"),
        ({"tile": 128}, "tile is 128, but .* was built for 16; leave it out"),
    ):
        with pytest.raises(InputError, match=message):
            SuperResolver.load(bundle.path, **options)
    with pytest.raises(BackendError, match="openvino does not run the graphs of rsd models; use --backend onnxruntime"):
        SuperResolver.load(bundle.path, backend=Backend.OPENVINO)


def test_decoding_without_codes_is_another_graph(weights: tuple[Path, Checkpoint], tmp_path: Path) -> None:
    part = parts_of(published_model(weights[1], quantise=False), SIDE)[DECODER]
    graph = export_parts({DECODER: part}, tmp_path)[DECODER]
    assert part_error(graph, part) < 5e-4  # fp32, of images up to 10
    latent = torch.randn(part[1]["z0"].shape, generator=torch.Generator().manual_seed(0))
    network, _, output = parts_of(published_model(weights[1]), SIDE)[DECODER]
    assert part_error(graph, (network, {"z0": latent}, output)) > 0.1


def test_attention_in_a_graph_holds_some_rows_of_its_scores(
    weights: tuple[Path, Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels, at_once = SIDE * SIDE, 100
    monkeypatch.setattr("rsd_edge.models.vq._SCORES_AT_ONCE", at_once * pixels)  # 100, 100 and 56 of the 256 rows
    part = parts_of(published_model(weights[1]), SIDE)[DECODER]
    graph = export_parts({DECODER: part}, tmp_path)[DECODER]
    assert part_error(graph, part) < 5e-4  # fp32, of images up to 10
    inferred = onnx.shape_inference.infer_shapes(onnx.load(graph), data_prop=True).graph
    shapes = {
        value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in inferred.value_info
    }
    softmaxes = [shapes[node.output[0]][2:] for node in inferred.node if node.op_type == "Softmax"]
    assert softmaxes == [[at_once, pixels], [at_once, pixels], [pixels % at_once, pixels]]


def test_the_command_says_what_was_built(
    weights: tuple[Path, Checkpoint], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["build-engine", "--model", str(weights[0]), "-o", str(tmp_path), "--tile", str(SIDE), "--no-lookup"])
    assert caught.value.code == 0
    (folder,) = tmp_path.iterdir()
    assert load_bundle(folder).manifest["parity"]["code_book_lookup"] is False
    out = capsys.readouterr().out
    assert out.startswith(f"{folder}: ")
    assert "dB against the networks, by the largest error of a part; a 16x16 tile on " in out


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["run", *map(str, words)])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_a_checkpoint_runs_as_an_engine_that_is_built_once(
    weights: tuple[Path, Checkpoint], bundle: Bundle, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    photo, sha256 = tmp_path / "a.png", hashlib.sha256(weights[0].read_bytes()).hexdigest()
    write_image(photo, np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8))
    words = (photo, "--model", weights[0], "--backend", "onnxruntime", "--tile", SIDE, "--threads", 2)
    assert run(*words, "-o", tmp_path / "b.png", "--steps", 1, "--report", tmp_path / "r.json") == 0
    told = capfd.readouterr().err
    assert told.startswith(
        f"{weights[0]} (sha256 {sha256[:12]}): building the onnxruntime engine for tiles of 16, once"
    )
    folder = Path(told.rstrip("\n").rpartition(" in ")[2])
    assert load_bundle(folder).manifest["source"]["digest"] == sha256
    with SuperResolver.load(bundle.path, threads=2) as enlarge:
        assert np.array_equal(read_image(tmp_path / "b.png"), enlarge(read_image(photo)))
    engine = json.loads((tmp_path / "r.json").read_text())["engine"]
    assert (engine["backend"], engine["tile"], engine["digest"]) == ("onnxruntime", SIDE, load_bundle(folder).digest)

    assert run(*words, "-o", tmp_path / "c.png") == 0
    assert capfd.readouterr().err == ""
    assert (tmp_path / "c.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    (folder / DECODER).write_bytes(b"")
    assert run(*words, "-o", tmp_path / "c.png") == 0
    assert "decoder.onnx has 0 bytes" in capfd.readouterr().err
    assert (tmp_path / "c.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert [path.name for path in folder.parent.glob("[!.]*")] == [folder.name]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--precision", "int8"),
            "checkpoints are run on onnxruntime in fp32; leave --precision out",
        ),
        (("--steps", "2"), "model 'rsd' of family rsd takes 1 steps, not 2"),
        (("--tile", "24"), "tile is 24; tiles of rsd are multiples of 16"),
        (("--device", "cuda"), "device is cuda, but onnxruntime runs on the CPU here"),
    ],
)
def test_engines_that_are_not_built_on_the_way(
    weights: tuple[Path, Checkpoint],
    words: tuple[str, ...],
    message: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_image(tmp_path / "a.png", np.zeros((4, 4, 3), np.uint8))
    backend = ("--model", weights[0], "--backend", "onnxruntime")
    assert run(tmp_path / "a.png", "-o", tmp_path / "b.png", *backend, *words) == 2
    err = capfd.readouterr().err
    assert err.splitlines()[-1].startswith(f"error: {message}")
    assert "Traceback" not in err
    assert not list((tmp_path / "cache").rglob("*.onnx"))


def test_an_engine_that_cannot_be_kept_is_not_built(
    weights: tuple[Path, Checkpoint], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(build_published, "export_parts", None)  # is not reached
    write_image(tmp_path / "a.png", np.zeros((4, 4, 3), np.uint8))
    words = ("--model", weights[0], "--backend", "onnxruntime", "--tile", SIDE)
    assert run(tmp_path / "a.png", "-o", tmp_path / "b.png", *words) == 2
    assert "is a file; choose a folder with XDG_CACHE_HOME" in capfd.readouterr().err


def test_the_graph_scales_its_input_by_the_step(weights: tuple[Path, Checkpoint], bundle: Bundle) -> None:
    part, inputs, output = parts_of(published_model(weights[1]), SIDE)[GENERATOR]
    for t in (0, 1):
        changed = (part, {**inputs, "t": torch.tensor([t])}, output)
        assert part_error(bundle.path / GENERATOR, changed) < 1e-4  # fp32, order of sums


def test_builds_that_are_refused(
    weights: tuple[Path, Checkpoint], toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(weights[0])
    with pytest.raises(BackendError, match="rsd models are built for onnxruntime in fp32, not for openvino in fp32"):
        build_engine(path, tmp_path, backend=Backend.OPENVINO)
    with pytest.raises(BackendError, match="not for onnxruntime in int8"):
        build_engine(path, tmp_path, precision=Precision.INT8)
    with pytest.raises(InputError, match="tile is 24; tiles of rsd are multiples of 16"):
        build_engine(path, tmp_path, published=PartsOptions(tile=24))
    with pytest.raises(InputError, match="tile and code-book lookup are options of published models"):
        build_engine(str(toy_bundle), tmp_path, published=PartsOptions())
    monkeypatch.setattr(build_published, "export_parts", lambda parts, folder: dict.fromkeys(parts, folder))
    monkeypatch.setattr(build_published, "part_error", lambda graph, part: float("nan"))
    with pytest.raises(BackendError, match=r"encoder\.onnx differs from its network by nan .*; nothing was written"):
        build_engine(path, tmp_path)
    assert not list(tmp_path.iterdir())


def test_engines_are_not_built_from_three_graphs(
    bundle: Bundle, weights: tuple[Path, Checkpoint], tmp_path: Path
) -> None:
    told = rf"holds three graphs of family rsd, .* give the one that it was built from \({weights[0]}\)$"
    with pytest.raises(ModelError, match=told):
        build_engine(str(bundle.path), tmp_path / "engines", threads=1)
    with pytest.raises(ModelError, match=told):
        build_tensorrt(str(bundle.path), tmp_path / "engines", onnx_only=True)
    assert not (tmp_path / "engines").exists()


@pytest.mark.slow
def test_full_size_parts_are_close(randomise: Callable[[nn.Module, int], nn.Module], tmp_path: Path) -> None:
    arch = for_family(PublishedArchitecture(), "rsd")
    spec = ModelSpec("full", "rsd", multiple_of=64, architecture=arch)
    torch.manual_seed(0)
    model = PublishedModel(spec, SwinUNet(arch.unet), VqAutoencoder(arch.vq)).eval().requires_grad_(False)
    for name, part in parts_of(model, 64).items():
        graph = export_parts({name: part}, tmp_path)[name]
        assert part_error(graph, part) <= PARITY, name
        graph.unlink()
