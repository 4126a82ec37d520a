from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_tensorrt
import numpy as np
import pytest
from fake_tensorrt.kernels import FakeDriver, write_pack
from fake_tensorrt.network import World

from rsd_edge import SuperResolver
from rsd_edge.backends.tensorrt import frame_path
from rsd_edge.bundle import BuildRecord, Bundle, hash_file, load_bundle, resolve_engine
from rsd_edge.cli import main
from rsd_edge.engines import engine_folder, tensorrt_engine
from rsd_edge.errors import BackendError, MissingDependencyError, ModelError, NoEngineError
from rsd_edge.export.tensorrt_build import build_bundle
from rsd_edge.export.tensorrt_options import TensorRtOptions
from rsd_edge.specs import Backend, EngineSpec, Precision
from rsd_edge.stream.images import read_image, write_image

pytest.importorskip("onnx")

MODEL = "edge-n"


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("rsd_edge.export.tensorrt_judge._ROUNDS", 1)
    return fake_tensorrt.install(monkeypatch, "10.3.0")


def make(
    model: str,
    output: Path,
    precision: Precision = Precision.FP16,
    *,
    calibration: Path | None = None,
    **options: Any,
) -> Bundle:
    """Float graphs stand for the typed ones, which take a minute."""
    shipped = resolve_engine(MODEL)
    spec = EngineSpec(shipped.spec.model, Backend.TENSORRT, precision)
    graphs = {"graph.onnx": shipped.graph_path}
    digest = hash_file(Path(model)) if model.endswith(".safetensors") else shipped.digest
    images = {"calibration": str(calibration)} if calibration else {}
    record = BuildRecord(source={"model": model, "digest": digest, **images})
    return build_bundle(graphs, spec, output, record, reference=graphs, options=TensorRtOptions(**options))


@pytest.fixture
def asked() -> list[TensorRtOptions]:
    """The options of the builds."""
    return []


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch, world: World, asked: list[TensorRtOptions]) -> list[str]:
    """The models that were built."""
    built = []

    def build(
        model: str,
        output: Path,
        *,
        precision: Precision,
        options: TensorRtOptions,
        calibration: Path | None,
        progress: Any,
    ) -> Bundle:
        built.append(f"{model} {precision.value}")
        asked.append(options)
        return make(
            model, output, precision, calibration=calibration, **vars(replace(options, tile=options.tile or 48))
        )

    monkeypatch.setattr("rsd_edge.export.typed_build.build_tensorrt", build)
    return built


@pytest.fixture
def run(tmp_path: Path, photo: Callable[[int, int], np.ndarray]) -> Callable[..., int]:
    write_image(tmp_path / "in.png", photo(20, 30))

    def call(*arguments: object) -> int:
        with pytest.raises(SystemExit) as caught:
            main(["run", str(tmp_path / "in.png"), "-o", str(tmp_path / "out.png"), *map(str, arguments)])
        return int(caught.value.code or 0)

    return call


