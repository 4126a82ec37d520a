"""The benchmarks of training, on tiny networks: that they run, resume and compare what they say."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner

from rsd_edge.distill.config import DistillConfig, config_to_dict
from rsd_edge.models.checkpoint import Checkpoint, save_checkpoint

MakeConfig = Callable[..., DistillConfig]

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def as_before(one_torch_thread: None) -> Iterator[None]:
    yield
    torch.set_flush_denormal(False)


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def written(config: DistillConfig, path: Path) -> Path:
    path.write_text(yaml.safe_dump(dict(config_to_dict(config)), sort_keys=False))
    return path


def test_training_computes_algorithm_one(
    tiny_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fused iteration and the plain transcription give the same losses, update after update."""
    module = script("distill_step", monkeypatch)
    config = tiny_config(distill_weight=1.0, gan_weight=0.1, fake_steps=2, lr=1e-3)
    path = written(config, tmp_path / "tiny.yaml")
    command = ["--config", path, "--set", "student.lpips_windows=false", "--device", "cpu", "--samples", 2]
    command += ["--rounds", 2, "--threads", 1, "--json", tmp_path / "step.json"]
    ran = CliRunner().invoke(module.main, [str(word) for word in command], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    document = json.loads((tmp_path / "step.json").read_text())
    same, later = (document[f"loss_difference_{when}"] for when in ("at_equal_weights", "after_updates"))
    assert same.keys() == later.keys() == set(module.LOSSES)
    assert max(same.values()) < 1e-5  # float32 sums in other orders; the first student update is after two of the fake
    assert max(later.values()) < 1e-3
    assert [len(document["losses"][which]) for which in ("ours", "plain")] == [3, 3]
    assert [len(document["seconds"][which]) for which in ("ours", "plain")] == [2, 2]
    breakdown = document["breakdown_seconds"]["ours"]
    assert set(breakdown) > {"encoder", "decoder", "student forward", "all backward passes"}
    assert all(spent > 0 for spent in breakdown.values())


def test_objectives_are_compared_and_resumed(
    tiny_config: MakeConfig, tiny_weights: Checkpoint, hr_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = script("compare_objectives", monkeypatch)
    path = written(tiny_config(fake_steps=1), tmp_path / "tiny.yaml")
    teacher = tmp_path / "teacher.safetensors"
    save_checkpoint(teacher, tiny_weights)
    options: list[Any] = ["--config", path, "--teacher", teacher, "--train", hr_photos, "--val", hr_photos]
    options += ["--set", "student.distill_weight=1", "--iterations", 1, "--samples", 4, "--work", tmp_path / "work"]
    options = [str(word) for word in (*options, "--json", tmp_path / "rows.json")]
    run = CliRunner().invoke(module.main, options, catch_exceptions=False)
    assert run.exit_code == 0, run.output
    document = json.loads((tmp_path / "rows.json").read_text())
    objectives = ["rsd, N = 4", "rsd, N = 1", "vsd", "sinsr", "regression"]
    assert list(document["rows"]) == [*objectives, *(f"{name} + GAN" for name in objectives)]
    figures = [row["lpips_squeeze"] for runs in document["rows"].values() for row in runs]
    assert len(set(figures)) > 5  # they do not all do the same
    monkeypatch.setattr(module, "train", None)  # a finished row is not run again
    assert CliRunner().invoke(module.main, options, catch_exceptions=False).exit_code == 0
    assert json.loads((tmp_path / "rows.json").read_text())["rows"] == document["rows"]
    planned = CliRunner().invoke(module.main, [*options, "--plan"], catch_exceptions=False)
    assert len(planned.output.splitlines()) == 11


def test_what_was_made_from_something_else_is_not_taken(
    tiny_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = script("compare_objectives", monkeypatch)
    config = tiny_config(distill_weight=1.0)
    row, other_row = module.rows(0.01)[-1], module.rows(0.02)[-1]

    def folder(
        base: DistillConfig = config, which: Any = row, made_from: tuple[str, ...] = ("teacher", "pairs")
    ) -> str:
        return str(module.configured(base, which, 0, tmp_path, made_from).run_dir)

    longer = replace(config, student=replace(config.student, iterations=9))
    elsewhere = replace(config, data=replace(config.data, train="elsewhere"))
    judged = replace(config, data=replace(config.data, val="elsewhere"))
    others = [folder(base) for base in (longer, elsewhere, judged)]
    others += [folder(which=other_row), folder(made_from=("other", "pairs")), folder(made_from=("teacher", "other"))]
    assert len({folder(), *others}) == 7
    assert folder(replace(config, threads=1, run_dir="elsewhere")) == folder()

    def pairs(base: DistillConfig = config, teacher: str = "teacher", samples: int = 4) -> Path:
        return Path(module.pairs_path(tmp_path, base, teacher, samples))

    other_crop = replace(config, student=replace(config.student, crop=72))
    caches = [pairs(base) for base in (elsewhere, other_crop, replace(config, seed=8))]
    assert len({pairs(), *caches, pairs(teacher="other"), pairs(samples=5)}) == 6
    assert pairs(longer) == pairs(judged) == pairs()


def test_cached_pairs_are_drawn_alike_from_anywhere(
    tiny_config: MakeConfig, tiny_weights: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = script("compare_objectives", monkeypatch)
    pairs = module.CachedPairs(tmp_path / "pairs.safetensors", tiny_config(), tiny_weights, 6)
    batches = pairs.batches_from(0, 0)
    seen = [next(batches) for _ in range(6)]
    assert all(torch.equal(a.z0, b.z0) for a, b in zip(seen[4:], pairs.batches_from(4, 0), strict=False))
    with_fake = pairs.batches_from(0, 2)
    drawn = [next(with_fake) for _ in range(18)]
    assert all(torch.equal(a.z0, b.z0) for a, b in zip(drawn[2::3], seen, strict=True))  # the student's, in any row
    assert all(torch.equal(a.z0, b.z0) for a, b in zip(drawn[12:], pairs.batches_from(4, 2), strict=False))
    of_fake = [batch for i, batch in enumerate(drawn) if i % 3 < 2]
    assert len({float(z.sum()) for z in torch.cat([batch.z0 for batch in of_fake[:3]])}) == 6
    assert not all(torch.equal(a.z0, b.z0) for a, b in zip(of_fake, seen, strict=False))  # an order of its own
    once = torch.cat([batch.z0 for batch in seen[:3]])
    assert len({float(z.sum()) for z in once}) == 6  # every sample once each time round
    assert seen[0].x0.shape == (2, 3, 64, 64)
    assert float(seen[0].x0.abs().max()) <= 1
