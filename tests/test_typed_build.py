"""Models to folders of typed graphs, and what `build-engine --backend tensorrt` says without TensorRT."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_tensorrt
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from torch import nn

from rsd_edge.backends import open_engine
from rsd_edge.bundle import DECODER, ENCODER, GENERATOR, GRAPH, Bundle, rebuild_command
from rsd_edge.cli import main
from rsd_edge.errors import BackendError, InputError
from rsd_edge.export import graphs_only, tensorrt_judge, typed_build, typed_sources
from rsd_edge.export.calibration import Samples
from rsd_edge.export.gate import Gate
from rsd_edge.export.graphs_only import LACKS, MANIFEST, REFERENCE, GraphsOnly
from rsd_edge.export.lint import lint
from rsd_edge.export.rounding import rounded, run_graph
from rsd_edge.export.tensorrt_options import REPORT, TensorRtOptions
from rsd_edge.export.typed_build import LINTED, build_tensorrt
from rsd_edge.models.checkpoint import Checkpoint, save_checkpoint, state_of
from rsd_edge.models.swin_unet import SwinUNet
from rsd_edge.models.vq import VqAutoencoder
from rsd_edge.specs import (
    ModelSpec,
    Precision,
    PublishedArchitecture,
    ScheduleSpec,
    SwinUNetArchitecture,
    TileSpec,
    VqArchitecture,
)
from rsd_edge.stream.images import write_image

SIDE = 16
SMALL = PublishedArchitecture(
    SwinUNetArchitecture(
        image_size=SIDE,
        noise_channels=1,
        model_channels=32,
        channel_mult=(1,),
        num_res_blocks=(1,),
        attention_resolutions=(16,),
        num_head_channels=16,
        swin_embed_dim=32,
    ),
    VqArchitecture(ch=32, ch_mult=(1, 1, 1), num_res_blocks=1, n_embed=64),
)
PARTS = (ENCODER, GENERATOR, DECODER)


@pytest.fixture
def few_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights on a handful of tiles are gated by what they reach, not by what trained ones must."""
    from rsd_edge.export import typed

    def first(count: int, make: Callable[..., Samples]) -> Callable[..., Samples]:
        return lambda *arguments: make(*arguments).first(count)

    monkeypatch.setattr(typed_sources, "calibration_samples", first(4, typed_sources.calibration_samples))
    monkeypatch.setattr(typed_sources, "held_out_samples", first(1, typed_sources.held_out_samples))
    monkeypatch.setattr(typed_sources, "_PARTS_CALIBRATION", 2)
    monkeypatch.setattr(typed, "INT8_GATE", Gate(20, 8, 0))
    monkeypatch.setattr(typed, "FP16_GATE", Gate(50, 34, 0))


