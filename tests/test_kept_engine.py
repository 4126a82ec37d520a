"""What an engine that was built from a checkpoint is kept under."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from rsd_edge import export, models
from rsd_edge.cli import kept_engine

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
