from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import rsd_edge


def test_importing_the_package_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys, rsd_edge; rsd_edge.InputError; "
        "print([name for name in ('numpy', 'cv2', 'onnxruntime', 'av', 'torch') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_public_name_exists() -> None:
    from rsd_edge.resolver import SuperResolver

    assert rsd_edge.SuperResolver is SuperResolver
    for name in rsd_edge.__all__:
        assert getattr(rsd_edge, name) is not None
        assert name in dir(rsd_edge)


def test_other_names_do_not_exist() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'SuperResolve'"):
        _ = rsd_edge.SuperResolve
