from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_tensorrt
import pytest

from rsd_edge import doctor
from rsd_edge.bundle import BuildRecord, shipped_engines
from rsd_edge.cli import main
from rsd_edge.export.tensorrt_build import build_bundle
from rsd_edge.export.tensorrt_options import TensorRtOptions
from rsd_edge.live import gstreamer
from rsd_edge.specs import Backend, EngineSpec, Precision

pytestmark = pytest.mark.usefixtures("no_trials")

Run = Callable[..., tuple[int, str]]


WITHOUT = """
import sys
from types import SimpleNamespace

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)

sys.meta_path.insert(0, Blocker())
from rsd_edge import trials
trials.Trial = lambda backend: SimpleNamespace(problem=lambda: None)
from rsd_edge.cli import main
main(sys.argv[2:])
"""


def without(package: str, *words: str) -> subprocess.CompletedProcess[str]:
    """The command in a process that cannot import a package."""
    return subprocess.run([sys.executable, "-c", WITHOUT, package, *words], capture_output=True, text=True, check=False)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as caught:
            main(["doctor", "--no-speed", *map(str, arguments)])
        return int(caught.value.code or 0), capsys.readouterr().out

    return call


@pytest.fixture
def engine(toy_graph: Path, toy_spec: EngineSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle for TensorRT 10.3 on the fake GPU."""
    pytest.importorskip("onnx")
    monkeypatch.setattr("rsd_edge.export.tensorrt_judge._ROUNDS", 1)
    spec = replace(toy_spec, backend=Backend.TENSORRT, precision=Precision.FP16)
    graphs = {"graph.onnx": toy_graph}
    options = TensorRtOptions(tile=48)
    fake_tensorrt.install(monkeypatch, "10.3.0")
    return build_bundle(graphs, spec, tmp_path / "e", BuildRecord(), reference=graphs, options=options).path


def facts_of(run: Run, *arguments: object) -> dict[str, Any]:
    code, out = run("--json", *arguments)
    assert code == 0
    found: dict[str, Any] = json.loads(out)
    return found


def test_encoders_of_a_gpu_are_listed_where_there_is_one(run: Run, engine: Path) -> None:
    assert ("h264_nvenc" in facts_of(run)["pyav"]["encoders"]) is doctor._encodes("h264_nvenc")


def test_a_machine_without_a_gpu(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    facts = facts_of(run)
    assert facts["backends"]["onnxruntime"] == {"usable": True, "problem": None}
    assert "TensorRT is not installed here" in facts["backends"]["tensorrt"]["problem"]
    assert facts["tensorrt"]["version"] is None
    assert facts["gpu"]["problem"]
    assert "mpeg4" in facts["pyav"]["encoders"]
    assert not [name for name in facts["pyav"]["encoders"] if "nvenc" in name]  # FFmpeg has them, and no GPU to run on
    shipped = {engine["model"] for engine in facts["engines"] if engine["usable"]}
    assert set(shipped_engines()) <= shipped
    code, out = run()
    assert code == 0
    assert "tensorrt    TensorRT is not installed here" in out
    assert run("--backend", "tensorrt")[0] == 2
    assert run("--backend", "onnxruntime")[0] == 0


@pytest.mark.parametrize(
    ("built_in", "launcher", "line"),
    [
        (True, None, "gstreamer   through OpenCV"),
        (False, "/usr/bin/gst-launch-1.0", "gstreamer   through gst-launch-1.0"),
        (False, None, "gstreamer   none, which CSI cameras need: .*apt-get install gstreamer1.0-tools"),
    ],
)
def test_what_runs_pipelines_is_what_cameras_take(
    run: Run, monkeypatch: pytest.MonkeyPatch, *, built_in: bool, launcher: str | None, line: str
) -> None:
    monkeypatch.setattr(gstreamer, "opencv_has_gstreamer", lambda: built_in)
    monkeypatch.setattr(gstreamer.shutil, "which", lambda name: launcher)
    assert re.search(f"^{line}", run()[1], re.MULTILINE)
    assert (facts_of(run)["gstreamer"]["problem"] is None) is (built_in or launcher is not None)


def test_a_machine_with_one(run: Run, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "l4t_release", lambda: "R36.4.3")
    facts = facts_of(run, engine.parent)
    assert facts["gpu"]["name"] == "Orin"
    assert facts["gpu"]["capability"] == "8.7"
    assert facts["tensorrt"] == {"version": "10.3.0", "problem": None}
    assert facts["backends"]["tensorrt"]["usable"]
    (found,) = [item for item in facts["engines"] if item["path"] == str(engine)]
    assert found["usable"]
    code, out = run(engine, "--backend", "tensorrt")
    assert code == 0
    assert "gpu         Orin, capability 8.7, 8192 MiB (its own)" in out
    assert f"{engine} (tensorrt fp16): usable" in out
    assert "Jetson      R36.4.3" in out


def test_engines_that_cannot_run_say_why(run: Run, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt.install(monkeypatch, "11.4.0.106")
    (found,) = [item for item in facts_of(run, engine)["engines"] if item["path"] == str(engine)]
    assert not found["usable"]
    assert found["why"] == ["TensorRT was 10.3.0 and is 11.4.0.106"]
    (engine / "graph.plan").write_bytes(b"x")
    assert "graph.plan has 1 bytes where the manifest says" in run(engine)[1]


def test_an_engine_that_would_saturate_is_not_called_usable(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rsd_edge.selection.int8_weight_bits", lambda: 7)
    engines = {Path(item["path"]).name: item for item in facts_of(run)["engines"] if item["model"] == "edge-s"}
    assert engines["fp32"]["usable"]
    assert not engines["int8"]["usable"]
    assert engines["int8"]["why"] == ["its INT8 products saturate on this processor, which has no VNNI"]


def test_a_folder_or_file_without_engines_is_told_of(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, out = run(tmp_path, tmp_path / "file")
    assert code == 0
    for path in (tmp_path, tmp_path / "file"):
        assert f"\nengine      {path} (unknown): holds no engine; give a folder that 'rsd-edge build" in out


def test_a_user_without_a_home(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr(Path, "home", homeless)
    problem = "engines cannot be kept (Could not determine home directory.); set XDG_CACHE_HOME to a folder"
    facts = facts_of(run)
    assert facts["engine_folder"] == {"path": None, "problem": problem}
    assert {engine["model"] for engine in facts["engines"]} >= set(shipped_engines())
    assert f"\nengine      those of --auto-build are not looked at: {problem}\n" in run()[1]


def test_engines_of_auto_build_are_looked_at(
    run: Run, engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kept = tmp_path / "cache" / "rsd-edge" / "engines" / engine.name
    kept.parent.mkdir(parents=True)
    engine.rename(kept)
    facts = facts_of(run)
    assert facts["engine_folder"] == {"path": str(kept.parent), "problem": None}
    assert str(kept) in {item["path"] for item in facts["engines"]}


@pytest.mark.parametrize(
    ("missing", "lines"),
    [
        ("av", ("pyav        films and cameras need PyAV; run 'pip install av'", "backend     onnxruntime: usable")),
        ("cv2", ("opencv      OpenCV is not installed; run 'pip install opencv-python'", "pyav        ")),
        ("onnxruntime", ("backend     onnxruntime: ONNX Runtime is not installed; run 'pip install onnxruntime'",)),
    ],
)
def test_a_package_that_is_missing_is_a_fact_among_others(missing: str, lines: tuple[str, ...]) -> None:
    """In a process of its own, where nothing has imported it yet."""
    found = without(missing, "doctor", "--no-speed")
    assert (found.returncode, found.stderr) == (0, "")
    for line in (*lines, "cpu         ", "engine      "):
        assert f"\n{line}" in found.stdout


@pytest.mark.parametrize(
    ("missing", "name", "error"),
    [
        ("av", "clip.mp4", "error: films and cameras need PyAV; run 'pip install av'\n"),
        ("onnxruntime", "photo.png", "error: ONNX Runtime is not installed; run 'pip install onnxruntime'\n"),
    ],
)
def test_a_run_without_a_package_says_in_one_line_what_to_install(
    tmp_path: Path, missing: str, name: str, error: str
) -> None:
    (tmp_path / name).write_bytes(b"x")
    found = without(missing, "run", str(tmp_path / name), "-o", str(tmp_path / "out"), "--precision", "fp32")
    assert (found.returncode, found.stderr) == (2, error)


def test_cameras_are_named(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "video0").mkdir()
    (tmp_path / "video0" / "name").write_text("vi-output, imx219\n")
    monkeypatch.setattr(doctor, "_CAMERAS", tmp_path)
    assert facts_of(run)["cameras"] == [{"device": "/dev/video0", "name": "vi-output, imx219"}]
    assert "cameras     /dev/video0 (vi-output, imx219)" in run()[1]
