"""Toy engines for tests that need some network but not a trained one, and tiny runs for tests of training."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rsd_edge.bundle import BuildRecord, write_bundle
from rsd_edge.specs import (
    EdgeArchitecture,
    EngineSpec,
    ModelSpec,
    PublishedArchitecture,
    SwinUNetArchitecture,
    VqArchitecture,
)
from rsd_edge.stream.images import write_image

if TYPE_CHECKING:  # tests of the runtime run without torch
    import torch
    from torch import nn

    from rsd_edge.distill.config import DistillConfig
    from rsd_edge.models.checkpoint import Checkpoint


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where long runs leave what they measured."""
    parser.addoption("--account", type=Path, help="A JSON file that gets what the long live runs measured.")


@pytest.fixture
def account(request: pytest.FixtureRequest) -> Callable[[Mapping[str, Any]], None]:
    """Keeps the figures of a test under its name in the file that --account names; -s shows them as well."""
    path: Path | None = request.config.getoption("--account")

    def keep(figures: Mapping[str, Any]) -> None:
        print(json.dumps(figures))  # noqa: T201
        if path is not None:
            known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            known[request.node.name] = figures
            path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")

    return keep


@pytest.fixture(scope="session", autouse=True)
def hangups_arrive() -> None:
    """Under nohup too, where SIGHUP would be ignored by all processes that tests start: a handler is not inherited."""
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is not None and signal.getsignal(hangup) is signal.SIG_IGN:
        signal.signal(hangup, lambda number, frame: None)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is remembered about engines stays out of the cache of whoever runs the tests, and does not come from it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def no_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """`rsd-edge doctor` loads no other runtimes, which takes seconds, and takes them for sound."""
    monkeypatch.setattr("rsd_edge.doctor.Trial", lambda backend: SimpleNamespace(problem=lambda: None))


TOY_DILATION = 7  # receptive radius 1 + 7 + 1, below halo - feather = 12 of the default tiles


def make_toy_graph(path: Path, *, noise_channels: int = 5, input_name: str = "lq", fixed: bool = False) -> Path:
    """An ONNX graph with the contract of an engine: three random convolutions, a pixel shuffle; detail about +-0.3."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(5)
    n, h, w = (1, 48, 48) if fixed else ("n", "h", "w")
    nodes = [helper.make_node("Concat", [input_name, "noise"], ["x0"], axis=1)]
    weights = []
    layers = [(3 + noise_channels, 12, 1), (12, 12, TOY_DILATION), (12, 48, 1)]
    for i, (inputs, outputs, dilation) in enumerate(layers):
        kernel = rng.normal(0, 0.35 / np.sqrt(inputs), (outputs, inputs, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, f"kernel{i}"))
        nodes.append(
            helper.make_node("Conv", [f"x{i}", f"kernel{i}"], [f"y{i}"], dilations=[dilation] * 2, pads=[dilation] * 4)
        )
        if i + 1 < len(layers):
            nodes.append(helper.make_node("Relu", [f"y{i}"], [f"x{i + 1}"]))
    nodes.append(helper.make_node("DepthToSpace", [f"y{len(layers) - 1}"], ["x4"], blocksize=4, mode="CRD"))
    nodes.append(helper.make_node("Transpose", ["x4"], ["detail"], perm=[0, 2, 3, 1]))
    graph = helper.make_graph(
        nodes,
        "toy",
        [
            helper.make_tensor_value_info(input_name, TensorProto.FLOAT, [n, 3, h, w]),
            helper.make_tensor_value_info("noise", TensorProto.FLOAT, [n, noise_channels, h, w]),
        ],
        [helper.make_tensor_value_info("detail", TensorProto.FLOAT, [n, None, None, 3])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture(scope="session")
def toy_graph_factory(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a toy graph in a folder of its own; keyword arguments make graphs that break the contract."""
    return lambda **options: make_toy_graph(tmp_path_factory.mktemp("toy") / "graph.onnx", **options)


@pytest.fixture(scope="session")
def toy_graph(toy_graph_factory: Callable[..., Path]) -> Path:
    return toy_graph_factory()


@pytest.fixture(scope="session")
def toy_spec() -> EngineSpec:
    return EngineSpec(model=ModelSpec(name="toy"))


