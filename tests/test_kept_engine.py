"""What an engine that was built from a checkpoint is kept under, and who builds it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rsd_edge import export, models
from rsd_edge.bundle import Bundle
from rsd_edge.cli import kept_engine
from rsd_edge.export import build
from rsd_edge.models.checkpoint import Checkpoint, save_checkpoint
from rsd_edge.specs import Backend
from rsd_edge.stream.batch import RunSettings

QUESTION = ("sha256 of a checkpoint", "onnxruntime", "--tile 64")


@pytest.mark.parametrize("package", [export, models])
def test_other_sources_make_another_engine(
    package: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The version says nothing of them: it is the same in every clone."""
    before = kept_engine._key(*QUESTION)
    assert kept_engine._key(*QUESTION) == before
    monkeypatch.setattr(package, "__path__", [str(tmp_path)])
    keys = [before]
    for text in ("a = 1", "a = 2"):
        (tmp_path / "source.py").write_text(text)
        keys.append(kept_engine._key(*QUESTION))
    assert len(set(keys)) == 3


def test_the_sources_are_those_that_make_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(kept_engine, "hash_file", lambda path: seen.append(path.name) or "")
    kept_engine._key(*QUESTION)
    assert {"onnx_export.py", "parts.py", "deploy.py", "swin_unet.py", "vq.py", "edge.py", "schedule.py"} <= set(seen)


def test_of_two_first_runs_one_builds_and_the_other_waits(
    tiny_weights: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "tiny.safetensors"
    save_checkpoint(weights, tiny_weights)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    both, builds, original, look = threading.Barrier(2), [], build.build_engine, kept_engine._flaw
    first = threading.local()

    def looking(folder: Path) -> str | None:
        found = look(folder)
        if not hasattr(first, "over"):
            first.over = True
            both.wait(60)  # both find nothing
        return found

    def counted(*arguments: Any, **options: Any) -> Bundle:
        builds.append(options["name"])
        return original(*arguments, **options)

    monkeypatch.setattr(kept_engine, "_flaw", looking)
    monkeypatch.setattr(build, "build_engine", counted)
    settings = RunSettings(threads=1)
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(kept_engine.kept_engine, weights, Backend.ONNXRUNTIME, settings) for _ in range(2)]
        (folder,) = {run.result() for run in runs}
    assert builds == [folder.name]
