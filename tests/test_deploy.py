"""The exported form of a tile computes what the trained one does."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rsd_edge.export.deploy import ChannelsLastShuffle, DeployedTile, PixelRowsShuffle
from rsd_edge.export.onnx_export import export_tile
from rsd_edge.models.edge import EdgeDecoder, EdgeGenerator, EdgeStem, EdgeTile
from rsd_edge.specs import ModelSpec

TOLERANCE = 2e-5  # float32 sums in another order through a dozen layers, on detail with a deviation near 1


@pytest.fixture
def tile(tiny_model: ModelSpec, randomise: Callable[[nn.Module, int], nn.Module]) -> EdgeTile:
    arch = tiny_model.architecture
    parts = EdgeStem(arch), EdgeGenerator(arch, noise_channel=True), EdgeDecoder(arch)
    for seed, part in enumerate(parts):
        randomise(part, seed)
    return EdgeTile(tiny_model, *parts).eval()


def run(tile: nn.Module, h: int, w: int) -> Tensor:
    """The detail, (2, 3, 4h, 4w) in RGB order, of either form."""
    generator = torch.Generator().manual_seed(h * w)
    with torch.no_grad():
        lq = 2 * torch.rand((2, 3, h, w), generator=generator) - 1
        result: Tensor = tile(lq, torch.randn((2, 5, h, w), generator=generator))
    return result.permute(0, 3, 1, 2).flip(1) if isinstance(tile, DeployedTile) else result


@pytest.mark.parametrize(("h", "w"), [(2, 2), (6, 10), (18, 14)])
def test_the_function_stays_the_same(tile: EdgeTile, h: int, w: int) -> None:
    """On sizes whose halves are odd, and on one that is nothing but borders."""
    expected = run(copy.deepcopy(tile), h, w)
    assert expected.std() > 0.1
    torch.testing.assert_close(run(DeployedTile(tile), h, w), expected, rtol=0, atol=TOLERANCE)


def rewritten(tile: DeployedTile) -> Iterator[nn.Conv2d]:
    """The convolutions whose weights are changed, and the last, whose result is shuffled another way."""
    for layers in (tile.stem.body, tile.student.up, tile.decoder.up_half, tile.decoder.up_full):
        yield [layer for layer in layers if isinstance(layer, nn.Conv2d)][-1]
    yield from (tile.student.head, tile.decoder.head)


def test_a_hundredth_of_a_layer_shows(tile: EdgeTile) -> None:
    """The tolerance above is far below what a wrong weight would do."""
    expected, deployed = run(tile, 6, 10), DeployedTile(copy.deepcopy(tile))
    for layer in rewritten(deployed):
        with torch.no_grad():
            layer.weight.mul_(1.01)
            assert (run(deployed, 6, 10) - expected).abs().max() > 10 * TOLERANCE
            layer.weight.div_(1.01)


def test_the_inner_shuffle_has_its_own_channel_order() -> None:
    """(column phase, row phase, channel) where torch has (channel, row phase, column phase)."""
    x = torch.randn(2, 12, 3, 5, generator=torch.Generator().manual_seed(0))
    reordered = x.reshape(2, 3, 2, 2, 3, 5).permute(0, 3, 2, 1, 4, 5).reshape(2, 12, 3, 5)
    assert torch.equal(ChannelsLastShuffle(3)(reordered), functional.pixel_shuffle(x, 2))


def test_the_last_shuffle_makes_rows_of_pixels() -> None:
    x = torch.randn(2, 12, 3, 5, generator=torch.Generator().manual_seed(0))
    reordered = x.reshape(2, 3, 2, 2, 3, 5).permute(0, 2, 3, 1, 4, 5).reshape(2, 12, 3, 5)
    assert torch.equal(PixelRowsShuffle()(reordered), functional.pixel_shuffle(x, 2).permute(0, 2, 3, 1))


def test_nothing_slow_is_left(tile: EdgeTile, tmp_path: Path) -> None:
    """No depth-to-space, which runtimes do on one thread, and no arithmetic on the noise."""
    export_tile(DeployedTile(tile), tmp_path / "graph.onnx")
    nodes = [node for node in onnx.load(tmp_path / "graph.onnx").graph.node if node.op_type != "Identity"]
    assert not {"DepthToSpace", "Split"} & {node.op_type for node in nodes}
    assert [node.op_type for node in nodes if "noise" in node.input] == ["Concat"]
    assert sorted(node.op_type for node in nodes if "lq" in node.input) == ["Conv", "Mul"]
