from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from rsd_edge import bundle as bundle_module
from rsd_edge.bundle import (
    WEIGHTS_FILE,
    BuildRecord,
    Bundle,
    load_bundle,
    rebuild_command,
    resolve_engine,
    shipped_engines,
    shipped_precisions,
    staleness,
    write_bundle,
)
from rsd_edge.errors import ModelError, OutputError
from rsd_edge.specs import Backend, EngineSpec, ModelSpec, Precision

RECORD = BuildRecord(
    versions={"rsd_edge": "0.1.0", "onnxruntime": "1.31.1"},
    device="a test machine",
    parity={"psnr_db": 81.5},
    speed={"ms_per_tile": 12.5},
    licence="Apache-2.0",
    training={"iterations": 3},
    source={"model": "toy.safetensors", "digest": "0f3a"},
)
SPEC = EngineSpec(model=ModelSpec(name="toy", halo=12))
CPU = "AMD EPYC, 9R14"  # some names have a comma


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "source.onnx"
    path.write_bytes(b"weights" * 1000)
    return path


@pytest.fixture
def bundle_path(tmp_path: Path, graph: Path) -> Path:
    return write_bundle(tmp_path / "bundles", SPEC, graph, RECORD).path


def edit_manifest(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_bundle_comes_back_as_it_was_written(bundle_path: Path, graph: Path) -> None:
    bundle = load_bundle(bundle_path)
    assert bundle.spec == SPEC
    assert bundle.graph_path.read_bytes() == graph.read_bytes()
    assert bundle.manifest["versions"] == RECORD.versions
    assert bundle.manifest["parity"] == {"psnr_db": 81.5}
    assert bundle.manifest["licence"] == "Apache-2.0"
    assert bundle.manifest["source"] == {"model": "toy.safetensors", "digest": "0f3a"}
    assert bundle.manifest["files"]["graph.onnx"]["bytes"] == 7000


def test_a_changed_spec_is_refused(bundle_path: Path) -> None:
    """A smaller halo would run, and give seams."""
    engine = json.loads((bundle_path / "manifest.json").read_text())["engine"]
    engine["model"]["halo"] = 4
    edit_manifest(bundle_path, engine=engine)
    with pytest.raises(ModelError, match=r"changed after the build.*build-engine"):
        load_bundle(bundle_path)


def test_the_folder_is_named_after_its_contents(bundle_path: Path, tmp_path: Path, graph: Path) -> None:
    assert re.fullmatch(r"toy-onnxruntime-fp32-[0-9a-f]{12}", bundle_path.name)
    assert bundle_path.name.endswith(load_bundle(bundle_path).digest[:12])
    again = write_bundle(tmp_path / "bundles", SPEC, graph, BuildRecord(device="another machine"))
    assert again.path == bundle_path  # where and how well it was measured is not part of what it is
    assert again.manifest["device"] == "another machine"
    other_spec = EngineSpec(model=ModelSpec(name="toy", halo=16))
    assert write_bundle(tmp_path / "bundles", other_spec, graph, RECORD).path != bundle_path
    graph.write_bytes(b"other weights")
    assert write_bundle(tmp_path / "bundles", SPEC, graph, RECORD).path != bundle_path


def test_precision_is_part_of_the_name(tmp_path: Path, graph: Path) -> None:
    spec = EngineSpec(model=ModelSpec(name="toy"), precision=Precision.INT8)
    assert "-int8-" in write_bundle(tmp_path, spec, graph, RECORD).path.name


def test_a_given_name_is_used(tmp_path: Path, graph: Path) -> None:
    assert write_bundle(tmp_path, SPEC, graph, RECORD, name="edge-x").path == tmp_path / "edge-x"


def test_reports_lie_beside_the_graph_and_do_not_change_what_it_is(bundle_path: Path, graph: Path) -> None:
    digest = load_bundle(bundle_path).digest
    again = write_bundle(bundle_path.parent, SPEC, graph, RECORD, reports={"quantization.json": {"psnr_db": 41.5}})
    assert (again.path, again.digest) == (bundle_path, digest)
    assert json.loads((bundle_path / "quantization.json").read_text()) == {"psnr_db": 41.5}
    (bundle_path / "quantization.json").write_text("{}")
    with pytest.raises(
        ModelError, match=r"quantization\.json has 2 bytes where the manifest says \d+; build the engine"
    ):
        load_bundle(bundle_path)
    write_bundle(bundle_path.parent, SPEC, graph, RECORD)  # the folder is replaced as a whole
    assert sorted(item.name for item in bundle_path.iterdir()) == ["graph.onnx", "manifest.json"]


def test_nothing_but_the_bundle_is_left_behind(bundle_path: Path) -> None:
    assert sorted(item.name for item in bundle_path.iterdir()) == ["graph.onnx", "manifest.json"]
    assert list(bundle_path.parent.iterdir()) == [bundle_path]


def test_a_failed_write_keeps_the_old_bundle(bundle_path: Path, graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (bundle_path / "manifest.json").read_bytes()
    original = os.replace

    def failing(source: Path, target: Path) -> None:
        if Path(source).name == "new":
            raise OSError(28, "No space left on device")
        original(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OutputError, match=r"cannot be written.*No space left on device"):
        write_bundle(bundle_path.parent, SPEC, graph, BuildRecord())
    assert (bundle_path / "manifest.json").read_bytes() == before
    assert list(bundle_path.parent.iterdir()) == [bundle_path]


def test_a_parent_that_is_a_file_is_refused(tmp_path: Path, graph: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_bundle(tmp_path / "taken", SPEC, graph, RECORD)


def test_a_missing_graph_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"absent\.onnx cannot be read"):
        write_bundle(tmp_path / "bundles", SPEC, tmp_path / "absent.onnx", RECORD)
    assert not (tmp_path / "bundles").exists()


def test_a_graph_that_may_not_be_read(tmp_path: Path, graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_bundle(tmp_path, SPEC, graph, RECORD)

    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(bundle_module, "hash_file", refuse)  # root may read everything
    with pytest.raises(ModelError, match=r"graph\.onnx cannot be read \(Permission denied\); check its permissions"):
        load_bundle(bundle.path)


def test_one_changed_byte_is_found(bundle_path: Path) -> None:
    graph = bundle_path / "graph.onnx"
    graph.write_bytes(b"W" + graph.read_bytes()[1:])
    with pytest.raises(ModelError, match=r"graph\.onnx does not match the hash.*rsd-edge build-engine"):
        load_bundle(bundle_path)


def test_a_truncated_graph_is_found(bundle_path: Path) -> None:
    (bundle_path / "graph.onnx").write_bytes(b"w" * 6999)
    with pytest.raises(ModelError, match="has 6999 bytes where the manifest says 7000"):
        load_bundle(bundle_path)


def test_a_missing_graph_is_found(bundle_path: Path) -> None:
    (bundle_path / "graph.onnx").unlink()
    with pytest.raises(ModelError, match=r"graph\.onnx is missing"):
        load_bundle(bundle_path)


def test_a_folder_without_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"not an engine bundle.*rsd-edge build-engine"):
        load_bundle(tmp_path)
    weights = tmp_path / WEIGHTS_FILE
    weights.touch()
    with pytest.raises(ModelError, match=rf"not an engine bundle: it has no manifest\.json; give {weights}$"):
        resolve_engine(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00"])
def test_a_manifest_that_is_no_json_object(bundle_path: Path, text: str) -> None:
    (bundle_path / "manifest.json").write_text(text)
    with pytest.raises(ModelError, match=r"manifest\.json is not (JSON|a JSON object)"):
        load_bundle(bundle_path)


def test_another_format_is_refused(bundle_path: Path) -> None:
    edit_manifest(bundle_path, format=1)
    with pytest.raises(ModelError, match=r"format 1 and this version reads format 3; build the engine again with"):
        load_bundle(bundle_path)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"engine": {"model": {"name": "toy", "colour": 1}}}, "unknown key 'model.colour'"),
        ({"engine": {"precision": "fp32"}}, "model"),
        ({"engine": {"model": {"name": "toy"}, "precision": "fp8"}}, "fp32, fp16, bf16, int8"),
        ({"engine": None}, "not a valid manifest"),
        ({"files": []}, "not a valid manifest"),
        ({"files": {"graph.onnx": {"bytes": 7000}}}, "it has no 'sha256'"),
        ({"files": {}}, "does not list graph.onnx"),
    ],
)
def test_a_wrong_manifest_is_explained(bundle_path: Path, changes: dict[str, Any], problem: str) -> None:
    edit_manifest(bundle_path, **changes)
    with pytest.raises(ModelError, match=problem) as caught:
        load_bundle(bundle_path)
    assert "\n" not in str(caught.value)


