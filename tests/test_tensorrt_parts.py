"""A published model as three plans on the fake device, against the three graphs in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fake_tensorrt
import numpy as np
import pytest
from fake_tensorrt.cudart import FakeCudart
from fake_tensorrt.network import World
from onnx import numpy_helper

from rsd_edge.backends import open_engine
from rsd_edge.backends.onnx_parts import OnnxPartsEngine
from rsd_edge.backends.tensorrt.cuda import Cuda
from rsd_edge.backends.tensorrt.parts import TensorRtPartsEngine
from rsd_edge.bundle import DECODER, ENCODER, GENERATOR, BuildRecord, Bundle, plan_name
from rsd_edge.errors import BackendError, InputError
from rsd_edge.export.from_plan import bundle_plans
from rsd_edge.export.graphs_only import write_graphs
from rsd_edge.export.tensorrt_build import build_bundle
from rsd_edge.export.tensorrt_judge import made_by_float
from rsd_edge.export.tensorrt_network import compile_graph
from rsd_edge.export.tensorrt_options import TensorRtOptions
from rsd_edge.export.typed_build import io_of
from rsd_edge.export.typed_prepare import with_sizes
from rsd_edge.specs import (
    Backend,
    EngineSpec,
    ModelSpec,
    Precision,
    PublishedArchitecture,
    ScheduleSpec,
    SwinUNetArchitecture,
    TileSpec,
    VqArchitecture,
)

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")

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


@pytest.fixture(scope="module")
def graphs(randomise: Callable[..., object], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from rsd_edge.export.parts import export_parts, parts_of
    from rsd_edge.models.checkpoint import Checkpoint, state_of
    from rsd_edge.models.published import published_model
    from rsd_edge.models.swin_unet import SwinUNet
    from rsd_edge.models.vq import VqAutoencoder

    networks = {"generator": SwinUNet(SMALL.unet), "autoencoder": VqAutoencoder(SMALL.vq)}
    parts = {name: state_of(randomise(network, seed)) for seed, (name, network) in enumerate(networks.items())}
    checkpoint = Checkpoint(spec().model, parts, {"licence": "L"})
    # Without the code book: between two codes, rounding would decide.
    return export_parts(parts_of(published_model(checkpoint, quantise=False), SIDE), tmp_path_factory.mktemp("parts"))


def spec() -> EngineSpec:
    model = ModelSpec("rsd", "rsd", halo=4, multiple_of=SIDE, schedule=ScheduleSpec(steps=2), architecture=SMALL)
    return EngineSpec(model, Backend.TENSORRT, Precision.FP16)


@pytest.fixture(params=["10.3.0", "11.4.0.106"])
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr("rsd_edge.export.tensorrt_judge._ROUNDS", 1)
    return fake_tensorrt.install(monkeypatch, request.param, FakeCudart(integrated=request.param == "10.3.0"))


@pytest.fixture
def oldest(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr("rsd_edge.export.tensorrt_judge._ROUNDS", 1)
    return fake_tensorrt.install(monkeypatch, "10.3.0", FakeCudart(integrated=True))


@pytest.fixture
def bundle(world: World, graphs: dict[str, Path], tmp_path: Path) -> Bundle:
    options = TensorRtOptions(tile=SIDE, batch=(1, 1, 2))
    return build_bundle(graphs, spec(), tmp_path / "engines", BuildRecord(), reference=graphs, options=options)


def test_three_plans_give_the_numbers_of_three_graphs(bundle: Bundle, graphs: dict[str, Path], world: World) -> None:
    names = {ENCODER, GENERATOR, DECODER}
    assert {path.name for path in bundle.path.glob("*.plan")} == {name.replace(".onnx", ".plan") for name in names}
    rng = np.random.default_rng(0)
    lq = rng.uniform(-1, 1, (2, 3, SIDE, SIDE)).astype(np.float32)
    noise = rng.standard_normal((2, 4, SIDE, SIDE), np.float32)
    found, wanted = (np.empty((2, 4 * SIDE, 4 * SIDE, 3), np.float32) for _ in range(2))
    with open_engine(bundle.graph_path, bundle.spec, tile=TileSpec.of(bundle.spec.model, batch=2)) as engine:
        assert isinstance(engine, TensorRtPartsEngine)
        assert (engine.tile.size, engine.tile.batch, engine.tile.fixed) == (SIDE, 2, True)
        engine.prepare(2, SIDE, SIDE)
        engine.collect(engine.submit(lq, noise, found))
        with pytest.raises(BackendError, match="was opened for image of"):
            engine.submit(lq[:1], noise[:1], found[:1])
    with OnnxPartsEngine(graphs[ENCODER].parent, replace(spec(), backend=Backend.ONNXRUNTIME), 1) as reference:
        reference.submit(lq, noise, wanted)
    assert wanted.std() > 0.05
    np.testing.assert_allclose(found, wanted, atol=1e-4)  # other optimisations of the same graphs
    assert world.cudart.live == 0
    with pytest.raises(BackendError, match="is closed"):
        engine.submit(lq, noise, found)


def test_another_batch_or_tile_is_refused(bundle: Bundle) -> None:
    with pytest.raises(BackendError, match=r"batch is 3 and the plans in .* take 1 to 2 tiles"):
        open_engine(bundle.graph_path, bundle.spec, tile=TileSpec.of(bundle.spec.model, batch=3))
    with open_engine(bundle.graph_path, bundle.spec, tile=TileSpec.of(bundle.spec.model)) as engine:
        lq, noise = np.zeros((1, 3, 8, 8), np.float32), np.zeros((1, 4, 8, 8), np.float32)
        with pytest.raises(BackendError, match="takes tiles of 16x16, not 8x8"):
            engine.submit(lq, noise, np.zeros((1, 32, 32, 3), np.float32))


def test_a_part_that_is_not_finite_leaves_bicubic(
    bundle: Bundle, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.faults.add("not-finite")
    detail = np.empty((1, 4 * SIDE, 4 * SIDE, 3), np.float32)
    lq, noise = np.zeros((1, 3, SIDE, SIDE), np.float32), np.zeros((1, 4, SIDE, SIDE), np.float32)
    with open_engine(bundle.graph_path, bundle.spec, tile=TileSpec.of(bundle.spec.model)) as engine:
        engine.submit(lq, noise, detail)
    assert "1 of 1 tiles" in caplog.text
    assert not detail.any()


def test_kernels_are_for_edge_models(world: World, graphs: dict[str, Path], tmp_path: Path) -> None:
    options = TensorRtOptions(tile=SIDE, kernels=tmp_path)
    with pytest.raises(InputError, match="kernels serve edge models"):
        build_bundle(graphs, spec(), tmp_path / "engines", BuildRecord(), reference=graphs, options=options)


def test_each_plan_is_held_to_the_gate_alone(oldest: World, graphs: dict[str, Path], tmp_path: Path) -> None:
    """The whole is held to less, since a code book has to be borne with."""
    model = onnx.load(graphs[GENERATOR])
    last = next(node for node in reversed(model.graph.node) if node.op_type == "Conv")
    for weights in model.graph.initializer:
        if weights.name in last.input[1:]:
            weights.CopyFrom(numpy_helper.from_array(np.float32(1.1) * numpy_helper.to_array(weights), weights.name))
    onnx.save(model, tmp_path / GENERATOR)
    given = graphs | {GENERATOR: tmp_path / GENERATOR}
    options = TensorRtOptions(tile=SIDE, batch=(1, 2, 2), threads=1)
    with pytest.raises(BackendError, match=r"^generator\.plan of the fp16 engine differs from float by"):
        build_bundle(given, spec(), tmp_path / "out", BuildRecord(), reference=graphs, options=options)
    sound = build_bundle(graphs, spec(), tmp_path / "out", BuildRecord(), reference=graphs, options=options)
    assert set(sound.manifest["parity"]["parts"]) == {ENCODER, GENERATOR, DECODER}
    assert min(part["psnr_db"] for part in sound.manifest["parity"]["parts"].values()) > 80  # other orders of sums
    assert oldest.cudart.live == 0


def test_what_parts_exchanged_travels(oldest: World, graphs: dict[str, Path], tmp_path: Path) -> None:
    """Graphs and plans of a published model, written in one place and bundled in another."""
    options = TensorRtOptions(tile=SIDE, threads=1)
    fixed = {name: tmp_path / name for name in graphs}
    for name, path in graphs.items():
        onnx.save(with_sizes(onnx.load(path), {"n": 1}), fixed[name])
    reference = made_by_float(fixed, spec(), options)
    made = write_graphs(tmp_path / "out", spec(), fixed, io_of(fixed), BuildRecord(licence="L"), options, reference, {})
    cuda = Cuda()
    for name, path in made.graphs.items():
        plan = compile_graph(oldest.trt, cuda, path, options, SIDE).plan
        (made.path / plan_name(name)).write_bytes(plan)
    cuda.close()
    bundle = bundle_plans(made.path, tmp_path / "engines")
    assert set(bundle.manifest["parity"]["parts"]) == {ENCODER, GENERATOR, DECODER}
    assert bundle.manifest["target"]["compiled_by"] == "trtexec"
