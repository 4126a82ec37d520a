"""pyiqa does not run here: what stands for it has the API of 0.1.13 to 0.1.16, as their sources show it."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from rsd_edge.errors import FetchError, InputError, MissingDependencyError
from rsd_edge.evaluate.image_sets import Pair
from rsd_edge.evaluate.protocol import Protocol
from rsd_edge.evaluate.pyiqa_metrics import PyiqaMetric, check_fid, pyiqa_version
from rsd_edge.evaluate.report import Evaluation
from rsd_edge.evaluate.scoring import EvaluationSettings, Scorer
from rsd_edge.stream.images import write_image

torch = pytest.importorskip("torch")


class FakeMetric:
    """Scores the mean of the first channel, less that of the reference if there is one; FID counts files."""

    def __init__(self, name: str, device: Any) -> None:
        print(f"Loading pretrained model {name}")  # noqa: T201 (as pyiqa does)
        self.name, self.device = name, device
        self.seen: list[Any] = []

    def __call__(self, target: Any, ref: Any = None, **options: Any) -> Any:
        if self.name == "fid":
            assert options == {"num_workers": 0, "verbose": False}
            names = [sorted(path.name for path in Path(folder).iterdir()) for folder in (target, ref)]
            assert names[0] == names[1]
            return 100.0 + len(names[0])
        assert target.ndim == 4
        assert target.shape[1] == 3
        assert float(target.min()) >= 0
        assert float(target.max()) <= 1
        if min(target.shape[2:]) < 8:
            raise AssertionError("image size is too small")
        self.seen.append(target)
        other = 0 if ref is None else ref[:, 0].mean()
        return (target[:, 0].mean() - other + 0 * torch.rand(1)).reshape(1, 1)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[FakeMetric]:
    """The metrics that were made."""
    made: list[FakeMetric] = []

    def create_metric(name: str, *, device: Any = None) -> FakeMetric:
        if name == "clipiqa":
            raise LookupError("no\nconnection")
        made.append(FakeMetric(name, device))
        return made[-1]

    module = ModuleType("pyiqa")
    module.create_metric = create_metric  # type: ignore[attr-defined]
    module.__version__ = "0.1.14"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyiqa", module)
    return made


def image(red: int, size: int = 12) -> Any:
    return np.dstack([np.full((size, size), value, np.uint8) for value in (0, 7, red)])


def test_images_arrive_as_rgb_between_0_and_1(fake: list[FakeMetric], capsys: pytest.CaptureFixture[str]) -> None:
    metric = PyiqaMetric("musiq")
    assert metric(image(51)) == pytest.approx(0.2, abs=1e-6)  # float32
    assert fake[0].name == "musiq"
    assert str(fake[0].device) == "cpu"
    assert fake[0].seen[0][0, :, 0, 0].tolist() == pytest.approx([0.2, 7 / 255, 0], abs=1e-6)
    out, err = capsys.readouterr()
    assert out == ""  # stdout is for scores
    assert "Loading" in err


def test_names_are_those_of_pyiqa(fake: list[FakeMetric]) -> None:
    for name in ("lpips_alex", "dists", "niqe_pyiqa", "maniqa", "fid"):
        PyiqaMetric(name)
    assert [metric.name for metric in fake] == ["lpips", "dists", "niqe", "maniqa-pipal", "fid"]
    assert pyiqa_version("musiq") == "0.1.14"


@pytest.mark.usefixtures("fake")
def test_random_numbers_begin_anew_with_each_image(monkeypatch: pytest.MonkeyPatch) -> None:
    metric = PyiqaMetric("maniqa")
    drawn = []
    monkeypatch.setattr(FakeMetric, "__call__", lambda *_: drawn.append(np.random.rand()) or torch.zeros(1))
    metric(image(1))
    metric(image(2))
    assert drawn[0] == drawn[1]


@pytest.mark.usefixtures("fake")
def test_failures_have_a_cure() -> None:
    with pytest.raises(FetchError, match=r"cannot make clipiqa on cpu \(LookupError: no connection\); check the conn"):
        PyiqaMetric("clipiqa")
    with pytest.raises(InputError, match=r"cannot score 4x4 with musiq \(image size is too small\)"):
        PyiqaMetric("musiq")(image(1, size=4))


@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError("No module named 'pyiqa'", name="pyiqa"),
        RuntimeError("operator torchvision::nms does not exist"),  # torchvision beside another build of torch
    ],
)
def test_a_missing_package_is_one_clear_error(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pyiqa", raising=False)
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **options: Any) -> Any:
        if name == "pyiqa":
            raise error
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingDependencyError) as raised:
        PyiqaMetric("musiq")
    assert "musiq needs the package pyiqa" in str(raised.value)
    assert str(error) in str(raised.value)
    assert "pip install 'rsd-edge[pyiqa]'" in str(raised.value)


def test_fid_is_refused_for_small_sets() -> None:
    with pytest.raises(InputError, match=r"FID of 2047 images means little.*--force-fid"):
        check_fid(2047, force=False)
    check_fid(100, force=True)
    check_fid(2048, force=False)


@pytest.fixture
def pairs(tmp_path: Path) -> list[Pair]:
    made = []
    for stem, red in (("a", 102), ("b", 153)):
        paths = [tmp_path / f"{stem}_{kind}.png" for kind in ("sr", "hr")]
        write_image(paths[0], image(red))
        write_image(paths[1], image(51))
        made.append(Pair(stem, paths[0], paths[1], None))
    return made


@pytest.mark.usefixtures("fake")
def test_scores_of_pairs_and_of_the_set(pairs: list[Pair]) -> None:
    settings = EvaluationSettings(("dists", "musiq", "fid"), Protocol(border=2), force_fid=True)
    scorer = Scorer(settings)
    rows = tuple(scorer(pair) for pair in pairs)
    assert rows[0].scores == pytest.approx({"dists": 0.2, "musiq": 0.4}, abs=1e-6)
    assert rows[1].scores == pytest.approx({"dists": 0.4, "musiq": 0.6}, abs=1e-6)
    evaluation = Evaluation(rows, settings.metrics, whole=scorer.whole(pairs))
    data = evaluation.to_json()
    assert data["fid"] == 102
    assert data["intervals"]["fid"] is None
    assert data["versions"]["pyiqa"] == "0.1.14"
    assert "fid" not in data["rows"][0]
    assert data["musiq"] == pytest.approx(0.5, abs=1e-6)
