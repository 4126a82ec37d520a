"""Weights come back from the engines that ship, and a fine-tune begins with them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch

from rsd_edge.bundle import resolve_engine, shipped_engines
from rsd_edge.distill.config import DistillConfig
from rsd_edge.distill.dry_run import rehearse
from rsd_edge.distill.run_log import LOG_FILE
from rsd_edge.distill.runtime import Runtime
from rsd_edge.distill.stages import run_stage
from rsd_edge.errors import InputError, ModelError
from rsd_edge.export.build import build_engine
from rsd_edge.export.restore import restored
from rsd_edge.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from rsd_edge.models.edge_tile import edge_tile
from rsd_edge.specs import Precision

MakeConfig = Callable[..., DistillConfig]


@pytest.fixture
def engine(tiny_weights: Checkpoint, tmp_path: Path) -> Path:
    """A tiny model's fp32 engine."""
    save_checkpoint(tmp_path / "tiny.safetensors", tiny_weights)
    return build_engine(str(tmp_path / "tiny.safetensors"), tmp_path, precision=Precision.FP32, name="tiny").path


@pytest.mark.parametrize("model", shipped_engines())
def test_weights_of_a_shipped_engine_are_the_same_function(model: str) -> None:
    bundle = resolve_engine(model)
    tile = edge_tile(restored(bundle))
    generator = torch.Generator().manual_seed(1)
    lq = torch.rand((1, 3, 24, 20), generator=generator) * 2 - 1
    noise = torch.randn((1, tile.latent_channels + 1, 24, 20), generator=generator)
    session = onnxruntime.InferenceSession(bundle.graph_path)
    names = [item.name for item in session.get_inputs()]
    (expected,) = session.run(None, dict(zip(names, (lq.numpy(), noise.numpy()), strict=True)))
    with torch.no_grad():
        found = tile(lq, noise).permute(0, 2, 3, 1).flip(3)
    # Detail reaches 1; fp32 sums of some hundred products in another order differ by a few units of their last place.
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=0, atol=5e-6)


def test_only_an_fp32_graph_of_ours_has_weights_to_restore(tmp_path: Path) -> None:
    name = shipped_engines()[0]
    with pytest.raises(ModelError, match="is edge onnxruntime int8; weights can be restored from the fp32"):
        restored(resolve_engine(name, Precision.INT8))
    bundle = resolve_engine(name)
    graph = onnx.load(bundle.graph_path)
    for tensor in list(graph.graph.initializer):
        if tensor.name == "student.head.weight":
            graph.graph.initializer.remove(tensor)
    onnx.save(graph, tmp_path / "graph.onnx")
    with pytest.raises(
        ModelError,
        match=r"graph.onnx is not a graph that this version exports .*head\.weight.*; build the engine again",
    ):
        restored(replace(bundle, graph_path=tmp_path / "graph.onnx"))


def test_a_fine_tune_begins_with_an_engine_or_a_checkpoint(tiny_config: MakeConfig, engine: Path) -> None:
    """Without a run's other stages; and without losing anything: a rate of nearly nothing changes nearly nothing."""
    still = {"lr": 1e-12, "warmup": 0, "iterations": 1, "train_decoder": True}
    config = replace(tiny_config(**still), finetune_from=str(engine))
    first = load_checkpoint(run_stage("finetune", config))
    assert set(first.parts) == {"stem", "student", "decoder"}
    bundle = resolve_engine(engine)
    assert first.record["started_from"] == {"model": config.model.name, "digest": bundle.digest}
    log = (config.stage_dir("finetune") / LOG_FILE).read_text().splitlines()
    validated = [row["iteration"] for row in map(json.loads, log) if "validation" in row]
    assert validated == [0, 1]
    for part, state in restored(bundle).parts.items():
        for name, tensor in state.items():
            if "time_embed" not in name:  # random, and multiplied by a modulation of zero
                torch.testing.assert_close(first.parts[part][name], tensor, rtol=0, atol=1e-9)
    weights = config.stage_dir("finetune") / "weights.safetensors"
    follow = replace(config, finetune_from=str(weights), run_dir=f"{config.run_dir}-2")
    second = load_checkpoint(run_stage("finetune", follow))
    assert second.record["started_from"]["file"] == "weights.safetensors"
    assert len(second.record["started_from"]["sha256"]) == 64
    torch.testing.assert_close(second.parts["decoder"], first.parts["decoder"], rtol=0, atol=1e-9)