@pytest.fixture(scope="session")
def toy_bundle(toy_graph: Path, toy_spec: EngineSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles"), toy_spec, toy_graph, BuildRecord()).path


@pytest.fixture(scope="session")
def photo() -> Callable[[int, int], NDArray[np.uint8]]:
    """Makes uint8 BGR images with smooth areas, edges and texture, and with pixels at both ends of the range."""

    def make(height: int, width: int) -> NDArray[np.uint8]:
        rng = np.random.default_rng(height * 10007 + width)
        y, x = np.mgrid[:height, :width].astype(np.float64)
        planes = [128 + 90 * np.sin(x / (7 + 3 * c)) * np.cos(y / (11 - 2 * c)) for c in range(3)]
        image = np.stack(planes, axis=-1) + rng.normal(0, 12, (height, width, 3)) * (x > width / 2)[..., None]
        image[height // 3 : height // 2, width // 4 : width // 2] = (0, 255, 128)
        return np.clip(image, 0, 255).astype(np.uint8)

    return make


@pytest.fixture(scope="session")
def tiny_model() -> ModelSpec:
    """The shipped kind of model in sizes that train within a test."""
    return ModelSpec(
        name="tiny",
        architecture=EdgeArchitecture(
            latent_channels=4,
            stem_width=8,
            stem_blocks=1,
            generator_widths=(8, 12),
            generator_blocks=(1, 1, 1),
            time_width=8,
            decoder_width=8,
            decoder_blocks=1,
            decoder_half_width=4,
            encoder_width=4,
        ),
    )


@pytest.fixture(scope="session")
def randomise() -> Callable[[nn.Module, int], nn.Module]:
    """Gives every parameter a random value: the zeros of a new network hide what they multiply."""
    import torch

    def fill(network: nn.Module, seed: int) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in network.parameters():
                spread = 1 / max(1, parameter[0].numel()) ** 0.5
                parameter.copy_(spread * torch.randn(parameter.shape, generator=generator))
        return network

    return fill


@pytest.fixture(scope="session")
def tiny_weights(tiny_model: ModelSpec, randomise: Callable[[nn.Module, int], nn.Module]) -> Checkpoint:
    """Random weights of all parts that the stages hand on."""
    from rsd_edge.models.checkpoint import Checkpoint, state_of
    from rsd_edge.models.edge import EdgeDecoder, EdgeEncoder, EdgeGenerator, EdgeStem

    arch = tiny_model.architecture
    networks = {
        "encoder": EdgeEncoder(arch),
        "stem": EdgeStem(arch),
        "decoder": EdgeDecoder(arch),
        "teacher": EdgeGenerator(arch, noise_channel=False),
        "student": EdgeGenerator(arch, noise_channel=True),
    }
    parts = {name: state_of(randomise(network, seed)) for seed, (name, network) in enumerate(networks.items())}
    return Checkpoint(tiny_model, parts, {"stage": "none", "seconds": 0})


@pytest.fixture(scope="session")
def hr_photos(photo: Callable[[int, int], NDArray[np.uint8]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with four small photographs, one of them in a folder of its own."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "more").mkdir()
    for name, height, width in (("a", 80, 96), ("b", 72, 72), ("c", 64, 110), ("more/d", 90, 66)):
        write_image(folder / f"{name}.png", photo(height, width))
    return folder


@pytest.fixture
def tiny_config(tiny_model: ModelSpec, hr_photos: Path, tmp_path: Path) -> Callable[..., DistillConfig]:
    """Makes configurations of runs in tmp_path/run; keyword arguments are settings of the student stage."""
    from dataclasses import fields

    from rsd_edge.distill.config import DistillConfig
    from rsd_edge.distill.data_config import DataConfig
    from rsd_edge.distill.stage_config import StageConfig, StudentConfig
    from rsd_edge.distill.stages.autoencoder import AutoencoderStage
    from rsd_edge.distill.stages.student import StudentStage
    from rsd_edge.distill.stages.teacher import TeacherStage

    def make(precision: str = "fp32", **settings: Any) -> DistillConfig:
        common = {"iterations": 2, "batch": 2, "warmup": 1, "lr": 1e-3, "lr_final": 0.05, "betas": (0.9, 0.99)}
        common |= {"lpips_weight": 1.0, "lpips_windows": True, "log_every": 1, "clip": 1.0, **settings}
        known = {field.name for field in fields(StageConfig)}
        given = {name: value for name, value in common.items() if name in known}
        stage = StageConfig(**{name: given[name] for name in given if name not in AutoencoderStage.unused})
        teacher = StageConfig(**{name: given[name] for name in given if name not in TeacherStage.unused})
        # Only the losses that a test asks for, not those of the paper's recipe.
        others = {name: value for name, value in common.items() if name not in StudentStage.unused}
        student = StudentConfig(**{"distill_weight": 0.0, "gan_weight": 0.0, **others})
        data = DataConfig(str(hr_photos), str(hr_photos), crop=64, workers=0, val_crops=2)
        stages = {"autoencoder": stage, "teacher": teacher, "student": student, "finetune": student}
        return DistillConfig(tiny_model, str(tmp_path / "run"), 7, precision, data=data, **stages)

    return make


@pytest.fixture
def prepared(tiny_config: Callable[..., DistillConfig], tiny_weights: Checkpoint) -> Callable[..., DistillConfig]:
    """Configurations of runs whose earlier stages have (random) weights."""
    from rsd_edge.distill.roles import stage_weights
    from rsd_edge.models.checkpoint import save_checkpoint

    def make(precision: str = "fp32", **settings: Any) -> DistillConfig:
        config = tiny_config(precision, **settings)
        for stage in ("autoencoder", "teacher", "student"):
            save_checkpoint(stage_weights(config, stage), tiny_weights)
        return config

    return make


@pytest.fixture
def one_torch_thread() -> Iterator[None]:
    """Sums in the same order whatever the machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def quick_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    """INT8 builds see eight tiles and are judged on two; no clock decides: each engine is twice as fast as the last."""
    from rsd_edge.export import build, calibration
    from rsd_edge.export.calibration import Samples

    def first(count: int, make: Callable[..., Samples]) -> Callable[..., Samples]:
        def few(*arguments: object) -> Samples:
            every = make(*arguments)
            hr = None if every.hr is None else every.hr[:count]
            return Samples(every.frames[:count], every.lq[:count], every.noise[:count], hr)

        return few

    monkeypatch.setattr(calibration, "calibration_samples", first(8, calibration.calibration_samples))
    monkeypatch.setattr(calibration, "held_out_samples", first(2, calibration.held_out_samples))
    monkeypatch.setattr(build, "median_seconds", lambda engines: [0.02 / 2**i for i in range(len(engines))])


PARITY = Path(__file__).parent / "fixtures" / "parity"


@pytest.fixture(scope="session")
def parity() -> dict[str, torch.Tensor]:
    """What the published networks make of given inputs, at a small size."""
    import torch

    with np.load(PARITY / "parity.npz") as arrays:
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


@pytest.fixture(scope="session")
def small_published() -> PublishedArchitecture:
    """The sizes of the networks that made the parity data."""
    return PublishedArchitecture(
        SwinUNetArchitecture(model_channels=32, num_res_blocks=(1, 1, 1, 1), num_head_channels=16, swin_embed_dim=32),
        VqArchitecture(ch=32, num_res_blocks=1, n_embed=128),
    )


@pytest.fixture(scope="session")
def published_states() -> dict[str, dict[str, torch.Tensor]]:
    """State dicts as the files have them, buffers too: `teacher`, `student` (one more input) and `autoencoder`."""
    import torch

    states = {}
    for name, file in (("student", "rsd_small"), ("autoencoder", "vq_small")):
        with np.load(PARITY / f"{file}.npz") as arrays:
            tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
        states[name] = {key: item.float() if item.is_floating_point() else item for key, item in tensors.items()}
    first = "input_blocks.0.0.weight"
    states["teacher"] = {**states["student"], first: states["student"][first][:, :6].clone()}
    return states


@pytest.fixture
def typed_within_the_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is typed keeps the rules of every version of TensorRT."""
    from rsd_edge.export import typed
    from rsd_edge.export.lint import lint

    make = typed.halved

    def checked(*arguments: Any) -> Any:
        model = make(*arguments)
        for version in ("10.3", "10.16", "11.4"):
            assert lint(model, version) == []
        return model

    monkeypatch.setattr(typed, "halved", checked)
