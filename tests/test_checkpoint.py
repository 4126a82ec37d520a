from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from rsd_edge.errors import ModelError, OutputError
from rsd_edge.models.checkpoint import METADATA_KEY, STATE_KEY, Checkpoint, load_checkpoint, save_checkpoint, state_of
from rsd_edge.models.edge import EdgeEncoder, EdgeStem
from rsd_edge.specs import ModelSpec


@pytest.fixture
def path(tmp_path: Path, tiny_weights: Checkpoint) -> Path:
    path = tmp_path / "a folder" / "weights.safetensors"
    save_checkpoint(path, tiny_weights)
    return path


def test_weights_come_back_with_spec_and_record(path: Path, tiny_weights: Checkpoint) -> None:
    loaded = load_checkpoint(path)
    assert loaded.spec == tiny_weights.spec
    assert loaded.record == {"stage": "none", "seconds": 0}
    assert loaded.parts.keys() == tiny_weights.parts.keys()
    for part, tensors in tiny_weights.parts.items():
        assert loaded.parts[part].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert torch.equal(loaded.parts[part][name], tensor), name
            assert loaded.parts[part][name].dtype == tensor.dtype
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_a_loaded_network_computes_the_same(path: Path, tiny_weights: Checkpoint) -> None:
    """Through a network in another memory layout, and with running statistics."""
    arch = tiny_weights.spec.architecture
    mine, theirs = EdgeEncoder(arch), EdgeEncoder(arch).to(memory_format=torch.channels_last)
    tiny_weights.load_into("encoder", mine)
    load_checkpoint(path).load_into("encoder", theirs)
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(theirs.eval()(image), mine.eval()(image), rtol=0, atol=1e-5)  # another order of sums


def test_state_of_is_a_copy() -> None:
    layer = nn.Linear(2, 2)
    state = state_of(layer)
    with torch.no_grad():
        layer.weight.add_(1)
    assert not torch.equal(state["weight"], layer.weight)
    assert not state["weight"].requires_grad


def test_a_part_that_is_missing_or_does_not_fit_is_named(tiny_weights: Checkpoint) -> None:
    arch = tiny_weights.spec.architecture
    with pytest.raises(ModelError, match="no part 'critic', it holds decoder, encoder, stem, student, teacher; give"):
        tiny_weights.load_into("critic", EdgeStem(arch))
    with pytest.raises(ModelError, match=r"part 'decoder' does not fit this architecture: .*body\.0\.weight") as caught:
        tiny_weights.load_into("decoder", EdgeStem(arch))
    assert "\n" not in str(caught.value)


def with_header(path: Path, header: str | None) -> Path:
    save_file({"stem.x": torch.zeros(1)}, path, metadata=None if header is None else {METADATA_KEY: header})
    return path


def test_a_missing_checkpoint_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.safetensors does not exist; make it with `rsd-edge distill` or"):
        load_checkpoint(tmp_path / "none.safetensors")


def test_a_folder_is_not_said_to_be_missing(tmp_path: Path) -> None:
    path = tmp_path / "d.safetensors"
    path.mkdir()
    with pytest.raises(ModelError, match=r"d\.safetensors is a folder; give the path of a file"):
        load_checkpoint(path)


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_a_damaged_checkpoint_is_named(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"weights\.safetensors cannot be read .*truncated"):
        load_checkpoint(path)


def test_a_pickle_is_not_read(tmp_path: Path) -> None:
    torch.save({"stem.x": torch.zeros(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(ModelError, match="cannot be read"):
        load_checkpoint(tmp_path / "weights.safetensors")


def test_a_missing_part_names_the_file(tiny_weights: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "latent.safetensors"
    save_checkpoint(path, replace(tiny_weights, parts={"stem": tiny_weights.parts["stem"]}))
    with pytest.raises(ModelError, match=r"checkpoint .*latent\.safetensors has no part 'teacher', it holds stem;"):
        load_checkpoint(path).load_into("teacher", nn.Module())


def test_a_published_file_says_what_converts_it(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "teacher.pth")
    with pytest.raises(ModelError, match=r"teacher\.pth' is a PyTorch checkpoint; convert it with 'rsd-edge"):
        load_checkpoint(tmp_path / "teacher.pth")


def test_the_state_of_a_run_is_no_checkpoint(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "state.safetensors", metadata={STATE_KEY: "{}"})
    with pytest.raises(ModelError, match=r"is the state of a run, not what it left; give the weights\.safetensors"):
        load_checkpoint(tmp_path / "state.safetensors")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (None, "carries no rsd-edge metadata"),
        ("{", "damaged metadata"),
        ("[]", "damaged metadata"),
        ("{}", "damaged metadata"),
        (json.dumps({"format": 99}), "has format 99 and this version reads 1"),
        (json.dumps({"format": 1}), "damaged metadata"),
        (json.dumps({"format": 1, "spec": {"nom": "x"}, "record": {}}), "unknown key 'nom'"),
        (json.dumps({"format": 1, "spec": {"name": "x"}, "record": 3}), "damaged metadata"),
        (json.dumps({"format": 1, "spec": {"name": "../x"}, "record": {}}), r"cannot be used: model name is '\.\./x'"),
    ],
)
def test_files_of_another_kind_are_named(tmp_path: Path, header: str | None, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_checkpoint(with_header(tmp_path / "other.safetensors", header))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_a_failed_write_keeps_the_old_file(
    path: Path, tiny_model: ModelSpec, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    before = path.read_bytes()

    def refuse(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OutputError, match=r"cannot write .*weights\.safetensors"):
        save_checkpoint(path, Checkpoint(tiny_model, {"stem": {"x": torch.ones(1)}}))
    assert path.read_bytes() == before
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, tiny_model: ModelSpec) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write into .*file"):
        save_checkpoint(tmp_path / "file" / "weights.safetensors", Checkpoint(tiny_model, {}))