@pytest.fixture(scope="module")
def edge_file(tiny_weights: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("edge") / "weights.safetensors"
    save_checkpoint(path, tiny_weights)
    return path


@pytest.fixture(scope="module")
def published_file(randomise: Callable[[nn.Module, int], nn.Module], tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = ModelSpec("rsd", "rsd", halo=4, multiple_of=SIDE, schedule=ScheduleSpec(steps=2), architecture=SMALL)
    networks = {"generator": SwinUNet(SMALL.unet), "autoencoder": VqAutoencoder(SMALL.vq)}
    parts = {name: state_of(randomise(network, seed)) for seed, (name, network) in enumerate(networks.items())}
    path = tmp_path_factory.mktemp("published") / "rsd.safetensors"
    save_checkpoint(path, Checkpoint(spec, parts, {"licence": "L"}))
    return path


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["build-engine", "--backend", "tensorrt", *map(str, arguments)])
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.mark.usefixtures("few_tiles")
def test_graphs_are_written_with_the_command_that_compiles_them(
    edge_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--onnx-only", "--tile", 64, "--batch", "1,2,4", "--workspace", 512, "-o", tmp_path / "out"]
    words += ["--engine-flag", "refit", "--engine-flag", "strip-plan", "--threads", 1, "--timing-cache", "here"]
    assert run("--model", edge_file, *words) == 0
    (folder,) = (tmp_path / "out").iterdir()
    manifest = json.loads((folder / MANIFEST).read_text())
    graph = (folder / GRAPH).read_bytes()
    assert manifest["files"] == {GRAPH: {"sha256": hashlib.sha256(graph).hexdigest(), "bytes": len(graph)}}
    assert folder.name == f"tiny-tensorrt-fp16-onnx-{manifest['digest'][:12]}"
    assert (manifest["tile"], manifest["batch"]) == (64, [1, 2, 4])
    assert manifest["engine"]["precision"] == "fp16"
    again = "--batch 1,2,4 --tile 64 --workspace 512 --engine-flag refit --engine-flag strip-plan"
    assert manifest["source"]["tensorrt"] == again  # the threads and caches of another machine are not the device's
    report = manifest["reports"][GRAPH]
    assert report["lint"] == {version: [] for version in LINTED}
    assert report["closeness"]["psnr_db"] >= 60
    shapes = [f"--{limit}Shapes=lq:{n}x3x64x64,noise:{n}x5x64x64" for limit, n in (("min", 1), ("opt", 2), ("max", 4))]
    lines = manifest["trtexec"]
    assert list(lines) == [
        f"{version}, {device}" for version in ("10.3 to 10.15", "10.16", "11.x") for device in ("Jetson", "other GPUs")
    ]
    old, new = lines["10.3 to 10.15, Jetson"], lines["11.x, other GPUs"]
    start = ["trtexec", "--onnx=graph.onnx", "--saveEngine=graph.plan", "--skipInference"]
    assert old[0].split()[:8] == [*start, "--stronglyTyped", *shapes]
    assert new[0].split()[:7] == [*start, *shapes]
    assert "--memPoolSize=workspace:512" in old[0]
    assert manifest["options"]["flags"] == ["refit", "strip-plan"]
    assert all({"--refit", "--stripWeights"} <= set(line.split()) for (line,) in lines.values())
    assert not [word for word in new[0].split() if word in ("--stronglyTyped", "--fp16", "--int8")]
    out, err = capsys.readouterr()
    assert err == f"note: {LACKS}\n"
    assert out.splitlines() == [
        f"{folder}: {report['closeness']['psnr_db']} dB, detail {report['closeness']['detail_snr_db']} dB "
        "against fp32 on held-out crops; in a default session of ONNX Runtime "
        f"{report['default_session']['psnr_db']} dB, detail {report['default_session']['detail_snr_db']} dB",
        "On the device, in that folder:",
        *(f"  TensorRT {family}: {line}" for family, (line,) in lines.items()),
        f"Then: rsd-edge build-engine --backend tensorrt --from-plan {folder.name}",
    ]


@pytest.mark.usefixtures("few_tiles")
def test_the_same_graphs_have_the_same_folder(edge_file: Path, tmp_path: Path) -> None:
    made = [build_tensorrt(str(edge_file), tmp_path, onnx_only=True) for _ in range(2)]
    assert made[0] == made[1]
    assert [path.name for path in tmp_path.iterdir()] == [made[0].path.name]


@pytest.mark.usefixtures("few_tiles")
def test_int8_graphs_are_another_folder(edge_file: Path, tmp_path: Path) -> None:
    photos = tmp_path / "my photos"
    photos.mkdir()
    write_image(photos / "a.png", np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    made = build_tensorrt(str(edge_file), tmp_path, precision=Precision.INT8, calibration=photos, onnx_only=True)
    assert "-tensorrt-int8-onnx-" in made.path.name
    assert made.manifest["source"]["calibration"] == str(photos)
    assert made.manifest["reports"][GRAPH]["integer_layers"]
    operators = {node.op_type for node in onnx.load(made.path / GRAPH).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators


def published(path: Path, output: Path, precision: Precision, **options: Any) -> GraphsOnly:
    settings = TensorRtOptions(tile=SIDE, **options)
    made = build_tensorrt(str(path), output, precision=precision, options=settings, onnx_only=True)
    assert isinstance(made, GraphsOnly)
    return made


@pytest.mark.usefixtures("few_tiles")
@pytest.mark.parametrize("precision", [Precision.FP16, pytest.param(Precision.INT8, marks=pytest.mark.slow)])
def test_a_published_model_is_three_graphs(published_file: Path, tmp_path: Path, precision: Precision) -> None:
    made = published(published_file, tmp_path, precision)
    assert {path.name for path in made.path.iterdir()} == {MANIFEST, REFERENCE, *PARTS}
    assert made.manifest["licence"] == "L"
    assert made.manifest["source"]["model"] == str(published_file)  # where it is, to be built again
    assert "Shapes=" not in made.manifest["trtexec"]["10.16, Jetson"][0]  # one tile at once leaves nothing open
    for name in PARTS:
        model = onnx.load(made.path / name)
        assert lint(model, "10.3") == []
        report = made.manifest["reports"][name]
        reasons = set(report["fp32_islands"].values())
        assert {"normalisation", "softmax"} <= reasons
        # Shapes are all known, so that nothing but the network is left.
        assert not [node.op_type for node in model.graph.node if node.op_type in ("Shape", "ConstantOfShape", "Tile")]
        if precision is Precision.FP16:
            assert report["layers_in_float"] == []
        else:
            assert len(report["integer_layers"]) > 4
        session = ort.InferenceSession(str(made.path / name), providers=["CPUExecutionProvider"])
        feeds = {
            item.name: np.zeros(item.shape, np.int64 if "int64" in item.type else np.float32)
            for item in session.get_inputs()
        }
        assert np.isfinite(session.run(None, feeds)[0]).all()
    islands = made.manifest["reports"][DECODER]["fp32_islands"]
    assert "feeds an index or an angle" in islands.values()  # the distances to the codes


@pytest.mark.slow
@pytest.mark.usefixtures("few_tiles")
def test_several_tiles_at_once_leave_the_batch_open(published_file: Path, tmp_path: Path) -> None:
    made = published(published_file, tmp_path, Precision.FP16, batch=(1, 2, 2))
    words = dict(zip(PARTS, made.manifest["trtexec"]["11.x, Jetson"], strict=True))
    assert f"--maxShapes=z_t:2x3x{SIDE}x{SIDE},lq:2x3x{SIDE}x{SIDE},eps:2x1x{SIDE}x{SIDE}" in words[GENERATOR]
    for name in PARTS:
        assert lint(onnx.load(made.path / name), "10.3") == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "TensorRT is not installed here"),
        ((), "or write the graphs for another device with --onnx-only"),
        (("--precision", "fp32"), "tensorrt engines are built in fp16 or int8, not in fp32; use --precision fp16"),
        (("--batch", "2,1,4"), "batch is (2, 1, 4); it must be three growing numbers"),
        (("--batch", "many"), "batch is 'many'; it must be three growing numbers"),
        (("--level", "9"), "level is 9; it must be from 0 to 5"),
        (("--onnx-only", "--no-lookup"), "code-book lookup is an option of published models"),
        (("--onnx-only", "--model", "edge-z"), "'edge-z' is neither a shipped engine"),
        (("--onnx-only", "--compiler", "torch-tensorrt"), "--compiler serves engines that are built here"),
        (("--onnx-only", "--kernels", "."), "--kernels serves engines that are built here"),
        (("--rival", "."), "--rival goes with --from-plan"),
        (("--from-plan", ".", "--tile", "64"), "--tile was settled when the graphs were written"),
        (("--from-plan", ".", "--level", "1"), "--level was settled when the graphs were written"),
        (("--from-plan", "."), "has no graphs.json; name a folder that"),
    ],
)
def test_what_cannot_be_built_is_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # as where it is not installed
    assert run(*words, "-o", tmp_path / "out") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert message in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("onnx-only", []),
        ("from-plan", ["."]),
        ("batch", ["1,1,2"]),
        ("workspace", ["9"]),
        ("engine-flag", ["refit"]),
        ("level", ["1"]),
    ],
)
def test_options_of_tensorrt_serve_no_other_backend(
    name: str, values: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["build-engine", "--backend", "onnxruntime", f"--{name}", *values, "-o", str(tmp_path)])
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"error: --{name} serves --backend tensorrt, not onnxruntime; leave it out\n"