def test_files_outside_the_bundle_are_not_read(bundle_path: Path) -> None:
    files = json.loads((bundle_path / "manifest.json").read_text())["files"]
    edit_manifest(bundle_path, files={**files, "../graph.onnx": files["graph.onnx"]})
    with pytest.raises(ModelError, match=r"lists '\.\./graph\.onnx', which is not a file of the bundle"):
        load_bundle(bundle_path)


def test_resolve_takes_a_path(bundle_path: Path) -> None:
    assert resolve_engine(bundle_path).path == bundle_path
    assert resolve_engine(str(bundle_path)).path == bundle_path


@pytest.fixture
def zoo(tmp_path: Path, graph: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with edge-b in fp32, and edge-a in fp32 and INT8 with the files that lie beside its engines."""
    folder = tmp_path / "zoo"
    monkeypatch.setattr(bundle_module, "ZOO", folder)
    monkeypatch.setattr(bundle_module, "cpu_name", lambda: CPU)
    for model, precision in (("edge-b", Precision.FP32), ("edge-a", Precision.INT8), ("edge-a", Precision.FP32)):
        spec = EngineSpec(ModelSpec(name=model), precision=precision)
        write_bundle(folder / model, spec, graph, RECORD, name=precision.value)
    (folder / "edge-a" / "MODEL_CARD.md").write_text("# edge-a\n")
    (folder / "__init__.py").touch()
    return folder


def test_what_ships(zoo: Path, graph: Path) -> None:
    write_bundle(zoo / ".edge-c-7fk2", EngineSpec(ModelSpec(name="edge-c")), graph, RECORD, name="fp32")
    assert shipped_engines() == ["edge-a", "edge-b"]
    assert shipped_precisions("edge-a") == [Precision.FP32, Precision.INT8]
    assert shipped_precisions("edge-b") == [Precision.FP32]
    # Names and nothing else: as a path, each of these would lead to the engines of edge-a.
    for path in (str(zoo / "edge-a"), "edge-a/", "./edge-a", "../zoo/edge-a"):
        assert shipped_precisions(path) == []


def test_resolve_finds_shipped_engines_by_name(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "edge-a").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve_engine("edge-a").path == resolve_engine("edge-a", Precision.FP32).path == zoo / "edge-a" / "fp32"
    assert resolve_engine("edge-a", Precision.INT8).path == zoo / "edge-a" / "int8"
    assert resolve_engine(Path("edge-a"), Precision.INT8).spec.precision is Precision.INT8
    with pytest.raises(
        ModelError, match=r"'edge-z' is neither a shipped engine \(edge-a, edge-b\) nor a bundle folder"
    ):
        resolve_engine("edge-z")
    with pytest.raises(
        ModelError,
        match=r"'edge-b' ships in fp32, not in int8; use .*--model edge-b --backend onnxruntime .* int8'",
    ):
        resolve_engine("edge-b", Precision.INT8)
    (zoo / "edge-a" / "fp32" / "graph.onnx").unlink()
    assert resolve_engine("edge-a", Precision.INT8).spec.model.name == "edge-a"
    with pytest.raises(ModelError, match=r"; run 'pip install --force-reinstall --no-deps \.' in a clone of rsd-edge$"):
        resolve_engine("edge-a")


def test_resolve_takes_a_folder_of_the_precision_that_is_asked_for(bundle_path: Path) -> None:
    assert resolve_engine(bundle_path, Precision.FP32).path == bundle_path
    with pytest.raises(ModelError, match=r"is fp32, not int8; leave the precision out, or build .*--precision int8'"):
        resolve_engine(bundle_path, Precision.INT8)


def build(tmp_path: Path, graph: Path, record: BuildRecord, **spec: Any) -> Bundle:
    return write_bundle(tmp_path / "engines", EngineSpec(ModelSpec(name="edge-a"), **spec), graph, record)


def test_an_engine_goes_stale_when_its_source_does(zoo: Path, tmp_path: Path, graph: Path) -> None:
    digest = resolve_engine("edge-a").digest
    bundle = build(tmp_path, graph, BuildRecord(source={"model": "edge-a", "digest": digest}))
    assert staleness(bundle) == []
    graph.write_text("the weights of the next version")
    now = write_bundle(zoo / "edge-a", EngineSpec(ModelSpec(name="edge-a")), graph, RECORD, name="fp32").digest
    assert staleness(bundle) == [
        f"{bundle.path} was built from edge-a {digest[:12]}, but this version ships edge-a {now[:12]}; "
        "run 'rsd-edge build-engine --model edge-a --backend onnxruntime --precision fp32'"
    ]


def test_an_int8_engine_from_another_machine_says_so(zoo: Path, tmp_path: Path, graph: Path) -> None:
    source = {"model": "edge-a", "digest": resolve_engine("edge-a").digest}

    def reasons(device: str, **spec: Any) -> list[str]:
        return staleness(build(tmp_path, graph, BuildRecord(device=device, source=source), **spec))

    int8 = {"precision": Precision.INT8, "backend": Backend.OPENVINO}
    assert reasons(f"{CPU}, 2 threads", **int8) == []
    (reason,) = reasons("Cortex-A76, 4 threads", **int8)
    assert re.search(
        rf"found faster than fp32 on Cortex-A76, 4 threads, but this is {CPU}, .*"
        r"run 'rsd-edge build-engine --model edge-a --backend openvino --precision int8' here$",
        reason,
    )
    assert "\n" not in reason
    assert "faster than fp32 on an unnamed machine, but" in reasons("", **int8)[0]
    assert reasons("Cortex-A76, 4 threads") == []  # of fp32 nothing was claimed that depends on the machine


def test_both_reasons_are_given(zoo: Path, tmp_path: Path, graph: Path) -> None:
    record = BuildRecord(device="Cortex-A76, 4 threads", source={"model": "edge-a", "digest": "0f3a"})
    assert len(staleness(build(tmp_path, graph, record, precision=Precision.INT8))) == 2


def test_shipped_engines_are_not_stale_by_whatever_path(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = resolve_engine("edge-a", Precision.INT8)
    assert staleness(bundle) == []
    monkeypatch.chdir(zoo)
    assert staleness(load_bundle("edge-a/int8")) == []
    assert rebuild_command(bundle) == "rsd-edge build-engine --model edge-a --backend onnxruntime --precision int8"


def test_an_engine_is_built_again_with_the_options_that_it_had(tmp_path: Path, graph: Path) -> None:
    source = {"model": "my runs/w.safetensors", "digest": "0f3a", "options": "--no-lookup"}
    assert rebuild_command(build(tmp_path, graph, BuildRecord(source=source))) == (
        "rsd-edge build-engine --model 'my runs/w.safetensors' --backend onnxruntime --precision fp32 --no-lookup"
    )


def test_another_backend_gets_the_same_model_in_its_own_float(tmp_path: Path, graph: Path) -> None:
    source = {"model": "w.safetensors", "digest": "0f3a", "options": "--tile 128"}
    bundle = build(tmp_path, graph, BuildRecord(source=source))
    assert rebuild_command(bundle, Backend.TENSORRT) == (
        "rsd-edge build-engine --model w.safetensors --backend tensorrt --tile 128"
    )
    int8 = build(tmp_path, graph, BuildRecord(source=source), precision=Precision.INT8)
    assert rebuild_command(int8, Backend.OPENVINO) == (
        "rsd-edge build-engine --model w.safetensors --backend openvino --precision int8 --tile 128"
    )


def test_options_of_tensorrt_are_for_tensorrt(tmp_path: Path, graph: Path) -> None:
    source = {"model": "w.safetensors", "calibration": "photos", "tensorrt": "--batch 1,2,4"}
    bundle = build(tmp_path, graph, BuildRecord(source=source), precision=Precision.INT8)
    told = "rsd-edge build-engine --model w.safetensors --backend {} --precision int8 --calibration photos"
    assert rebuild_command(bundle, Backend.TENSORRT) == told.format("tensorrt") + " --batch 1,2,4"
    assert rebuild_command(bundle, Backend.OPENVINO) == told.format("openvino")


@pytest.mark.parametrize("source", [None, {}, [], "edge-a", {"model": "edge-a"}, {"model": 1, "digest": 2}])
def test_a_manifest_that_does_not_say_its_source(zoo: Path, tmp_path: Path, graph: Path, source: Any) -> None:
    bundle = build(tmp_path, graph, RECORD)
    edit_manifest(bundle.path, source=source)
    assert staleness(load_bundle(bundle.path)) == []
    if not isinstance(source, dict) or not source:
        assert "--model MODEL" in rebuild_command(load_bundle(bundle.path))


def test_resolve_explains_a_file(graph: Path, tmp_path: Path) -> None:
    (tmp_path / "rsd.pth").touch()
    with pytest.raises(
        ModelError, match=r"rsd\.pth' is a PyTorch checkpoint; convert it with 'rsd-edge import-weights'"
    ):
        resolve_engine(tmp_path / "rsd.pth")
    with pytest.raises(ModelError, match=r"source\.onnx' is a file; pass the folder"):
        resolve_engine(graph)
