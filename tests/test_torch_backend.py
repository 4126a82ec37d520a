from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rsd_edge import SuperResolver
from rsd_edge.backends.torch import TorchEngine, _frame_path_kind, open_checkpoint
from rsd_edge.cli import main
from rsd_edge.errors import BackendError, InputError, MissingDependencyError
from rsd_edge.models.checkpoint import Checkpoint, save_checkpoint
from rsd_edge.models.edge_tile import edge_tile
from rsd_edge.models.official import for_family
from rsd_edge.models.published import bicubic_up, pad_to_multiple, published_model
from rsd_edge.models.swin_unet import recomputed
from rsd_edge.pipeline import NumpyFramePath
from rsd_edge.specs import Backend, FramePathKind, ModelSpec, Precision, PublishedArchitecture, TileSpec
from rsd_edge.stream.images import read_image, write_image

States = dict[str, dict[str, Tensor]]


@pytest.fixture(scope="module")
def teacher(small_published: PublishedArchitecture, published_states: States) -> Checkpoint:
    return checkpoint("resshift", "teacher", small_published, published_states)


@pytest.fixture(scope="module")
def student(small_published: PublishedArchitecture, published_states: States) -> Checkpoint:
    return checkpoint("rsd", "student", for_family(small_published, "rsd"), published_states)


def checkpoint(family: str, part: str, arch: PublishedArchitecture, states: States) -> Checkpoint:
    generator = {name: tensor for name, tensor in states[part].items() if not recomputed(name)}
    spec = ModelSpec(family, family=family, multiple_of=64, architecture=arch)
    return Checkpoint(spec, {"generator": generator, "autoencoder": states["autoencoder"]})


def detail_of(engine: TorchEngine, lq: Tensor, noise: Tensor) -> Tensor:
    """RGB, channels first."""
    n, _, h, w = lq.shape
    detail = np.empty((n, 4 * h, 4 * w, 3), np.float32)
    engine.collect(engine.submit(np.ascontiguousarray(lq), np.ascontiguousarray(noise), detail))
    return torch.from_numpy(detail).flip(3).permute(0, 3, 1, 2)


def test_the_student_gives_the_published_image(student: Checkpoint, parity: dict[str, Tensor]) -> None:
    noise = torch.cat([parity["noise"], parity["rsd_eps"]], dim=1)
    with TorchEngine(student, Precision.FP32, 2) as engine:
        image = detail_of(engine, parity["unet_lq"], noise) + bicubic_up(parity["unet_lq"])
    # Codes are looked up in our own latent: where two are equally near, another one may be taken.
    assert ((image[..., 96:192, 64:160] - parity["rsd_decoded"]).abs() < 2e-4).float().mean() > 0.99
    assert image.abs().max() <= 1 + 1e-6  # clamped, then twice rounded


def test_fifteen_steps_take_their_noises_from_the_channels(teacher: Checkpoint, parity: dict[str, Tensor]) -> None:
    """In the order prior, t = 14, ..., t = 1, eps: the last step's noise and eps are not used."""
    noises = [parity["noise"], *parity["ancestral_noises"][:14], parity["rsd_eps"]]
    spec = dataclasses.replace(teacher.spec, steps=15)
    noise = torch.cat(noises, dim=1)
    assert noise.shape[1] == spec.noise_channels == 46
    model = published_model(dataclasses.replace(teacher, spec=spec))
    with torch.no_grad():
        error = (model.sample(parity["unet_lq"], noise) - parity["ancestral_z0"]).abs()
    # From our own z_y, whose last digit the random weights make up to 1e-3 of at a few pixels, in fifteen steps.
    assert (error < 2e-4).float().mean() > 0.98
    assert error.max() < 5e-3


def test_odd_sizes_are_reflected_and_cut(student: Checkpoint) -> None:
    rng = np.random.default_rng(0)
    lq, noise = rng.uniform(-1, 1, (1, 3, 40, 50)).astype(np.float32), rng.normal(size=(1, 4, 40, 50))
    noise = noise.astype(np.float32)
    wide = [np.pad(x, ((0, 0), (0, 0), (0, 24), (0, 14)), mode="reflect") for x in (lq, noise)]
    with TorchEngine(student, Precision.FP32, 2) as engine:
        found = detail_of(engine, torch.from_numpy(lq), torch.from_numpy(noise))
        expected = detail_of(engine, *map(torch.from_numpy, wide))
    assert found.shape == (1, 3, 160, 200)
    # Bicubic bases differ at the border alone, where one sees the reflected pixels and the other repeats the last.
    torch.testing.assert_close(found[..., :148, :188], expected[..., :148, :188], rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (5, 130), (64, 64), (20, 33)])