def test_the_first_run_builds_and_later_ones_do_not(
    builds: list[str], run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--engine", MODEL, "--auto-build", "--report", tmp_path / "report.json")
    assert run(*words) == 0
    assert "building a TensorRT engine of edge-n in fp16 for this GPU" in capsys.readouterr().err
    first = read_image(tmp_path / "out.png")
    assert run(*words) == 0
    assert builds == ["edge-n fp16"]
    np.testing.assert_array_equal(read_image(tmp_path / "out.png"), first)
    assert json.loads((tmp_path / "report.json").read_text())["engine"]["backend"] == "tensorrt"
    assert run("--engine", MODEL, "--backend", "tensorrt") == 0  # found without being asked to build
    assert run(*words, "--tile", 64) == 0
    assert builds == ["edge-n fp16"] * 2


def test_a_stale_engine_is_built_again(
    builds: list[str], run: Callable[..., int], world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--engine", MODEL, "--auto-build") == 0
    (folder,) = engine_folder().glob("edge-n*")
    world.cudart.name = b"Thor"
    assert run("--engine", folder) == 2
    assert "was built for another device: the GPU was Orin and is Thor; run 'rsd-edge" in capsys.readouterr().err
    assert run("--engine", folder, "--auto-build") == 0
    assert builds == ["edge-n fp16"] * 2


def test_engines_of_other_tiles_and_batches_are_found_again(
    builds: list[str], run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--engine", MODEL, "--auto-build")
    for more in ((), ("--tile", 64), ("--tile", 64, "--batch", 2)):
        assert run(*words, *more) == 0
    assert builds == ["edge-n fp16"] * 3
    for more in ((), ("--tile", 48), ("--tile", 64), ("--batch", 2)):
        assert run(*words, *more) == 0
        assert run("--engine", MODEL, "--backend", "tensorrt", *more) == 0
    assert builds == ["edge-n fp16"] * 3
    capsys.readouterr()
    assert run("--engine", MODEL, "--backend", "tensorrt", "--tile", 64, "--batch", 3) == 2
    assert capsys.readouterr().err == (
        "error: there is no TensorRT engine of 'edge-n' with tiles of 64 and batches of 3 for this GPU; add "
        "--auto-build, or run 'rsd-edge build-engine --model edge-n --backend tensorrt --tile 64 --batch 1,3,3' and "
        "give its folder as the engine\n"
    )


def test_the_fastest_engine_needs_the_least_time_for_a_pixel(world: World, tmp_path: Path) -> None:
    folders = {tile: make(MODEL, tmp_path, tile=tile).path for tile in (48, 64)}

    def found(**milliseconds: float) -> Path:
        for tile, folder in folders.items():
            manifest = json.loads((folder / "manifest.json").read_text())
            manifest["speed"]["median_ms"]["fp16"] = milliseconds[f"of_{tile}"]
            (folder / "manifest.json").write_text(json.dumps(manifest))
        return tensorrt_engine(MODEL, None, tmp_path).path

    # Without a halo of 12 pixels on each side, 40^2 are left of 64^2, 2.78 times the 24^2 of the other.
    assert found(of_48=1.0, of_64=2.76) == folders[64]
    assert found(of_48=1.0, of_64=2.79) == folders[48]
    assert tensorrt_engine(MODEL, Precision.FP16, tmp_path, tile=64).path == folders[64]
    with pytest.raises(NoEngineError, match=r"with tiles of 208 for this GPU; .* --precision fp16 --tile 208' and"):
        tensorrt_engine(MODEL, Precision.FP16, tmp_path, tile=208)


def test_a_stale_engine_is_replaced_once_by_one_like_it(
    builds: list[str], asked: list[TensorRtOptions], run: Callable[..., int], world: World, tmp_path: Path
) -> None:
    folder = make(MODEL, tmp_path / "own", tile=64, batch=(1, 2, 4), level=1, flags=("refit",)).path
    world.cudart.name = b"Thor"
    for more in ((), (), ("--batch", 3)):
        assert run("--engine", folder, "--auto-build", *more) == 0
    assert builds == ["edge-n fp16"]
    assert asked == [TensorRtOptions(tile=64, batch=(1, 2, 4), level=1, flags=("refit",))]
    assert run("--engine", folder, "--auto-build", "--tile", 48, "--batch", 5) == 0
    assert (asked[1].tile, asked[1].batch) == (48, (1, 5, 5))


@pytest.mark.parametrize("fits", [True, False])
def test_kernels_of_a_stale_engine_are_taken_over_or_missed_aloud(
    builds: list[str],
    asked: list[TensorRtOptions],
    run: Callable[..., int],
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    fits: bool,
) -> None:
    driver = FakeDriver(world.cudart)
    monkeypatch.setattr(frame_path, "CudaDriver", lambda: driver)
    folder = make(MODEL, tmp_path / "own", tile=48, kernels=write_pack(tmp_path / "kernels")).path
    world.cudart.name = b"Thor"
    if not fits:
        world.cudart.capability = (11, 0)
    make(MODEL, engine_folder(), tile=48)  # without kernels
    for _ in range(2):
        assert run("--engine", folder, "--auto-build") == 0
    assert [options.kernels for options in asked] == ([folder / "kernels"] if fits else [])
    assert bool(driver.launched) is fits
    told = "run: rsd-edge build-kernels --sm 110, then build-engine with --kernels; until then frames are cut and merge"
    assert (told in capsys.readouterr().err) is not fits


def test_a_checkpoint_is_compiled_for_every_command(builds: list[str], run: Callable[..., int], tmp_path: Path) -> None:
    weights, lr, made = tmp_path / "w.safetensors", tmp_path / "lr", tmp_path / "made"
    weights.write_bytes(b"weights")
    lr.mkdir()
    write_image(lr / "in.png", read_image(tmp_path / "in.png"))
    asked = ("--model", str(weights), "--backend", "tensorrt")
    with pytest.raises(SystemExit) as caught:
        main(["eval", *asked, "--lr", str(lr), "--metrics", "niqe", "--save", str(made)])
    assert caught.value.code == 0
    assert run(*asked) == 0
    assert builds == [f"{weights} fp16"]
    np.testing.assert_array_equal(read_image(made / "in.png"), read_image(tmp_path / "out.png"))


@pytest.mark.parametrize("words", [("--auto-build",), ("--backend", "tensorrt")])
def test_a_checkpoint_that_is_not_there_is_one_line(
    world: World, run: Callable[..., int], capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    assert run("--engine", "none.safetensors", *words) == 2
    assert capsys.readouterr().err == (
        "error: checkpoint none.safetensors does not exist; make it with `rsd-edge distill` or `rsd-edge "
        "import-weights`, or give another path\n"
    )


def test_cures_name_what_an_engine_was_built_from(
    world: World, run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A fine-tune has the name of the model that it began as."""
    weights = tmp_path / "tuned.safetensors"
    weights.write_bytes(b"weights")
    folder = make(str(weights), tmp_path / "own", tile=48).path
    command = re.escape(f"rsd-edge build-engine --model {weights} --backend ")
    with pytest.raises(BackendError, match=f"or run '{command}onnxruntime'$"):
        SuperResolver.load(folder, backend="onnxruntime")
    world.cudart.name = b"Thor"
    with pytest.raises(ModelError, match=f"; run '{command}tensorrt --precision fp16'$"):
        SuperResolver.load(folder)
    assert run("--engine", folder, "--auto-build") == 2
    assert re.search(f"does not ship; run '{command}tensorrt --precision fp16' where that is", capsys.readouterr().err)


def test_there_is_no_engine_yet(world: World) -> None:
    with pytest.raises(NoEngineError, match="there is no TensorRT engine of 'edge-n' for this GPU; add --auto-build"):
        SuperResolver.load(MODEL, backend="tensorrt")


def test_without_tensorrt_it_is_one_line(monkeypatch: pytest.MonkeyPatch, run: Callable[..., int], capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependencyError, match="TensorRT is not installed here"):
        SuperResolver.load(MODEL, backend="tensorrt")
    for words in (("--backend", "tensorrt"), ("--auto-build",)):
        assert run("--engine", MODEL, *words) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: TensorRT is not installed here (no module 'tensorrt'); on a Jetson")
        assert error.count("\n") == 1


def test_engines_keep_to_their_runtime(builds: list[str], run: Callable[..., int], toy_bundle: Path) -> None:
    assert run("--engine", MODEL, "--auto-build") == 0
    (folder,) = engine_folder().glob("edge-n*")
    with pytest.raises(BackendError, match="was built for tensorrt and onnxruntime does not run it"):
        SuperResolver.load(folder, backend="onnxruntime")
    with pytest.raises(BackendError, match=r"torch does not run it; leave the backend out, or give a checkpoint$"):
        SuperResolver.load(folder, backend="torch")
    with pytest.raises(BackendError, match="was built for onnxruntime and tensorrt does not run it"):
        SuperResolver.load(toy_bundle, backend="tensorrt")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--backend", "openvino"), "--auto-build builds TensorRT engines, not for openvino"),
        (("--precision", "fp32"), "--auto-build builds fp16 and int8 engines, not fp32"),
        (("--engine", "nothing"), "'nothing' is neither a shipped model nor a bundle nor a checkpoint"),
    ],
)
def test_what_cannot_be_built_is_refused(
    world: World, run: Callable[..., int], capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    assert run("--auto-build", *words) == 2
    assert message in capsys.readouterr().err


def test_a_damaged_engine_is_built_again(
    builds: list[str], run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--engine", MODEL, "--auto-build", "--tile", 64)
    assert run(*words) == 0
    (folder,) = engine_folder().glob("edge-n*")
    (folder / "graph.plan").write_bytes((folder / "graph.plan").read_bytes()[:-1])
    assert run("--engine", MODEL, "--backend", "tensorrt") == 2
    assert "there is no TensorRT engine of 'edge-n' for this GPU; add --auto-build" in capsys.readouterr().err
    for _ in range(2):
        assert run(*words) == 0
    assert builds == ["edge-n fp16"] * 2
    assert load_bundle(folder).spec.model.name == MODEL


def test_a_sound_engine_serves_in_the_place_of_a_faster_damaged_one(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sound, damaged = (make(MODEL, tmp_path, tile=tile).path for tile in (48, 64))
    manifest = json.loads((damaged / "manifest.json").read_text())
    manifest["speed"]["median_ms"]["fp16"] = 1e-6
    (damaged / "manifest.json").write_text(json.dumps(manifest))
    (damaged / "graph.plan").write_bytes(b"x")
    assert tensorrt_engine(MODEL, None, tmp_path).path == sound
    assert f"{damaged / 'graph.plan'} has 1 bytes where the manifest says" in caplog.text


@pytest.mark.parametrize("text", ['{"format": 3}', '{"format": 3, "source": ["x"]}', "[]"])
def test_a_manifest_of_something_else_is_left_out(world: World, tmp_path: Path, text: str) -> None:
    (tmp_path / "x-tensorrt-y").mkdir()
    (tmp_path / "x-tensorrt-y" / "manifest.json").write_text(text)
    with pytest.raises(NoEngineError):
        tensorrt_engine(MODEL, None, tmp_path)
    assert tensorrt_engine(MODEL, None, make(MODEL, tmp_path, tile=48).path.parent).spec.model.name == MODEL


def test_a_bundle_of_another_precision_is_refused(
    builds: list[str], run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(MODEL, tmp_path / "own", tile=48).path
    assert run("--engine", folder, "--auto-build", "--precision", "int8") == 2
    assert f"engine '{folder}' is fp16, not int8; leave the precision out" in capsys.readouterr().err
    assert run("--engine", folder, "--auto-build", "--precision", "fp16") == 0
    assert builds == []


def test_own_images_calibrate_what_replaces_an_engine(
    builds: list[str], run: Callable[..., int], world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "cal"
    images.mkdir()
    folder = make(MODEL, tmp_path / "own", tile=48, calibration=images).path
    world.cudart.name = b"Thor"
    make(MODEL, engine_folder(), tile=48, level=1)  # with the ranges of the package
    for _ in range(2):
        assert run("--engine", folder, "--auto-build") == 0
    assert builds == ["edge-n fp16"]
    assert tensorrt_engine(MODEL, None, calibration=str(images)).path.parent == engine_folder()
    images.rmdir()
    assert run("--engine", folder, "--auto-build") == 2
    told = capsys.readouterr().err
    assert f"the images for its calibration, '{images}', are gone; run 'rsd-edge build-engine --model edge-n" in told
    assert f"--precision fp16 --calibration {images}' where that is" in told


def test_a_folder_that_takes_no_engines_is_told_before_the_work(
    builds: list[str],
    run: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert run("--engine", MODEL, "--auto-build") == 2
    told = capsys.readouterr().err
    assert told.endswith(f"{tmp_path / 'file'} is a file; choose a folder with XDG_CACHE_HOME\n")
    assert "building" not in told
    assert builds == []
