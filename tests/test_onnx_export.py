from __future__ import annotations

from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from rsd_edge.distill.config import load_config
from rsd_edge.errors import ModelError
from rsd_edge.export.deploy import DeployedTile
from rsd_edge.export.onnx_export import OPSET, export_tile
from rsd_edge.models.checkpoint import Checkpoint
from rsd_edge.models.edge import EdgeDecoder, EdgeGenerator, EdgeStem, EdgeTile
from rsd_edge.models.edge_tile import edge_tile
from rsd_edge.schedule import ResidualSchedule
from rsd_edge.specs import ModelSpec, PublishedArchitecture


@pytest.fixture(scope="module")
def graph(tiny_weights: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "graph.onnx"
    export_tile(DeployedTile(edge_tile(tiny_weights)), path)
    return path


def test_the_graph_has_the_engines_contract(graph: Path) -> None:
    session = ort.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    inputs = {node.name: (node.type, node.shape) for node in session.get_inputs()}
    assert inputs == {"lq": ("tensor(float)", ["n", 3, "h", "w"]), "noise": ("tensor(float)", ["n", 5, "h", "w"])}
    (output,) = session.get_outputs()
    assert (output.name, output.type, output.shape) == ("detail", "tensor(float)", ["n", "4h", "4w", 3])
    assert [opset.version for opset in onnx.load(graph).opset_import] == [OPSET]


@pytest.mark.parametrize(("n", "h", "w"), [(1, 32, 32), (2, 6, 10), (3, 18, 2)])
def test_onnxruntime_computes_what_torch_does(graph: Path, tiny_weights: Checkpoint, n: int, h: int, w: int) -> None:
    """At sizes other than the exporter's example, in every dimension."""
    rng = np.random.default_rng(n)
    lq = rng.uniform(-1, 1, (n, 3, h, w)).astype(np.float32)
    noise = rng.normal(size=(n, 5, h, w)).astype(np.float32)
    session = ort.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    (detail,) = session.run(["detail"], {"lq": lq, "noise": noise})
    with torch.no_grad():
        expected = edge_tile(tiny_weights)(torch.from_numpy(lq), torch.from_numpy(noise)).numpy()
    assert detail.shape == (n, 4 * h, 4 * w, 3)
    assert expected.std() > 0.1
    # float32 sums in another order, through a dozen layers; a timestep folded wrongly shows in the first digits.
    np.testing.assert_allclose(detail, expected[:, ::-1].transpose(0, 2, 3, 1), rtol=0, atol=2e-5)


def test_the_tile_of_a_checkpoint_is_one_step_from_the_prior(tiny_weights: Checkpoint) -> None:
    """From the checkpoint's parts, at index T - 1 = 14, with the noise's last channel as the student's."""
    arch = tiny_weights.spec.architecture
    stem, student, decoder = EdgeStem(arch), EdgeGenerator(arch, noise_channel=True), EdgeDecoder(arch)
    for part, network in (("stem", stem), ("student", student), ("decoder", decoder)):
        tiny_weights.load_into(part, network)
    generator = torch.Generator().manual_seed(0)
    lq, noise = torch.rand((1, 3, 8, 8), generator=generator), torch.randn((1, 5, 8, 8), generator=generator)
    schedule = ResidualSchedule(tiny_weights.spec.schedule)
    with torch.no_grad():
        z_T = schedule.prior(stem(lq), noise[:, :4]) * schedule.input_scale(14)
        expected = decoder(student(z_T, torch.tensor([14]), lq, noise[:, 4:]), lq)
        torch.testing.assert_close(edge_tile(tiny_weights)(lq, noise), expected, rtol=0, atol=1e-5)  # order of sums


def test_the_shipped_architecture_fits_in_12_megabytes(tmp_path: Path) -> None:
    spec = load_config(Path(str(resources.files("rsd_edge.distill") / "configs" / "edge-s.yaml"))).model
    arch = spec.architecture
    tile = EdgeTile(spec, EdgeStem(arch), EdgeGenerator(arch, noise_channel=True), EdgeDecoder(arch)).eval()
    export_tile(tile, tmp_path / "graph.onnx")
    size = (tmp_path / "graph.onnx").stat().st_size
    assert 4e6 < size <= 12e6
    used = {node.op_type for node in onnx.load(tmp_path / "graph.onnx").graph.node}
    # Nothing of the timestep is left, and nothing that does not quantise.
    assert used <= {"Add", "Concat", "Constant", "Conv", "DepthToSpace", "Identity", "Mul", "Relu", "Split"}


def test_models_that_do_not_export_are_named(tiny_weights: Checkpoint) -> None:
    other = replace(tiny_weights, spec=ModelSpec("tiny", family="resshift", architecture=PublishedArchitecture()))
    with pytest.raises(ModelError, match="model 'tiny' is of family 'resshift'; only edge exports"):
        edge_tile(other)
    teacher = replace(tiny_weights, spec=replace(tiny_weights.spec, steps=15))
    with pytest.raises(ModelError, match="model 'tiny' takes 15 steps; only one step exports"):
        edge_tile(teacher)
    unfinished = replace(tiny_weights, parts={name: tiny_weights.parts[name] for name in ("stem", "decoder")})
    with pytest.raises(ModelError, match="has no part 'student', it holds decoder, stem; give what the stage student"):
        edge_tile(unfinished)