@pytest.mark.usefixtures("few_tiles")
def test_a_graph_that_tensorrt_would_refuse_is_not_written(
    edge_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(typed_build, "lint", lambda model, version: ["Det 'd' is odd"] if version == "11.4" else [])
    with pytest.raises(BackendError, match=r"TensorRT 11\.4 would not take graph\.onnx: Det 'd' is odd"):
        build_tensorrt(str(edge_file), tmp_path / "out", onnx_only=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("few_tiles")
def test_the_very_file_is_judged_as_anybody_would_open_it(
    edge_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, files = typed_build.run_by_default, []

    def damaged(graph: Path, batches: Any) -> Any:
        files.append((graph.name, batches[0]["lq"].shape))
        return np.float32(1.2) * judge(graph, batches)

    monkeypatch.setattr(typed_build, "run_by_default", damaged)
    with pytest.raises(BackendError, match=r"fp16 differs from fp32 by .* dB, in a default session of ONNX Runtime"):
        build_tensorrt(str(edge_file), tmp_path / "out", options=TensorRtOptions(tile=64), onnx_only=True)
    assert files == [(GRAPH, (1, 3, 64, 64))]
    assert not (tmp_path / "out").exists()


def test_a_folder_that_takes_no_files_is_told_before_the_work(edge_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="is a file; choose a folder"):  # at once: nothing here is made quick
        build_tensorrt(str(edge_file), tmp_path / "file" / "out", precision=Precision.INT8, onnx_only=True)


@pytest.mark.usefixtures("few_tiles")
def test_a_failed_write_leaves_nothing(edge_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(graphs_only.shutil, "copyfile", full)
    with pytest.raises(OSError, match="the disk is full"):
        build_tensorrt(str(edge_file), tmp_path / "out", onnx_only=True)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.usefixtures("few_tiles")
@pytest.mark.parametrize("version", fake_tensorrt.VERSIONS)
def test_typed_graphs_become_engines(
    edge_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    """From a checkpoint to the detail of a tile, with a library that runs graphs in ONNX Runtime."""
    fake_tensorrt.install(monkeypatch, version)
    monkeypatch.setattr(tensorrt_judge, "median_ms", lambda engines, lq, noise: [2.0, 1.0][-len(engines) :])
    monkeypatch.setattr(tensorrt_judge, "GATES", dict.fromkeys(Precision, tensorrt_judge.DeviceGate(20, 8)))
    options = TensorRtOptions(tile=48, batch=(1, 2, 2), threads=1)
    rng = np.random.default_rng(0)
    lq = rng.uniform(-1, 1, (2, 3, 48, 48)).astype(np.float32)
    noise = rng.standard_normal((2, 5, 48, 48), np.float32)
    for precision in (Precision.FP16, Precision.INT8):
        made = build_tensorrt(str(edge_file), tmp_path, precision=precision, options=options)
        assert isinstance(made, Bundle)
        assert rebuild_command(made) == (
            f"rsd-edge build-engine --model {edge_file} --backend tensorrt --precision {precision.value} "
            "--batch 1,2,2 --tile 48 --threads 1"
        )
        reports = json.loads((made.path / REPORT).read_text())
        assert reports[GRAPH]["precision"] == precision.value
        assert made.manifest["parity"]["graph"]["detail_snr_db"] == reports[GRAPH]["closeness"]["detail_snr_db"]
        detail = np.empty((2, 192, 192, 3), np.float32)
        with open_engine(made.graph_path, made.spec, tile=TileSpec(48, 16, batch=2)) as engine:
            engine.collect(engine.submit(lq, noise, detail))
        expected = run_graph(rounded(onnx.load(made.path / GRAPH)), [{"lq": lq, "noise": noise}])
        # The library rounds less than the graph means; an integer may then be the next one here and there.
        assert 20 * np.log10(expected.std() / np.abs(detail - expected).std()) > 25


def test_engines_of_bundles_need_no_torch(toy_bundle: Path, tmp_path: Path) -> None:
    """The extras `jetson` and `graphs` have onnx and onnx-ir, beside the core dependencies and TensorRT."""
    code = f"""
import sys
for name in ("torch", "onnxscript", "safetensors", "accelerate", "scipy"):
    sys.modules[name] = None
sys.path.insert(0, {str(Path(__file__).parent)!r})
import fake_tensorrt, pytest
from pathlib import Path
from rsd_edge.export import tensorrt_judge
from rsd_edge.export.tensorrt_options import TensorRtOptions
from rsd_edge.export.typed_build import build_tensorrt
fake_tensorrt.install(pytest.MonkeyPatch(), "10.3.0")
tensorrt_judge._ROUNDS = 1
options = TensorRtOptions(tile=48, threads=1)
for onnx_only in (True, False):
    print(build_tensorrt({str(toy_bundle)!r}, Path({str(tmp_path)!r}), options=options, onnx_only=onnx_only).path.name)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, timeout=240, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    graphs, engine = done.stdout.split()
    assert (tmp_path / graphs / MANIFEST).is_file()
    assert (tmp_path / engine / "graph.plan").is_file()


@pytest.mark.parametrize(("module", "extra"), [("onnx_ir", "graphs"), ("safetensors", "export")])
def test_what_is_missing_is_told_with_its_extra(
    module: str, extra: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(*_: object, **__: object) -> None:
        raise ModuleNotFoundError(f"No module named '{module}'", name=module)

    monkeypatch.setattr(typed_build, "build_tensorrt", lacking)
    assert run("--onnx-only", "-o", tmp_path) == 2
    assert capsys.readouterr().err == (
        f"error: rsd-edge build-engine needs '{module}'; run: pip install 'rsd-edge[{extra}]'\n"
    )


def test_tiles_that_a_model_cannot_take_are_refused(published_file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="tile is 24"):
        build_tensorrt(str(published_file), tmp_path, options=TensorRtOptions(tile=24), onnx_only=True)
