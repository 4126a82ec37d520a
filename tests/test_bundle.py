from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from rsd_edge import bundle as bundle_module
from rsd_edge.bundle import BuildRecord, load_bundle, resolve_engine, shipped_engines, write_bundle
from rsd_edge.errors import ModelError, OutputError
from rsd_edge.specs import EngineSpec, ModelSpec, Precision

RECORD = BuildRecord(
    versions={"rsd_edge": "0.1.0", "onnxruntime": "1.31.1"},
    device="a test machine",
    parity={"psnr_db": 81.5},
    speed={"ms_per_tile": 12.5},
    licence="Apache-2.0",
    training={"iterations": 3},
)
SPEC = EngineSpec(model=ModelSpec(name="toy", halo=12))


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


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00"])
def test_a_manifest_that_is_no_json_object(bundle_path: Path, text: str) -> None:
    (bundle_path / "manifest.json").write_text(text)
    with pytest.raises(ModelError, match=r"manifest\.json is not (JSON|a JSON object)"):
        load_bundle(bundle_path)


def test_another_format_is_refused(bundle_path: Path) -> None:
    edit_manifest(bundle_path, format=2)
    with pytest.raises(ModelError, match="bundle format 2 and this version reads format 1"):
        load_bundle(bundle_path)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"engine": {"model": {"name": "toy", "colour": 1}}}, "unknown key 'model.colour'"),
        ({"engine": {"precision": "fp32"}}, "model"),
        ({"engine": {"model": {"name": "toy"}, "precision": "fp8"}}, "fp32, fp16, int8"),
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


def test_resolve_finds_shipped_engines_by_name(tmp_path: Path, graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_module, "ZOO", tmp_path / "zoo")
    write_bundle(tmp_path / "zoo", SPEC, graph, RECORD, name="edge-b")
    write_bundle(tmp_path / "zoo", SPEC, graph, RECORD, name="edge-a")
    assert shipped_engines() == ["edge-a", "edge-b"]
    (tmp_path / "edge-a").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve_engine("edge-a").path == tmp_path / "zoo" / "edge-a"
    with pytest.raises(
        ModelError, match=r"'edge-z' is neither a shipped engine \(edge-a, edge-b\) nor a bundle folder"
    ):
        resolve_engine("edge-z")
    (tmp_path / "zoo" / "edge-a" / "graph.onnx").unlink()
    with pytest.raises(ModelError, match="pip install --force-reinstall"):
        resolve_engine("edge-a")


def test_resolve_explains_a_file(graph: Path) -> None:
    with pytest.raises(ModelError, match=r"source\.onnx' is a file; pass the folder"):
        resolve_engine(graph)