def test_small_sides_are_reflected_until_they_are_large_enough(shape: tuple[int, int]) -> None:
    x = np.random.default_rng(0).normal(size=(1, 2, *shape))
    found = pad_to_multiple(torch.from_numpy(x), 64)
    h, w = (-(-side // 64) * 64 for side in shape)
    expected = np.pad(x, ((0, 0), (0, 0), (0, h - shape[0]), (0, w - shape[1])), mode="reflect")
    np.testing.assert_array_equal(found.numpy(), expected)


@pytest.mark.parametrize(("precision", "share"), [(Precision.BF16, 0.15), (Precision.FP16, 0.05)])
def test_half_precision_is_close(
    student: Checkpoint, parity: dict[str, Tensor], precision: Precision, share: float
) -> None:
    """Compared without codes, of which another one may be the nearest; bf16 keeps 8 bits through forty layers."""
    from rsd_edge.models.detail import cast_networks

    noise = torch.cat([parity["noise"], parity["rsd_eps"]], dim=1)
    full, half = published_model(student), cast_networks(published_model(student), precision)
    assert half.decoder.autoencoder.quantize.embedding.weight.dtype == torch.float32
    with torch.no_grad():
        expected, found = full.sample(parity["unet_lq"], noise), half.sample(parity["unet_lq"], noise)
    assert found.dtype == torch.float32
    assert 0 < (found - expected).square().mean().sqrt() / expected.square().mean().sqrt() < share


def test_edge_checkpoints_run_too(tiny_weights: Checkpoint) -> None:
    rng = np.random.default_rng(0)
    lq, noise = (torch.from_numpy(rng.normal(size=(2, c, 12, 20)).astype(np.float32)) for c in (3, 5))
    with torch.no_grad():
        expected = edge_tile(tiny_weights)(lq, noise)
    with TorchEngine(tiny_weights, Precision.FP32, 1) as engine:
        assert (detail_of(engine, lq, noise) - expected).abs().max() < 1e-5  # order of sums
        assert engine.tile == TileSpec.of(tiny_weights.spec)
    with TorchEngine(tiny_weights, Precision.BF16, 1) as engine:
        assert 0 < (detail_of(engine, lq, noise) - expected).abs().max() < 0.1 * expected.abs().max()  # 8 bits


def test_tiles_that_overflow_become_plain_bicubic(tiny_weights: Checkpoint, caplog: pytest.LogCaptureFixture) -> None:
    """The largest number of fp16 is 65504."""
    parts = {
        part: {name: 1e5 * tensor if tensor.ndim == 4 else tensor for name, tensor in state.items()}
        for part, state in tiny_weights.parts.items()
    }
    frame = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    with TorchEngine(dataclasses.replace(tiny_weights, parts=parts), Precision.FP16, 1) as engine:
        path = NumpyFramePath(engine)
        np.testing.assert_array_equal(path(frame), path(frame, strength=0))
    assert "1 of 1 tiles from tiny were not finite and became plain bicubic; choose another precision" in caplog.text


def test_a_closed_engine_says_so(tiny_weights: Checkpoint) -> None:
    engine = TorchEngine(tiny_weights, Precision.FP32, 1)
    engine.close()
    with pytest.raises(BackendError, match="the engine for tiny is closed"):
        detail_of(engine, torch.zeros(1, 3, 8, 8), torch.zeros(1, 5, 8, 8))


def test_frames_take_the_path_that_is_asked_for(
    tiny_weights: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """On the device, with what defines the kernels, and over NumPy: the same picture."""
    save_checkpoint(tmp_path / "tiny.safetensors", tiny_weights)
    frame, results = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8), []
    for kind in ("numpy", "reference"):
        with (
            caplog.at_level("INFO"),
            SuperResolver.load(tmp_path / "tiny.safetensors", tile=48, batch=2, frame_path=kind) as enlarge,
        ):
            assert enlarge.record()["frame_path"] == kind
            assert ("path 'reference' on cpu" in caplog.text) == (kind == "reference")
            results.append(enlarge(frame, seed=3, strength=0.7))
            bands = [band.copy() for band in enlarge.bands(frame, seed=3, strength=0.7)]
            np.testing.assert_array_equal(np.concatenate(bands), results[-1])
            enlarge.warm_up(8, 9)
        with pytest.raises(BackendError, match="the engine for tiny is closed"):
            enlarge(frame)
    difference = np.abs(results[0].astype(int) - results[1])
    # Sums at a tie round by the order of addition.
    assert difference.max() <= 1
    assert difference.mean() < 1e-3


def test_frames_of_an_edge_model_on_a_gpu_go_through_the_kernels_or_a_path_that_is_named(
    tiny_weights: Checkpoint, student: Checkpoint, toy_bundle: Path
) -> None:
    assert _frame_path_kind(tiny_weights.spec, "cpu", None) is FramePathKind.NUMPY
    assert _frame_path_kind(tiny_weights.spec, "cuda", None) is FramePathKind.TRITON
    assert _frame_path_kind(student.spec, "cuda", None) is FramePathKind.NUMPY
    assert _frame_path_kind(tiny_weights.spec, "cuda", FramePathKind.NUMPY) is FramePathKind.NUMPY
    with pytest.raises(InputError, match="frame path is 'triton', which serves edge models, and 'rsd' is of"):
        TorchEngine(student, Precision.FP32, 1, frame_path=FramePathKind.TRITON)
    with pytest.raises(BackendError, match="frame path 'triton' is for checkpoints on torch, and this is a graph"):
        SuperResolver.load(toy_bundle, frame_path="triton")
    with pytest.raises(InputError, match="frame path is 'cubin'; it must be one of triton, reference, numpy"):
        SuperResolver.load(toy_bundle, frame_path="cubin")


def test_requests_that_cannot_be_met(
    tiny_weights: Checkpoint, toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = tmp_path / "tiny.safetensors"
    save_checkpoint(path, tiny_weights)
    for options, message in (
        ({"backend": "onnxruntime"}, r"onnxruntime does not run .*tiny\.safetensors; use --backend torch, or build"),
        ({"precision": "int8"}, "torch runs fp32, fp16, bf16, not int8"),
        ({"device": "cuda"}, r"device is cuda, but torch .* (is built without CUDA|finds no GPU that works); leave"),
    ):
        with pytest.raises(BackendError, match=message):
            SuperResolver.load(path, **options)
    with pytest.raises(BackendError, match="implementation 'triton' needs tensors on a CUDA device, not on 'cpu'"):
        SuperResolver.load(path, frame_path="triton")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "triton", None)
        patch.delitem(sys.modules, "rsd_edge.kernels.triton_noising", raising=False)
        with pytest.raises(MissingDependencyError, match=r"package triton; .* or 'numpy' with --frame-path"):
            SuperResolver.load(path, frame_path="triton")
    with pytest.raises(BackendError, match="device is cuda, but onnxruntime runs on the CPU here; give a checkpoint"):
        SuperResolver.load(toy_bundle, device="cuda")
    with monkeypatch.context() as patch:
        patch.setattr("rsd_edge.models.checkpoint.load_checkpoint", lambda path: pytest.fail("weights were read"))
        with pytest.raises(InputError, match="model 'tiny' of family edge takes 1 steps, not 15"):
            open_checkpoint(path, steps=15)
    with pytest.raises(InputError, match="model 'toy' of family edge takes 1 steps, not 2"):
        SuperResolver.load(toy_bundle, steps=2)
    with pytest.raises(BackendError, match=r"torch runs checkpoints and .* is a graph; give a \.safetensors file"):
        SuperResolver.load(toy_bundle, backend=Backend.TORCH)


def test_a_checkpoint_enlarges_an_image(student: Checkpoint, tmp_path: Path) -> None:
    """From the command line, with other pixels for another seed."""
    save_checkpoint(tmp_path / "rsd.safetensors", student)
    write_image(tmp_path / "a.png", np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8))
    weights, report = tmp_path / "rsd.safetensors", tmp_path / "r.json"
    words = ["--model", str(weights), "--backend", "torch", "--steps", "1", "--tile", "64", "--report", str(report)]
    results = []
    for seed in ("0", "1"):
        with pytest.raises(SystemExit) as caught:
            main(["run", str(tmp_path / "a.png"), "-o", str(tmp_path / f"{seed}.png"), *words, "--seed", seed])
        assert caught.value.code == 0
        results.append(read_image(tmp_path / f"{seed}.png"))
    assert results[0].shape == (80, 96, 3)
    assert (results[0] != results[1]).mean() > 0.5
    account = json.loads(report.read_text())
    assert account["versions"]["torch"] == importlib.metadata.version("torch")
    assert account["engine"] == {
        "model": "rsd",
        "precision": "fp32",
        "backend": "torch",
        "steps": 1,
        "tile": 64,
        "digest": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "device": "cpu",
        "frame_path": "numpy",
    }


FOUR_TILES = """
from pathlib import Path
import numpy as np, torch
from rsd_edge import SuperResolver
from rsd_edge.backends.torch import TorchEngine
from rsd_edge.models.checkpoint import Checkpoint
from rsd_edge.models.official import for_family
from rsd_edge.models.swin_unet import SwinUNet
from rsd_edge.models.vq import VqAutoencoder
from rsd_edge.specs import ModelSpec, Precision, PublishedArchitecture, TileSpec

arch = for_family(PublishedArchitecture(), "rsd")
torch.manual_seed(0)
parts = {"generator": SwinUNet(arch.unet).state_dict(), "autoencoder": VqAutoencoder(arch.vq).state_dict()}
spec = ModelSpec("full", "rsd", multiple_of=64, architecture=arch)
engine = TorchEngine(Checkpoint(spec, parts), Precision.FP32, 2, tile=TileSpec.of(spec, 64))
done = []
frame = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
SuperResolver(engine)(frame, progress=lambda index, total: done.append(total))
assert done == [4, 4, 4, 4], done
# VmHWM starts afresh when a program starts; getrusage keeps the peak of the process that started it.
(peak,) = (line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
print(peak)
"""


@pytest.mark.slow
def test_four_tiles_of_the_full_networks_stay_under_4_gib(tmp_path: Path) -> None:
    """State dicts and the networks loaded from them, 0.7 GB each, are both in memory here."""
    found = subprocess.run(
        [sys.executable, "-c", FOUR_TILES], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) * 1024 < 4 << 30
