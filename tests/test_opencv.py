from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rsd_edge.opencv import cv2, quiet

IMPORT_WITH_BROKEN_CV2 = """
import sys

class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == "cv2":
            raise ImportError(sys.argv[1]) if sys.argv[1] else ModuleNotFoundError("No module named 'cv2'", name="cv2")

sys.meta_path.insert(0, Broken())
from rsd_edge import MissingDependencyError
try:
    import rsd_edge.pipeline
except MissingDependencyError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("reason", "cure"),
    [
        ("libGL.so.1: cannot open shared object file: No such file or directory", "apt-get install libgl1'"),
        ("libgthread-2.0.so.0: cannot open shared object file", "apt-get install libglib2.0-0'"),
        ("libglib-2.0.so.0: cannot open shared object file", "opencv-python-headless"),
        ("libxcb.so.1: cannot open shared object file", "apt-get install libxcb1'"),
        ("libodd.so.7: cannot open shared object file", "pip install --force-reinstall opencv-python"),
        ("", "OpenCV is not installed; run 'pip install opencv-python'"),
    ],
)
def test_a_broken_opencv_names_the_cure(tmp_path: Path, reason: str, cure: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", IMPORT_WITH_BROKEN_CV2, reason], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert cure in result.stdout
    assert reason in result.stdout
    assert len(result.stdout.splitlines()) == 1


def test_threads_that_are_quiet_at_once_leave_the_level_as_it_was() -> None:
    logging = getattr(cv2.utils, "logging", cv2)
    before = logging.getLogLevel()
    first, second = quiet(), quiet()
    for step in (first.__enter__, second.__enter__):
        step()
        assert logging.getLogLevel() == 0
    first.__exit__(None, None, None)
    assert logging.getLogLevel() == 0
    second.__exit__(None, None, None)
    assert logging.getLogLevel() == before > 0