def test_a_fine_tune_knows_what_it_began_with(tiny_config: MakeConfig, engine: Path) -> None:
    """Interrupted before anything is saved, it begins anew; afterwards only the same weights will do."""
    config = replace(tiny_config(train_decoder=True), finetune_from=str(engine))
    folder = config.stage_dir("finetune")
    folder.mkdir(parents=True)
    (folder / LOG_FILE).write_text(json.dumps({"iteration": 0, "validation": {"psnr_y": 99.0}}) + "\n")
    weights = run_stage("finetune", config)
    rows = [json.loads(line) for line in (folder / LOG_FILE).read_text().splitlines()]
    assert [row["iteration"] for row in rows if "validation" in row] == [0, 2]
    assert rows[0]["validation"]["psnr_y"] != 99.0
    renamed = weights.with_name("renamed.safetensors")
    shutil.copy(weights, renamed)
    follow = replace(config, finetune_from=str(weights), run_dir=f"{config.run_dir}-2")
    for name in (weights, renamed):
        run_stage("finetune", replace(follow, finetune_from=str(name)))
    copied = shutil.copytree(engine, engine.parent / "copied")
    run_stage("finetune", replace(config, finetune_from=str(copied)))  # finished, and begun with the same
    other = load_checkpoint(weights)
    save_checkpoint(engine.parent / "other.safetensors", other)
    build_engine(str(engine.parent / "other.safetensors"), engine.parent, precision=Precision.FP32, name="tiny")
    before = weights.read_bytes()
    with pytest.raises(ModelError, match=r"began with model tiny, digest .* finetune_from says model tiny, digest"):
        run_stage("finetune", config)
    assert weights.read_bytes() == before


def test_parts_that_are_not_trained_stay(tiny_config: MakeConfig, engine: Path) -> None:
    config = replace(tiny_config(lr=1e-2), finetune_from=str(engine))
    start, end = restored(resolve_engine(engine)).parts, load_checkpoint(run_stage("finetune", config)).parts
    assert end.keys() == start.keys()
    torch.testing.assert_close(end["decoder"], start["decoder"], rtol=0, atol=0)
    assert not torch.equal(end["student"]["tail.weight"], start["student"]["tail.weight"])


def test_a_fine_tune_that_cannot_begin_says_what_to_do(
    tiny_config: MakeConfig, engine: Path, tiny_weights: Checkpoint
) -> None:
    config = replace(tiny_config(train_decoder=True), finetune_from=str(engine))
    with pytest.raises(InputError, match=r"so that stage student is not needed; run 'rsd-edge distill finetune'"):
        run_stage("student", config)
    wants_teacher = replace(config, finetune=replace(config.finetune, distill_weight=1.0))
    with pytest.raises(InputError, match=r"has no teacher; set finetune.distill_weight=0"):
        run_stage("finetune", wants_teacher)
    with pytest.raises(ModelError, match=r"edge-s was trained with another model.architecture; take the configuration"):
        run_stage("finetune", replace(config, finetune_from="edge-s"))
    with pytest.raises(ModelError, match="neither a shipped engine"):
        run_stage("finetune", replace(config, finetune_from="edge-x"))
    teacher = engine.parent / "teacher.safetensors"
    parts = {"teacher": tiny_weights.parts["teacher"]}
    save_checkpoint(teacher, Checkpoint(tiny_weights.spec, parts))
    with pytest.raises(ModelError, match=r"which holds teacher of the family edge; give a model that ships \(edge-n, "):
        run_stage("finetune", replace(config, finetune_from=str(teacher)))
    assert not config.stage_dir("finetune").exists()


def test_a_rehearsal_begins_there_too(tiny_config: MakeConfig, engine: Path) -> None:
    config = replace(tiny_config(train_decoder=True), finetune_from=str(engine))
    lines = list(rehearse("finetune", config, Runtime("cpu")))
    assert f"weights of {engine}: loaded" in lines
    assert not any("teacher" in line for line in lines)
